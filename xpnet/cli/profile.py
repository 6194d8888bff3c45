"""``xpnet profile``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from xpnet import backend, random
from xpnet.cli import model_argument
from xpnet.cli.argument_types import UsageError
from xpnet.cli.predict import example_shape
from xpnet.inspect import profile as measure
from xpnet.io import model_file
from xpnet.layers.module import Module


def profile(args: argparse.Namespace) -> int:
    """Print where a training step's time and memory go, on examples drawn at random."""
    backend.device(args.device)
    model, shape = _model(args)
    generator = random.generator(random.key(0, "profile"))
    x = generator.standard_normal((args.batch_size, *shape), dtype=np.float32)
    outputs = model.predict(backend.to_device(x[:1], model.context.device)).shape
    if len(outputs) != 2:
        raise UsageError(f"{args.model} gives outputs of shape {tuple(outputs)[1:]}, expected one number a class")
    y = generator.integers(0, outputs[1], args.batch_size)
    device = model.context.device
    found = measure(model, backend.to_device(x, device), backend.to_device(y, device), steps=args.steps)
    print(found)
    if args.trace is not None:
        found.save_trace(args.trace)
        print(f"the last pass is in {args.trace}; open it at chrome://tracing or in Perfetto")
    return 0


def _model(args: argparse.Namespace) -> tuple[Module, tuple[int, ...]]:
    if Path(args.model).is_file() and not args.model.endswith(".py"):
        saved = model_file.read(args.model, args.device, classes=model_argument.user_classes(args.code))
        return saved.model, args.input or example_shape(saved)
    if args.model not in model_argument.NETWORKS and ".py" not in args.model:
        raise UsageError(f"{args.model}: no such file, and no network; expected a model file, mlp, cnn or PATH.py:function")
    _, make = model_argument.find_network(args.model)
    if args.input is None:
        raise UsageError("a new network needs the shape of an example: add --input, such as --input 28,28,1")
    return make(args.input, args.classes, 0, args.device), tuple(args.input)
