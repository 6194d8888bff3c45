"""``xpnet train``."""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from xpnet import backend, data, metrics, ops
from xpnet.cli import kept_data, train_settings, user_data
from xpnet.cli.argument_types import UsageError
from xpnet.cli.hints import check_settings, own_of_this_name
from xpnet.cli.model_argument import MODEL, find_network
from xpnet.cli.places import STARTED_IN, locate_network
from xpnet.cli.predict import accuracy_text
from xpnet.cli.readings import VALIDATION_FRACTION, Known, OwnDataset, describe_change, facts
from xpnet.cli.run_folder import Room, check_place, open_folder
from xpnet.cli.training_recipes import FEATURES, IMAGES, RECIPES, Recipe, warm_cosine
from xpnet.data import Batches, Dataset
from xpnet.data.inputs import record_from, record_of
from xpnet.data.preprocessing import Standardize, Transform
from xpnet.data.splits import VALIDATION
from xpnet.io import archive, model_file
from xpnet.layers.module import Module
from xpnet.optim import AdamW
from xpnet.report import RunReport, read_record
from xpnet.runtime.determinism import deterministic, get_deterministic
from xpnet.runtime.messages import counted, were
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
from xpnet.training.checkpoint_folder import CHECKPOINTS, newest_epoch
from xpnet.training.interrupt import Terminated

HISTORY, CURVES, CONFUSION = "history.csv", "learning_curves.png", "confusion_matrix.png"
TESTED_IN_CURVES = (
    "the validation curves are measured on the test part, which decides nothing in this run; --patience N holds out other "
    "examples for them"
)


def train(args: argparse.Namespace) -> int:
    """Train a network, or resume a run; write model, checkpoints, history, report and pictures to a folder.

    Returns:
        0; or, after the model so far was written, 130 for a run that Ctrl-C stopped, 143 for SIGTERM and 138 for SIGUSR1.
    """
    given = train_settings.effective(args)
    with deterministic(given.setdefault("deterministic", get_deterministic())), contextlib.ExitStack() as held:
        return _train(args, given, held)


def _train(args: argparse.Namespace, given: train_settings.Settings, held: contextlib.ExitStack) -> int:
    backend.device(given.setdefault("device", "cpu"))
    where, published = train_settings.located_data(given)
    if args.resume is not None and where not in data.names() and not Path(where).exists():
        raise UsageError(
            f"{where}: the data of the run in {args.resume} are no longer there; put them back, or name where they are now: "
            f"xpnet train DATASET --resume {shlex.quote(args.resume)}"
        )
    check_settings(where, published, given.get("size"), given.get("target"), given.get("skip_bad"))
    if given["dataset"] in data.names():
        # Check the rest before a download that may take minutes.
        given.setdefault("model", "mlp" if given["dataset"] == "iris" else "cnn")
        find_network(locate_network(given["model"], given.get(STARTED_IN)))
    before = known = None
    anew = ""
    if args.resume is not None:
        if args.out is None and _has_finished(Path(args.resume), given):
            return 0
        anew = _check_checkpoints(Path(args.resume), given)
        before = train_settings.recorded_inputs(args.resume)
        known = None if before is None else _known(before, args.resume)
    moved = None
    if args.resume is not None:
        moved = train_settings.read_file(Path(args.resume) / train_settings.CONFIG).get("dataset")
        moved = moved if moved != given["dataset"] else None
    else:
        check_place(args.out, where, published=where in data.names())
    dataset = user_data.find_dataset(
        where,
        published,
        given.get("size"),
        given.get("target"),
        given.get("skip_bad", False),
        known=known,
        validation="patience" in given,
    )
    if moved is not None:
        _check_moved(dataset, before, moved, where)
    images = len(dataset.input_shape) == 3
    usual = IMAGES if images else FEATURES
    # A folder of the user's may have the name of a published set.
    recipe = usual if isinstance(dataset, OwnDataset) else RECIPES.get(dataset.name, usual)
    _complete(given, recipe, images)
    name, make = find_network(locate_network(given["model"], given.get(STARTED_IN)))
    model = make(dataset.input_shape, dataset.classes, given["seed"], given["device"])
    _check(model, dataset, name)
    short = Path(dataset.name).stem or "data"
    folder = open_folder(args, f"{short}-{name}", given["dataset"], held)
    room = Room(folder / MODEL, sum(array.nbytes for array in model_file.describe(model)[1].values()), held)
    text = train_settings.to_toml(given)
    if isinstance(dataset, OwnDataset):
        text = train_settings.with_inputs(given, {**dataset.inputs.settings(), **facts(dataset.reading)})
        moments, earlier = (dataset.mean, dataset.std), None if known is None else known.kept
        read = dataset.reading
        kept_data.keep(folder, read.places, read.identities, dataset.parts, moments, dataset.inputs.arrays(), earlier)
    archive.write_atomically(folder / train_settings.CONFIG, lambda file: file.write(text.encode("utf-8", "replace")))

    preprocessing = Standardize.from_moments(dataset.mean, dataset.std, dataset.input_shape)
    batches, watched, held_out, optimizer = _prepare(given, dataset, model, preprocessing, recipe)
    count = counted(batches.count or 0, "image" if images else "example")
    print(
        f"{dataset.name}: {count} to train on, {len(dataset.test[1]):,} to test, {dataset.classes} classes"
        + (f"; {held_out}" if held_out else "")
    )
    own = own_of_this_name(where, published)
    for note in [own] * bool(own) + [anew] * bool(anew) + _notes(dataset, before, args.resume, moved):
        print(f"  {note}")
    if not held_out:
        print(TESTED_IN_CURVES)
    print(model.summary(dataset.input_shape, batch_size=given["batch_size"], optimizer=optimizer, show=False))
    print(
        f"{given['epochs']} epoch{'s' * (given['epochs'] != 1)}, batches of {given['batch_size']}, "
        f"AdamW with a learning rate up to {given['learning_rate']:g}, seed {given['seed']}, on {model.context.device}; "
        f"results in {folder}",
        flush=True,
    )
    start = _Start()
    trainer = Trainer(
        model,
        loss="softmax_cross_entropy",
        optimizer=optimizer,
        metrics=["accuracy"],
        seed=given["seed"],
        accumulate=given.get("accumulate", 1),
        callbacks=[start, *_callbacks(given, folder, dataset, watched, held_out)],
    )
    began = time.perf_counter()
    resume = "auto" if args.resume is not None else None
    again = f"to resume: xpnet train --resume {shlex.quote(str(folder))}"
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # the trainer reports them, better than NumPy
            history = trainer.fit(batches, validation=watched, epochs=given["epochs"], resume=resume)
    except KeyboardInterrupt:
        print(f"stopped at once; {again} (from the last checkpoint)", file=sys.stderr)
        raise
    except Terminated as end:
        history, code, stopped = trainer.history, 128 + end.signal, signal.Signals(end.signal).name
    else:
        code, stopped = (130, "Ctrl-C") if history.interrupted else (0, "")
    seconds = time.perf_counter() - began
    if stopped:
        print(f"stopped by {stopped} in epoch {trainer.epoch + 1}; the training so far is kept\n{again}", flush=True)
    if trainer.iteration == start.iteration and args.resume is not None and _holds(folder, trainer.epoch):
        print(f"nothing was trained: {folder / MODEL} stays as it is")
        return code
    about = {"network": name, "seed": given["seed"], "epochs": trainer.epoch}
    # What was measured of the weights that are saved: not always those of the last epoch.
    measured = history.of_the_model()
    if history.restored is not None:
        about["weights_of_epoch"] = history.restored + 1
        print(
            f"the weights are those of epoch {history.restored + 1} of {history.epochs}, the best one: "
            f"val_loss {measured['val_loss']:.4g}"
        )
    elif not measured and code <= 130:  # whoever ends the process may not wait
        measured = {f"val_{key}": value for key, value in trainer.evaluate(watched).items()}
    about |= measured
    about |= {key: given[key] for key in ("size", "target") if given.get(key) is not None}
    if given["dataset"] not in data.names():
        about |= {"dataset": given["dataset"], STARTED_IN: given.get(STARTED_IN)}
    room.fill(lambda: _save(folder, model, history, dataset, preprocessing, about), again.removeprefix("to resume: "))
    _report(folder, model, history, dataset, user_data.preprocess(dataset.test[0], preprocessing), f"{short}, {name}", seconds)
    return code


class _Start(Callback):
    """Notes the step that a run begins or goes on with."""

    iteration = -1

    def check_run(self, trainer: Trainer) -> None:
        self.iteration = trainer.iteration


def _has_finished(folder: Path, given: train_settings.Settings) -> bool:
    """Say whether a run has nothing left to train: its files stay as they are then, whatever has become of the data."""
    epochs = train_settings.read_file(folder / train_settings.CONFIG).get("epochs", 0)
    try:
        record = read_record(folder)
    except (FileNotFoundError, archive.ArchiveError):
        return False
    if record["state"] != "finished" or given.get("epochs", 0) > epochs or not _holds(folder, len(record["learning_rate"])):
        return False
    print(f"{folder}: the run has finished, with --epochs {epochs}: nothing was trained or written")
    return True


def _check_checkpoints(folder: Path, given: train_settings.Settings) -> str:
    """Check, before anything is written, that a run can go on from its checkpoints, up to the epochs that are given.

    Returns:
        what should be said where there are none, or "".

    Raises:
        UsageError: it is already further; or it has finished, and there are no checkpoints.
        ArchiveError: its checkpoints are all damaged.
    """
    place = folder / CHECKPOINTS
    reached = newest_epoch(place)
    if reached is None:
        if _state(folder) == "finished":
            raise UsageError(
                f"--resume {folder}: the run has finished, and there are no checkpoints in {place} that it could go on from: "
                f"put them back, or start a new run, with --out for its folder"
            )
        model = f", and replaces {folder / MODEL}" if (folder / MODEL).exists() else ""
        return f"there are no checkpoints in {place}: the run begins anew{model}"
    goal = train_settings.read_file(folder / train_settings.CONFIG).get("epochs", 0)
    epochs = given.get("epochs", 0)
    if epochs != goal and epochs < reached:
        raise UsageError(
            f"--epochs {epochs}: the run in {folder} is already at epoch {reached} of {goal}; give more, or leave --epochs out"
        )
    return ""


def _state(folder: Path) -> str | None:
    """Return what the record of a run says of its state; None where there is no record."""
    try:
        return str(read_record(folder)["state"])
    except (FileNotFoundError, archive.ArchiveError):
        return None


def _holds(folder: Path, epochs: int) -> bool:
    """Return whether the model in a folder is that of this epoch, and not an older one."""
    try:
        document, _ = archive.read(folder / MODEL)
    except (FileNotFoundError, archive.ArchiveError):
        return False
    return bool(document.get("metadata", {}).get("epochs") == epochs)


def _known(before: dict[str, Any], folder: str) -> Known:
    """Return how the data of a run were read when it began: a resumed run reads them in the same way.

    Raises:
        UsageError: its configuration file is damaged.
    """
    kept = kept_data.kept(Path(folder))
    try:
        record = record_from(before, {} if kept is None else kept.record)
        return Known(record, tuple(map(str, before["classes"])), f"the run in {folder}", kept)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{Path(folder) / train_settings.CONFIG}: its table [{train_settings.INPUTS}] is damaged; start a new run"
        ) from error


def _check_moved(dataset: Dataset, before: dict[str, Any] | None, moved: str, where: str) -> None:
    """Raise a UsageError unless data that are given for those of a run, which are gone from their place, are the same."""
    change = "the run did not keep what it began with"
    if before is not None and isinstance(dataset, OwnDataset):
        change = describe_change({**before, "names": facts(dataset.reading)["names"]}, dataset.reading)  # whatever their names
    if change:
        raise UsageError(
            f"{where}: not the data of {moved}, which the run began with and which are gone: {change}; put those back, or "
            f"start a new run"
        )


def _notes(dataset: Dataset, before: dict[str, Any] | None, resumed: str | None, moved: str | None = None) -> list[str]:
    """Return what should be said about the user's own data."""
    if not isinstance(dataset, OwnDataset):
        return []
    notes = list(dataset.reading.notes)
    change = "" if before is None else describe_change(before, dataset.reading)
    if moved is not None:
        notes.append(f"the data have moved, from {moved}" + ("" if change else ", and are the same"))
    if resumed is not None and dataset.trained_before is None:
        notes.append(
            "the run began with an earlier version, which did not keep how it divided the data: examples that were trained on "
            "may be in the test part now"
        )
    tested = dataset.trained_before
    # An earlier version did not keep the names: whether they have changed is seen by this alone.
    if change or (tested and before is not None and "names" not in before):
        words = "no test example was trained on"
        if tested:
            copies = "is a copy" if tested == 1 else "are copies"
            words = f"{counted(tested, 'test example')} {were(tested)} trained on, or {copies}"
        said = [f"the data have changed: {change}"] * bool(change) + [words] * (tested is not None)
        notes.append("; ".join(said))
    return notes


def _complete(given: train_settings.Settings, recipe: Recipe, images: bool) -> None:
    """Fill in the defaults: the run's configuration file should hold every setting."""
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
        raise UsageError("--augment is for images; these data are features")


def _prepare(
    given: train_settings.Settings, dataset: Dataset, model: Module, preprocessing: Standardize, recipe: Recipe
) -> tuple[Batches, tuple[Any, Any], str, AdamW]:
    """Return the training batches, the validation data, where these are held out a phrase that says so, and the optimizer."""
    device = model.context.device
    x, y = dataset.train
    checked, held_out = dataset.test, ""
    if isinstance(dataset, OwnDataset) and dataset.validation is not None:
        checked = dataset.validation
        given_part = dataset.reading.parts is not None and (dataset.reading.parts == VALIDATION).any()
        held_out = "for validation" if given_part else "of the training part are held out for validation"
    elif "patience" in given:
        (x, y), checked = data.split(x, y, fraction=VALIDATION_FRACTION, seed=given["seed"])
        held_out = "of the training part are held out for validation"
    if held_out:
        held_out = f"{len(checked[1]):,} {held_out}"
    augmentation = recipe.augmentation or IMAGES.augmentation
    # The value of a black pixel, averaged over channels: augmentations fill with one number.
    black = float(preprocessing(np.zeros((1, *dataset.input_shape), np.float32)).mean())
    batches = Batches(
        (backend.to_device(user_data.preprocess(x, preprocessing), device), backend.to_device(y, device)),
        given["batch_size"],
        seed=given["seed"],
        weights=data.example_weights(y) if given.get("balance") else None,
        augment=augmentation(black) if given["augment"] and augmentation else None,
        workers=given.get("workers", 0),
        device=device,
    )
    watched = (
        backend.to_device(user_data.preprocess(checked[0], preprocessing), device),
        backend.to_device(checked[1], device),
    )
    steps = given["epochs"] * -(-len(batches) // given.get("accumulate", 1))
    rate = given["learning_rate"]
    schedule = warm_cosine(rate, steps) if given["schedule"] == "cosine" else rate
    return batches, watched, held_out, AdamW(schedule, weight_decay=given["weight_decay"])


def _callbacks(
    given: train_settings.Settings, folder: Path, dataset: Dataset, watched: tuple[Any, Any], held_out: str
) -> list[Callback]:
    found: list[Callback] = [CSVLog(folder / HISTORY)]
    if "clip" in given:
        found.append(ClipGradients(norm=given["clip"]))
    if "patience" in given:
        found.append(EarlyStopping("val_loss", given["patience"], restore_best="average" not in given))
    if "average" in given:
        found.append(ExponentialMovingAverage(given["average"]))
    minutes = given.get("checkpoint_minutes", 10.0)
    found.append(Checkpoint(folder / CHECKPOINTS, every_minutes=minutes, keep=given.get("keep", 3)))
    shown = {**given, "validation": held_out or "the test part"}
    found.append(
        RunReport(folder, name=folder.resolve().name, configuration=shown, class_names=dataset.class_names, data=watched)
    )
    return found


def _check(model: Module, dataset: Dataset, name: str) -> None:
    """Raise a UsageError before training unless the network fits the data and can be saved."""
    after = tuple(model.materialize(dataset.input_shape))
    if after != (dataset.classes,):
        raise UsageError(f"the network {name} gives outputs of shape {after}, {dataset.name} needs ({dataset.classes},)")
    # Make the parameters that the first batch would make.
    model.predict(np.zeros((1, *dataset.input_shape), np.float32))
    try:
        model_file.describe(model)
    except ValueError as error:
        raise UsageError(f"the network {name} cannot be saved: {error}") from error


def _save(
    folder: Path, model: Module, history: History, dataset: Dataset, preprocessing: Transform, about: dict[str, Any]
) -> None:
    """Write the model, with what is known of it as metadata, and the history."""
    metadata = {"dataset": dataset.name, **about}
    # Metadata holds finite numbers only.
    metadata = {key: value for key, value in metadata.items() if not isinstance(value, float) or math.isfinite(value)}
    inputs = dataset.inputs if isinstance(dataset, OwnDataset) else record_of(dataset)
    model_file.save(
        model,
        folder / MODEL,
        class_names=dataset.class_names,
        preprocessing=preprocessing,
        metadata=metadata,
        inputs=inputs,
    )
    try:
        archive.write_atomically(folder / HISTORY, lambda file: file.write(history.to_csv().encode()))
    except OSError as error:  # the model is written; the history is in the report and the checkpoint, too
        warnings.warn(f"{folder / HISTORY} could not be written ({error.strerror or error})", RuntimeWarning, stacklevel=2)


def _report(folder: Path, model: Module, history: History, dataset: Dataset, x: Any, title: str, seconds: float) -> None:
    """Print the test accuracy, and draw the pictures."""
    raw, labels = dataset.test
    probabilities = ops.softmax(backend.to_numpy(model.predict(x)))
    matrix = backend.to_numpy(metrics.confusion_matrix(probabilities, labels, dataset.classes))
    print(f"{accuracy_text(int(np.trace(matrix)), len(labels))}, trained in {seconds:.1f} s")
    written = [f"{folder / name}" for name in (MODEL, HISTORY, "report.html")]
    try:
        from xpnet.inspect import plots
        from xpnet.inspect.figures import save_figure

        with_examples = raw if raw.ndim == 4 else raw * dataset.scale
        mistakes = plots.worst_mistakes(with_examples, labels, probabilities)
        if history.epochs:
            save_figure(plots.learning_curves(history, title), folder / CURVES)
            written.append(f"{folder / CURVES}")
        save_figure(plots.confusion(matrix, dataset.class_names, mistakes, title), folder / CONFUSION)
        written.append(f"{folder / CONFUSION}")
    except ImportError:
        print(f'without matplotlib, {CURVES} and {CONFUSION} were not drawn; to get them: pip install "xpnet[plot]"')
    print("wrote " + ", ".join(written))
