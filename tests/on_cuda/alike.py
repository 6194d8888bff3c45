"""Fits and predictions that are captured, that run launch by launch, and those of the CPU: the same outcome."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.following import X, Y

cross_entropy = xn.losses.softmax_cross_entropy
CANNOT = "cannot be recorded as a CUDA graph and runs launch by launch: "


def network(device, outputs=3, seed=1, **settings):
    return xn.Sequential([xn.Dense(8, "tanh"), xn.Dense(outputs)], input_shape=(6,), device=device, seed=seed, **settings)


def with_kernel(device, **settings):
    model = network(device)
    for name, value in settings.items():
        setattr(model.layers[0].kernel, name, value)
    return model


def on(device, array):
    return xn.to_device(np.asarray(array), device)


def number(value):
    return float(xn.to_numpy(getattr(value, "array", value)))


def fit(device, capture, model=None, *, batch_size=8, epochs=4, kind: Any = xn.Trainer, act=None, **settings):
    """Train, and return the trainer and the values of its history; `act` is called with the trainer after every step."""
    settings = {"loss": "softmax_cross_entropy", "optimizer": xn.optim.SGD(0.1), **settings}
    callbacks = [xn.training.LambdaCallback(step_end=act)] if act else []
    run = kind(model or network(device), capture=capture, callbacks=callbacks, **settings)
    run.fit((X, Y), epochs=epochs, batch_size=batch_size, verbose=False)
    return run, [value for values in run.history.values() for value in values]


def on_call(act):
    """Return a function that calls act(how many calls there were so far) in a handler of `logging`, as a log's effects are."""

    class Handler(logging.Handler):
        def emit(self, record):
            numbers.append(record)
            act(len(numbers))

    numbers: list[Any] = []
    log = logging.Logger("calls")
    log.addHandler(Handler())
    return log.info


def assert_alike(values, recordings, recorded, says=""):
    """Assert that values(device, capture) are those of the CPU: replayed, and launch by launch to the bit.

    recorded: the recordings of the replayed run; None: any number above 0; -1: any. says: the warning where there are none.
    """
    expected = values("cpu", True)
    plain = values("cuda", False)
    before = recordings[0]
    if says:
        with pytest.warns(RuntimeWarning, match=CANNOT + says):
            found = values("cuda", True)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            found = values("cuda", True)
    assert found == plain
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    count = recordings[0] - before
    assert count > 0 if recorded is None else recorded in (count, -1)
