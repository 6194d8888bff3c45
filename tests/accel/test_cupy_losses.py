"""Losses, their gradients, measurements and the sums of an epoch on a device: how many launches, and the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import losses, metrics, ops
from xpnet.ops import measures
from xpnet.ops.registry import registry
from xpnet.ops.root_gradient import is_root_gradient, root_gradient

pytestmark = pytest.mark.cuda

RANDOM = np.random.default_rng(2)
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("sigmoid_cross_entropy", {}),
    ("squared_error", {}),
    ("squared_error", {"scale": 0.5}),
    ("absolute_error", {}),
    ("huber_error", {"delta": 0.7}),
]


def normal(*shape: int, dtype: str = "float64") -> np.ndarray:
    return np.asarray(RANDOM.standard_normal(shape)).astype(dtype)


def saved_gradient(gpu: Any, name: str, x: Any, target: Any, **settings: Any) -> Any:
    """Run an operation forward, and backward from the root gradient."""
    op = registry[name]
    loss, saved, implementation = op.run(gpu.xp, (x, target), op.bind((x, target), settings)[1], True)
    one = root_gradient(loss)
    gradient = op.gradients(implementation, gpu.xp, one, saved, op.bind((x, target), settings)[1], (True, False))[0]
    return loss, gradient, saved


@pytest.mark.parametrize("shape", [(1, 2), (64, 10), (3000, 10), (7, 3, 5), (40, 700), (9, 5000)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy_is_one_launch_both_ways(gpu, shape, reduction):
    gpu.multiprocessors = 4
    logits, labels = normal(*shape, dtype="float32") * 3, RANDOM.integers(0, shape[-1], shape[:-1])
    x, t = gpu.array(logits), gpu.array(labels)
    expected: Any = xn.Tensor(logits.astype(np.float64), requires_grad=True)
    wanted = ops.softmax_cross_entropy(expected, labels, reduction=reduction)
    wanted.backward()
    first = None
    for _ in range(2):
        gpu.launches.clear()
        loss, gradient, saved = saved_gradient(gpu, "softmax_cross_entropy", x, t, reduction=reduction)
        assert len(gpu.launches) == 1
        assert gradient is saved  # nothing was multiplied by 1
        np.testing.assert_allclose(gpu.numpy(loss), wanted.array, rtol=1e-5)
        np.testing.assert_allclose(gpu.numpy(gradient), expected.grad, rtol=1e-4, atol=1e-6)
        first = gpu.numpy(loss) if first is None else first
        assert gpu.numpy(loss) == first


def test_smoothed_labels_are_one_launch_as_well(gpu):
    logits, labels = normal(64, 10, dtype="float32"), RANDOM.integers(0, 10, 64)
    labels[3] = 10
    x: Any = xn.Tensor(gpu.array(logits), requires_grad=True)
    loss = losses.softmax_cross_entropy(x, gpu.array(labels), label_smoothing=0.1)
    loss.backward()
    assert len(gpu.launches) == 1
    assert np.isnan(gpu.numpy(loss.array))  # of the class that does not exist
    np.testing.assert_array_equal(np.isnan(gpu.numpy(x.grad)).all(axis=1), np.arange(64) == 3)


@pytest.mark.parametrize("count", [1, 4, 4097, 100_000])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_elementwise_losses_are_one_launch_both_ways(gpu, name, settings, dtype, reduction, count):
    gpu.multiprocessors = 4
    a, b = normal(count, dtype=dtype) * 2, np.abs(normal(count, dtype=dtype))
    a[:1] = b[:1]
    x: Any = xn.Tensor(a.astype(np.float64), requires_grad=True)
    wanted = getattr(ops, name)(x, b.astype(np.float64), reduction=reduction, **settings)
    wanted.backward()
    loss, gradient, saved = saved_gradient(gpu, name, gpu.array(a), gpu.array(b), reduction=reduction, **settings)
    assert len(gpu.launches) == 1
    assert gradient is saved
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(gpu.numpy(loss), wanted.array, rtol=tolerance)
    np.testing.assert_allclose(gpu.numpy(gradient), x.grad, rtol=tolerance, atol=tolerance * np.abs(x.grad).max())


@pytest.mark.parametrize(("name", "settings"), LOSSES)
def test_nan_in_prediction_or_target_is_one_in_the_loss(gpu, name, settings):
    for which in (0, 1):
        arrays = [normal(300, dtype="float32"), np.abs(normal(300, dtype="float32"))]
        arrays[which][17] = np.nan
        loss, gradient, _ = saved_gradient(gpu, name, *map(gpu.array, arrays), **settings)
        assert np.isnan(gpu.numpy(loss))
        np.testing.assert_array_equal(np.isnan(gpu.numpy(gradient)), np.arange(300) == 17)


def test_the_root_gradient_is_a_constant(gpu):
    loss = gpu.array(np.asarray(3, np.float32))
    one = root_gradient(loss)
    assert root_gradient(gpu.array(np.asarray(4, np.float32))) is one
    assert is_root_gradient(one)
    assert not is_root_gradient(gpu.array(np.ones((), np.float32)))
    assert gpu.numpy(one) == 1
    assert one.dtype == np.float32
    assert root_gradient(gpu.array(np.ones((), np.float64))).dtype == np.float64
    assert not is_root_gradient(root_gradient(gpu.array(np.ones((1, 1), np.float32))))
    x: Any = xn.Tensor(loss, requires_grad=True)
    x.backward()
    x.grad += 1  # it belongs to the user
    assert gpu.numpy(one) == 1


def test_arithmetic_behind_a_loss_counts(gpu):
    logits, labels = normal(8, 5, dtype="float32"), RANDOM.integers(0, 5, 8)
    found = []
    for factor in (None, 3.0):
        x: Any = xn.Tensor(gpu.array(logits), requires_grad=True)
        loss = losses.softmax_cross_entropy(x, gpu.array(labels))
        (loss if factor is None else loss * factor + loss).backward()
        found.append(gpu.numpy(x.grad))
        x.grad[...] = 0  # no gradient shares memory with another one
    np.testing.assert_allclose(found[1], 4 * found[0], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2), (64, 10), (3000, 10), (7, 3, 5), (40, 700), (9, 5000)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("labels", ["int32", "int64", "uint8", "probabilities"])
def test_accuracy_is_one_launch(gpu, shape, dtype, labels):
    gpu.multiprocessors = 4
    prediction = np.round(normal(*shape, dtype=dtype) * 4)  # with many ties, of which the first counts
    target = np.round(normal(*shape, dtype=dtype) * 4)
    if labels != "probabilities":
        target = RANDOM.integers(0, min(shape[-1], 250), shape[:-1]).astype(labels)
        target.flat[0] = np.argmax(prediction.reshape(-1, shape[-1])[0]) % 250
    x, t = gpu.array(prediction), gpu.array(target)
    found = metrics.accuracy(x, t)
    assert len(gpu.launches) == 1
    assert found.dtype == np.float64
    assert gpu.numpy(found) == measures.accuracy.reference(np, prediction, target)
    for where in [prediction] + [target] * (labels == "probabilities"):
        changed = where.copy()
        changed[(-1,) * len(shape)] = np.nan
        pair = (changed, target) if where is prediction else (prediction, changed)
        assert np.isnan(gpu.numpy(metrics.accuracy(*map(gpu.array, pair))))


@pytest.mark.parametrize("count", [1, 300, 100_000])
@pytest.mark.parametrize("kind", ["bool", "uint8", "float32"])
def test_binary_accuracy_is_one_launch(gpu, count, kind):
    gpu.multiprocessors = 4
    prediction, target = normal(count, dtype="float32"), RANDOM.integers(0, 2, count).astype(kind)
    found = metrics.binary_accuracy(gpu.array(prediction), gpu.array(target))
    assert len(gpu.launches) == 1
    assert gpu.numpy(found) == metrics.binary_accuracy(prediction, target)
    prediction[-1] = np.nan
    assert np.isnan(gpu.numpy(metrics.binary_accuracy(gpu.array(prediction), gpu.array(target))))


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_the_sums_of_an_epoch_are_one_launch_for_four(gpu, count):
    kinds = ("float32", "float64", "float16", "float32", "int64")[:count]
    means = [np.asarray(3 * (i + 1) / 7).astype(kind) for i, kind in enumerate(kinds)]
    totals = [gpu.array(np.asarray(float(i))) for i in range(count)]
    measures.add_means(totals[0], totals, [*map(gpu.array, means)], 48)
    assert len(gpu.launches) == -(-count // 4)
    for i, (total, mean) in enumerate(zip(totals, means)):
        np.testing.assert_allclose(gpu.numpy(total), i + float(mean) * 48, rtol=1e-15)


class WeightAsMetric:
    """A metric that returns an element of a weight, in the memory that the update changes."""

    better = "min"

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, prediction: Any, target: Any) -> Any:
        return self.model.layers[0].kernel.array[0, 0]


def test_a_metric_is_that_of_the_weights_before_the_update():
    x, y = normal(32, 4, dtype="float32"), RANDOM.integers(0, 3, 32)
    found = []
    for device in ("cpu", "cuda"):
        model = xn.Sequential([xn.Dense(3)], input_shape=(4,), device=device)
        run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(1.0), metrics=[WeightAsMetric(model)])
        run.fit((x, y), epochs=2, batch_size=8, verbose=False)
        found.append(run.history["WeightAsMetric"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
