"""``xpnet train``."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from xpnet import backend, data, metrics, ops
from xpnet.cli import model_argument, train_settings, user_data
from xpnet.cli.argument_types import UsageError
from xpnet.cli.training_recipes import FEATURES, IMAGES, RECIPES, Recipe, warm_cosine
from xpnet.data import Batches, Dataset
from xpnet.data.preprocessing import Standardize, Transform
from xpnet.io import archive, model_file
from xpnet.layers.module import Module
from xpnet.optim import AdamW
from xpnet.report import RunReport, read_record
from xpnet.runtime.determinism import deterministic, get_deterministic
from xpnet.training import (
    Callback,
    Checkpoint,
    ClipGradients,
    CSVLog,
    EarlyStopping,
    ExponentialMovingAverage,
    History,
    Trainer,
)

MODEL, HISTORY, CURVES, CONFUSION = "model.xpnet", "history.csv", "learning_curves.png", "confusion_matrix.png"
CHECKPOINTS = "checkpoints"
HELD_OUT = 0.1
"""How much of the training part is watched instead of the test part where the run's end is chosen by it."""


def train(args: argparse.Namespace) -> int:
    """Train a network, or go on; leave model, checkpoints, history, report and pictures in a folder."""
    given = train_settings.effective(args)
    with deterministic(given.setdefault("deterministic", get_deterministic())):
        return _train(args, given)


def _train(args: argparse.Namespace, given: train_settings.Settings) -> int:
    backend.device(given.setdefault("device", "cpu"))
    if given["dataset"] in data.names():
        # Before a download of many minutes: is the rest right?
        given.setdefault("model", "mlp" if given["dataset"] == "iris" else "cnn")
        model_argument.find_network(given["model"])
    dataset = user_data.find_dataset(
        given["dataset"], given.get("data"), given.get("size"), given.get("target"), given.get("skip_bad", False)
    )
    images = len(dataset.input_shape) == 3
    _complete(given, RECIPES.get(dataset.name, IMAGES if images else FEATURES), images)
    name, make = model_argument.find_network(given["model"])
    model = make(dataset.input_shape, dataset.classes, given["seed"], given["device"])
    _check(model, dataset, name)
    short = Path(dataset.name).stem or "data"
    folder = _folder(args, f"{short}-{name}")
    archive.write_atomically(folder / train_settings.CONFIG, lambda file: file.write(train_settings.to_toml(given).encode()))

    preprocessing = Standardize.from_moments(dataset.mean, dataset.std, dataset.input_shape)
    batches, watched, optimizer = _prepare(given, dataset, model, preprocessing)
    what = "images" if images else "examples"
    print(
        f"{dataset.name}: {batches.count:,} {what} to train on, {len(dataset.test[1]):,} to test, {dataset.classes} classes"
        + (f"; {len(watched[1]):,} of the training part are held out and watched" if "patience" in given else "")
    )
    print(model.summary(dataset.input_shape, batch_size=given["batch_size"], optimizer=optimizer, show=False))
    print(
        f"{given['epochs']} epoch{'s' * (given['epochs'] != 1)}, batches of {given['batch_size']}, "
        f"AdamW up to {given['learning_rate']:g}, seed {given['seed']}, on {model.context.device}; results in {folder}",
        flush=True,
    )
    trainer = Trainer(
        model,
        loss="softmax_cross_entropy",
        optimizer=optimizer,
        metrics=["accuracy"],
        seed=given["seed"],
        accumulate=given.get("accumulate", 1),
        callbacks=_callbacks(given, folder, dataset, watched),
    )
    began = time.perf_counter()
    resume = "auto" if args.resume is not None else None
    again = f"to go on: xpnet train --resume {shlex.quote(str(folder))}"
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # the trainer finds them, and says more about them than NumPy
            history = trainer.fit(batches, validation=watched, epochs=given["epochs"], resume=resume)
    except KeyboardInterrupt:
        print(f"stopped at once; {again} (from the last checkpoint)", file=sys.stderr)
        raise
    seconds = time.perf_counter() - began
    if history.interrupted:
        print(f"stopped by Ctrl-C in epoch {trainer.epoch + 1}; what was learnt until then is kept\n{again}")
    facts = {"network": name, "seed": given["seed"], "epochs": trainer.epoch, "size": given.get("size")}
    if given.get("target") is not None:
        facts["target"] = given["target"]
    _keep(folder, model, history, dataset, preprocessing, {key: value for key, value in facts.items() if value is not None})
    _report(folder, model, history, dataset, prepared(dataset.test[0], preprocessing), f"{short}, {name}", seconds)
    return 0


def _complete(given: train_settings.Settings, recipe: Recipe, images: bool) -> None:
    """Write what was not said into the settings: the run's file shall hold what was done."""
    for key, value in (
        ("model", "cnn" if images else "mlp"),
        ("epochs", recipe.epochs),
        ("batch_size", recipe.batch_size),
        ("learning_rate", recipe.learning_rate),
        ("schedule", "cosine"),
        ("weight_decay", recipe.weight_decay),
        ("augment", images and recipe.augmentation is not None),
        ("seed", 0),
    ):
        given.setdefault(key, value)
    if given["augment"] and not images:
        raise UsageError("--augment changes images; these data are features")


def _prepare(
    given: train_settings.Settings, dataset: Dataset, model: Module, preprocessing: Standardize
) -> tuple[Batches, tuple[Any, Any], AdamW]:
    """The training batches, what is watched, and the optimizer."""
    device = model.context.device
    x, y = dataset.train
    checked = dataset.test
    if "patience" in given:
        (x, y), checked = data.split(x, y, fraction=HELD_OUT, seed=given["seed"])
    recipe = RECIPES.get(dataset.name, IMAGES)
    augmentation = recipe.augmentation or IMAGES.augmentation
    batches = Batches(
        (backend.to_device(prepared(x, preprocessing), device), backend.to_device(y, device)),
        given["batch_size"],
        seed=given["seed"],
        weights=data.example_weights(y) if given.get("balance") else None,
        augment=augmentation(_empty(preprocessing)) if given["augment"] and augmentation else None,
        workers=given.get("workers", 0),
        device=device,
    )
    watched = (backend.to_device(prepared(checked[0], preprocessing), device), backend.to_device(checked[1], device))
    steps = given["epochs"] * -(-len(batches) // given.get("accumulate", 1))
    rate = given["learning_rate"]
    schedule = warm_cosine(rate, steps) if given["schedule"] == "cosine" else rate
    return batches, watched, AdamW(schedule, weight_decay=given["weight_decay"])


def _callbacks(given: train_settings.Settings, folder: Path, dataset: Dataset, watched: tuple[Any, Any]) -> list[Callback]:
    found: list[Callback] = [CSVLog(folder / HISTORY)]
    if "clip" in given:
        found.append(ClipGradients(norm=given["clip"]))
    if "patience" in given:
        found.append(EarlyStopping("val_loss", given["patience"]))
    if "average" in given:
        found.append(ExponentialMovingAverage(given["average"]))
    minutes = given.get("checkpoint_minutes", 10.0)
    found.append(Checkpoint(folder / CHECKPOINTS, every_minutes=minutes, keep=given.get("keep", 3)))
    found.append(
        RunReport(folder, name=folder.resolve().name, configuration=given, class_names=dataset.class_names, data=watched)
    )
    return found


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


def _folder(args: argparse.Namespace, name: str) -> Path:
    """The folder for the results, made now: it had better not fail after the training."""
    if args.resume is not None:
        if args.out is not None and Path(args.out) != Path(args.resume):
            raise UsageError(f"--out {args.out}: a run goes on in its own folder, {args.resume}; leave --out away")
        return Path(args.resume)
    if args.out is None:
        folder = Path("runs") / name
        number = 1
        while folder.exists():
            number += 1
            folder = Path("runs") / f"{name}-{number}"
    else:
        folder = Path(args.out)
        _make_room(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".writable"
        archive.write_atomically(trial, lambda file: file.write(b""))
        trial.unlink()
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--out {folder}: there is a file of that name; expected a folder") from None
    return folder


def _make_room(folder: Path) -> None:
    """See that a run in the folder, if there is one, had come to its end: then this one may take its place.

    Raises:
        UsageError: it had not.
    """
    if not (folder / train_settings.CONFIG).exists():
        return
    try:
        finished = read_record(folder)["state"] == "finished"
    except FileNotFoundError:
        finished = False
    if not finished:
        raise UsageError(
            f"--out {folder}: the run in this folder has not come to its end; go on with it: xpnet train --resume "
            f"{shlex.quote(str(folder))}, or choose another folder"
        )
    for checkpoint in (folder / CHECKPOINTS).glob("*.ckpt*"):  # they would be taken for ones of the new run
        checkpoint.unlink()


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
    left = [f"{folder / name}" for name in (MODEL, HISTORY, "report.html")]
    try:
        from xpnet.inspect import plots
        from xpnet.inspect.figures import save_figure

        with_examples = raw if raw.ndim == 4 else raw * dataset.scale
        mistakes = plots.worst_mistakes(with_examples, labels, probabilities)
        if history.epochs:
            save_figure(plots.learning_curves(history, title), folder / CURVES)
            left.append(f"{folder / CURVES}")
        save_figure(plots.confusion(matrix, dataset.class_names, mistakes, title), folder / CONFUSION)
        left.append(f"{folder / CONFUSION}")
    except ImportError:
        print(f'without matplotlib, {CURVES} and {CONFUSION} were left out; to get them: pip install "xpnet[plot]"')
    print("left " + ", ".join(left))
