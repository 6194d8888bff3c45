"""The CuPy versions of operations, on a device under watch, against the references in float64."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
import xpnet.accel.cupy  # (registers the implementations)
from xpnet import ops
from xpnet.accel.cupy import depthwise
from xpnet.ops.geometry import windows
from xpnet.ops.registry import reference_only, registry

RANDOM = np.random.default_rng(0)
TOLERANCE = {"float64": 1e-11, "float32": 3e-5, "float16": 2e-2}


@pytest.fixture(autouse=True)
def same_numbers(request):
    """Seed the numbers of each test with its name: they do not depend on which tests ran before."""
    RANDOM.bit_generator.state = np.random.default_rng(list(request.node.name.encode())).bit_generator.state


def normal(*shape, dtype="float64", low=None):
    values = np.asarray(RANDOM.standard_normal(shape))
    return (values if low is None else np.abs(values) + low).astype(dtype)


def spread(*shape, dtype="float64"):
    """Return distinct values, so that a maximum is the same in every dtype."""
    return RANDOM.permutation(int(np.prod(shape))).reshape(shape).astype(dtype) / 64


def run(gpu, op, inputs, settings, gradients, needs, tape):
    """Run an operation's CuPy version on copies of NumPy arrays, forward and backward."""
    inputs = tuple(map(gpu.array, inputs))
    settings = {name: gpu.array(value) for name, value in settings.items()}
    y, saved, implementation = op.run(gpu.xp, inputs, settings, tape)
    dys = tuple(map(gpu.array, gradients))
    got = op.gradients(implementation, gpu.xp, dys if type(y) is tuple else dys[0], saved, settings, needs) if tape else ()
    return gpu.numpy(y), gpu.numpy(tuple(got)), implementation


def is_float(a):
    return a is not None and np.issubdtype(a.dtype, np.floating)


def both(gpu, name, inputs, settings, gradients=None, dtype="float64", needs=None):
    """Run forward and backward of an operation's reference in float64 and of its CuPy version in `dtype`; compare.

    The inputs may not change. float32 runs with the device's own number of multiprocessors, the others as if there were one.
    Returns the names of the kernels that were launched.
    """
    gpu.multiprocessors = gpu.inner.multiprocessors if dtype == "float32" else 1
    op = registry[name]
    needs = tuple(is_float(a) for a in inputs) if needs is None else needs
    narrow = [a.astype(dtype) if is_float(a) else a for a in inputs]
    wide = [a.astype("float64") if is_float(a) else a for a in narrow]
    bound, full = op.bind(tuple(wide), dict(settings))
    tape = op.differentiable and any(needs)
    with reference_only():
        y, saved, implementation = op.run(np, bound, full, tape)
    outputs = y if type(y) is tuple else (y,)
    dys = gradients if gradients is not None else tuple(normal(*o.shape, dtype=dtype).astype("float64") for o in outputs)
    dy = dys if type(y) is tuple else dys[0]
    with reference_only():
        expected = op.gradients(implementation, np, dy, saved, full, needs) if tape else ()
    bound, full = op.bind(tuple(narrow), dict(settings))
    given = tuple(d.astype(dtype) if is_float(d) else d for d in dys)
    before = len(gpu.launches)
    there = tuple(map(gpu.array, bound))
    found, got, implementation = run(gpu, op, there, full, given, needs, tape)
    for array, copied in zip(bound, there):
        np.testing.assert_array_equal(gpu.numpy(copied), array)
    assert implementation is not op.reference, f"{name} ran the reference"
    for number, (one, other) in enumerate(zip(outputs, found if type(found) is tuple else (found,))):
        statistic = name == "batch_norm_with_statistics" and number > 0 and dtype == "float16"
        close(other, one, "float32" if statistic else dtype, TOLERANCE[dtype])
    for array, need, one, other in zip(inputs, needs, expected, got):
        if need:
            assert other.shape == array.shape
            close(other, one, dtype)
    return gpu.launches[before:]


def close(found, expected, dtype, tolerance=None):
    found = np.asarray(found)
    assert found.shape == expected.shape
    if not np.issubdtype(expected.dtype, np.floating):
        np.testing.assert_array_equal(found, expected)
        return
    assert found.dtype == np.dtype(dtype)
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    scale = max(float(np.abs(expected).max(initial=0)), 1.0)
    np.testing.assert_allclose(found.astype("float64"), expected, rtol=tolerance, atol=tolerance * scale)


WINDOWS = [
    {"window": 3},
    {"window": 3, "stride": 2, "padding": 1},
    {"window": (2, 3), "stride": (1, 2), "padding": ((1, 0), (0, 2)), "dilation": (2, 1)},
    {"window": 5, "padding": "same", "stride": 3},
    {"window": 1, "stride": 2},
    {"window": 3, "dilation": 2, "padding": 2},
]
SHAPES = [(2, 7, 6, 4), (1, 8, 9, 3), (3, 7, 7, 1), (0, 7, 6, 4), (2, 7, 8, 8)]


@pytest.mark.parametrize("settings", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_im2col(gpu, shape, settings):
    for dtype in ("float64", "float32", "float16"):
        both(gpu, "im2col", [normal(*shape)], settings, dtype=dtype)


@pytest.mark.parametrize("settings", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_col2im(gpu, shape, settings):
    cols = ops.im2col(np.zeros(shape), **settings).shape
    for dtype in ("float64", "float32", "float16"):
        both(gpu, "col2im", [normal(*cols)], {"input_shape": shape, **settings}, dtype=dtype)


POOLS = [
    {"window": 2},
    {"window": 3, "stride": 2},
    {"window": 3, "stride": 1, "padding": 1},
    {"window": (2, 3), "stride": (3, 1), "padding": ((1, 0), (2, 1))},
    {"window": 4, "stride": 3, "padding": "same"},
    {"window": 5, "stride": 2, "padding": 2},
]


@pytest.mark.parametrize("settings", POOLS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["max_pool2d", "max_pool2d_with_switches"])
def test_max_pool(gpu, name, shape, settings):
    for dtype in ("float64", "float32", "float16"):
        switches = ops.max_pool2d(np.zeros(shape), **settings).shape
        gradients = None if name == "max_pool2d" else (normal(*switches), np.zeros(switches, np.uint8))
        both(gpu, name, [spread(*shape)], settings, gradients, dtype=dtype)


def test_max_pool_of_ties_and_nan(gpu):
    x = np.zeros((1, 4, 4, 1), "float32")
    x[0, 2, 3] = np.nan
    x[0, :2, :2] = -np.inf
    y, switches = gpu.numpy(ops.max_pool2d_with_switches(gpu.array(x), 2))
    with reference_only():
        expected, expected_switches = ops.max_pool2d_with_switches(x, 2)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(switches, expected_switches)


def test_max_pool_leaves_large_windows_and_integers_to_the_reference(gpu):
    ops.max_pool2d_with_switches(gpu.array(np.zeros((1, 20, 20, 1))), 17)
    ops.max_pool2d(gpu.array(np.zeros((1, 4, 4, 1), np.int64)), 2)
    assert gpu.launches == []


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("settings", POOLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_average_pool(gpu, shape, settings, count):
    for dtype in ("float64", "float32", "float16"):
        both(gpu, "average_pool2d", [normal(*shape)], {"count_include_pad": count, **settings}, dtype=dtype)


ACTIVATIONS = [
    "relu", "sigmoid", "tanh", "leaky_relu", "elu", "selu", "gelu", "hard_sigmoid", "silu", "softplus", "softsign",
]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 8), (2, 0, 3), (7, 100)])
def test_activations(gpu, name, shape):
    for dtype in ("float64", "float32", "float16"):
        both(gpu, name, [np.asarray(normal(*shape) * 3 + 0.01)], {}, dtype=dtype)


def test_activations_of_extreme_values(gpu):
    x = np.array([np.nan, -np.inf, np.inf, -1e4, 1e4, 0, -0.0, 1])
    for name in ("relu", "sigmoid", "tanh"):
        expected = getattr(ops, name)(x)
        np.testing.assert_allclose(gpu.numpy(getattr(ops, name)(gpu.array(x))), expected)


ROWS = [(3, 10), (1, 1), (5, 16), (4, 17), (9, 33), (2, 3, 128), (3, 129), (2, 513), (2, 1500), (0, 10), (7,)]


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(gpu, name, shape):
    for dtype in ("float64", "float32", "float16"):
        both(gpu, name, [normal(*shape) * 4], {}, dtype=dtype)


def test_softmax_over_another_axis_is_left_to_the_reference(gpu):
    ops.softmax(gpu.array(normal(3, 4)), axis=0)
    assert gpu.launches == []


@pytest.mark.parametrize("shape", [shape for shape in ROWS if shape[-1] > 1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_softmax_cross_entropy(gpu, shape, reduction):
    logits = normal(*shape) * 4
    probabilities = normal(*shape, low=0.0)
    probabilities[..., ::3] = 0
    for dtype, labels in itertools.product(("float64", "float32"), ("int32", "int64", "uint8", "probabilities")):
        if labels == "probabilities":
            target = probabilities
        else:
            target = RANDOM.integers(0, min(shape[-1], 250), shape[:-1]).astype(labels)
        for smoothing in (0.0, 0.1):
            settings = {"reduction": reduction, "label_smoothing": smoothing}
            both(gpu, "softmax_cross_entropy", [logits, target], settings, dtype=dtype, needs=(True, False))


def test_softmax_cross_entropy_of_a_class_index_out_of_range_is_nan(gpu):
    logits = normal(4, 10, dtype="float32")
    losses = ops.softmax_cross_entropy(gpu.array(logits), gpu.array(np.array([0, 10, -1, 9])), reduction="none")
    assert gpu.launches
    np.testing.assert_array_equal(np.isnan(gpu.numpy(losses)), [False, True, True, False])


def test_softmax_cross_entropy_ignores_minus_infinity_where_the_probability_is_zero(gpu):
    logits = np.array([[0.0, -np.inf, 1.0]])
    target = np.array([[0.5, 0.0, 0.5]])
    with np.errstate(invalid="ignore"):
        expected = ops.softmax_cross_entropy(logits, target)
    found = ops.softmax_cross_entropy(gpu.array(logits), gpu.array(target))
    np.testing.assert_allclose(gpu.numpy(found), expected)


ERRORS: list[tuple[str, dict[str, Any]]] = [
    ("sigmoid_cross_entropy", {}),
    ("squared_error", {}),
    ("squared_error", {"scale": 0.5}),
    ("absolute_error", {}),
    ("huber_error", {"delta": 0.7}),
]


@pytest.mark.parametrize("shape", [(3, 10), (1,), (0, 4), (2, 3, 128), (5, 1021)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "settings"), ERRORS)
def test_elementwise_losses(gpu, name, settings, reduction, shape):
    if 0 in shape and reduction == "mean":
        return  # there is none
    for dtype in ("float64", "float32", "float16"):
        inputs = [normal(*shape), normal(*shape, low=0.0)]
        needs = (True, name != "sigmoid_cross_entropy")
        both(gpu, name, inputs, {"reduction": reduction, **settings}, dtype=dtype, needs=needs)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_recurrent_networks(gpu, name, gates, dtype):
    N, T, D, H = 5, 4, 3, 6
    bias = [normal(gates * H)] * (2 if name == "gru" else 1)
    states = [normal(N, H)] * (2 if name == "lstm" else 1)
    inputs = [normal(N, T, D), normal(D, gates * H), normal(H, gates * H), *bias, *states, RANDOM.random((N, T)) < 0.7]
    for reverse in (False, True):
        both(gpu, name, inputs, {"reverse": reverse}, dtype=dtype)


NORMS = [(8, 4), (5, 3), (2, 6, 5, 16), (1, 4), (300, 5), (64, 130), (3, 1)]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", NORMS)
def test_batch_norm(gpu, shape, affine):
    C = shape[-1]
    vectors = [normal(C), normal(C)] if affine else [None, None]
    for dtype in ("float64", "float32", "float16"):
        x = normal(*shape) * 2 + 1
        both(gpu, "batch_norm_with_statistics", [x, *vectors], {"epsilon": 1e-3}, dtype=dtype)
        statistics = {"mean": normal(C), "variance": normal(C, low=0.1)}
        both(gpu, "batch_norm_inference", [x, *vectors], {"epsilon": 1e-3, **statistics}, dtype=dtype)


FUSED = ["batch_moments", "batch_norm_apply", "norm_gradient_sums", "batch_norm_backward"]


def two_sided(*shape):
    """Return numbers of which none is near 0 or the mean: relu cuts off the same ones in every dtype."""
    return RANDOM.choice([-2.0, 2.0], shape) + 0.2 * normal(*shape)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("beside", ["nothing", "vectors", "residual", "both"])
@pytest.mark.parametrize("shape", [*NORMS, (3000, 3), (70_001, 1), (40, 33, 3, 8)])
def test_batch_norm_training(gpu, shape, beside, activation):
    """Two kernels a pass, with all that may stand behind the normalisation."""
    C = shape[-1]
    vectors = [1 + 0.2 * normal(C), 0.1 * normal(C)] if beside in ("vectors", "both") else [None, None]
    residual = 4 * two_sided(*shape) if beside in ("residual", "both") else None
    inputs = [two_sided(*shape), *vectors, residual]
    alike = shape[0] == 1 and residual is None  # 0 everywhere but for the offset
    for dtype in ("float64", "float32") if alike else ("float64", "float32", "float16"):
        launched = both(gpu, "batch_norm_training", inputs, {"epsilon": 1e-3, "activation": activation}, dtype=dtype)
        assert [name.partition("<")[0] for name in launched] == FUSED


@pytest.mark.parametrize("needs", [(True, False, False, False), (False, True, False, True), (False, False, False, True)])
def test_batch_norm_training_only_needs(gpu, needs):
    inputs = [two_sided(6, 4), normal(4, low=0.5), 0.1 * normal(4), 9 * two_sided(6, 4)]
    for activation in (None, "relu"):
        both(gpu, "batch_norm_training", inputs, {"activation": activation}, needs=needs)


@pytest.mark.parametrize("shape", [(6, 4), (1, 5), (3, 5, 4, 8), (2000, 3), (500, 1)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_running_statistics(gpu, shape, dtype):
    """They are updated where they are, by the kernel that computes the batch's own."""
    wide = "float64" if dtype == "float64" else "float32"
    expected = normal(shape[-1], dtype=wide), normal(shape[-1], low=0.5, dtype=wide)
    found = tuple(map(gpu.array, expected))
    gpu.launches.clear()
    for step in range(3):
        x = (normal(*shape) * 2 + step).astype(dtype)
        settings = {"momentum": 0.9, "activation": "relu"}
        given = {"running_mean": expected[0], "running_variance": expected[1]}
        ops.batch_norm_training(x.astype(wide), **given, **settings)
        given = {"running_mean": found[0], "running_variance": found[1]}
        _, *updated = ops.batch_norm_training(gpu.array(x), **given, **settings)
        assert all(one is other for one, other in zip(updated, found))
    assert [name.partition("<")[0] for name in gpu.launches] == FUSED[:2] * 3
    for one, other in zip(found, expected):
        np.testing.assert_allclose(gpu.numpy(one), other, rtol=TOLERANCE[wide], atol=TOLERANCE[wide])


@pytest.mark.parametrize("uses", [1, 2, 3, 4])
@pytest.mark.parametrize("beside", ["nothing", "residual", "relu", "residual and relu"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_an_output_that_several_use(gpu, dtype, beside, uses):
    """Two gradients are added where they are read; they may have other strides."""
    x, residual = two_sided(50, 4, 8), 4 * two_sided(50, 4, 8)
    factors = normal(uses, 8, 4, 50).transpose(0, 3, 2, 1)
    results = []
    for to, kind in ((np.asarray, "float64"), (gpu.array, dtype)):
        inputs = [xn.Tensor(to(a.astype(kind)), requires_grad=True) for a in (x, residual)]
        wide = "float64" if kind == "float64" else "float32"
        running = {"running_mean": to(np.zeros(8, wide)), "running_variance": to(np.ones(8, wide))}
        side = inputs[1] if "residual" in beside else None
        activation = "relu" if "relu" in beside else None
        y, *_ = ops.batch_norm_training(inputs[0], None, None, side, activation=activation, **running)
        total = y[:0].sum()
        for factor in factors.astype(dtype):
            total = total + (y * to(factor.astype(kind))).sum()
        total.backward()
        results.append([gpu.numpy(i.grad) for i in inputs if i.grad is not None])
    for one, other in zip(*results, strict=True):
        close(other, one, dtype)


def test_running_statistics_of_another_dtype(gpu):
    x, running = normal(20, 3), [np.zeros(3, "float32"), np.ones(3, "float32")]
    found = ops.batch_norm_training(gpu.array(x), running_mean=gpu.array(running[0]), running_variance=gpu.array(running[1]))
    expected = ops.batch_norm_training(x, running_mean=running[0], running_variance=running[1])
    for one, other in zip(map(gpu.numpy, found), expected):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_batch_norm_of_one_channel_only_needs(gpu):
    both(gpu, "batch_norm_with_statistics", [normal(6, 4), normal(4), normal(4)], {}, needs=(False, True, False))
    both(gpu, "batch_norm_with_statistics", [normal(6, 4), normal(4), normal(4)], {}, needs=(True, False, False))


def test_batch_norm_does_not_cancel_far_from_zero(gpu):
    for rows, channels in ((500, 4), (3, 3), (70_000, 1), (5000, 64)):
        x = (normal(rows, channels) + 1e4).astype("float32")
        expected = x.astype("float64").var(axis=0)
        gpu.launches.clear()
        _, mean, variance = gpu.numpy(ops.batch_norm_with_statistics(gpu.array(x)))
        assert gpu.launches
        np.testing.assert_allclose(variance, expected, rtol=2e-6)
        np.testing.assert_allclose(mean, x.astype("float64").mean(axis=0), rtol=2e-7)


def test_statistics_of_numbers_whose_squares_overflow(gpu):
    x = np.full((9, 3), 1e25, "float32")
    _, mean, variance = gpu.numpy(ops.batch_norm_with_statistics(gpu.array(x)))
    np.testing.assert_allclose(mean, x[0], rtol=1e-6)
    np.testing.assert_array_equal(variance, 0)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 8), -1), ((3, 5), -1), ((2, 3, 40), (1, 2)), ((4, 1), -1), ((2, 1100), -1), ((33, 31), 1)]
)
def test_layer_norm(gpu, shape, axis, affine):
    axes = (axis,) if isinstance(axis, int) else axis
    size = tuple(shape[a] for a in axes)
    vectors = [normal(*size), normal(*size)] if affine else [None, None]
    for dtype in ("float64", "float32", "float16"):
        both(gpu, "layer_norm", [normal(*shape) * 2 + 1, *vectors], {"axis": axis, "epsilon": 1e-3}, dtype=dtype)


@pytest.mark.parametrize("shape", [(7,), (16,), (5, 33), (64, 16), (0, 3), (1, 1)])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_dropout_has_the_bits_of_numpy(gpu, shape, rate):
    for dtype in ("float64", "float32", "float16"):
        x = normal(*shape, dtype=dtype)
        for key, step in ((3, 0), (12345678901234567890, 2**40)):
            expected = ops.dropout(x, rate, key=key, step=step)
            gpu.launches.clear()
            found = gpu.numpy(ops.dropout(gpu.array(x), rate, key=key, step=step))
            assert gpu.launches or not x.size
            assert found.dtype == x.dtype
            np.testing.assert_array_equal(found == 0, expected == 0)
            np.testing.assert_allclose(found, expected, rtol=1e-6 if dtype != "float16" else 2e-3)


@pytest.mark.parametrize("settings", [{}, {"shape": (3, 1, 4)}, {"shape": (3, 5, 4), "inverted": False}])
def test_dropout_backward(gpu, settings):
    both(gpu, "dropout", [normal(3, 5, 4)], {"rate": 0.4, "key": 1, "step": 2, **settings})


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "units"), [((5, 7), 3), ((8, 4), 8), ((2, 3, 6), 16), ((0, 4), 5), ((3,), 2), ((1, 1), 1)])
def test_dense(gpu, shape, units, bias, activation):
    inputs = [normal(*shape), normal(shape[-1], units), normal(units) if bias else None]
    for dtype in ("float64", "float32", "float16"):
        both(gpu, "dense", inputs, {"activation": activation}, dtype=dtype)


@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize(("shape", "units"), [((5, 7), 3), ((130, 300), 8), ((2, 3, 64), 72), ((0, 4), 5), ((1, 1), 1)])
def test_a_small_dense_layer_is_one_launch(gpu, shape, units, activation, monkeypatch):
    monkeypatch.setenv("XPNET_CONVOLUTION", "implicit")
    inputs = [normal(*shape), normal(shape[-1], units), normal(units)]
    for dtype in ("float64", "float32", "float16"):
        both(gpu, "dense", inputs, {"activation": activation}, dtype=dtype)
        gpu.launches.clear()
        gpu.products.clear()
        ops.dense(*(gpu.array(a.astype(dtype)) for a in inputs), activation=activation)
        assert [name.partition("<")[0] for name in gpu.launches] in ([], ["implicit_gemm"], ["implicit_gemm_mma"])
        assert gpu.products == []
        ops.dense(*(gpu.array(a.astype(dtype)) for a in inputs[:2]))  # nothing that a second launch would do
        assert len(gpu.products) == (0 not in shape)


def test_a_large_dense_layer_and_one_of_other_strides_are_products(gpu, monkeypatch):
    monkeypatch.setenv("XPNET_CONVOLUTION", "implicit")
    gpu.multiprocessors = 1
    for x, kernel in ((normal(60, 90), normal(90, 80)), (normal(4, 3).T, normal(4, 5)), (normal(3, 4), normal(5, 4).T)):
        gpu.products.clear()
        expected = np.maximum(x @ kernel, 0)
        np.testing.assert_allclose(gpu.numpy(ops.dense(gpu.array(x), gpu.array(kernel), activation="relu")), expected)
        assert len(gpu.products) == 1


@pytest.mark.parametrize(
    ("x", "y"), [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 3, 3, 4), (2, 3, 4, 1)), ((0, 4), (4, 5))]
)
def test_matmul(gpu, x, y):
    both(gpu, "matmul", [normal(*x), normal(*y)], {})
    both(gpu, "matmul", [normal(*x), normal(*y)], {}, dtype="float32")


def test_matmul_of_transposed_operands_copies_nothing(gpu):
    a, b = normal(4, 3), normal(5, 4)
    there, other = gpu.array(a), gpu.array(b)
    np.testing.assert_allclose(gpu.numpy(ops.matmul(there.T, other.T)), a.T @ b.T)
    (product,) = gpu.products
    assert product.a.data.ptr == other.data.ptr
    assert product.b.data.ptr == there.data.ptr


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"stride": (1, 3), "padding": ((2, 0), (0, 1))},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS)
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (2, 3)])
@pytest.mark.parametrize(("channels", "filters", "groups"), [(4, 8, 1), (3, 5, 1), (4, 6, 2), (4, 4, 4)])
def test_conv2d(gpu, channels, filters, groups, window, settings):
    x = normal(3, 7, 8, channels)
    kernel = normal(*window, channels // groups, filters)
    for dtype, bias, activation in (("float64", normal(filters), "tanh"), ("float32", None, None)):
        both(gpu, "conv2d", [x, kernel, bias], {**settings, "groups": groups, "activation": activation}, dtype=dtype)


def clear_of_zero(x, kernel, bias):
    """Round the inputs of a convolution so that no output is near relu's corner.

    Sums are rounded before the bias is added, and one of about -bias would end on either side. Sums of multiples of 1/4 are
    exact, and an eighth beside them keeps every output clear of 0.
    """
    return [np.round(2 * x) / 2, np.round(2 * kernel) / 2, np.round(4 * bias) / 4 + 0.125]


@pytest.mark.parametrize("settings", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("shape", "window"), [((3, 7, 8, 8), (3, 3)), ((2, 6, 7, 3), (2, 5)), ((0, 6, 6, 4), (3, 3)), ((1, 9, 9, 40), (1, 1)),
     ((3, 11, 12, 72), (5, 4)), ((2, 9, 10, 2), (5, 6))],
)  # fmt: skip
def test_depthwise_convolution(gpu, shape, window, settings):
    """Windows of more elements than a block of wgrad takes as well, and more channels."""
    C = shape[-1]
    for dtype in ("float64", "float32", "float16"):
        inputs = [normal(*shape), normal(*window, 1, C), normal(C)]
        if dtype == "float16":
            inputs = clear_of_zero(*inputs)
        launched = both(gpu, "conv2d", inputs, {**settings, "groups": C, "activation": "relu"}, dtype=dtype)
        assert launched or not inputs[0].size
        assert gpu.products == []


def test_depthwise_wgrad_is_one_launch_into_the_given_buffer(gpu):
    gpu.multiprocessors = 8
    x, dy = normal(3, 9, 8, 12, dtype="float32"), normal(3, 9, 8, 12, dtype="float32")
    g = windows(x.shape, 3, 1, 1)
    into = gpu.xp.zeros((3, 3, 1, 12), dtype="float32")
    assert depthwise.wgrad(gpu.xp, gpu.array(x), gpu.array(dy), g, into) is into
    assert gpu.launches == ["depthwise_wgrad<float, 4>"]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for kh, kw in np.ndindex(3, 3):
        expected = (padded[:, kh : kh + 9, kw : kw + 8].astype("float64") * dy).sum((0, 1, 2))
        np.testing.assert_allclose(gpu.numpy(into)[kh, kw, 0], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
def test_conv2d_activations(gpu, activation):
    for dtype in ("float64", "float32", "float16"):
        inputs = [normal(2, 5, 5, 8), normal(3, 3, 8, 8) / 6, normal(8)]
        if dtype == "float16":
            inputs = clear_of_zero(*inputs)
        both(gpu, "conv2d", inputs, {"activation": activation}, dtype=dtype)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(
    ("shape", "O", "pool"),
    [
        ((3, 7, 9, 4), 8, {"window": 2}),
        ((2, 8, 7, 3), 5, {"window": 3, "pool_stride": 2, "pool_padding": 1}),
        ((2, 6, 9, 2), 40, {"window": (2, 3), "pool_stride": 1}),
        ((0, 6, 6, 4), 8, {"window": 2}),
    ],
)
def test_convolution_with_max_pooling(gpu, shape, O, pool, activation):
    """Overlapping windows too: a pixel may be the maximum of several."""
    for dtype in ("float64", "float32", "float16"):
        inputs = clear_of_zero(normal(*shape), normal(3, 2, shape[3], O), normal(O))
        for bias, needs in ((inputs[2], None), (inputs[2], (True, True, False)), (None, (False, True, False))):
            given = [*inputs[:2], bias]
            launched = both(gpu, "conv2d_max_pool2d", given, {"activation": activation, **pool}, dtype=dtype, needs=needs)
            backward = [name for name in launched if "_backward<" in name]
            assert [name.partition("<")[0] for name in backward] == ["max_pool_backward"] * (
                0 not in shape
            ) or activation == "tanh"


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
def test_convolution_with_max_pooling_of_nan_and_infinities(gpu, activation):
    """Two NaNs in a window, of which the second is not chosen, and windows of infinities."""
    x, kernel, bias, dy = normal(2, 9, 8, 1), np.ones((1, 1, 1, 3)), np.zeros(3), normal(2, 4, 4, 3)
    x[0, 2, 3], x[0, 3, 3], x[1, 4, 4], x[1, 6:8, 2:4] = np.nan, np.nan, np.inf, -np.inf
    settings = {"activation": activation, "window": 2}
    op = registry["conv2d_max_pool2d"]
    bound, full = op.bind((x, kernel, bias), settings)
    results = []
    for xp, move, where in ((np, np.asarray, reference_only()), (gpu.xp, gpu.array, contextlib.nullcontext())):
        with where, np.errstate(all="ignore"):
            y, saved, implementation = op.run(xp, tuple(map(move, bound)), full, True)
            gradients = op.gradients(implementation, xp, move(dy), saved, full, (True, True, True))
        results.append([a if xp is np else gpu.numpy(a) for a in (y, *gradients)])
    for expected, found in zip(*results):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_conv2d_of_an_empty_batch(gpu):
    both(gpu, "conv2d", [normal(0, 5, 5, 4), normal(3, 3, 4, 2), normal(2)], {})


def test_conv2d_chunks_the_batch_to_fit_the_cache(gpu):
    x, kernel = gpu.array(normal(6, 6, 6, 4)), gpu.array(normal(3, 3, 4, 2))
    image = 4 * 4 * 9 * 4 * 8  # bytes of the im2col matrix of an image
    gpu.chunk_bytes = 2 * image
    ops.conv2d(x, kernel)
    assert len(gpu.products) == 3
    gpu.products.clear()
    gpu.chunk_bytes = image
    ops.conv2d(x, kernel)
    assert len(gpu.products) == 6
    assert [p.n for p in gpu.products] == [16] * 6


def test_a_pointwise_convolution_is_one_gemm_of_the_images(gpu):
    x, kernel = gpu.array(normal(3, 4, 4, 4)), gpu.array(normal(1, 1, 4, 2))
    ops.conv2d(x, kernel)
    assert gpu.launches == []
    (product,) = gpu.products
    assert product.b.data.ptr == x.data.ptr


def test_an_unknown_activation_is_explained_by_the_reference(gpu):
    for name, inputs in (("dense", [normal(2, 3), normal(3, 4)]), ("conv2d", [normal(1, 4, 4, 2), normal(1, 1, 2, 3)])):
        with pytest.raises(ValueError, match="activation must be None or one of"):
            getattr(ops, name)(*map(gpu.array, inputs), activation="gelu")


def test_non_contiguous_inputs(gpu):
    x = normal(6, 6, 4, 3).transpose(3, 1, 0, 2)
    kernel = normal(2, 4, 3, 3).transpose(3, 2, 1, 0)
    for name, inputs, settings in (
        ("conv2d", [x, kernel], {}),
        ("max_pool2d", [x], {"window": 2}),
        ("softmax", [x], {}),
        ("dense", [x, normal(5, 4).T], {}),
        ("layer_norm", [x], {}),
        ("batch_norm_with_statistics", [x], {}),
        ("batch_norm_training", [x, None, None, normal(4, 6, 6, 3).transpose(3, 1, 2, 0)[::-1]], {}),
        ("average_pool2d", [x], {"window": 2}),
        ("dropout", [x], {"rate": 0.5}),
        ("relu", [x], {}),
    ):
        expected = getattr(ops, name)(*inputs, **settings)
        gpu.launches.clear()
        gpu.products.clear()
        found = gpu.numpy(getattr(ops, name)(*map(gpu.array, inputs), **settings))
        assert gpu.launches or gpu.products, name
        for a, b in zip(*((v,) if not isinstance(v, tuple) else v for v in (found, expected))):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("index", ["int32", "int64", "uint8"])
def test_embedding(gpu, dtype, index):
    for rows, width, shape in ((5, 3, (2, 4)), (70, 8, (40,)), (3, 37, (50,)), (130, 1, (7,)), (4, 3, (0, 2)), (4, 0, (3,))):
        table, indices = normal(rows, width, dtype=dtype), RANDOM.integers(0, rows, shape).astype(index)
        both(gpu, "embedding", [indices, table], {}, [normal(*shape, width)], dtype, needs=(False, True))


def test_an_index_outside_the_table_gives_nan_and_no_gradient(gpu):
    indices = np.array([[1, -1], [4, 0], [3, 2**40]])
    table, dy = normal(4, 3), normal(3, 2, 3)
    y, (_, gradient), _ = run(gpu, registry["embedding"], (indices, table), {}, (dy,), (False, True), True)
    outside = (indices < 0) | (indices >= 4)
    assert np.isnan(y[outside]).all()
    np.testing.assert_array_equal(y[~outside], table[indices[~outside]])
    expected = np.zeros((4, 3))
    np.add.at(expected, indices[~outside], dy[~outside])
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_scatter_rows(gpu, dtype):
    for count, width, size in ((6, 4, 3), (100, 33, 65), (1, 1, 200), (0, 3, 5), (40, 70, 1)):
        rows, index = normal(count, width, dtype=dtype), RANDOM.integers(0, size, count)
        both(gpu, "scatter_rows", [rows, index], {"size": size}, [normal(size, width)], dtype, needs=(True, False))


def test_rows_are_added_in_the_order_of_the_index(gpu):
    """So the sum has one rounding for each row in turn: it is the same bits in every run."""
    rows, index, y0 = normal(300, 5, dtype="float32"), RANDOM.integers(0, 3, 300), np.zeros((3, 5), np.float32)
    y, _, _ = run(gpu, registry["scatter_rows"], (rows, index), {"size": 3}, (y0,), (True, False), True)
    expected = np.zeros((3, 5), np.float32)
    for row, at in zip(rows, index):
        expected[at] += row
    np.testing.assert_array_equal(y, expected)


def test_every_accelerated_operation_is_tested_here():
    here = Path(__file__)
    source = "".join(path.read_text(encoding="utf-8") for path in (here, here.with_name("test_cupy_mixed.py")))
    accelerated = {name for name, op in registry.items() if "cupy" in op.accelerated and op.__module__.startswith("xpnet.")}
    missing = sorted(name for name in accelerated if f'"{name}"' not in source and f"ops.{name}(" not in source)
    assert missing == [], 'add a test with both(gpu, "NAME", inputs, settings) for these to this file'
