"""Batch normalisation with what stands behind it as one operation: where it is chosen, and that it changes nothing."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.autograd.tape import Node, Output, made_by, reachable
from xpnet.inspect import activations
from xpnet.layers.hooks import hooked
from xpnet.ops.registry import reference_only

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((6, 5, 5, 3))
Y = RANDOM.integers(0, 3, 6)


def block(stride: int = 1) -> list[xn.Module]:
    body = [xn.Conv2D(4, 3, stride=stride, padding=1, use_bias=False), xn.BatchNorm(), xn.ReLU()]
    shortcut = None if stride == 1 else xn.Sequential([xn.Conv2D(4, 1, stride=stride, use_bias=False), xn.BatchNorm()])
    return [xn.Residual([*body, xn.Conv2D(4, 3, padding=1), xn.BatchNorm(momentum=0.5)], shortcut), xn.ReLU()]


def network(dtype: str = "float64") -> xn.Sequential:
    layers = [xn.Conv2D(4, 3, padding=1), xn.BatchNorm(), xn.ReLU(), *block(), *block(2), xn.Flatten(), xn.Dense(3)]
    return xn.Sequential(layers, input_shape=(5, 5, 3), dtype=dtype, seed=1)


def recorded(y: Any) -> dict[str, int]:
    """Return how often the tape behind a result holds each operation."""
    assert isinstance(y.node, (Node, Output))
    names = [node.op.__name__ for node in reachable(y.node)]
    return {name: names.count(name) for name in names}


def one_by_one(model: xn.Module) -> contextlib.AbstractContextManager[None]:
    """Return a context in which every layer below a model gives its own output, to a hook."""
    return hooked(model.modules()[1:], lambda layer, forward, inputs, keywords: forward(*inputs, **keywords))


def state_after(model: xn.Module, alone: bool) -> list[Any]:
    """Return the output of two passes, the gradients of all parameters, and the running statistics."""
    with one_by_one(model) if alone else contextlib.nullcontext():
        model(X)
        y = model(xn.Tensor(X))
        y.backward(np.ones(y.shape) if model.training else np.cos(np.arange(y.array.size)).reshape(y.shape))
    return [y.array, *(p.grad for p in model.parameters().values()), *model.buffers().values()]


@pytest.mark.parametrize("mode", ["training", "evaluation", "frozen"])
@pytest.mark.parametrize("reference", [False, True])
def test_the_results_are_those_of_the_layers_one_by_one(mode: str, reference: bool):
    results = []
    for alone in (False, True):
        model = network().train(mode != "evaluation")
        if mode == "frozen":
            model.freeze("1")
            model.freeze("3.body.4")
        with reference_only(reference):
            results.append(state_after(model, alone))
    for one, other in zip(*results, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


def test_they_are_one_operation_where_nothing_watches_them():
    model = network()
    assert recorded(model(X)) == {"dense": 1, "reshape": 1, "batch_norm_training": 6, "conv2d": 6}
    with one_by_one(model):
        assert recorded(model(X))["relu"] == 5
    assert len(activations(model, X)) == len([m for m in model.modules() if not m._children])
    for path in ("3", "3.body", "3.body.4", "4"):  # a block, its body, the last layer of that, the activation behind
        (layer,) = (module for name, module in model.named_modules() if name == path)
        with hooked([layer], lambda layer, forward, inputs, keywords: forward(*inputs, **keywords)):
            found = recorded(model(X))
        assert found["relu"] == 1
        assert found.get("add", 0) == (path not in ("3", "4"))


class Shifted(xn.BatchNorm):
    def forward(self, x: Any) -> Any:  # type: ignore[override]
        return super().forward(x) + 1


def test_layers_of_other_classes_run_alone():
    norms = xn.Sequential([Shifted(), xn.ReLU(), xn.BatchNorm(), xn.LeakyReLU(), xn.Residual(Shifted()), xn.ReLU()])
    found = recorded(norms(xn.Tensor(X)))
    assert found["batch_norm_training"] == 3
    assert found["relu"] == 2
    assert found["leaky_relu"] == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("recompute", [True, ["1"], ["2"], ["3", "5"], ["3.body", "5.shortcut"], ["3.body.4", "5.body.0"]])
def test_recomputed_they_update_the_running_statistics_once(recompute: Any, dtype: str):
    results = []
    for way in (False, recompute):
        model = network(dtype)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), recompute=way)
        losses = [float(trainer.step(X.astype("float32"), Y)) for _ in range(3)]
        results.append((losses, {name: xn.to_numpy(a).tobytes() for name, a in model.state().items()}))
    assert results[0] == results[1]


def test_running_statistics_stay_the_same_arrays():
    layer = xn.BatchNorm(momentum=0.75)
    model = xn.Sequential([layer, xn.ReLU()], input_shape=(3,), dtype="float64")
    mean, variance = layer.running_mean, layer.running_variance
    x = X.reshape(-1, 3)
    model(x)
    assert layer.running_mean is mean
    assert layer.running_variance is variance
    np.testing.assert_allclose(mean, 0.25 * x.mean(axis=0))
    np.testing.assert_allclose(variance, 0.75 + 0.25 * x.var(axis=0, ddof=1))
    model(x[:0])
    np.testing.assert_allclose(mean, 0.25 * x.mean(axis=0))
    model(x[:1])  # the variance of one example counts as 0
    np.testing.assert_allclose(variance, 0.75 * (0.75 + 0.25 * x.var(axis=0, ddof=1)))


def test_a_shortcut_that_does_not_fit_is_named():
    model = xn.Residual([xn.Dense(4), xn.BatchNorm()])
    model(X[..., :2].reshape(-1, 10)[:, :4])
    with pytest.raises(ValueError, match=r"the body gives \(4,\), the shortcut \(5,\)"):
        xn.Residual([xn.Dense(4), xn.BatchNorm()])(X.reshape(-1, 5))


def test_running_statistics_have_no_gradient():
    x = xn.Tensor(X, requires_grad=True)
    running = {"running_mean": np.zeros(3), "running_variance": np.ones(3)}
    y, mean, _ = xn.ops.batch_norm_training(x, **running)
    with pytest.raises(TypeError, match="running statistics have no gradient"):
        mean.sum().backward()
    assert made_by(y.node) is made_by(mean.node)
