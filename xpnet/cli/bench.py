"""``xpnet bench``: how fast this machine trains and predicts with the ready-made networks."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from xpnet import backend, models, random
from xpnet.backend import Device
from xpnet.layers.module import Module
from xpnet.optim import Adam
from xpnet.training import Trainer

CASES: tuple[tuple[str, Callable[..., Module], tuple[int, ...], int], ...] = (
    ("mlp on 28 x 28 x 1", models.mlp, (28, 28, 1), 128),
    ("cnn on 28 x 28 x 1", models.cnn, (28, 28, 1), 128),
    ("cnn on 32 x 32 x 3", models.cnn, (32, 32, 3), 128),
)


def bench(args: argparse.Namespace) -> int:
    """Print examples per second, in training steps and in prediction."""
    device = backend.device(args.device)
    print(f"matrix products of 2048 x 2048 in float32: {_products(device, args.seconds) / 1e9:,.0f} GFLOP/s")
    print(f"{'':<22}{'batch':>7}{'step ms':>10}{'train/s':>12}{'predict/s':>12}")
    for name, make, shape, batch in CASES:
        model = make(shape, 10, 0, args.device)
        generator = random.generator(random.key(0, "bench"))
        x = backend.to_device(generator.random((batch, *shape), dtype=np.float32), device)
        y = backend.to_device(generator.integers(0, 10, batch), device)
        trainer = Trainer(model, loss="softmax_cross_entropy", optimizer=Adam())
        step = _median(lambda: trainer.step(x, y), device, args.seconds)  # noqa: B023 - called at once
        predict = _median(lambda: model.predict(x), device, args.seconds)  # noqa: B023
        print(f"{name:<22}{batch:>7}{1e3 * step:>10.2f}{batch / step:>12,.0f}{batch / predict:>12,.0f}", flush=True)
    return 0


def _median(work: Callable[[], Any], device: Device, seconds: float) -> float:
    """Return the median seconds of one call, over as many calls as fit into `seconds` after a warm-up."""
    times: list[float] = []
    for _ in range(3):
        work()
    device.synchronize()
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        device.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _products(device: Device, seconds: float, n: int = 2048) -> float:
    """Return the floating-point operations per second of n x n matrix products in float32."""
    xp = device.xp
    generator = random.generator(random.key(0, "bench"))
    a, b = (backend.to_device(generator.random((n, n), dtype=np.float32), device) for _ in range(2))
    return float(2 * n**3 / _median(lambda: xp.matmul(a, b), device, seconds))
