"""``xpnet doctor``: find what keeps a network from learning."""

from __future__ import annotations

import argparse
import math
import textwrap
from typing import Any

import numpy as np

from xpnet import backend, losses, metrics
from xpnet.cli import user_data
from xpnet.cli.argument_types import UsageError
from xpnet.cli.hints import check_settings, own_of_this_name
from xpnet.cli.model_argument import example_shape, find_network, saved_model
from xpnet.cli.predict import check_units, known_inputs
from xpnet.cli.readings import OwnDataset
from xpnet.data import Dataset
from xpnet.data.preprocessing import Standardize, Transform
from xpnet.inspect import diagnose, outcome
from xpnet.io.model_file import SavedModel
from xpnet.layers.module import Module
from xpnet.optim import AdamW
from xpnet.training import Trainer, find_learning_rate, overfit_one_batch

OVERFIT = 0.1
"""A sound network overfits one batch to a loss below this fraction of the loss of guessing."""

MEASURED = 2000
"""Examples of the training and of the test part that a trained model predicts."""


def doctor(args: argparse.Namespace) -> int:
    """Print every problem found, one sentence each; return 1 if there are any."""
    backend.device(args.device)
    check_settings(args.dataset, args.data, args.size, args.target, args.skip_bad)
    saved = saved_model(args, args.device)
    known = None if saved is None else known_inputs(saved, args.model)
    dataset = user_data.find_dataset(args.dataset, args.data, args.size, args.target, args.skip_bad, known=known)
    model, preprocessing, new = _model(args, saved, dataset)
    if saved is not None and not isinstance(dataset, OwnDataset):
        check_units(args.model, saved, dataset)
    if note := own_of_this_name(args.dataset, args.data):
        print(note)
    x, y = _batch(dataset, preprocessing, args.batch_size, model.context.device)
    findings = [finding for finding in diagnose(model, x, y) if new or finding.kind != "start"]
    found = [str(finding) for finding in findings]
    if new and not args.quick and not any(finding.kind in ("labels", "not finite", "nothing to train") for finding in findings):
        found += _trial_training(model, x, y)
    found += _outcome(model, preprocessing, dataset, new)
    for text in found:
        print(textwrap.fill(text[:1].upper() + text[1:] + ".", 100, initial_indent="* ", subsequent_indent="  "))
    if not found:
        print("nothing looks wrong")
    return 1 if found else 0


def _model(args: argparse.Namespace, saved: SavedModel | None, dataset: Dataset) -> tuple[Module, Transform | None, bool]:
    """Return the network, its preprocessing, and whether it is new (untrained)."""
    if saved is not None:
        shape = example_shape(saved, args.model)
        if shape != dataset.input_shape:
            raise UsageError(f"{args.model} takes examples of shape {shape}; {dataset.name}: {dataset.input_shape}")
        return saved.model, saved.preprocessing, False
    _, make = find_network(args.model)
    model = make(dataset.input_shape, dataset.classes, args.seed, args.device)
    model.predict(np.zeros((1, *dataset.input_shape), np.float32))
    return model, Standardize.from_moments(dataset.mean, dataset.std, dataset.input_shape), True


def _outcome(model: Module, preprocessing: Transform | None, dataset: Dataset, new: bool) -> list[str]:
    """Return what the sizes of the classes make hard, and what a trained model did not learn, on up to `MEASURED` examples."""
    counts = np.bincount(dataset.train[1], minlength=dataset.classes)
    if new:
        return [str(finding) for finding in outcome(class_names=dataset.class_names, counts=counts)]
    logits = []
    for x, y in (dataset.train, dataset.test):
        chosen = np.linspace(0, len(y) - 1, min(MEASURED, len(y))).astype(np.int64)
        some = backend.to_device(user_data.preprocess(x[chosen], preprocessing), model.context.device)
        logits.append((backend.to_numpy(model.predict(some)), y[chosen]))
    (trained, labels), (tested, truth) = logits
    matrix = backend.to_numpy(metrics.confusion_matrix(tested, truth, dataset.classes))
    loss = float(losses.softmax_cross_entropy(trained.astype(np.float64), labels))
    return [str(finding) for finding in outcome(matrix, class_names=dataset.class_names, counts=counts, loss=loss)]


def _batch(dataset: Dataset, preprocessing: Transform | None, size: int, device: backend.Device) -> tuple[Any, Any]:
    """Take examples from all over the training part: many files are sorted by class."""
    x, y = dataset.train
    chosen = np.linspace(0, len(y) - 1, min(size, len(y))).astype(np.int64)
    return backend.to_device(user_data.preprocess(x[chosen], preprocessing), device), backend.to_device(y[chosen], device)


def _trial_training(model: Module, x: Any, y: Any) -> list[str]:
    """Find a learning rate, and overfit one batch with it."""
    trainer = Trainer(model, loss="softmax_cross_entropy", optimizer=AdamW(1e-3, weight_decay=0.0))
    try:
        rate = find_learning_rate(trainer, (x, y), batch_size=min(64, len(x)), steps=60).suggestion
    except ValueError as error:
        return [str(error)]
    print(f"suggested initial learning rate for AdamW: {rate:.1g}")
    trainer.optimizer.learning_rate = rate
    course = overfit_one_batch(trainer, x[:32], y[:32])
    guess = math.log(int(model(x[:2]).shape[-1]))
    print(f"overfitting one batch of {len(x[:32])}: the loss went from {course[0]:.3g} to {min(course[-10:]):.2g}")
    if min(course[-10:]) > OVERFIT * guess:
        return [
            f"the network could not overfit one batch in {len(course)} steps (the loss is still {min(course[-10:]):.2g}; "
            f"guessing gives {guess:.2g}); look for a layer that loses the input, dropout that is too strong, or labels that "
            f"are unrelated to the examples"
        ]
    return []
