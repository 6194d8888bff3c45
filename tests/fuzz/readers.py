"""The readers of files, each with whole files to begin with, its mutations and its documented errors."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import xpnet as xn
from tests.fuzz import mutate
from tests.fuzz.mutate import Mutation
from tests.training import runs
from xpnet.cli import main, train_settings, user_data
from xpnet.cli.argument_types import UsageError
from xpnet.data import DataError, idx, read_image
from xpnet.data.npy import read_npy
from xpnet.io import model_file
from xpnet.io.archive import ArchiveError
from xpnet.report import RunReport, comparison_page, read_record, run_page
from xpnet.training import load_checkpoint, save_checkpoint


@dataclass
class Reader:
    """One reader.

    Attributes:
        suffix: of its files.
        seeds: contents of whole files.
        read: takes the path of a file.
        errors: what it may raise.
        mutations: of its format; bytes are always changed as well.
    """

    suffix: str
    seeds: list[bytes]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...]
    mutations: tuple[Mutation, ...] = field(default=())


class Failed(Exception):  # noqa: N818 - not an error of a reader
    """A command did not end as it should."""


def command(*words: str) -> None:
    """Run a command; raise a UsageError with what it said where it ended with the exit code 2."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("always")
        code = main(words)
    said = err.getvalue()
    if code not in (0, 2) or "Traceback" in said or (code == 2 and not said.strip()):
        raise Failed(f"exit code {code}: {said[-3000:]}")
    if len(said) > 2000 * max(1, said.count("\n")):
        raise Failed(f"a message of {len(said)} characters: {said[:200]}")
    if code:
        raise UsageError(said)


def _images() -> list[bytes]:
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for kind, settings in (
        ("PNG", {}), ("JPEG", {}), ("BMP", {}), ("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}),
        ("WEBP", {}), ("JPEG", {"progressive": True}),
    ):  # fmt: skip
        for shape in ((9, 7, 3), (8, 8)):
            file = io.BytesIO()
            with contextlib.suppress(OSError, KeyError):  # a pillow without that format
                Image.fromarray(rng.integers(0, 255, shape).astype(np.uint8)).save(file, kind, **settings)
                found.append(file.getvalue())
    found.append(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) = \n")
    return found


def _npy() -> list[bytes]:
    found = []
    arrays = (
        np.zeros((2, 4), "f4"),
        np.ones(4),
        np.arange(8).reshape(2, 4),
        np.zeros((3, 4), ">i2"),
        np.asfortranarray(np.eye(4)),
    )
    for array in arrays:
        file = io.BytesIO()
        np.save(file, array)
        found.append(file.getvalue())
    return found


def _npz() -> list[bytes]:
    file = io.BytesIO()
    np.savez(file, x=np.random.default_rng(0).random((30, 4)).astype("f4"), y=np.arange(30) % 3)
    return [file.getvalue()]


def _tables() -> list[bytes]:
    rng = np.random.default_rng(0)
    rows = [(*(f"{v:.2f}" for v in rng.normal(size=4)), ("cat", "dog")[i % 2]) for i in range(40)]
    text = "a,b,c,d,kind\n" + "\n".join(",".join(row) for row in rows) + "\n"
    return [text.encode(), text.replace(",", ";").encode(), text.encode("utf-16"), text[text.index("\n") + 1 :].encode()]


def _idx(folder: Path) -> list[bytes]:
    found = []
    for name, array in (("a", np.zeros((3, 4, 4), np.uint8)), ("b.gz", np.arange(9, dtype=np.int32)), ("c", np.eye(3))):
        idx.write(folder / name, array)
        found.append((folder / name).read_bytes())
    return found


def _model() -> xn.Module:
    body = xn.Sequential([xn.Conv2D(4, 3, padding="same"), xn.BatchNorm(), xn.Dropout(0.1)])
    model = xn.Sequential([xn.Residual(body), xn.Flatten(), xn.Dense(4, "relu"), xn.Dense(3)], input_shape=(6, 6, 4), seed=1)
    model.predict(np.zeros((1, 6, 6, 4), np.float32))
    return model


def _record(folder: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for classes in (True, False):
        x = rng.normal(size=(40, 6, 6, 1)).astype(np.float32)
        y: Any = rng.integers(0, 3, 40) if classes else x.mean(axis=(1, 2, 3))[:, None]
        layers = [xn.Conv2D(2, 3, activation="relu"), xn.Flatten(), xn.Dense(3 if classes else 1)]
        trainer = xn.Trainer(
            xn.Sequential(layers, input_shape=(6, 6, 1)),
            loss="softmax_cross_entropy" if classes else "mean_squared_error",
            optimizer=xn.optim.SGD(0.01),
            callbacks=[RunReport(folder, class_names=["cat", "dog", "owl"])],
        )
        trainer.fit((x, y), validation=(x, y), epochs=2, verbose=False)
        found.append((folder / "run.json").read_bytes())
    return found


def readers(folder: Path) -> dict[str, Reader]:
    """Return every reader by name; `folder` is for files that are needed to make them."""
    folder.mkdir(parents=True, exist_ok=True)
    small = xn.Sequential([xn.Dense(3)], input_shape=(4,), seed=1)
    features, pictures = str(folder / "features.xpnet"), str(folder / "pictures.xpnet")
    small.save(features)
    xn.Sequential([xn.Flatten(), xn.Dense(3)], input_shape=(8, 8, 1), seed=1).save(pictures)
    model = _model()
    model.save(folder / "model.xpnet", class_names=["a", "b", "c"], metadata={"dataset": "x"})
    model.save_weights(folder / "weights.safetensors")
    runs.fit(trained := runs.trainer(None))
    save_checkpoint(trained, folder / "run.ckpt")
    config = b'dataset = "iris"\nmodel = "mlp"\nepochs = 3\nlearning_rate = 0.01\nsize = [64, 64]\naugment = false\n'

    def reads(name: str) -> list[bytes]:
        return [(folder / name).read_bytes()]

    def checkpoint(path: Path) -> None:
        run = runs.trainer(None)
        before = runs.fingerprint(run), run.epoch, run.iteration, run.optimizer.iterations
        try:
            load_checkpoint(run, path)
        except (ArchiveError, ValueError):
            after = runs.fingerprint(run), run.epoch, run.iteration, run.optimizer.iterations
            if before != after:
                raise Failed("a checkpoint that was refused has changed the trainer") from None
            raise

    def page(path: Path) -> None:
        record = read_record(path)
        json.dumps(record)
        if "<script>alert" in run_page(record) + comparison_page([record, record]):
            raise Failed("markup of the record is markup of the page")

    tables, data = (DataError, UsageError), (DataError,)
    records = _record(folder / "record")
    return {
        "image": Reader(".png", _images(), read_image, data),
        "predict image": Reader(".png", _images(), lambda p: command("predict", pictures, str(p)), (UsageError,)),
        "npy": Reader(".npy", _npy(), read_npy, data, (mutate.of_npy,)),
        "predict npy": Reader(".npy", _npy(), lambda p: command("predict", features, str(p)), (UsageError,), (mutate.of_npy,)),
        "npz": Reader(".npz", _npz(), lambda p: user_data.find_dataset(str(p)), tables),
        "csv": Reader(".csv", _tables(), lambda p: user_data.find_dataset(str(p)), tables, (mutate.of_words,)),
        "predict csv": Reader(
            ".csv", _tables(), lambda p: command("predict", features, str(p)), (UsageError,), (mutate.of_words,)
        ),
        "idx": Reader("", _idx(folder), idx.read, data),
        "config": Reader(".toml", [config], train_settings.read_file, (UsageError,), (mutate.of_words,)),
        "record": Reader(".json", records, page, (ArchiveError,), (mutate.of_json, mutate.of_words)),
        "report": Reader(
            ".json",
            records,
            lambda p: command("report", str(p), "--out", str(folder / "page.html")),
            (UsageError,),
            (mutate.of_json,),
        ),
        "model": Reader(".xpnet", reads("model.xpnet"), model_file.read, (model_file.ModelFileError,), (mutate.of_archive,)),
        "summary": Reader(
            ".xpnet", reads("model.xpnet"), lambda p: command("summary", str(p)), (UsageError,), (mutate.of_archive,)
        ),
        "weights": Reader(
            ".safetensors", reads("weights.safetensors"), _model().load_weights, (ValueError,), (mutate.of_safetensors,)
        ),
        "checkpoint": Reader(".ckpt", reads("run.ckpt"), checkpoint, (ValueError,), (mutate.of_archive,)),
    }
