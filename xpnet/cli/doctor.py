"""``xpnet doctor``: what keeps a network from learning."""

from __future__ import annotations

import argparse
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from xpnet import backend
from xpnet.cli import model_argument, user_data
from xpnet.cli.argument_types import UsageError
from xpnet.cli.predict import example_shape
from xpnet.cli.train import prepared
from xpnet.data import Dataset
from xpnet.data.preprocessing import Standardize, Transform
from xpnet.inspect import diagnose
from xpnet.io import model_file
from xpnet.layers.module import Module
from xpnet.optim import AdamW
from xpnet.training import Trainer, find_learning_rate, overfit_one_batch

LEARNT = 0.1
"""A sound network brings the loss on one batch below this share of what guessing costs."""


def doctor(args: argparse.Namespace) -> int:
    """Print what looks wrong, each in a sentence; 1 if something does."""
    backend.device(args.device)
    dataset = user_data.find_dataset(args.dataset, args.data, args.size, args.target, args.skip_bad)
    model, preprocessing, new = _model(args, dataset)
    x, y = _batch(dataset, preprocessing, args.batch_size, model.context.device)
    findings = [finding for finding in diagnose(model, x, y) if new or finding.kind != "start"]
    found = [str(finding) for finding in findings]
    if new and not args.quick and not any(finding.kind in ("labels", "not finite") for finding in findings):
        found += _tries(model, x, y)
    for text in found:
        print(textwrap.fill(text[:1].upper() + text[1:] + ".", 100, initial_indent="* ", subsequent_indent="  "))
    if not found:
        print("nothing looks wrong")
    return 1 if found else 0


def _model(args: argparse.Namespace, dataset: Dataset) -> tuple[Module, Transform | None, bool]:
    """The network, what is done to examples before it, and whether it is a new one."""
    if Path(args.model).is_file() and not args.model.endswith(".py"):
        saved = model_file.read(args.model, args.device, classes=model_argument.user_classes(args.code))
        if example_shape(saved) != dataset.input_shape:
            raise UsageError(
                f"{args.model} takes examples of shape {example_shape(saved)}; {dataset.name}: {dataset.input_shape}"
            )
        return saved.model, saved.preprocessing, False
    _, make = model_argument.find_network(args.model)
    model = make(dataset.input_shape, dataset.classes, args.seed, args.device)
    model.predict(np.zeros((1, *dataset.input_shape), np.float32))
    return model, Standardize.from_moments(dataset.mean, dataset.std, dataset.input_shape), True


def _batch(dataset: Dataset, preprocessing: Transform | None, size: int, device: backend.Device) -> tuple[Any, Any]:
    """Examples from all over the training part: many files are sorted by class."""
    x, y = dataset.train
    chosen = np.linspace(0, len(y) - 1, min(size, len(y))).astype(np.int64)
    return backend.to_device(prepared(x[chosen], preprocessing), device), backend.to_device(y[chosen], device)


def _tries(model: Module, x: Any, y: Any) -> list[str]:
    """Search a learning rate, and learn one batch by heart with it."""
    trainer = Trainer(model, loss="softmax_cross_entropy", optimizer=AdamW(1e-3, weight_decay=0.0))
    try:
        rate = find_learning_rate(trainer, (x, y), batch_size=min(64, len(x)), steps=60).suggestion
    except ValueError as error:
        return [str(error)]
    print(f"a learning rate to begin with, for AdamW: {rate:.1g}")
    trainer.optimizer.learning_rate = rate
    losses = overfit_one_batch(trainer, x[:32], y[:32])
    guess = math.log(int(model(x[:2]).shape[-1]))
    print(f"one batch of {len(x[:32])} learnt by heart: the loss went from {losses[0]:.3g} to {min(losses[-10:]):.2g}")
    if min(losses[-10:]) > LEARNT * guess:
        return [
            f"the network could not learn one batch by heart in {len(losses)} steps (the loss is still "
            f"{min(losses[-10:]):.2g}, guessing costs {guess:.2g}); look for a layer that loses the input, dropout that is too "
            f"strong, or labels that have nothing to do with the examples"
        ]
    return []
