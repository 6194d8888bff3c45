"""MNIST to 99 % in one epoch."""

from __future__ import annotations

import functools

import xpnet as xn
from benchmarks.records.common import Recipe, Setting

RATE, BETAS = 0.01, (0.7, 0.9)
# Chosen on 5,000 held-out training images (mean of four seeds: 99.07 % without, 99.25 % with it).
SMOOTHING = 0.1


def model(setting: Setting, seed: int) -> xn.Sequential:
    """Return the network: convolutions 5x5-24 and 3x3-32, each normalised, pooled and rectified; then 256 units."""
    first, second, units = (max(round(setting.width * n), 1) for n in (24, 32, 256))

    def stage(filters: int, window: int) -> list[xn.Module]:
        # Max pooling and ReLU commute: after pooling there is a quarter to rectify.
        return [xn.Conv2D(filters, window, use_bias=False), xn.BatchNorm(), xn.MaxPool2D(2), xn.ReLU()]

    layers = [*stage(first, 5), *stage(second, 3), xn.Flatten()]
    layers += [xn.Dense(units, use_bias=False), xn.BatchNorm(), xn.ReLU(), xn.Dense(10)]
    return xn.Sequential(layers, input_shape=(28, 28, 1), device=setting.device, dtype=setting.dtype, seed=seed)


def trainer(model: xn.Sequential, steps: int, seed: int) -> xn.Trainer:
    """Return a Trainer with Adam and a one-cycle learning rate."""
    optimizer = xn.optim.Adam(xn.optim.schedules.OneCycle(RATE, steps), *BETAS)
    loss = functools.partial(xn.losses.softmax_cross_entropy, label_smoothing=SMOOTHING)
    return xn.Trainer(model, loss=loss, optimizer=optimizer, seed=seed)


RECIPE = Recipe(
    name="mnist",
    title="MNIST to 99 %",
    what="one epoch in batches of 256; convolutions 5x5-24 and 3x3-32, 256 units, 10 units, with batch normalisation after "
    "each but the last; Adam, learning rate 0.01 on one cycle, betas 0.7 and 0.9; label smoothing 0.1; no augmentation",
    anchors="0.76 s on a GTX 1660 Ti, mean of the runs 99.04 % (PyTorch, the same sizes of layers, optimizer and schedule)",
    accuracy=0.99,
    seconds=1.0,
    epochs=1,
    batch=256,
    model=model,
    trainer=trainer,
)
