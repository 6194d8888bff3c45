"""One program on the CPU, on a GPU in recorded steps, and on a GPU launch by launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xpnet as xn

WAYS = {"cpu": ("cpu", True), "captured": ("cuda", True), "launches": ("cuda", False)}
RANDOM = np.random.default_rng(5)
X = RANDOM.standard_normal((40, 6)).astype(np.float32)
Y = X[:, :3].argmax(axis=1)
IMAGES = RANDOM.integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
IMAGE_LABELS = IMAGES[:, 0, 0, 0].astype(np.int64) % 3


def fit(way: str, data: Any, *callbacks: Any, shape: tuple[int, ...] = (6,), epochs: int = 3, **settings: Any) -> xn.Trainer:
    """Train a small network on data, or on what `data(device)` makes."""
    device, capture = WAYS[way]
    model = xn.Sequential([xn.Flatten(), xn.Dense(8, "tanh"), xn.Dense(3)], input_shape=shape, device=device, seed=3)
    settings = {"loss": "softmax_cross_entropy", "optimizer": xn.optim.SGD(0.1), "capture": capture, **settings}
    run = xn.Trainer(model, callbacks=list(callbacks), **settings)
    run.fit(data(device) if callable(data) else data, epochs=epochs, batch_size=8, verbose=False)
    return run


def alike(program: Callable[[str], Any]) -> Any:
    """Return what a program gives on the CPU; assert that it gives the same in the other ways."""
    found = {way: program(way) for way in WAYS}
    for way in ("captured", "launches"):
        if isinstance(found["cpu"], xn.Trainer):
            losses = found["cpu"].history["loss"]
            assert found[way].history["loss"] == pytest.approx(losses, rel=1e-4), way
        else:
            assert found[way] == found["cpu"], way
    return found["cpu"]
