"""``xpnet train``."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from xpnet import backend, data, metrics, ops
from xpnet.cli import networks
from xpnet.cli.parser import UsageError
from xpnet.cli.recipes import RECIPES, warm_cosine
from xpnet.data import Batches, Dataset
from xpnet.data.preprocessing import Standardize, Transform
from xpnet.io import archive, model_file
from xpnet.layers.module import Module
from xpnet.optim import AdamW
from xpnet.training import History, Trainer

MODEL, HISTORY, CURVES, CONFUSION = "model.xpnet", "history.csv", "learning_curves.png", "confusion_matrix.png"


def train(args: argparse.Namespace) -> int:
    """Train a network and leave model, history and pictures in a folder."""
    backend.device(args.device)
    if args.dataset in data.names():
        # Before a download of many minutes: is the rest right?
        default = "mlp" if args.dataset == "iris" else "cnn"
        name, make = networks.find(args.model or default)
    dataset = data.load(args.dataset, args.data)
    model = make(dataset.input_shape, dataset.classes, args.seed, args.device)
    _check(model, dataset, name)
    recipe = RECIPES[dataset.name]
    epochs = args.epochs or recipe.epochs
    batch_size = args.batch_size or recipe.batch_size
    learning_rate = args.learning_rate or recipe.learning_rate
    folder = _folder(args.out, f"{dataset.name}-{name}")

    images = len(dataset.input_shape) == 3
    preprocessing = Standardize.from_moments(dataset.mean, dataset.std, dataset.input_shape)
    device = model.context.device
    x, y = (backend.to_device(a, device) for a in (prepared(dataset.train[0], preprocessing), dataset.train[1]))
    checked = tuple(backend.to_device(a, device) for a in (prepared(dataset.test[0], preprocessing), dataset.test[1]))
    batches = Batches(
        (x, y),
        batch_size,
        seed=args.seed,
        augment=recipe.augmentation(_empty(preprocessing)) if images and recipe.augmentation else None,
        device=device,
    )
    optimizer = AdamW(warm_cosine(learning_rate, epochs * len(batches)), weight_decay=recipe.weight_decay)
    what = "images" if images else "examples"
    print(f"{dataset.name}: {len(y):,} {what} to train on, {len(checked[1]):,} to test, {dataset.classes} classes")
    print(model.summary(dataset.input_shape, batch_size=batch_size, optimizer=optimizer, show=False))
    print(
        f"{epochs} epochs, batches of {batch_size}, AdamW up to {learning_rate:g}, seed {args.seed}, on {device}; "
        f"results in {folder}",
        flush=True,
    )

    trainer = Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, metrics=["accuracy"], seed=args.seed)
    began = time.perf_counter()
    with np.errstate(over="ignore", invalid="ignore"):  # the trainer finds them, and says more about them than NumPy
        history = trainer.fit(batches, validation=checked, epochs=epochs, batch_size=batch_size)
    seconds = time.perf_counter() - began
    if history.interrupted:
        print(f"stopped by Ctrl-C in epoch {trainer.epoch + 1}; what was learnt until then is kept")
    _keep(folder, model, history, dataset, preprocessing, {"network": name, "seed": args.seed, "epochs": trainer.epoch})
    _report(folder, model, history, dataset, checked[0], f"{dataset.name}, {name}", seconds)
    return 0


def prepared(x: Any, preprocessing: Transform | None) -> Any:
    """The preprocessed examples, made some at a time: the intermediate arrays of a large set would fill the memory."""
    if preprocessing is None:
        return x
    made = np.empty(x.shape, np.float32)
    for start in range(0, len(x), 1024):
        made[start : start + 1024] = preprocessing(x[start : start + 1024])
    return made


def _empty(preprocessing: Transform) -> float:
    """What becomes of a black pixel, on the mean over the channels: an augmentation fills with one number."""
    shape = preprocessing.shape or (1,)
    return float(preprocessing(np.zeros((1, *shape), np.float32)).mean())


def _check(model: Module, dataset: Dataset, name: str) -> None:
    """Raise a UsageError unless the network fits the data and can be saved: better now than after the training."""
    after = tuple(model.materialize(dataset.input_shape))
    if after != (dataset.classes,):
        raise UsageError(f"the network {name} gives outputs of shape {after}, {dataset.name} needs ({dataset.classes},)")
    # Parameters that the first batch would make are made now.
    model.predict(np.zeros((1, *dataset.input_shape), np.float32))
    try:
        model_file.describe(model)
    except ValueError as error:
        raise UsageError(f"the network {name} could not be saved: {error}") from error


def _folder(out: str | None, name: str) -> Path:
    """The folder for the results, made now: it had better not fail after the training."""
    if out is None:
        folder = Path("runs") / name
        number = 1
        while folder.exists():
            number += 1
            folder = Path("runs") / f"{name}-{number}"
    else:
        folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        archive.write_atomically(folder / HISTORY, lambda file: file.write(b"epoch\n"))
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--out {folder}: there is a file of that name; expected a folder") from None
    return folder


def _keep(
    folder: Path, model: Module, history: History, dataset: Dataset, preprocessing: Transform, facts: dict[str, Any]
) -> None:
    metadata = {"dataset": dataset.name, **facts, **{key: values[-1] for key, values in history.items() if values}}
    # Nothing that is not a number can be in the history: training stops with an error first.
    metadata = {key: value for key, value in metadata.items() if not isinstance(value, float) or math.isfinite(value)}
    model_file.save(model, folder / MODEL, class_names=dataset.class_names, preprocessing=preprocessing, metadata=metadata)
    archive.write_atomically(folder / HISTORY, lambda file: file.write(history.to_csv().encode()))


def _report(folder: Path, model: Module, history: History, dataset: Dataset, x: Any, title: str, seconds: float) -> None:
    """Say how good it is, and draw the pictures."""
    raw, labels = dataset.test
    probabilities = ops.softmax(backend.to_numpy(model.predict(x)))
    matrix = backend.to_numpy(metrics.confusion_matrix(probabilities, labels, dataset.classes))
    right = int(np.trace(matrix))
    share = f"{right / len(labels):.2%}".replace("%", " %")
    print(f"test accuracy {share} ({right:,} of {len(labels):,}), trained in {seconds:.1f} s")
    left = [f"{folder / MODEL}", f"{folder / HISTORY}"]
    try:
        from xpnet.inspect import plots

        with_examples = raw if raw.ndim == 4 else raw * dataset.scale
        mistakes = plots.worst_mistakes(with_examples, labels, probabilities)
        if history.epochs:
            plots.save_figure(plots.learning_curves(history, title), folder / CURVES)
            left.append(f"{folder / CURVES}")
        plots.save_figure(plots.confusion(matrix, dataset.class_names, mistakes, title), folder / CONFUSION)
        left.append(f"{folder / CONFUSION}")
    except ImportError:
        print(f'without matplotlib, {CURVES} and {CONFUSION} were left out; to get them: pip install "xpnet[plot]"')
    print("left " + ", ".join(left))
