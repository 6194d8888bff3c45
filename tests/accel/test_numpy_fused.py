"""Fused convolution, activation and max pooling against the three operations in sequence."""

from typing import Any

import numpy as np
import pytest

from xpnet import Tensor, ops, to_numpy
from xpnet.autograd.tape import Node
from xpnet.ops.fused import conv2d_max_pool2d
from xpnet.ops.registry import reference_only

CASES = [
    ((5, 28, 28, 1), (3, 3, 1, 8), {"window": 2}),
    ((5, 13, 13, 16), (3, 3, 16, 32), {"window": 2}),
    ((3, 16, 16, 32), (3, 3, 32, 16), {"window": 2, "padding": 1}),
    ((3, 17, 15, 4), (5, 5, 4, 6), {"window": 3, "pool_stride": 2, "pool_padding": 1, "stride": 2}),
    ((2, 12, 12, 16), (3, 3, 16, 16), {"window": (3, 2), "pool_stride": (1, 3)}),
    ((2, 9, 9, 4), (3, 3, 4, 4), {"window": 2, "dilation": 2}),
    ((2, 9, 9, 4), (3, 3, 2, 4), {"window": 2, "groups": 2}),
    ((1, 80, 80, 64), (3, 3, 64, 64), {"window": 2, "padding": 1}),
]

pytestmark = pytest.mark.usefixtures("force_threads")


@pytest.mark.parametrize(("shape", "kernel_shape", "settings"), CASES)
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_operations_in_a_row(shape, kernel_shape, settings, activation, dtype):
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal(shape),
        rng.standard_normal(kernel_shape) / np.sqrt(np.prod(kernel_shape[:3])),
        rng.standard_normal(kernel_shape[3]),
    ]
    results = []
    for kind, reference in ((dtype, False), (np.float64, True)):
        inputs = [Tensor(a.astype(kind), requires_grad=True) for a in arrays]
        for tensor in inputs:
            to_numpy(tensor.array).flags.writeable = False
        with reference_only(reference):
            y = conv2d_max_pool2d(*inputs, activation=activation, **settings)
            y.backward(np.cos(np.arange(y.size)).reshape(y.shape).astype(kind))
        results.append([y.array, *(tensor.grad for tensor in inputs)])
    again = conv2d_max_pool2d(*(a.astype(dtype) for a in arrays), activation=activation, **settings)
    np.testing.assert_allclose(again, results[0][0], atol=1e-5)  # without saving anything for a gradient
    for name, got, want in zip(("y", "dx", "dkernel", "dbias"), *results):
        assert got.dtype == dtype
        # A float32 rounding may change the argmax among a few nearly equal elements.
        wrong = np.abs(got - want) > (5e-5 if dtype == np.float32 else 1e-10) * np.abs(want).max()
        few = 0.002 if dtype == np.float32 and name == "dx" else 0
        assert wrong.mean() <= few, f"{name}: {wrong.mean():.2%} of the elements differ"


def test_errors_are_the_reference_s():
    x, kernel = np.zeros((1, 8, 8, 2), np.float32), np.zeros((3, 3, 2, 4), np.float32)
    with pytest.raises(ValueError, match="conv2d"):
        conv2d_max_pool2d(x, kernel[:, :, :1], window=2)
    with pytest.raises(ValueError, match="larger than"):
        conv2d_max_pool2d(x, kernel, window=9)
    with pytest.raises(ValueError, match="activation"):
        conv2d_max_pool2d(x, kernel, window=2, activation="gelu")
    assert conv2d_max_pool2d(x[:0], kernel, window=2).shape == (0, 3, 3, 4)


def test_integers_are_computed_by_the_reference():
    x = np.arange(2 * 6 * 6 * 1).reshape(2, 6, 6, 1)
    kernel = np.ones((1, 1, 1, 1), int)
    np.testing.assert_array_equal(conv2d_max_pool2d(x, kernel, window=2), ops.max_pool2d(x, 2))


def recorded_ops(model: Any, x: Any) -> list[str]:
    """Return the names of the operations that the output's tape holds, the first one first."""
    names: list[str] = []
    node = model(x).node
    while isinstance(node, Node):
        names.append(node.op.__name__)
        node = node.inputs[0]
    return names[::-1]


def test_sequential_takes_it_where_a_pooling_follows_a_convolution():
    import xpnet as xn
    from xpnet.inspect import activations

    def layers():
        return [xn.Conv2D(8, 3, activation="relu"), xn.MaxPool2D(2), xn.Conv2D(4, 3), xn.Flatten(), xn.Dense(3)]

    model = xn.Sequential(layers(), input_shape=(12, 12, 2))
    assert model.__dict__["_fused"] == {0}
    x = np.random.default_rng(0).standard_normal((3, 12, 12, 2)).astype(np.float32)
    one_by_one: Any = x
    for layer in model.layers:
        one_by_one = layer(one_by_one)
    np.testing.assert_allclose(model.predict(x), one_by_one.array, atol=1e-5)
    assert len(activations(model, x)) == 5  # watched layers are run one by one
    run = recorded_ops(xn.Sequential([xn.Conv2D(8, 3, activation="relu"), xn.MaxPool2D(2)]), x)
    assert run == ["conv2d_max_pool2d"]
    run = recorded_ops(xn.Sequential([xn.Conv2D(8, 3, activation="gelu"), xn.MaxPool2D(2)]), x)
    assert run == ["conv2d", "gelu", "max_pool2d"]
    with pytest.raises(ValueError, match="layer '0'"):
        xn.Sequential(layers())(x[:, :2])
