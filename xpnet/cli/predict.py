"""``xpnet evaluate`` and ``xpnet predict``: use a saved model."""

from __future__ import annotations

import argparse
import csv
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpnet import backend, data, ops
from xpnet.cli import user_data
from xpnet.cli.argument_types import UsageError
from xpnet.cli.hints import check_settings
from xpnet.cli.model_argument import example_shape, user_classes
from xpnet.cli.places import STARTED_IN, locate
from xpnet.data import DataError, images, read_image
from xpnet.data.npy import read_npy
from xpnet.io import archive, model_file
from xpnet.io.model_file import SavedModel
from xpnet.optim import SGD
from xpnet.training import Trainer

NumpyArray = np.ndarray[Any, Any]


def evaluate(args: argparse.Namespace) -> int:
    """Print the loss and the accuracy on the test part of a data set."""
    saved = model_file.read(args.model, args.device, classes=user_classes(args.code))
    name = args.dataset or saved.metadata.get("dataset")
    if not isinstance(name, str):
        raise UsageError(f"{args.model} does not say what it was trained on; give a data set: {', '.join(data.names())}")
    if args.dataset is None and name not in data.names():
        name = locate(name, saved.metadata.get(STARTED_IN), "the data")
    check_settings(name, args.data, args.size, args.target, args.skip_bad)
    size, target = args.size or saved.metadata.get("size"), args.target or saved.metadata.get("target")
    dataset = user_data.find_dataset(name, args.data, size, target, args.skip_bad)
    expected = example_shape(saved, args.model)
    if (expected, len(saved.class_names) or dataset.classes) != (dataset.input_shape, dataset.classes):
        raise UsageError(
            f"{args.model} takes examples of shape {expected} and knows {len(saved.class_names)} classes; {name} has "
            f"{dataset.input_shape} and {dataset.classes}"
        )
    x, y = dataset.test
    trainer = Trainer(saved.model, loss="softmax_cross_entropy", optimizer=SGD(0.0), metrics=["accuracy"])
    values = trainer.evaluate((user_data.preprocess(x, saved.preprocessing), y), batch_size=args.batch_size)
    print(f"{name}: {accuracy_text(round(values['accuracy'] * len(y)), len(y))}, loss {values['loss']:.4g}")
    return 0


def accuracy_text(correct: int, total: int) -> str:
    """Describe an accuracy on test data."""
    return f"test accuracy {correct / total:.2%} ({correct:,} of {total:,})".replace("%", " %")


def predict(args: argparse.Namespace) -> int:
    """Print the source, the class and its probability for every example, one a line or as a CSV table."""
    saved = model_file.read(args.model, args.device, classes=user_classes(args.code))
    shape = example_shape(saved, args.model)
    # Read all files before the first line is printed: an error should not hide among results.
    predictions = [row for path in _files(args.images) for row in _predictions(saved, path, shape, args.skip_bad)]
    if not predictions:
        raise UsageError("none of the files can be read")
    known = saved.class_names
    names = [known[k] if k < len(known) else str(k) for k in range(len(predictions[0][1]))]
    if args.out is not None:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["example", "class", "probability", *names])
        for place, row in predictions:
            best = int(row.argmax())
            table.writerow([place, names[best], *(f"{float(p):.6g}" for p in (row[best], *row))])
        if args.out == "-":
            print(text.getvalue(), end="")
        else:
            archive.write_atomically(
                args.out, lambda file: file.write(text.getvalue().encode("utf-8", "surrogateescape"))
            )  # as files are named
            print(f"{len(predictions):,} predictions in {args.out}")
        return 0
    for place, row in predictions:
        best = int(row.argmax())
        share = f"{float(row[best]):.1%}".replace("%", " %")
        print(f"{place}  {names[best]}  {share}")
    return 0


def _files(paths: Sequence[str]) -> list[str]:
    """Replace folders by the images in them, at any depth, sorted by path."""
    found: list[str] = []
    for path in paths:
        if Path(path).is_dir():
            inside = sorted(str(p) for p in Path(path).rglob("*") if p.suffix.lower() in images.ENDINGS and p.is_file())
            if not inside:
                raise UsageError(f"{path}: a folder without images; expected some of {', '.join(images.ENDINGS)}")
            found += inside
        else:
            found.append(path)
    return found


def _predictions(saved: SavedModel, path: str, shape: tuple[int, ...], skip_bad: bool) -> list[tuple[str, NumpyArray]]:
    """Return (place, probabilities) of every example in a file; with `skip_bad`, warn if it cannot be read and return none."""
    try:
        x = read(path, shape)
    except DataError as error:
        if not skip_bad:
            raise
        warnings.warn(f"left out {error}", RuntimeWarning, stacklevel=2)
        return []
    probabilities = backend.to_numpy(ops.softmax(saved.model.predict(user_data.preprocess(x, saved.preprocessing))))
    return [(path if len(x) == 1 else f"{path}[{i}]", row) for i, row in enumerate(probabilities)]


def read(path: str, shape: tuple[int, ...]) -> Any:
    """Read the examples in a file: float32 (N, *shape), in [0, 1] if they are pixels.

    An image is resized to the model's size. If the model takes images, integers in a .npy file are divided by the largest
    value of their dtype, like pixels; other numbers are kept.

    Raises:
        UsageError, DataError: the file is missing or unreadable, or does not fit the model.
    """
    if Path(path).suffix.lower() == ".csv":
        return _rows(path, shape)
    if Path(path).suffix.lower() != ".npy":
        if len(shape) != 3:
            raise UsageError(f"{path}: the model takes {shape[0]} features, not images; put them into a .csv or .npy file")
        try:
            pixels = read_image(path, channels=shape[2], size=(shape[0], shape[1]))
        except ImportError as error:
            raise UsageError(f"{path}: {error}") from error
        return np.divide(pixels, np.float32(255), dtype=np.float32)[None]
    x = read_npy(path)
    scale = np.iinfo(x.dtype).max if x.dtype.kind in "iu" and len(shape) == 3 else 1
    found = x.shape
    if len(shape) == 3 and shape[2] == 1 and found[-2:] == shape[:2]:
        x = x[..., None]
    if x.shape == shape:
        x = x[None]
    if x.shape[1:] != shape or not len(x):
        raise DataError(f"{path}: holds an array of shape {found}, expected {shape} or (N, {', '.join(map(str, shape))})")
    with np.errstate(over="ignore"):  # float64 beyond float32 is reported as infinite
        x = (x / scale).astype(np.float32)
    if not np.isfinite(x).all():
        at = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])
        raise DataError(f"{path}: example {at + 1} holds a number that is not finite; fill the gaps as in the training data")
    return x


def _rows(path: str, shape: tuple[int, ...]) -> NumpyArray:
    """Read the examples in the rows of a CSV file; for a model of images, whole numbers up to 255 are pixels."""
    titles, rows = user_data.read_csv(Path(path))
    count = math.prod(shape)
    if len(rows[0]) == count + 1:  # a training file, with the classes in its last column
        rows = [row[:-1] for row in rows]
    if len(rows[0]) != count:
        raise DataError(f"{path}: has {len(rows[0])} columns, the model takes {count} numbers")
    x = user_data.parse_numbers(Path(path), titles, rows)
    if len(shape) == 3 and x.max() > 1 and (x == np.rint(x)).all() and x.max() <= 255:
        x /= np.float32(255)
    return x.reshape(len(x), *shape)
