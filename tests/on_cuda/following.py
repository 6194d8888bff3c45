"""A captured fit, and one that runs launch by launch: the same outcome, whatever a program changes between its steps."""

from __future__ import annotations

import warnings

import numpy as np

import xpnet as xn

X = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
Y = np.arange(32) % 3
EPOCHS = 4


def network(*layers, device="cuda", **settings):
    layers = layers or (xn.Dense(8, "tanh"), xn.Dropout(0.5), xn.Dense(3))
    return xn.Sequential(list(layers), input_shape=(6,), device=device, seed=1, **settings)


class At(xn.Callback):
    """Call a function at the beginning of every epoch."""

    def __init__(self, act):
        self.act = act

    def on_epoch_begin(self, trainer):
        self.act(trainer)


def bits(arrays):
    return {name: xn.to_numpy(array).tobytes() for name, array in arrays.items()}


def outcome(trainer, data=(X, Y), epochs=EPOCHS, batch_size=8):
    """Train, and return everything that came of it."""
    trainer.fit(data, epochs=epochs, batch_size=batch_size, verbose=False)
    model, optimizer = trainer.model, trainer.optimizer
    assert all(module.device_counter is None for module in model.modules())
    assert optimizer.clock is None
    state = bits(model.state()), bits(optimizer.slots), optimizer.iterations, optimizer.skipped, model.rng_counters()
    return {name: [v.hex() for v in values] for name, values in trainer.history.items()}, *state


def assert_alike(make, recordings, recorded, **fit):
    """Assert that the trainers of make(capture=...) have the same outcome, and how many recordings that takes."""
    expected = outcome(make(capture=False), **fit)
    assert recordings == [0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = outcome(make(capture=True), **fit)
    assert found == expected
    assert recordings == [recorded]
    return found


VALUES = (1.0, 0.5, 0.5, 0.125)
DIFFERENT = 3


class Draws(xn.Module):
    """A layer that drops in evaluation, too."""

    def forward(self, x):
        key = xn.random.key(self.context.seed, self.path or "", "draws")
        return xn.ops.dropout(x, 0.5, key=key, step=self.next_random_step())

    def output_shape(self, input_shape):
        return input_shape
