"""The records: their recipes, repeatable runs, and what pages say."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from benchmarks.records import __main__ as records
from benchmarks.records import cifar10, mnist
from benchmarks.records.common import Data, Setting, accuracies, one_run, summary

RANDOM = np.random.default_rng(5)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace data sets by few images of the published shapes, with a bright column for each class."""

    def load(name: str) -> xn.data.Dataset:
        size, channels = (28, 1) if name == "mnist" else (32, 3)

        def part(count: int) -> tuple[Any, Any]:
            y = np.arange(count) % 10
            x = RANDOM.integers(0, 100, (count, size, size, channels)).astype(np.float32)
            x[np.arange(count), :, 2 * y + 4] = 255
            return x / 255, y

        mean, std = (0.2,) * channels, (0.25,) * channels
        return xn.data.Dataset(
            name, part(1600), part(200), tuple("0123456789"), mean=mean, std=std, source="", licence="", scale=255.0
        )

    monkeypatch.setattr(xn.data, "load", load)


def test_the_networks_are_those_of_the_recipes() -> None:
    model = mnist.model(Setting(), 0)
    shapes = [p.shape for name, p in model.parameters().items() if name.endswith("kernel")]
    assert shapes == [(5, 5, 1, 24), (3, 3, 24, 32), (800, 256), (256, 10)]
    assert model.output_shape((28, 28, 1)) == (10,)
    model = cifar10.model(Setting(), 0)
    kernels = [p.shape for name, p in model.parameters().items() if name.endswith("kernel")]
    assert [k[-1] for k in kernels] == [64, 128, 128, 128, 256, 512, 512, 512, 10]
    assert all(k[:2] == (3, 3) for k in kernels[:-1])
    assert 6.5e6 < model.count_parameters() < 6.7e6
    assert max(p.shape[-1] for p in cifar10.model(Setting(width=0.25), 0).parameters().values()) == 128


def test_the_optimizers_are_those_of_the_recipes() -> None:
    adam: Any = mnist.trainer(mnist.model(Setting(), 0), 234, 0).optimizer
    assert (adam.beta1, adam.beta2) == (0.7, 0.9)
    assert max(adam.learning_rate(step) for step in range(234)) == pytest.approx(0.01, rel=1e-3)
    assert adam.learning_rate(233) < 1e-6
    sgd: Any = cifar10.trainer(cifar10.model(Setting(width=0.125), 0), 100, 0).optimizer
    assert (sgd.momentum, sgd.nesterov, sgd.weight_decay) == (0.9, True, 5e-4)


@pytest.mark.parametrize("recipe", [mnist.RECIPE, cifar10.RECIPE], ids=lambda r: r.name)
def test_runs_are_repeatable_and_learn(recipe: Any, small: None) -> None:
    recipe = dataclasses.replace(recipe, batch=64)  # faster
    steps = 5
    setting = Setting(steps=steps, width=0.25 if recipe.name == "mnist" else 0.125)
    data = Data(recipe, setting)
    assert data.train[0].images.dtype == np.uint8
    first, again = one_run(recipe, setting, data, 3), one_run(recipe, setting, data, 3)
    assert first["losses"] == again["losses"]
    assert first["accuracy"] == again["accuracy"]
    assert [step for step, _ in first["losses"]] == list(range(1, steps + 1))
    assert first["losses"][-1][1] < first["losses"][0][1]
    assert ("accuracy_mirrored" in first) == (recipe.name == "cifar10")
    other = one_run(recipe, setting, data, 4)
    assert other["losses"] != first["losses"]


def test_accuracies_by_hand() -> None:
    class Side(xn.Module):
        """Predict 1 if the left half is brighter."""

        def forward(self, x: Any) -> Any:
            left = xn.ops.mean(x[:, :, :2], axis=(1, 2, 3)) - xn.ops.mean(x[:, :, 2:], axis=(1, 2, 3))
            return xn.ops.stack([-left, left], axis=-1)

    images = np.zeros((4, 2, 4, 1), np.uint8)
    images[:2, :, :2] = 200
    labels = np.array([1, 1, 0, 1])
    right, mirrored = accuracies(cast(Any, Side()), (xn.data.ByteImages(images), labels), True, batch=3)
    assert right == 0.75
    # Averaged with its mirror image every example is a tie: the first class is predicted.
    assert mirrored == 0.25
    assert accuracies(cast(Any, Side()), (xn.data.ByteImages(images), labels), False)[1] is None


def test_the_held_out_images_are_not_trained_on(small: None) -> None:
    data = Data(mnist.RECIPE, Setting(holdout=300))
    whole = Data(mnist.RECIPE, Setting())
    assert (len(data.train[0]), len(data.test[0]), data.test_name) == (1300, 300, "held-out training")
    assert (len(whole.train[0]), len(whole.test[0]), whole.test_name) == (1600, 200, "test")


def test_jpeg_copies_are_recognised(small: None) -> None:
    image = pytest.importorskip("PIL.Image")
    rows, columns = np.mgrid[0:32, 0:32] / 4
    shifts = RANDOM.uniform(0, 6, (60, 3, 1, 1, 3))
    smooth = np.sin(rows[..., None] + shifts[:, 0]) + np.sin(columns[..., None] + shifts[:, 1])
    pixels = np.clip(128 + 40 * smooth + RANDOM.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    copies = []
    for picture in pixels:
        file = io.BytesIO()
        image.fromarray(picture).save(file, "JPEG", quality=50)
        copies.append(np.asarray(image.open(file)))
    assert abs(cifar10.border_steps(pixels / 255) - 1) < cifar10.JPEG_STEP - 1
    assert cifar10.remark(pixels / 255) == ""
    assert "JPEG copy" in cifar10.remark(np.stack(copies) / 255)


def test_the_command_writes_every_seed(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["mnist", "--runs", "2", "--first-seed", "7", "--width", "0.25", "--threads", "1", "--out", str(tmp_path)]
    before = xn.get_num_threads()
    try:
        assert records.main(settings) == 0
    finally:
        xn.set_num_threads(before)
    (file,) = tmp_path.glob("*.json")
    assert file.stem.startswith("record-mnist-cpu-with-")
    result = json.loads(file.read_text())
    assert [run["seed"] for run in result["runs"]] == [7, 8]
    page = file.with_suffix(".md").read_text()
    assert "| 7 |" in page
    assert "| 8 |" in page
    assert "Not the recipe (0.25 times the channels): this is no record." in page
    assert "seed 8:" in capsys.readouterr().out


def _result(**more: Any) -> dict[str, Any]:
    runs = [{"seed": 0, "seconds": 1.5, "accuracy": 0.93, "accuracy_mirrored": 0.95, "losses": [2.0, 1.0]}]
    runs.append({**runs[0], "seed": 1, "accuracy": 0.94})
    setting = {"device": "cuda", "precision": "bfloat16"}
    found = {"record": "cifar10", "title": "a title", "date": "2000-01-01", "commit": "abc", "setting": setting, **more}
    machine = {"architecture": "x", "system": "Linux"}
    found |= {"machine": machine, "where": "NVIDIA Test", "device_name": "NVIDIA Test", "versions": {"xpnet": "0"}}
    found |= {
        "warm_up_seconds": 2.0,
        "measured_on": "test",
        "foreign_cores": 0.5,
        "runs": runs,
        "altered": "",
        "remark": "A JPEG copy",
    }
    return {**found, "summary": summary(cifar10.RECIPE, runs)}


def test_pages_say_what_was_missed() -> None:
    page = records.page(_result())
    assert "mean accuracy 93.50%" in page
    assert "The mean is **below** the target of 94%" in page
    assert "With the mean over each image and its mirror image: mean accuracy 95.00%" in page
    assert "The time is under the target of 20 s" in page
    assert "* A JPEG copy." in page
    assert "Other processes kept 0.5 cores busy" in page
    assert "| 1 | 1.50 | 94.00% | 95.00% | 1.0000 |" in page


def test_data_that_are_not_there_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def load(name: str) -> None:
        raise xn.data.DataError(f"{name}: no such files\nput them somewhere")

    monkeypatch.setattr(xn.data, "load", load)
    assert records.main(["mnist", "--threads", str(xn.get_num_threads())]) == 2
    assert capsys.readouterr().err == "mnist cannot run here: mnist: no such files\n"
