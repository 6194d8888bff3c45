"""``xpnet evaluate`` and ``xpnet predict``: what a saved model is good for."""

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
from xpnet.cli.model_argument import user_classes
from xpnet.cli.train import prepared
from xpnet.data import DataError, images, read_image
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
        raise UsageError(f"{args.model} does not say what it was trained on; name a data set: {', '.join(data.names())}")
    size, target = args.size or saved.metadata.get("size"), args.target or saved.metadata.get("target")
    dataset = user_data.find_dataset(name, args.data, size, target, args.skip_bad)
    expected = example_shape(saved)
    if (expected, len(saved.class_names) or dataset.classes) != (dataset.input_shape, dataset.classes):
        raise UsageError(
            f"{args.model} takes examples of shape {expected} and knows {len(saved.class_names)} classes; {name} has "
            f"{dataset.input_shape} and {dataset.classes}"
        )
    x, y = dataset.test
    trainer = Trainer(saved.model, loss="softmax_cross_entropy", optimizer=SGD(0.0), metrics=["accuracy"])
    values = trainer.evaluate((prepared(x, saved.preprocessing), y), batch_size=args.batch_size)
    right = round(values["accuracy"] * len(y))
    share = f"{right / len(y):.2%}".replace("%", " %")
    print(f"{name}: test accuracy {share} ({right:,} of {len(y):,}), loss {values['loss']:.4g}")
    return 0


def predict(args: argparse.Namespace) -> int:
    """Print one line for each example, or a CSV table: where it is from, the class, the probability."""
    saved = model_file.read(args.model, args.device, classes=user_classes(args.code))
    shape = example_shape(saved)
    # All files are read before the first line is printed: an error should not hide among results.
    answers = [answer for path in _files(args.images) for answer in _answers(saved, path, shape, args.skip_bad)]
    if not answers:
        raise UsageError("none of the files can be read")
    names = [_name(saved, k) for k in range(len(answers[0][1]))]
    if args.out is not None:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["example", "class", "probability", *names])
        for place, row in answers:
            best = int(row.argmax())
            table.writerow([place, names[best], *(f"{float(p):.6g}" for p in (row[best], *row))])
        if args.out == "-":
            print(text.getvalue(), end="")
        else:
            archive.write_atomically(args.out, lambda file: file.write(text.getvalue().encode()))
            print(f"{len(answers):,} answers in {args.out}")
        return 0
    for place, row in answers:
        best = int(row.argmax())
        share = f"{float(row[best]):.1%}".replace("%", " %")
        print(f"{place}  {names[best]}  {share}")
    return 0


def _name(saved: SavedModel, k: int) -> str:
    return saved.class_names[k] if k < len(saved.class_names) else str(k)


def _files(words: Sequence[str]) -> list[str]:
    """The files that were named; of a folder the images in it, at any depth, in the order of their paths."""
    found: list[str] = []
    for word in words:
        if Path(word).is_dir():
            inside = sorted(str(p) for p in Path(word).rglob("*") if p.suffix.lower() in images.ENDINGS and p.is_file())
            if not inside:
                raise UsageError(f"{word}: a folder without images; expected some of {', '.join(images.ENDINGS)}")
            found += inside
        else:
            found.append(word)
    return found


def _answers(saved: SavedModel, path: str, shape: tuple[int, ...], skip_bad: bool) -> list[tuple[str, NumpyArray]]:
    """(place, probabilities) of every example in a file; none, with a warning, where it cannot be read and `skip_bad`."""
    try:
        x = read(path, shape)
    except DataError as error:
        if not skip_bad:
            raise
        warnings.warn(f"left out {error}", RuntimeWarning, stacklevel=2)
        return []
    probabilities = backend.to_numpy(ops.softmax(saved.model.predict(prepared(x, saved.preprocessing))))
    return [(path if len(x) == 1 else f"{path}[{i}]", row) for i, row in enumerate(probabilities)]


def example_shape(saved: SavedModel) -> tuple[int, ...]:
    """The shape of the examples that a model takes.

    Raises:
        UsageError: the file does not say.
    """
    known = saved.preprocessing.shape if saved.preprocessing is not None else None
    known = known or getattr(saved.model, "input_shape", None) or saved.model.built_for
    if known is None:
        raise UsageError("the model does not say what shape it takes; save it with an input_shape or a preprocessing")
    return tuple(known)


def read(path: str, shape: tuple[int, ...]) -> Any:
    """The examples in a file: float32 (N, *shape) in [0, 1] where they are pixels.

    An image is resized to the model's size. Integers in a .npy file are divided by the largest of their kind, as the
    pixels of an image are; other numbers are taken as they are.

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
    try:
        x = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file: {error}") from error
    if x.dtype.kind not in "fiub":
        raise DataError(f"{path}: holds {x.dtype}, expected numbers")
    scale = np.iinfo(x.dtype).max if x.dtype.kind in "iu" and len(shape) == 3 else 1
    found = x.shape
    if len(shape) == 3 and shape[2] == 1 and found[-2:] == shape[:2]:
        x = x[..., None]
    if x.shape == shape:
        x = x[None]
    if x.shape[1:] != shape or not len(x):
        raise DataError(f"{path}: holds an array of shape {found}, expected {shape} or (N, {', '.join(map(str, shape))})")
    return (x / scale).astype(np.float32)


def _rows(path: str, shape: tuple[int, ...]) -> NumpyArray:
    """The examples in the rows of a CSV file. Whole numbers above 1 for a model of images are pixels from 0 to 255."""
    titles, rows = user_data.read_csv(Path(path))
    count = math.prod(shape)
    if len(rows[0]) == count + 1:  # a file to train on, with the classes in its last column
        rows = [row[:-1] for row in rows]
    if len(rows[0]) != count:
        raise DataError(f"{path}: has {len(rows[0])} columns, the model takes {count} numbers")
    x = user_data.parse_numbers(Path(path), titles, rows)
    if len(shape) == 3 and x.max() > 1 and (x == np.rint(x)).all() and x.max() <= 255:
        x /= np.float32(255)
    return x.reshape(len(x), *shape)
