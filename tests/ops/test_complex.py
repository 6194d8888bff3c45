"""Complex numbers: linear operations take them, with gradients by the conjugate convention; all others refuse them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests import op_cases, op_contract
from tests.cases import Case, Input
from tests.op_contract import differentiable, matrix, running
from xpnet import losses, metrics, ops
from xpnet.ops.registry import registry

LINEAR = {
    "add", "subtract", "negative", "where", "select", "sum", "mean", "matmul", "dense", "conv1d", "conv2d", "conv_transpose2d",
    "im2col", "col2im", "reshape", "transpose", "concat", "stack", "broadcast_to", "pad", "flip", "getitem",
    "global_average_pool2d", "embedding", "scatter_rows",
}  # fmt: skip
CASES = [c for c in op_cases.CASES if any(isinstance(i, Input) and i.kind not in ("integers", "booleans") for i in c.inputs)]
ADJOINT = [c for c in CASES if c.name in LINEAR and differentiable(c) and not c.settings.get("activation")]


def is_data(one: Any) -> bool:
    return isinstance(one, Input) and one.kind not in ("integers", "booleans")


def complex_inputs(case: Case, dtype: str) -> list[Any]:
    pairs = zip(case.arrays(), case.arrays(seed=1), case.inputs)
    return [np.asarray(a + 1j * b, dtype) if is_data(given) else a for a, b, given in pairs]


def test_every_linear_operation_is_listed():
    assert {name for name, operation in registry.items() if operation.linear and operation.reference.ours} <= LINEAR


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize(
    ("case", "implementation"),
    matrix(ADJOINT) + [pytest.param(c, "cupy", id=f"{c.id}-cupy", marks=pytest.mark.cuda) for c in ADJOINT],
)
def test_backward_is_the_adjoint(case: Case, implementation: str, dtype: str):
    """<A x, y> = <x, A^H y> for each input x, with all others fixed; A x is that of the real and imaginary parts combined."""
    arrays, options = complex_inputs(case, dtype), case.options()
    close: Any = {"rtol": 1e-4 if dtype == "complex64" else 1e-10, "atol": 1e-4 if dtype == "complex64" else 1e-10}
    places = [n for n, given in enumerate(case.inputs) if is_data(given)]
    with running(implementation) as place:
        for n in places:

            def forward(values: Any, n: int = n) -> np.ndarray:
                given = [*arrays[:n], values, *arrays[n + 1 :]]
                return op_contract.computed(case, given, options, place)[0]

            zero = forward(np.zeros_like(arrays[n]))  # what the other inputs add
            y = forward(arrays[n])
            assert y.dtype == dtype
            parts = forward(arrays[n].real.astype(dtype)) - zero + 1j * (forward(arrays[n].imag.astype(dtype)) - zero)
            np.testing.assert_allclose(y - zero, parts, **close)
            x = xn.Tensor(place.to(arrays[n]), requires_grad=True)
            given = [*place.to(arrays[:n]), x, *place.to(arrays[n + 1 :])]
            weight = np.random.default_rng(0).standard_normal((2, *y.shape))
            dy = np.asarray(weight[0] + 1j * weight[1], dtype)
            case.call(given, place.to(options)).backward(place.to(dy))
            gradient = place.back(x.grad)
            assert gradient.dtype == dtype
            np.testing.assert_allclose(np.vdot(dy, y - zero), np.vdot(gradient, arrays[n]), **close)


@pytest.mark.parametrize("name", ["dense", "conv2d", "conv_transpose2d", "matmul"])
@pytest.mark.parametrize("of_x", [True, False])
def test_a_real_input_has_a_real_gradient(name: str, of_x: bool):
    """The real part of the complex one; float32 beside complex64 stays single precision."""
    case = next(c for c in ADJOINT if c.name == name)
    x, kernel = complex_inputs(case, "complex64")[:2]
    real = (x if of_x else kernel).real.copy()
    operation = getattr(ops, name)
    one, other = xn.Tensor(real, requires_grad=True), xn.Tensor(real.astype(np.complex64), requires_grad=True)
    for tensor in (one, other):
        y = operation(*((tensor, kernel) if of_x else (x, tensor)))
        assert y.dtype == np.complex64
        y.backward(np.full(y.shape, 1 + 2j, np.complex64))
    assert one.grad is not None
    assert other.grad is not None
    assert one.grad.dtype == np.float32
    np.testing.assert_allclose(xn.to_numpy(one.grad), xn.to_numpy(other.grad).real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "implementation"),
    [p for p in matrix([c for c in CASES if c.name not in LINEAR]) if not p.marks or "cupy" in p.id],
)
def test_all_others_refuse_complex_numbers(case: Case, implementation: str):
    arrays = complex_inputs(case, "complex64")
    with running(implementation) as place:
        for n, given in enumerate(case.inputs):
            if is_data(given):
                mixed = [
                    a if m == n or not is_data(i) else a.real.astype(np.float32)
                    for m, (a, i) in enumerate(zip(arrays, case.inputs))
                ]
                with pytest.raises(TypeError, match="complex"):
                    op_contract.computed(case, mixed, case.options(dtype="float32"), place)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_a_fused_activation_refuses_them(activation: str):
    x = np.ones((2, 3), np.complex64)
    with pytest.raises(TypeError, match=rf"{activation}: got complex numbers of dtype complex64.*leave the activation out"):
        ops.dense(x, np.ones((3, 2), np.complex64), activation=activation)
    with pytest.raises(TypeError, match=f"{activation}: got complex"):
        ops.conv2d(x.reshape(1, 2, 3, 1), np.ones((1, 1, 1, 1), np.float32), activation=activation)


def test_the_message_says_what_takes_them_and_what_to_do():
    with pytest.raises(
        TypeError, match=r"relu: got complex numbers \(of dtype complex128\), which only linear operations take: conv"
    ):
        ops.relu(np.ones(2, complex))
    with pytest.raises(TypeError, match=r"multiply: got complex numbers \(1j\)"):
        ops.multiply(np.ones(2, np.float32), 1j)
    with pytest.raises(TypeError, match="cast: from complex64 to float32"):
        ops.cast(np.ones(2, np.complex64), "float32")
    with pytest.raises(TypeError, match="cast: from float32 to complex64"):
        ops.cast(np.ones(2, np.float32), "complex64")
    np.testing.assert_array_equal(ops.add(np.ones(2, np.float32), 1j), np.array([1 + 1j, 1 + 1j], np.complex64))


def test_layers_losses_and_metrics():
    """A layer of linear operations passes them on, in place of dropping the imaginary part; nothing compares them."""
    x = np.array([[1 + 2j, 3j, 1]], np.complex64)
    model = xn.Sequential([xn.Dense(2, use_bias=False)], input_shape=(3,))
    kernel = next(iter(model.parameters().values())).array
    for y in (xn.to_numpy(model(x).array), model.predict(x), model.predict(x)):
        np.testing.assert_allclose(y, x @ xn.to_numpy(kernel), rtol=1e-5)
    with pytest.raises(TypeError, match="complex"):
        xn.Sequential([xn.ReLU()])(x)
    for loss in {f for name, f in losses.NAMES.items() if name not in ("contrastive", "triplet")}:
        for given in ((x, x.real.astype(np.float32)), (x.real.astype(np.float32), x)):
            with pytest.raises(TypeError, match="complex"):
                loss(*given)
    for metric in metrics.NAMES.values():
        with pytest.raises(TypeError, match="complex"):
            metric(x, np.array([0]))
