import math
import sys
from typing import Any

import numpy as np
import pytest

import xpnet as xn

pytest.importorskip("scipy")


def regression(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    return x, x @ np.array([[1.0], [-2.0], [0.5]]) + 0.7 + 0.1 * rng.standard_normal((n, 1))


def line(**keywords):
    return xn.Sequential([xn.Dense(1, **keywords)], input_shape=(3,), dtype="float64")


@pytest.mark.parametrize("method", [xn.optim.LBFGS, xn.optim.TruncatedNewton])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_least_squares_has_its_known_minimum(method, batch_size):
    x, y = regression()
    model = line()
    result = method(tolerance=1e-10).minimize(model, "mse", (x, y), batch_size=batch_size)
    exact, *_ = np.linalg.lstsq(np.hstack((x, np.ones((60, 1)))), y)
    np.testing.assert_allclose(model[0].kernel.array, exact[:3], atol=1e-6)
    np.testing.assert_allclose(model[0].bias.array, exact[3], atol=1e-6)
    assert result.converged
    assert result.evaluations >= result.iterations > 0
    np.testing.assert_allclose(result.loss, xn.losses.mean_squared_error(model.predict(x), y), rtol=1e-9)


@pytest.mark.parametrize("method", [xn.optim.LBFGS, xn.optim.TruncatedNewton])
@pytest.mark.parametrize("by", ["regularizer", "weight_decay"])
def test_penalties_shrink_the_weights_and_not_the_bias(method, by):
    x, y = regression()
    if by == "regularizer":
        model, optimizer = line(kernel_regularizer=xn.regularizers.L2(0.3)), method(tolerance=1e-10)
    else:
        model, optimizer = line(), method(tolerance=1e-10, weight_decay=0.3)
    optimizer.minimize(model, "mse", (x, y))
    X = np.hstack((x, np.ones((60, 1))))
    ridge = np.linalg.solve(2 / 60 * X.T @ X + np.diag([0.3, 0.3, 0.3, 0]), 2 / 60 * X.T @ y)
    np.testing.assert_allclose(np.vstack((model[0].kernel.array, model[0].bias.array)), ridge, atol=1e-6)


def test_a_small_network_in_float32_with_dropout():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    model = xn.Sequential([xn.Dense(16, "tanh"), xn.Dropout(0.1), xn.Dense(2)], input_shape=(2,))
    seen: list[Any] = []
    result = xn.optim.LBFGS(60).minimize(model, "softmax_cross_entropy", (x, y), callback=seen.append)
    assert seen[-1] < 0.3 * seen[0]
    assert min(seen) == seen[-1] == pytest.approx(result.loss, rel=1e-3)
    assert xn.Trainer(model, loss="mse", optimizer=xn.optim.SGD(), metrics=["accuracy"]).evaluate((x, np.eye(2)[y]))
    assert (model.predict(x).argmax(axis=1) == y).mean() > 0.9
    assert model[0].kernel.array.dtype == np.float32


def test_no_single_step_and_no_trainer():
    x, y = regression()
    model = line()
    with pytest.raises(TypeError, match=r"LBFGS\(...\).minimize\(model, loss, \(x, y\)\)"):
        xn.Trainer(model, loss="mse", optimizer=xn.optim.LBFGS()).step(x, y)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_cause_and_leaves_the_model():
    x, y = regression()
    model = line()
    before = model[0].kernel.array.copy()
    bad = x.copy()
    bad[3] = np.nan
    with pytest.raises(xn.NotFiniteError, match=r"nan in the first evaluation: the inputs hold NaN: 1 of 60 .* index 3"):
        xn.optim.LBFGS().minimize(model, "mse", (bad, y))
    with pytest.raises(xn.NotFiniteError, match="the targets hold values that are not finite"):
        xn.optim.TruncatedNewton().minimize(model, "mse", (x, np.where(y == y.max(), np.inf, y)))
    np.testing.assert_array_equal(model[0].kernel.array, before)
    calls: list[int] = []

    def lost_later(prediction: Any, target: Any) -> Any:
        calls.append(1)
        return ((prediction - target) ** 2).mean() * (1.0 if len(calls) < 4 else math.nan)

    with pytest.raises(xn.NotFiniteError, match=r"the loss became nan in iteration \d+; .*the loss function's own value"):
        xn.optim.LBFGS().minimize(model, lost_later, (x, y))
    np.testing.assert_array_equal(model[0].kernel.array, before)


def test_mistakes(monkeypatch):
    x, y = regression()
    with pytest.raises(ValueError, match="x holds 60 examples and y 59"):
        xn.optim.LBFGS().minimize(line(), "mse", (x, y[1:]))
    with pytest.raises(ValueError, match=r"0.kernel has a constraint, which LBFGS cannot keep"):
        xn.optim.LBFGS().minimize(line(kernel_constraint=xn.regularizers.MaxNorm(1)), "mse", (x, y))
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"xpnet\[scipy\]"):
        xn.optim.LBFGS().minimize(line(), "mse", (x, y))
