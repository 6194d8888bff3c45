"""Class weights, in the loss and in the drawing."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import Batches, class_weights, example_weights
from xpnet.training import ClassWeighted


def unbalanced(n=400, rare=0.05):
    rng = np.random.default_rng(0)
    y = (rng.random(n) < rare).astype(np.int64)
    x = rng.normal(size=(n, 2)).astype(np.float32)
    x[:, 0] += 1.2 * y
    return x, y


def recall(model, x, y):
    return float((model.predict(x[y == 1]).argmax(axis=1) == 1).mean())


def fit(loss, data):
    model = xn.Sequential([xn.Dense(2)], input_shape=(2,))
    xn.Trainer(model, loss=loss, optimizer=xn.optim.Adam(0.05)).fit(data, epochs=20, batch_size=40, verbose=False)
    return model


def test_the_value_and_the_gradient():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 3))
    y = np.array([0, 1, 2, 2, 1, 2])
    w = np.array([2.0, 0.5, 1.0])
    loss = ClassWeighted("softmax_cross_entropy", w)
    terms = np.asarray(xn.losses.softmax_cross_entropy(z, y, reduction="none"))
    np.testing.assert_allclose(float(xn.to_numpy(loss(z, y))), np.mean(w[y] * terms))
    xn.inspect.check_gradients(lambda t: loss(t, y), [z])
    assert loss.__name__ == "class_weighted_softmax_cross_entropy"


def test_equal_weights_change_nothing():
    x, y = unbalanced()
    one, other = fit("softmax_cross_entropy", (x, y)), fit(ClassWeighted("softmax_cross_entropy", np.ones(2)), (x, y))
    np.testing.assert_allclose(one.flat_parameters.values, other.flat_parameters.values, atol=1e-6)


def test_rare_classes_are_found_with_either_way():
    x, y = unbalanced()
    plain = fit("softmax_cross_entropy", (x, y))
    by_loss = fit(ClassWeighted("softmax_cross_entropy", class_weights(y)), (x, y))
    by_drawing = fit("softmax_cross_entropy", Batches((x, y), 40, weights=example_weights(y)))
    assert recall(plain, x, y) < 0.3
    assert recall(by_loss, x, y) > 0.6
    assert recall(by_drawing, x, y) > 0.6


def test_float32_stays_float32():
    z = np.zeros((4, 2), np.float32)
    assert ClassWeighted("softmax_cross_entropy", np.ones(2))(z, np.array([0, 1, 0, 1])).dtype == np.float32


def test_weights_that_are_none():
    for wrong in (np.ones((2, 2)), np.array([1.0, -1.0]), np.array([np.nan, 1.0])):
        with pytest.raises(ValueError, match="ClassWeighted"):
            ClassWeighted("softmax_cross_entropy", wrong)
