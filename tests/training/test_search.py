"""The learning-rate search and the overfit check find what they should, and put everything back."""

from __future__ import annotations

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
    assert (run.iteration, run.optimizer.iterations, run.model.counters()) == (0, 0, {})
    run.optimizer.learning_rate = found.suggestion
    assert run.fit((X, Y), epochs=10, verbose=False)["loss"][-1] < 0.4


def test_it_stops_where_the_loss_explodes():
    target = X[:, :1]
    run = xn.Trainer(xn.Sequential([xn.Dense(1)], input_shape=(10,)), loss="mse", optimizer=xn.optim.SGD(0.1))
    found = find_learning_rate(run, (X, target), highest=1e6, steps=50)
    assert found.rates[-1] < 100


def test_arguments():
    with pytest.raises(ValueError, match="lowest < highest"):
        find_learning_rate(trainer(), (X, Y), lowest=1, highest=0.1)


def test_one_batch_is_learnt_by_heart():
    run = trainer()
    run.optimizer.learning_rate = 0.01
    before = run.model.flat_parameters.values.copy()
    losses = overfit_one_batch(run, X[:16], Y[:16], steps=300)
    assert losses[0] > 0.3
    assert min(losses[-20:]) < 0.05
    np.testing.assert_array_equal(run.model.flat_parameters.values, before)
