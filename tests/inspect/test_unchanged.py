"""Looking at a model in training mode leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet.inspect import diagnose, profile

X = np.random.default_rng(0).normal(3.0, 2.0, size=(32, 5)).astype(np.float32)
Y = np.arange(32) % 3


@pytest.mark.parametrize("look", [profile, diagnose])
@pytest.mark.parametrize("mode", [True, False])
def test_statistics_counters_gradients_and_modes_are_put_back(look, mode):
    model = xn.Sequential([xn.Dense(8), xn.BatchNorm(), xn.ReLU(), xn.Dropout(0.5), xn.Dense(3)], input_shape=(5,))
    model.train(mode)
    model.layers[1].eval()  # someone holds its statistics fixed
    xn.losses.softmax_cross_entropy(model(X), Y).backward()
    before = {name: xn.to_numpy(array).copy() for name, array in model.state().items()}
    assert all(p.grad is not None for p in model.parameters().values())
    gradients = {name: xn.to_numpy(p.grad).copy() for name, p in model.parameters().items()}
    modes = [layer.training for layer in model.modules()]
    counters = model.rng_counters()
    look(model, X, Y)
    for name, array in model.state().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    for name, p in model.parameters().items():
        np.testing.assert_array_equal(p.grad, gradients[name], err_msg=name)
    assert [layer.training for layer in model.modules()] == modes
    assert model.rng_counters() == counters


@pytest.mark.parametrize("look", [profile, diagnose])
def test_a_model_that_has_not_seen_its_input(look):
    model = xn.Sequential([xn.Dense(8), xn.BatchNorm(), xn.Dense(3)])
    look(model, X, Y)
    np.testing.assert_array_equal(model.layers[1].running_mean, np.zeros(8))
    assert all(p.grad is None for p in model.parameters().values())


@pytest.mark.parametrize("look", [profile, diagnose])
def test_the_state_that_a_recurrent_layer_carries(look):
    model = xn.Sequential([xn.LSTM(4, stateful=True), xn.Dense(3)], input_shape=(6, 2))
    x = np.random.default_rng(1).normal(size=(32, 6, 2)).astype(np.float32)
    model(x)
    before = [s.copy() for s in model.layers[0].carried]
    look(model, x, Y)
    for found, wanted in zip(model.layers[0].carried, before):
        np.testing.assert_array_equal(found, wanted)
