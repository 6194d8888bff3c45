"""The numbers that `xpnet train` writes down are those of the weights that it writes down."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.command_line import say
from xpnet.io import model_file
from xpnet.report import read_record


def trained(capsys: Any, folder: Path, *flags: str, epochs: int = 60) -> tuple[str, dict[str, Any], list[dict[str, float]]]:
    """Train on iris; return what was printed, the model's metadata and the history."""
    words = ("train", "iris", "--epochs", str(epochs), "--learning-rate", "0.2", *flags, "--out", folder)
    code, out, err = say(capsys, *words)
    assert code == 0, err
    with (folder / "history.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return out, model_file.read(folder / "model.xpnet").metadata, rows


def test_early_stopping(tmp_path, capsys):
    out, metadata, history = trained(capsys, tmp_path / "o", "--patience", "1")
    best = min(range(len(history)), key=lambda i: history[i]["val_loss"])
    assert best < len(history) - 1
    assert metadata["weights_of_epoch"] == best + 1
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        assert metadata[name] == history[best][name]
    assert f"the weights are those of epoch {best + 1} of {len(history)}" in out
    record = read_record(tmp_path / "o")
    assert record["weights"] == {"epoch": best + 1, "restored": True, "averaged": False}
    matrix = np.array(record["predictions"]["confusion"])
    assert np.trace(matrix) / matrix.sum() == pytest.approx(metadata["val_accuracy"])
    assert f"weights of epoch {best + 1}" in (tmp_path / "o" / "report.html").read_text()


def test_an_average_of_the_weights(tmp_path, capsys):
    _, metadata, history = trained(capsys, tmp_path / "o", "--average", "0.9", epochs=3)
    x, y = xn.data.load("iris").test
    found = model_file.read(tmp_path / "o" / "model.xpnet")
    assert found.preprocessing is not None
    measured = xn.Trainer(
        found.model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), metrics=["accuracy"]
    ).evaluate((found.preprocessing(x), y))
    assert metadata["val_loss"] == pytest.approx(measured["loss"], rel=1e-5)
    assert metadata["val_accuracy"] == pytest.approx(measured["accuracy"])
    assert metadata["val_loss"] != history[-1]["val_loss"]
    assert "loss" not in metadata  # nobody measured it
    assert "averaged weights" in (tmp_path / "o" / "report.html").read_text()
