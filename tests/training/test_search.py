"""The learning-rate search and the overfit check find what they should, and put everything back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.training import find_learning_rate, overfit_one_batch

X = np.random.default_rng(0).normal(size=(256, 10)).astype(np.float32)
Y = (X[:, 0] > X[:, 1]).astype(np.int64)


def trainer(loss="softmax_cross_entropy", units=2):
    model = xn.Sequential([xn.Dense(16, "relu"), xn.Dropout(0.2), xn.Dense(units)], input_shape=(10,))
    return xn.Trainer(model, loss=loss, optimizer=xn.optim.Adam(0.123))


def test_the_suggestion_learns_and_nothing_is_changed():
    run = trainer()
    before = run.model.flat_parameters.values.copy()
    found = find_learning_rate(run, (X, Y), steps=60)
    assert found.rates == sorted(found.rates)
    assert len(found.rates) == len(found.losses)
    np.testing.assert_array_equal(run.model.flat_parameters.values, before)
    assert run.optimizer.learning_rate == 0.123
    assert (run.iteration, run.optimizer.iterations, run.model.rng_counters()) == (0, 0, {})
    run.optimizer.learning_rate = found.suggestion
    assert run.fit((X, Y), epochs=10, verbose=False)["loss"][-1] < 0.4


def test_it_stops_where_the_loss_explodes():
    target = X[:, :1]
    run = xn.Trainer(xn.Sequential([xn.Dense(1)], input_shape=(10,)), loss="mse", optimizer=xn.optim.SGD(0.1))
    found = find_learning_rate(run, (X, target), highest=1e6, steps=50)
    assert found.rates[-1] < 100


def regression(optimizer, *layers):
    model = xn.Sequential([*layers, xn.Dense(1)], input_shape=(3,), seed=1)
    x = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    return xn.Trainer(model, loss="mse", optimizer=optimizer), (x, (x.sum(axis=1, keepdims=True) * 2).astype(np.float32))


def test_of_given_rates_a_middle_one_is_best_and_nothing_is_changed():
    run, data = regression(xn.optim.SGD(0.5, 0.9), xn.Dense(8, "tanh"), xn.Dropout(0.1))
    before = {name: a.copy() for name, a in run.model.state().items()}
    rates = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
    found = find_learning_rate(run, data, rates=rates, steps=60)
    assert found.rates == rates
    assert found.suggestion in (1e-3, 1e-2, 1e-1)
    assert found.losses[0] > 2 * min(found.losses) == 2 * found.losses[rates.index(found.suggestion)]
    for name, a in run.model.state().items():
        np.testing.assert_array_equal(a, before[name])
    assert run.optimizer.learning_rate == 0.5
    assert run.iteration == run.optimizer.iterations == 0
    assert find_learning_rate(run, data, rates=rates, steps=60) == found
    first, second = find_learning_rate(run, data, rates=[1e-2, 1e-2], steps=10).losses
    assert first == second  # the same weights, masks and batches


def test_a_given_rate_that_diverges_has_an_infinite_loss():
    run, data = regression(xn.optim.SGD())
    found = find_learning_rate(run, data, rates=[1e-2, 1e6], steps=20)
    assert found.suggestion == 1e-2
    assert found.losses[1] == math.inf
    with pytest.raises(ValueError, match=r"at every rate from 1e\+06"):
        find_learning_rate(run, data, rates=[1e6], steps=20)


def test_arguments():
    with pytest.raises(ValueError, match="lowest < highest"):
        find_learning_rate(trainer(), (X, Y), lowest=1, highest=0.1)
    mistakes: list[dict[str, Any]] = [{"rates": []}, {"rates": [0.0]}, {"rates": [0.1], "steps": 5}]
    for wrong in mistakes:
        with pytest.raises(ValueError, match=r"expected rates above 0|steps >= 10"):
            find_learning_rate(trainer(), (X, Y), **wrong)


def test_one_batch_is_learnt_by_heart():
    run = trainer()
    run.optimizer.learning_rate = 0.01
    before = run.model.flat_parameters.values.copy()
    losses = overfit_one_batch(run, X[:16], Y[:16], steps=300)
    assert losses[0] > 0.3
    assert min(losses[-20:]) < 0.05
    np.testing.assert_array_equal(run.model.flat_parameters.values, before)
