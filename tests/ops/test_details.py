"""What the contract's examples do not show: stability, labels, ties, special values, arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.op_contract import close
from xpnet import losses, ops
from xpnet.ops.shapes import ShapeError


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("labels", ["integers", "probabilities"])
def test_softmax_cross_entropy_of_huge_logits(dtype, labels):
    """At +-1e4 the loss and its gradient are exact, not inf or nan."""
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [-1e4, 1e4, 1e4]], dtype)
    target = np.array([1, 0, 2])
    given = target if labels == "integers" else np.eye(3, dtype=dtype)[target]
    x = xn.Tensor(logits, requires_grad=True)
    with np.errstate(all="raise", under="ignore"):
        loss = losses.softmax_cross_entropy(x, given, reduction="none")
        loss.sum().backward()
    np.testing.assert_allclose(loss.array, [2e4, math.log(3), math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(xn.to_numpy(x.grad), np.array([[1, -1, 0], [-2 / 3, 1 / 3, 1 / 3], [0, 0.5, -0.5]]), atol=1e-6)
    assert xn.to_numpy(x.grad).dtype == loss.dtype == dtype


def test_softmax_cross_entropy_of_an_impossible_class():
    """A logit of -inf is a class that cannot be; where it is not the label it costs nothing."""
    x = xn.Tensor(np.array([[0.0, -np.inf, 0.0]]), requires_grad=True)
    loss = losses.softmax_cross_entropy(x, np.array([0]))
    loss.backward()
    np.testing.assert_allclose(loss.array, math.log(2))
    np.testing.assert_allclose(xn.to_numpy(x.grad), [[-0.5, 0, 0.5]])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array([0, 3, 1]), "labels run from 0 to 3"),
        (np.array([0, -1, 1]), "labels run from -1 to 1"),
        (np.array([0, 1]), "(2,)"),
        (np.array([0.0, 1.0, 2.0]), "float64"),
        (np.zeros((3, 2)), "(3, 2)"),
        (np.zeros((3, 3), int), "(3, 3)"),
    ],
)
def test_labels_that_do_not_fit_are_explained(labels, says):
    with pytest.raises(ValueError) as raised:
        losses.softmax_cross_entropy(np.zeros((3, 3)), labels)
    assert says in str(raised.value)
    assert "softmax_cross_entropy" in str(raised.value)


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "int64"])
def test_labels_of_any_integer_type(kind):
    logits = np.random.default_rng(0).standard_normal((4, 300))
    labels = np.array([0, 1, 100, 127])
    expected = losses.softmax_cross_entropy(logits, labels)
    small = labels.astype(kind)
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, small), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_activations_keep_nan(dtype):
    """A nan must not be lost on the way: the trainer looks for it in the loss."""
    x = np.array([np.nan, 1.0, -1.0], dtype)
    for name in ("relu", "leaky_relu", "elu", "selu", "gelu", "sigmoid", "tanh", "softplus", "silu", "softsign"):
        y = getattr(ops, name)(x)
        assert np.isnan(y[0]), name
        assert np.isfinite(y[1:]).all(), name
        assert y.dtype == dtype, name


def test_max_pool_of_nan_is_nan():
    x = np.zeros((1, 2, 2, 1))
    x[0, 1, 1, 0] = np.nan
    assert np.isnan(ops.max_pool2d(x, 2)).all()
    assert np.isnan(ops.max_pool2d_with_switches(x, 2)[0]).all()
    assert np.isnan(ops.max_pool2d(xn.Tensor(x, requires_grad=True), 2).array).all()


def test_gradients_at_kinks_and_ties():
    def gradient(function, *arrays):
        tensors = [xn.Tensor(np.array(a, float), requires_grad=True) for a in arrays]
        function(*tensors).sum().backward()
        return [xn.to_numpy(t.grad).tolist() for t in tensors]

    assert gradient(ops.relu, [0.0]) == [[0.0]]
    assert gradient(ops.abs, [0.0]) == [[0.0]]
    assert gradient(ops.maximum, [1.0, 2.0], [1.0, 1.0]) == [[0.5, 1.0], [0.5, 0.0]]
    assert gradient(ops.minimum, [1.0, 2.0], [1.0, 1.0]) == [[0.5, 0.0], [0.5, 1.0]]
    assert gradient(lambda x: ops.max(x, axis=0), [3.0, 3.0, 1.0]) == [[0.5, 0.5, 0.0]]
    assert gradient(lambda x: ops.max_pool2d(ops.reshape(x, (1, 2, 2, 1)), 2), [5.0, 5.0, 5.0, 1.0]) == [[1.0, 0, 0, 0]]
    assert gradient(lambda x: ops.lp_pool2d(ops.reshape(x, (1, 2, 2, 1)), 2), [0.0] * 4) == [[0.0] * 4]
    assert gradient(lambda x: ops.clip(x, -1.0, 1.0), [-2.0, -1.0, 0.0, 1.0, 2.0]) == [[0.0, 1.0, 1.0, 1.0, 0.0]]


def test_power_at_zero():
    for exponent, slope in ((2, 0.0), (1, 1.0), (0, 0.0)):
        x = xn.Tensor(np.zeros(1), requires_grad=True)
        (x**exponent).sum().backward()
        np.testing.assert_array_equal(x.grad, slope)
    x, y = xn.Tensor(np.zeros(2), requires_grad=True), xn.Tensor(np.array([0.0, 2.0]), requires_grad=True)
    (x**y).sum().backward()
    np.testing.assert_array_equal(x.grad, [0.0, 0.0])
    np.testing.assert_array_equal(y.grad, [0.0, 0.0])


def test_lp_pool_of_huge_and_tiny_numbers():
    for scale in (1e30, 1e-30):
        x = np.full((1, 2, 2, 1), scale, np.float32)
        np.testing.assert_allclose(ops.lp_pool2d(x, 2), 2 * scale, rtol=1e-6)


def test_pooling_of_integers():
    """Max pooling needs an order only: bytes of an image stay bytes."""
    x = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    y = ops.max_pool2d(x, 2, padding=1)
    assert y.dtype == np.uint8
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 2, 3], [8, 10, 11], [12, 14, 15]])


@pytest.mark.parametrize("count", [255, 256, 257])
def test_switches_grow_with_the_window(count):
    x = np.zeros((1, 1, count, 1), np.float32)
    x[0, 0, -1, 0] = 1
    _, switches = ops.max_pool2d_with_switches(x, (1, count))
    assert switches.dtype == (np.uint8 if count <= 256 else np.int32)
    assert switches.item() == count - 1


def test_im2col_and_col2im_are_adjoint():
    """<im2col(x), c> = <x, col2im(c)> for every geometry."""
    random = np.random.default_rng(0)
    for settings in (
        {"window": 3, "stride": 2, "padding": 1},
        {"window": (2, 3), "stride": (3, 1), "padding": ((0, 2), (1, 0))},
        {"window": 2, "dilation": 3, "padding": "same"},
    ):
        x = random.standard_normal((2, 7, 8, 3))
        columns = ops.im2col(x, **settings)
        c = random.standard_normal(columns.shape)
        np.testing.assert_allclose(np.sum(columns * c), np.sum(x * ops.col2im(c, x.shape, **settings)))


def test_reductions_of_float32_stay_precise():
    """A million of 0.1: pairwise sums in float32 lose little; an op never widens to float64."""
    x = np.full((1000, 1000), 0.1, np.float32)
    for result, expected in ((ops.sum(x), 1e5), (ops.mean(x), 0.1), (ops.mean(x, axis=1)[0], 0.1)):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_normalisation_of_a_large_mean():
    """The variance of 1e4 + noise in float32: computed from centred values, not as a difference of squares."""
    x = (1e4 + np.random.default_rng(0).standard_normal((512, 4))).astype(np.float32)
    y, _, variance = ops.batch_norm_with_statistics(x)
    np.testing.assert_allclose(variance, x.astype(float).var(axis=0), rtol=1e-2)
    close(y, (x - x.astype(float).mean(axis=0)) / np.sqrt(x.astype(float).var(axis=0) + 1e-5), 1e-2)


def test_dropout_keeps_the_expectation():
    x = np.ones((400, 500), np.float32)
    for rate in (0.1, 0.5, 0.9):
        y = ops.dropout(x, rate, key=1)
        assert abs(float(y.mean()) - 1) < 0.03
        assert abs(float((y == 0).mean()) - rate) < 0.01
        np.testing.assert_array_equal(y, ops.dropout(x, rate, key=1))
        assert (y != ops.dropout(x, rate, key=2)).any()
        assert (y != ops.dropout(x, rate, key=1, step=1)).any()


def test_embedding_sums_the_gradients_of_a_row():
    table = xn.Tensor(np.zeros((3, 2)), requires_grad=True)
    y = ops.embedding(np.array([[0, 2], [2, 2]]), table)
    y.backward(np.ones((2, 2, 2)))
    np.testing.assert_array_equal(table.grad, [[1, 1], [0, 0], [3, 3]])


def test_embedding_refuses_numbers_outside_the_table():
    for bad in ([3], [-1]):
        with pytest.raises(ValueError, match=r"rows 0\.\.2"):
            ops.embedding(np.array(bad), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ops.relu(), "needs x"),
        (lambda: ops.dense(np.zeros((1, 2))), "needs kernel"),
        (lambda: ops.relu(np.zeros(2), slope=1), "unexpected argument 'slope'"),
        (lambda: ops.conv2d(np.zeros((1, 2, 2, 1)), np.zeros((1, 1, 1, 1)), strides=2), "'strides'"),
        (lambda: ops.im2col(np.zeros((1, 2, 2, 1))), "needs window"),
        (lambda: ops.softmax(np.zeros(2), -1, axis=-1), "two values"),
        (lambda: ops.relu(np.zeros(2), 1, 2), "at most"),
        (lambda: ops.concat(np.zeros(2)), "list or tuple"),
        (lambda: ops.concat([]), "at least one"),
        (lambda: ops.relu("text"), "array of NumPy"),
        (lambda: ops.relu([1.0, 2.0]), "array of NumPy"),
        (lambda: ops.add(1.0, 2.0), "at least one array"),
        (lambda: ops.dense(np.zeros((1, 2)), np.zeros((2, 2)), activation="swish"), "swish"),
    ],
)
def test_a_wrong_call_is_explained(call, says):
    with pytest.raises((TypeError, ValueError)) as raised:
        call()
    assert says in str(raised.value)


def test_settings_by_position_or_keyword_are_the_same():
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    np.testing.assert_array_equal(ops.softmax(x, 1), ops.softmax(x, axis=1))
    np.testing.assert_array_equal(ops.sum(x, (0, 2), True), ops.sum(x, axis=(0, 2), keepdims=True))
    np.testing.assert_array_equal(ops.dense(x=x, kernel=np.ones((4, 2))), ops.dense(x, np.ones((4, 2))))
    np.testing.assert_array_equal(ops.concat([x, x], -1), ops.concat([x, x], axis=-1))


def test_step_has_no_gradient():
    x = xn.Tensor(np.array([1.0, -1.0]), requires_grad=True)
    y = ops.step(x)
    assert not y.requires_grad
    np.testing.assert_array_equal(y.array, [1, 0])


@pytest.mark.parametrize(("call", "says"), [
    (lambda x: ops.sum(x, axis=1.0), "sum: axis must be an int, several of them or None, got 1.0"),
    (lambda x: ops.max(x, axis=(0, "a")), "max: axis must be an int, several of them or None"),
    (lambda x: ops.softmax(x, axis=None), "softmax: axis must be an int, got None"),
    (lambda x: ops.log_softmax(x, axis=(0, 1)), r"log_softmax: axis must be an int, got \(0, 1\)"),
    (lambda x: ops.concat([x, x], axis=None), "concat: axis must be an int, got None"),
    (lambda x: ops.stack([x, x], axis=1.5), "stack: axis must be an int, got 1.5"),
    (lambda x: ops.layer_norm(x, axis=1.5), "layer_norm: axis must be an int, several"),
    (lambda x: ops.sum(np.array(["a", "b"])), "sum: got an array of dtype <U1, expected numbers"),
])  # fmt: skip
def test_what_is_no_axis_is_named(call: Any, says: str):
    with pytest.raises(TypeError, match=says):
        call(np.ones((2, 3), np.float32))


def test_a_softmax_needs_an_axis():
    for operation in (ops.softmax, ops.log_softmax):
        with pytest.raises(ShapeError, match="axis -1 does not exist in an array of 0 axes"):
            operation(np.array(1.0))


def test_the_gradient_of_an_extreme_goes_to_its_nan():
    for operation in (ops.max, ops.min):
        x: Any = xn.Tensor(np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 2.0]], np.float32), requires_grad=True)
        operation(x, axis=1).backward(np.ones(2, np.float32))
        assert x.grad[0].tolist() == [0, 1, 0]
        assert x.grad[1].sum() == 1


def test_the_gradient_of_the_larger_goes_to_its_nan():
    for operation in (ops.maximum, ops.minimum):
        x: Any = xn.Tensor(np.array([np.nan, 1.0, 2.0], np.float32), requires_grad=True)
        y: Any = xn.Tensor(np.array([1.0, np.nan, 2.0], np.float32), requires_grad=True)
        operation(x, y).sum().backward()
        assert x.grad.tolist() == [1, 0, 0.5]
        assert y.grad.tolist() == [0, 1, 0.5]


@pytest.mark.parametrize("operation", [ops.elu, ops.selu])
def test_exponential_units_far_below_zero_have_a_gradient(operation: Any):
    x = np.array([-30.0, -17.0, -5.0, -0.1], np.float32)
    narrow: Any = xn.Tensor(x, requires_grad=True)
    wide: Any = xn.Tensor(x.astype(np.float64), requires_grad=True)
    for t in (narrow, wide):
        operation(t).sum().backward()
    np.testing.assert_allclose(narrow.grad, wide.grad, rtol=1e-6)
