"""``xpnet doctor``: find what keeps a network from learning."""

from __future__ import annotations

import argparse
import math
import textwrap
from typing import Any

import numpy as np

from xpnet import backend
from xpnet.cli import user_data
from xpnet.cli.argument_types import UsageError
from xpnet.cli.hints import check_settings
from xpnet.cli.model_argument import example_shape, find_network, saved_model
from xpnet.data import Dataset
from xpnet.data.preprocessing import Standardize, Transform
from xpnet.inspect import diagnose
from xpnet.layers.module import Module
from xpnet.optim import AdamW
from xpnet.training import Trainer, find_learning_rate, overfit_one_batch

OVERFIT = 0.1
"""A sound network overfits one batch to a loss below this fraction of the loss of guessing."""


def doctor(args: argparse.Namespace) -> int:
    """Print every problem found, one sentence each; return 1 if there are any."""
    backend.device(args.device)
    check_settings(args.dataset, args.data, args.size, args.target, args.skip_bad)
    dataset = user_data.find_dataset(args.dataset, args.data, args.size, args.target, args.skip_bad)
    model, preprocessing, new = _model(args, dataset)
    x, y = _batch(dataset, preprocessing, args.batch_size, model.context.device)
    findings = [finding for finding in diagnose(model, x, y) if new or finding.kind != "start"]
    found = [str(finding) for finding in findings]
    if new and not args.quick and not any(finding.kind in ("labels", "not finite") for finding in findings):
        found += _trial_training(model, x, y)
    for text in found:
        print(textwrap.fill(text[:1].upper() + text[1:] + ".", 100, initial_indent="* ", subsequent_indent="  "))
    if not found:
        print("nothing looks wrong")
    return 1 if found else 0


def _model(args: argparse.Namespace, dataset: Dataset) -> tuple[Module, Transform | None, bool]:
    """Return the network, its preprocessing, and whether it is new (untrained)."""
    saved = saved_model(args, args.device)
    if saved is not None:
        if example_shape(saved) != dataset.input_shape:
            raise UsageError(
                f"{args.model} takes examples of shape {example_shape(saved)}; {dataset.name}: {dataset.input_shape}"
            )
        return saved.model, saved.preprocessing, False
    _, make = find_network(args.model)
    model = make(dataset.input_shape, dataset.classes, args.seed, args.device)
    model.predict(np.zeros((1, *dataset.input_shape), np.float32))
    return model, Standardize.from_moments(dataset.mean, dataset.std, dataset.input_shape), True


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
    losses = overfit_one_batch(trainer, x[:32], y[:32])
    guess = math.log(int(model(x[:2]).shape[-1]))
    print(f"overfitting one batch of {len(x[:32])}: the loss went from {losses[0]:.3g} to {min(losses[-10:]):.2g}")
    if min(losses[-10:]) > OVERFIT * guess:
        return [
            f"the network could not overfit one batch in {len(losses)} steps (the loss is still {min(losses[-10:]):.2g}; "
            f"guessing gives {guess:.2g}); look for a layer that loses the input, dropout that is too strong, or labels that "
            f"are unrelated to the examples"
        ]
    return []
