"""The device's cuBLAS against NumPy: matrix products in every layout that CuPy asks for, and what is built on them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

cp = pytest.importorskip("cupy")
pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

DTYPES = ("float16", "float32", "float64", "complex64", "complex128")
TOLERANCE = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14, "complex64": 1e-6, "complex128": 1e-14}


def _random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Any:
    generator = np.random.default_rng([seed, *shape])
    values = generator.standard_normal(shape)
    if dtype.startswith("complex"):
        values = values + 1j * generator.standard_normal(shape)
    return values.astype(dtype)


def _wide(array: Any) -> Any:
    return array.astype("complex128" if array.dtype.kind == "c" else "float64")


def _close(got: Any, expected: Any, dtype: str) -> None:
    assert got.dtype == dtype
    assert got.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(_wide(got.get()), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def _laid_out(array: Any, how: str) -> Any:
    """Return the same matrix on the device: by rows, by columns, within a wider one, every other element, conjugated twice."""
    if how == "rows":
        return cp.asarray(array)
    if how == "columns":
        return cp.asfortranarray(cp.asarray(array))
    if how == "within":
        room = cp.full((array.shape[0] + 1, array.shape[1] + 3), cp.nan, dtype=array.dtype)
        room[1:, 2:-1] = cp.asarray(array)
        return room[1:, 2:-1]
    room = cp.full((array.shape[0] * 2, array.shape[1] * 2), cp.nan, dtype=array.dtype)
    room[::2, ::2] = cp.asarray(array)
    return room[::2, ::2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (1, 7, 1), (3, 4, 5), (32, 16, 4), (33, 1, 9), (65, 70, 37), (2, 300, 3), (0, 3, 2), (2, 0, 3)]
)
def test_products_of_matrices(m: int, k: int, n: int, dtype: str) -> None:
    a, b = _random((m, k), dtype), _random((k, n), dtype, 1)
    expected = _wide(a) @ _wide(b)
    for left, right in itertools.product(("rows", "columns", "within", "strided"), repeat=2):
        _close(_laid_out(a, left) @ _laid_out(b, right), expected, dtype)
    _close(cp.dot(cp.asarray(a), cp.asarray(b)), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((4, 3, 5), (4, 5, 2)),
        ((2, 3, 3, 5), (2, 3, 5, 4)),
        ((3, 5), (4, 5, 2)),
        ((2, 1, 3, 5), (4, 5, 6)),
        ((6, 2, 5), (5,)),
        ((5,), (3, 5, 2)),
    ],
)
def test_products_of_batches(left: tuple[int, ...], right: tuple[int, ...], dtype: str) -> None:
    a, b = _random(left, dtype), _random(right, dtype, 1)
    _close(cp.matmul(cp.asarray(a), cp.asarray(b)), np.matmul(_wide(a), _wide(b)), dtype)
    if len(left) == len(right):  # transposed in memory
        turned = cp.ascontiguousarray(cp.asarray(b).swapaxes(-1, -2)).swapaxes(-1, -2)
        _close(cp.matmul(cp.asarray(a), turned), np.matmul(_wide(a), _wide(b)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_other_names(dtype: str) -> None:
    a, b, v, w = _random((4, 5), dtype), _random((5, 3), dtype, 1), _random((5,), dtype, 2), _random((5,), dtype, 3)
    A, B, V, W = map(cp.asarray, (a, b, v, w))
    a, b, v, w = map(_wide, (a, b, v, w))
    _close(cp.dot(V, W), np.dot(v, w), dtype)
    _close(cp.vdot(V, W), np.vdot(v, w), dtype)
    _close(cp.inner(A, V), np.inner(a, v), dtype)
    _close(cp.outer(V, W), np.outer(v, w), dtype)
    _close(cp.kron(A, B), np.kron(a, b), dtype)
    _close(cp.dot(A, V), np.dot(a, v), dtype)
    _close(cp.tensordot(A, B, axes=1), np.tensordot(a, b, axes=1), dtype)
    _close(cp.tensordot(A, A, axes=2), np.tensordot(a, a, axes=2), dtype)
    _close(cp.einsum("ij,jk->ki", A, B), np.einsum("ij,jk->ki", a, b), dtype)
    _close(cp.einsum("ij,jk,j->ik", A, B, V), np.einsum("ij,jk,j->ik", a, b, v), dtype)
    _close(A @ A.conj().T, a @ a.conj().T, dtype)
    if dtype != "float16":
        _close(cp.linalg.matrix_power(A @ A.T, 3), np.linalg.matrix_power(a @ a.T, 3), dtype)


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8", "bool"])
def test_products_of_integers(dtype: str) -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype) for shape in ((4, 8), (8, 12)))
    np.testing.assert_array_equal((cp.asarray(a) @ cp.asarray(b)).get(), a @ b)


def test_a_product_alone_and_in_a_batch_has_the_same_bits() -> None:
    a, b = cp.asarray(_random((3, 40, 70), "float32")), cp.asarray(_random((3, 70, 37), "float32", 1))
    batch = cp.matmul(a, b)
    for i in range(3):
        np.testing.assert_array_equal((a[i] @ b[i]).get(), batch[i].get())


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("on_device", [False, True])
def test_the_functions_of_cupy_cublas(dtype: str, on_device: bool) -> None:
    from cupy import cublas

    def number(value: float) -> Any:  # alpha and beta are read on the host, or on the device when the work runs
        return cp.array(value, dtype=dtype) if on_device else value

    a, b, c = _random((4, 5), dtype), _random((5, 3), dtype, 1), _random((4, 3), dtype, 2)
    x, y = _random((5,), dtype, 3), _random((4,), dtype, 4)
    A, B, C, X, Y = (cp.asfortranarray(cp.asarray(v)) for v in (a, b, c, x, y))
    aw, bw, cw, xw, yw = map(_wide, (a, b, c, x, y))
    _close(cublas.gemm("N", "N", A, B, out=C.copy(order="F"), alpha=2.0, beta=0.5), 2 * aw @ bw + 0.5 * cw, dtype)
    _close(cublas.gemm("T", "N", A, cp.asfortranarray(C)), aw.T @ cw, dtype)
    _close(cublas.gemm("H", "N", A, cp.asfortranarray(C)), aw.conj().T @ cw, dtype)
    out = Y.copy()
    cublas.gemv("N", number(2.0), A, X, number(0.5), out)
    _close(out, 2 * aw @ xw + 0.5 * yw, dtype)
    out = X.copy()
    cublas.gemv("H", number(2.0), A, Y, number(-1.0), out)
    _close(out, 2 * aw.conj().T @ yw - xw, dtype)
    out = A.copy(order="F")
    (cublas.geru if dtype.startswith("complex") else cublas.ger)(number(3.0), Y, X, out)
    _close(out, aw + 3 * np.outer(yw, xw), dtype)
    out = X.copy()
    cublas.axpy(number(2.0), X[::-1].copy(), out)
    _close(out, xw + 2 * xw[::-1], dtype)
    out = X.copy()
    cublas.scal(number(-2.0), out)
    _close(out, -2 * xw, dtype)
    real = dtype.replace("complex64", "float32").replace("complex128", "float64")
    _close(cublas.nrm2(X), np.asarray(np.linalg.norm(xw)), real)
    _close(cublas.asum(X), np.asarray(np.abs(xw.real).sum() + np.abs(xw.imag).sum()), real)
    size = np.abs(xw.real) + np.abs(xw.imag)
    assert int(cublas.iamax(X)) == size.argmax() + 1
    assert int(cublas.iamin(X)) == size.argmin() + 1
    if dtype.startswith("complex"):
        _close(cublas.dotu(X, X), np.asarray(xw @ xw), dtype)
        _close(cublas.dotc(X, X * 1j), np.asarray(np.vdot(xw, xw * 1j)), dtype)
    else:
        _close(cublas.dot(X, X), np.asarray(xw @ xw), dtype)
    _close(cublas.geam("N", "N", number(2.0), A, number(3.0), A), 5 * aw, dtype)
    _close(cublas.geam("T", "N", number(1.0), A, number(0.0), cp.asfortranarray(A.T)), aw.T, dtype)
    _close(cublas.dgmm("R", A, X), aw * xw, dtype)
    _close(cublas.dgmm("L", A, Y), aw * yw[:, None], dtype)


def test_tf32_rounds_the_factors() -> None:
    a, one = cp.full((2, 2), 1 + 2**-11, dtype="float32"), cp.eye(2, dtype="float32")
    handle = cp.cuda.device.get_cublas_handle()
    assert float((a @ one)[0, 0]) == 1 + 2**-11
    before = cp.cuda.cublas.getMathMode(handle)
    cp.cuda.cublas.setMathMode(handle, 3)  # CUBLAS_TF32_TENSOR_OP_MATH
    try:
        assert float((a @ one)[0, 0]) == 1 + 2**-10
    finally:
        cp.cuda.cublas.setMathMode(handle, before)
