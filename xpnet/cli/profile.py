"""``xpnet profile``."""

from __future__ import annotations

import argparse

import numpy as np

from xpnet import backend, random
from xpnet.cli.argument_types import UsageError
from xpnet.cli.model_argument import example_shape, in_run_folder, new_network, saved_model
from xpnet.cli.places import check_output
from xpnet.inspect import profile as measure


def profile(args: argparse.Namespace) -> int:
    """Print where a training step spends time and memory, on random examples."""
    check_output("--trace", args.trace, in_run_folder(args.model), args.model.rpartition(":")[0], args.code)
    backend.device(args.device)
    saved = saved_model(args, args.device)
    if saved is None:
        model, shape = new_network(args)(args.input, args.classes, 0, args.device), args.input
    else:
        model, shape = saved.model, args.input or example_shape(saved)
    generator = random.generator(random.key(0, "profile"))
    x = generator.standard_normal((args.batch_size, *shape), dtype=np.float32)
    device = model.context.device
    outputs = model.predict(backend.to_device(x[:1], device)).shape
    if len(outputs) != 2:
        raise UsageError(f"{args.model} gives outputs of shape {tuple(outputs)[1:]}, expected one number per class")
    y = generator.integers(0, outputs[1], args.batch_size)
    found = measure(model, backend.to_device(x, device), backend.to_device(y, device), steps=args.steps)
    print(found)
    if args.trace is not None:
        found.save_trace(args.trace)
        print(f"the last pass is in {args.trace}; open it at chrome://tracing or in Perfetto")
    return 0
