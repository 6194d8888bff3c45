"""``xpnet evaluate`` and ``xpnet predict``: what a saved model is good for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from xpnet import data, ops
from xpnet.cli.networks import own_classes
from xpnet.cli.parser import UsageError
from xpnet.cli.train import prepared
from xpnet.data import DataError, read_image
from xpnet.io import model_file
from xpnet.io.model_file import SavedModel
from xpnet.optim import SGD
from xpnet.training import Trainer


def evaluate(args: argparse.Namespace) -> int:
    """Print the loss and the accuracy on the test part of a data set."""
    saved = model_file.read(args.model, args.device, classes=own_classes(args.code))
    name = args.dataset or saved.metadata.get("dataset")
    if not isinstance(name, str):
        raise UsageError(f"{args.model} does not say what it was trained on; name a data set: {', '.join(data.names())}")
    dataset = data.load(name, args.data)
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
    """Print one line for each image: its file, the class, the probability."""
    saved = model_file.read(args.model, args.device, classes=own_classes(args.code))
    shape = example_shape(saved)
    # All files are read before the first line is printed: an error should not hide among results.
    lots = [(path, read(path, shape)) for path in args.images]
    for path, x in lots:
        probabilities = ops.softmax(saved.model.predict(prepared(x, saved.preprocessing)))
        for i, row in enumerate(probabilities):
            best = int(row.argmax())
            name = saved.class_names[best] if best < len(saved.class_names) else str(best)
            place = path if len(x) == 1 else f"{path}[{i}]"
            share = f"{float(row[best]):.1%}".replace("%", " %")
            print(f"{place}  {name}  {share}")
    return 0


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
    if Path(path).suffix.lower() != ".npy":
        if len(shape) != 3:
            raise UsageError(f"{path}: the model takes {shape[0]} features, not images; put them into a .npy file")
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
