"""Long sums along every axis, in every operation that has one: as exact as pairwise summation.

The columns are constant, which is the worst case: added one after the other, a million float32 drift off in the third digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.op_contract import running
from xpnet import metrics, ops, regularizers
from xpnet.ops.registry import registry
from xpnet.ops.sums import total

ROWS = 1_000_000
CLOSE = 1.5e-6
VALUES = np.array([0.1, 100.1], np.float32)

Pairs = list[tuple[Any, Any]]


def column(rows: int = ROWS, columns: int = 2, value: float = 0.1) -> np.ndarray:
    return np.full((rows, columns), value, np.float32)


def tensor(array: Any) -> Any:
    return xn.Tensor(np.asarray(array, np.float32), requires_grad=True)


def exact(array: np.ndarray, axes: Any = 0) -> np.ndarray:
    sums: np.ndarray = array.astype(np.float64).sum(axes)
    return sums


def reduced(name: str, expected: Callable[[np.ndarray], np.ndarray]) -> Callable[[], Pairs]:
    """Return a check of a reduction: over rows of C and of Fortran order, over the middle axis, over all axes."""

    def check() -> Pairs:
        x = np.broadcast_to(VALUES, (ROWS, 2)).copy()
        operation = registry[name]
        pairs: Pairs = [(operation(x, axis=0), expected(VALUES))]
        pairs.append((operation(np.asfortranarray(x.T), axis=1), expected(VALUES)))
        pairs.append((operation(x.reshape(2, ROWS // 2, 2), axis=1), np.stack([expected(VALUES)] * 2) / scale(name)))
        pairs.append((operation(x[:, :1].reshape(1000, 1000), axis=None), expected(VALUES[:1])[0]))
        pairs.append((operation(x[::2], axis=0), expected(VALUES) / scale(name)))
        return pairs

    return check


def scale(name: str) -> int:
    return 2 if name == "sum" else 1


def broadcast(call: Callable[[Any, Any], Any], slope: float = 1.0) -> Callable[[], Pairs]:
    """Return a check of the gradient of what was broadcast along a million rows."""

    def check() -> Pairs:
        b, dy = tensor([[1.0, 1.0]]), column()
        call(column(value=0.5), b).backward(dy)
        return [(b.grad, exact(dy)[None] * slope)]

    return check


def dense() -> Pairs:
    kernel, bias, dy = tensor(np.zeros((1, 2))), tensor(np.zeros(2)), column()
    ops.dense(column(columns=1, value=1.0), kernel, bias).backward(dy)
    one = tensor(np.zeros((9, 1)))  # the gradient of its kernel is a product with a vector
    ops.dense(column(columns=9, value=1.0), one).backward(dy[:, :1])
    return [(bias.grad, exact(dy)), (kernel.grad, exact(dy)[None]), (one.grad, np.full((9, 1), exact(dy)[0]))]


def matmul() -> Pairs:
    y, dz = tensor(np.zeros((2, 3))), np.full((100_000, 1, 3), 0.1, np.float32)
    ops.matmul(np.ones((100_000, 1, 2), np.float32), y).backward(dz)
    vector, dv = tensor(np.zeros(2)), column()[:, 0]
    ops.matmul(column(value=1.0), vector).backward(dv)
    return [(y.grad, np.stack([exact(dz, (0, 1))] * 2)), (vector.grad, np.full(2, exact(dv)))]


def convolution(C: int, O: int, size: int, groups: int = 1, pool: bool = False) -> Callable[[], Pairs]:
    def check() -> Pairs:
        x, kernel = np.zeros((1, size, size, C), np.float32), tensor(np.zeros((3, 3, C // groups, O)))
        bias = tensor(np.zeros(O))
        if pool:
            y = ops.conv2d_max_pool2d(x, kernel, bias, window=1, padding=1)
        else:
            y = ops.conv2d(x, kernel, bias, padding=1, groups=groups)
        dy = np.full(y.shape, 0.1, np.float32)
        y.backward(dy)
        return [(bias.grad, exact(dy, (0, 1, 2)))]

    return check


def to_one() -> Pairs:
    """Return what a convolution with one output adds: a product with a vector."""
    x, kernel, bias = np.ones((1, 600, 600, 40), np.float32), tensor(np.zeros((1, 1, 40, 1))), tensor([0])
    y = ops.conv2d(x, kernel, bias)
    dy = np.full(y.shape, 0.1, np.float32)
    y.backward(dy)
    return [(bias.grad, exact(dy, (0, 1, 2))), (kernel.grad, np.full((1, 1, 40, 1), exact(dy, None)))]


def depthwise(N: int, size: int) -> Callable[[], Pairs]:
    """Return a check of a convolution whose products are sums, too."""

    def check() -> Pairs:
        x = np.ones((N, size, size, 2), np.float32)
        kernel, bias = tensor(np.zeros((3, 3, 1, 2))), tensor(np.zeros(2))
        dy = np.full(x.shape, 0.1, np.float32)
        ops.conv2d(x, kernel, bias, padding=1, groups=2).backward(dy)
        return [(bias.grad, exact(dy, (0, 1, 2))), (kernel.grad[1, 1, 0], exact(dy, (0, 1, 2)))]

    return check


def averages() -> Pairs:
    x = np.full((1, 1000, 1000, 2), 0.1, np.float32)
    overlapping = tensor(np.zeros((1, 79, 79, 1)))
    ops.average_pool2d(overlapping, 40, stride=1).backward(np.full((1, 40, 40, 1), 0.1, np.float32))
    mean = np.float64(np.float32(0.1))
    return [(ops.average_pool2d(x, 1000), np.full((1, 1, 1, 2), mean)), (overlapping.grad[0, 39, 39, 0], mean)]


def norms_of_windows() -> Pairs:
    x = np.full((1, 1000, 1000, 2), 0.1, np.float32)
    return [(ops.lp_pool2d(x, 1000, p=1.0), exact(x, (1, 2))[:, None, None])]


def batch_norm() -> Pairs:
    x, dy = np.broadcast_to(VALUES, (ROWS, 2)).copy(), column()
    scale, offset = tensor([1, 1]), tensor([0, 0])
    y, mean, variance = ops.batch_norm_with_statistics(x, scale, offset)
    y.backward(dy)
    return [(mean.array, VALUES), (1 + variance.array, np.ones(2)), (offset.grad, exact(dy))]


def batch_norm_in_training() -> Pairs:
    x, dy = np.broadcast_to(VALUES, (ROWS, 2)).copy(), column()
    scale, offset, residual = tensor([1, 1]), tensor([1, 1]), tensor(x * 0)
    running = {"running_mean": np.zeros(2, np.float32), "running_variance": np.ones(2, np.float32)}
    y, mean, variance = ops.batch_norm_training(x, scale, offset, residual, **running, momentum=0.5, activation="relu")
    y.backward(dy)
    return [(mean.array, VALUES / 2), (variance.array, np.full(2, 0.5)), (offset.grad, exact(dy)), (residual.grad, dy)]


def inference() -> Pairs:
    offset, dy = tensor([0, 0]), column()
    ops.batch_norm_inference(column(), None, offset, mean=np.zeros(2, np.float32), variance=np.ones(2, np.float32)).backward(dy)
    return [(offset.grad, exact(dy))]


def layer_norm() -> Pairs:
    offset, dy = tensor([0, 0]), column()
    ops.layer_norm(column(), tensor([1, 1]), offset).backward(dy)
    long = np.full((2, ROWS), 100.1, np.float32)
    both = np.full((1, 1000, 1000), 100.1, np.float32)
    return [
        (offset.grad, exact(dy)),
        (ops.layer_norm(long) + 1, long * 0 + 1),
        (ops.layer_norm(both, axis=(1, 2)) + 1, both * 0 + 1),
    ]


def group_norm() -> Pairs:
    offset, dy = tensor([0, 0]), column().reshape(1, 1000, 1000, 2)
    y = ops.group_norm(np.broadcast_to(VALUES, dy.shape), None, offset, groups=2)
    y.backward(dy)
    return [(y.array + 1, np.ones(dy.shape)), (offset.grad, exact(dy, (0, 1, 2)))]


def softmax(name: str) -> Callable[[], Pairs]:
    def check() -> Pairs:
        x = tensor(column())
        y = registry[name](x, axis=0)
        expected = np.full((ROWS, 2), 1e-6) if name == "softmax" else np.full((ROWS, 2), np.log(1e-6))
        y.backward(column())
        return [(y.array, expected), (1 + x.grad, 1 + np.zeros((ROWS, 2)))]

    return check


def cross_entropy() -> Pairs:
    loss = ops.softmax_cross_entropy(column(columns=3), np.zeros(ROWS, np.int64), reduction="sum")
    return [(loss, ROWS * np.log(3.0))]


def logistic() -> Pairs:
    loss = ops.sigmoid_cross_entropy(column(columns=1)[:, 0] * 0, np.zeros(ROWS, np.float32), reduction="sum")
    return [(loss, ROWS * np.log(2.0))]


def errors(operation: Any, term: float) -> Callable[[], Pairs]:
    def check() -> Pairs:
        ones = np.ones(ROWS, np.float32)
        return [
            (operation(0.9 * ones, 0 * ones, reduction=reduction), term * n) for reduction, n in (("sum", ROWS), ("mean", 1))
        ]

    return check


def recurrent(name: str, gates: int) -> Callable[[], Pairs]:
    def check() -> Pairs:
        rows = 100_000
        x, kernel, recurrent = (
            np.ones((rows, 1, 1), np.float32),
            np.zeros((1, gates), np.float32),
            np.zeros((1, gates), np.float32),
        )
        found = []
        for n in (rows, 1):
            weights, bias = tensor(kernel), tensor(np.full(gates, 0.3))
            outputs = registry[name](x[:n], weights, recurrent, bias)
            outputs[0].backward(np.full((n, 1, 1), 0.1, np.float32))
            found.append((bias.grad, weights.grad))
        return [(many, one.astype(np.float64) * rows) for many, one in zip(*found)]

    return check


def scattered() -> Pairs:
    index = np.zeros(ROWS, np.int64)
    return [
        (ops.scatter_rows(column(columns=columns), index, size=size)[0], exact(column(columns=columns)))
        for columns, size in ((2, 2), (2, 1), (1, 2))
    ]


def looked_up(look_up: Callable[[Any, Any], Any]) -> Callable[[], Pairs]:
    def check() -> Pairs:
        found: Pairs = []
        for rows in (1, 2):
            table, dy = tensor(np.zeros((rows, 2))), column()
            look_up(table, np.zeros(ROWS, np.int64)).backward(dy)
            found.append((table.grad[0], exact(dy)))
        return found

    return check


CHECKS: dict[str, Callable[[], Pairs]] = {
    "sum": reduced("sum", lambda c: c.astype(np.float64) * ROWS),
    "mean": reduced("mean", lambda c: c.astype(np.float64)),
    "var": reduced("var", lambda c: c * 0),
    "std": reduced("std", lambda c: c * 0),
    "add": broadcast(ops.add),
    "subtract": broadcast(lambda x, b: ops.subtract(b, x)),
    "multiply": broadcast(ops.multiply, 0.5),
    "divide": broadcast(lambda x, b: ops.divide(b, x), 2.0),
    "power": broadcast(lambda x, b: ops.power(b, x), 0.5),
    "maximum": broadcast(ops.maximum),
    "minimum": broadcast(lambda x, b: ops.minimum(x + 1, b)),
    "select": broadcast(lambda x, b: ops.where(x > 0, b, x)),
    "broadcast_to": broadcast(lambda x, b: ops.broadcast_to(b, x.shape)),
    "dense": dense,
    "matmul": matmul,
    "conv2d": convolution(1, 2, 1000),
    "conv2d of many channels": convolution(32, 32, 300),
    "conv2d of groups": convolution(2, 4, 700, groups=2),
    "conv2d of pixels to one number": to_one,
    "conv2d of large depthwise images": depthwise(1, 1000),
    "conv2d of many depthwise images": depthwise(60_000, 4),
    "conv2d_max_pool2d": convolution(1, 2, 1000, pool=True),
    "average_pool2d": averages,
    "lp_pool2d": norms_of_windows,
    "batch_norm_with_statistics": batch_norm,
    "batch_norm_training": batch_norm_in_training,
    "batch_norm_inference": inference,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "softmax": softmax("softmax"),
    "log_softmax": softmax("log_softmax"),
    "softmax_cross_entropy": cross_entropy,
    "sigmoid_cross_entropy": logistic,
    "squared_error": errors(ops.squared_error, 0.81),
    "absolute_error": errors(ops.absolute_error, 0.9),
    "huber_error": errors(ops.huber_error, 0.405),
    "rnn": recurrent("rnn", 1),
    "lstm": recurrent("lstm", 4),
    "gru": recurrent("gru", 3),
    "scatter_rows": scattered,
    "embedding": looked_up(lambda table, index: ops.embedding(index, table)),
    "getitem": looked_up(lambda table, index: table[index]),
}

NO_LONG_SUM = {
    "step", "relu", "leaky_relu", "elu", "selu", "gelu", "sigmoid", "hard_sigmoid", "silu", "tanh", "softplus", "softsign",
    "negative", "abs", "exp", "log", "sqrt", "square", "clip", "dropout", "reshape", "transpose", "concat", "stack", "pad",
    "flip", "cast",
    "max", "min",  # the sum counts equal maxima, exactly
    "im2col", "col2im", "local_response_norm",  # over the elements of a window, the channels of a neighbourhood
    "max_pool2d", "max_pool2d_with_switches",
}  # fmt: skip


def test_every_operation_is_checked_or_has_no_long_sum():
    ours = {name for name, operation in registry.items() if operation.reference.ours}
    assert ours == {name.partition(" of ")[0] for name in CHECKS} | NO_LONG_SUM


@pytest.mark.parametrize("implementation", ["reference", "numpy"])
@pytest.mark.parametrize("name", CHECKS)
def test_a_constant_column(name: str, implementation: str):
    with running(implementation):
        for found, expected in CHECKS[name]():
            assert np.asarray(found).dtype == np.float32
            np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=CLOSE, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(100_003, 2), (300, 200, 7), (5, 1000, 3, 2), (200_001,), (3, 100_001), (4, 70, 70, 3), (2, 0, 300), (0, 300)]
)
@pytest.mark.parametrize("order", ["C", "F", "gaps"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_sums_over_any_axes(shape: tuple[int, ...], order: str, dtype: str):
    x = (np.random.default_rng(0).random((*shape[:-1], 2 * shape[-1])) + 0.1).astype(dtype)[..., ::2]
    x = x if order == "gaps" else np.array(x, order=order)  # type: ignore[call-overload]
    close = 1e-14 if dtype == "float64" else 1e-6
    for count in range(1, len(shape) + 1):
        for first in range(len(shape) - count + 1):
            for axes in {tuple(range(first, first + count)), tuple(range(first, len(shape), 2))}:
                for keepdims in (False, True):
                    found: Any = total(np, x, axes, keepdims)
                    expected = x.astype(np.complex128 if dtype == "complex64" else np.longdouble).sum(axes, keepdims=keepdims)
                    assert found.dtype == dtype
                    assert found.shape == expected.shape
                    np.testing.assert_allclose(found.astype(expected.dtype), expected, rtol=close)


def test_metrics_and_projections():
    """The mean error of a view, and the length of a million weights into one unit."""
    x = column(columns=4)[:, ::2]
    np.testing.assert_allclose(float(metrics.mean_absolute_error(x, np.zeros_like(x))), np.float32(0.1), rtol=CLOSE)
    w = column()
    regularizers.MaxNorm(10.0).project(w)
    np.testing.assert_allclose(w, 10.0 / np.sqrt(ROWS), rtol=1e-5)
    np.testing.assert_allclose(regularizers.L2(1.0)(column()), ROWS * np.float64(np.float32(0.1)) ** 2, rtol=CLOSE)


@pytest.mark.parametrize("implementation", ["reference", "numpy"])
@pytest.mark.parametrize(("shape", "mean", "deviation"), [
    ((20_000, 2), 1e6, 0.0), ((5000, 64), 1e6, 0.0), ((200_000, 2), 1e6, 1.0), ((20_000, 4), 100.0, 1e-3),
    ((5003, 4), 1e4, 1.0), ((20_000, 3), 7.0, 1.0), ((40_000, 1), 0.0, 1.0),
])  # fmt: skip
def test_a_batch_normalised_far_from_zero(shape: tuple[int, ...], mean: float, deviation: float, implementation: str):
    """Also the gradients, whose sums cancel; the first column is constant."""
    generator = np.random.default_rng(0)
    x = (mean + deviation * generator.normal(size=shape)).astype(np.float32)
    x[:, 0] = mean
    dy = (1 + generator.normal(size=shape)).astype(np.float32)
    found = {}
    for dtype in (np.float32, np.float64):
        inputs = [xn.Tensor(a.astype(dtype), requires_grad=True) for a in (x, x[0] * 0 + 1, x[0] * 0)]
        with running(implementation):
            y, batch_mean, variance = ops.batch_norm_with_statistics(*inputs)
            y.backward(dy.astype(dtype))
        found[dtype] = [y.array, batch_mean.array, variance.array, *(i.grad for i in inputs)]
    for name, one, exactly in zip(("y", "mean", "variance", "dx", "dscale", "doffset"), *found.values()):
        close = 1e-9 if name == "variance" else 2e-5 * (1 + np.abs(exactly).max())
        np.testing.assert_allclose(one, exactly, rtol=2e-6, atol=close, err_msg=name)


def test_a_normalised_image_far_from_zero():
    """A sum that is off in the fifth digit is a mean that is off by a hundredth of the deviation."""
    image = (np.random.default_rng(0).normal(size=(1, 256, 256, 3)) * 0.5 + 100).astype(np.float32)
    wide = image.astype(np.float64)
    expected = (wide - wide.mean((1, 2), keepdims=True)) / np.sqrt(wide.var((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(ops.group_norm(image, groups=3), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("units", [1, 7])
def test_a_planned_step_of_a_large_batch(units: int):
    """All examples are equal: the gradients of the step are those of one."""
    moved = []
    for rows in (1, 8000):
        model = xn.Sequential([xn.Dense(units, activation="tanh"), xn.Dense(3)], input_shape=(2,), seed=1)
        before = {path: np.array(p.array) for path, p in model.parameters().items()}
        run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(1000.0))
        x = np.full((rows, 2), 0.7, np.float32)
        run.fit((x, np.zeros(rows, np.int64)), epochs=1, batch_size=rows, verbose=False)
        moved.append(np.concatenate([np.ravel(np.asarray(p.array) - before[path]) for path, p in model.parameters().items()]))
    np.testing.assert_allclose(moved[1], moved[0], rtol=5e-6, atol=1e-4)
