import math

import numpy as np
import pytest

import xpnet as xn
from xpnet.training import search_decades


def trainer(**keywords):
    model = xn.Sequential([xn.Dense(8, "tanh"), xn.Dropout(0.1), xn.Dense(1)], input_shape=(3,), seed=1)
    return xn.Trainer(model, loss="mse", optimizer=xn.optim.SGD(0.5, 0.9), **keywords)


def data():
    x = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    return x, (x.sum(axis=1, keepdims=True) * 2).astype(np.float32)


def test_a_middle_decade_is_best_and_nothing_is_left_behind():
    t = trainer()
    before = {name: a.copy() for name, a in t.model.state().items()}
    found = search_decades(t, data(), steps=60)
    assert found.best in (1e-3, 1e-2, 1e-1)
    assert found.scores[1e-5] > 2 * found.scores[found.best]
    assert len({losses[0] for losses in found.losses.values()}) == 1  # the same weights and the same first batch
    assert "<- best" in str(found)
    for name, a in t.model.state().items():
        np.testing.assert_array_equal(a, before[name])
    assert t.optimizer.learning_rate == 0.5
    assert t.iteration == t.optimizer.iterations == 0
    assert search_decades(t, data(), steps=60) == found


def test_a_rate_that_diverges_has_an_infinite_score():
    model = xn.Sequential([xn.Dense(1)], input_shape=(3,))
    t = xn.Trainer(model, loss="mse", optimizer=xn.optim.SGD())
    found = search_decades(t, data(), rates=[1e-2, 1e6], steps=20)
    assert found.best == 1e-2
    assert found.scores[1e6] == math.inf
    assert len(found.losses[1e6]) < 20
    with pytest.raises(ValueError, match=r"at every rate from 1e\+06"):
        search_decades(t, data(), rates=[1e6], steps=20)


def test_mistakes():
    for wrong in ({"rates": []}, {"rates": [0.0]}, {"steps": 5}):
        with pytest.raises(ValueError, match="expected rates above 0 and steps >= 10"):
            search_decades(trainer(), data(), **wrong)
