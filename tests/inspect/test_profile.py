"""The profiler names every layer, accounts for the whole step and leaves the model as it was."""

from __future__ import annotations

import functools
import itertools
import json
import time

import numpy as np
import pytest

import xpnet as xn
from xpnet.inspect import profile

X = np.random.default_rng(0).normal(size=(16, 12, 12, 1)).astype(np.float32)
Y = np.arange(16) % 3


def net():
    body = [xn.Conv2D(4, 3, padding="same", activation="elu")]
    return xn.Sequential(
        [xn.Conv2D(4, 3, activation="relu"), xn.Residual(body), xn.Flatten(), xn.Dropout(0.5), xn.Dense(3)],
        input_shape=(12, 12, 1),
    )


def test_layers_times_and_memory(monkeypatch):
    # Every reading of the clock is one later than the last: times do not depend on what else the machine does.
    monkeypatch.setattr(time, "perf_counter", functools.partial(next, itertools.count(0.0)))
    model = net().eval()
    before = model.flat_parameters.values.copy()
    found = profile(model, X, Y, steps=3, warmup=1)
    assert [layer.path for layer in found.layers] == ["0", "1.body.0", "2", "3", "4", ""]
    assert all(layer.forward > 0 for layer in found.layers)
    assert found.layers[0].backward > 0
    parts = sum(layer.forward + layer.backward for layer in found.layers)
    assert 0.2 * found.step < parts <= 1.5 * found.step  # medians of parts against the median of the whole
    # The first convolution keeps its input and its output, 16 x 10 x 10 x 4 floats, and nothing of the kernel.
    assert found.layers[0].saved == X.nbytes + 16 * 10 * 10 * 4 * 4
    assert found.layers[0].output == 16 * 10 * 10 * 4 * 4
    np.testing.assert_array_equal(model.flat_parameters.values, before)
    assert model.rng_counters() == {}
    assert not model.training
    assert all(p.grad is None for p in model.parameters().values())


def test_the_table_and_the_trace(tmp_path):
    found = profile(net(), X, Y, steps=1, warmup=0)
    assert "1.body.0 (Conv2D)" in str(found)
    found.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {(event["name"], event["cat"]) for event in events}
    assert ("0 Conv2D", "forward") in names
    assert ("0 Conv2D", "backward") in names
    assert all(event["dur"] >= 0 and event["ph"] == "X" for event in events)


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="steps"):
        profile(net(), X, Y, steps=0)


class Again(xn.Module):
    def __init__(self):
        self.body = xn.Sequential([xn.Dense(30, "relu"), xn.Dense(30, "relu"), xn.Dense(3)])

    def forward(self, x):
        return xn.recompute(self.body)(x)


def test_a_recomputed_segment_keeps_its_input():
    x = np.ones((50, 20), np.float32)
    found = profile(Again(), x, np.zeros(50, np.int64), steps=1)
    assert found.layers[-1].saved >= x.nbytes
    assert sum(layer.saved for layer in found.layers) < x.nbytes + 50 * 30 * 4
