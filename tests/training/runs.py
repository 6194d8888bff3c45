"""A small run that uses everything a checkpoint must hold: dropout, batches, momentum, callbacks, accumulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import xpnet as xn
from xpnet.training import Checkpoint, ClipGradients, EarlyStopping, ExponentialMovingAverage, ReduceOnPlateau

EPOCHS = 5


def data():
    x = np.random.default_rng(0).normal(size=(150, 6, 6, 1)).astype(np.float32)
    return x, (x.sum(axis=(1, 2, 3)) > 0).astype(np.int64)


def trainer(folder: Path | None, *more: xn.Callback, every_steps: int | None = 4, keep: int = 3) -> xn.Trainer:
    model = xn.Sequential(
        [xn.Conv2D(4, 3, activation="relu"), xn.Flatten(), xn.Dropout(0.5), xn.Dense(2)], input_shape=(6, 6, 1), seed=3
    )
    callbacks = [
        ReduceOnPlateau("val_loss", 0, factor=0.5),
        EarlyStopping("val_loss", 10),
        ClipGradients(norm=1.0),
        ExponentialMovingAverage(0.9),
        *more,
    ]
    if folder is not None:
        callbacks.append(Checkpoint(folder, every_steps=every_steps, keep=keep, best="val_loss"))
    return xn.Trainer(
        model,
        loss="softmax_cross_entropy",
        optimizer=xn.optim.Adam(0.01),
        metrics=["accuracy"],
        callbacks=callbacks,
        seed=5,
        accumulate=2,
    )


def fit(run: xn.Trainer, resume=None) -> xn.History:
    return run.fit(data(), validation=data(), epochs=EPOCHS, batch_size=16, verbose=False, resume=resume)


def fingerprint(run: xn.Trainer) -> dict[str, bytes]:
    """Every bit of the weights and the history."""
    weights = {name: np.asarray(array).tobytes() for name, array in run.model.state().items()}
    return {**weights, **{f"history {name}": np.asarray(values).tobytes() for name, values in run.history.items()}}
