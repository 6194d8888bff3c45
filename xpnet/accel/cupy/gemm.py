"""GEMM (matrix products) on row-major arrays through cuBLAS, which is column-major.

CuPy's `matmul` cannot be captured in a CUDA graph, copies transposed operands with more than two axes and ignores TF32; this
one takes matrices of any strides and writes to a given array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xpnet.accel.cupy.launch import runtime
from xpnet.accel.cupy.source import dtype_of
from xpnet.runtime.precision import get_matmul_precision

Array = Any
DTYPES = ("float16", "float32", "float64", "bfloat16")


class Product(NamedTuple):
    """The arguments of cuBLAS's GEMM: C = alpha op(A) op(B) + beta C for a strided batch of column-major matrices.

    op(A) is (m, k), op(B) is (k, n), C is (m, n). The first elements of the arrays `a`, `b`, `c` are those of the first
    matrices. A and B have the same dtype; C has it too, or is float32 where they have 16 bits.
    """

    transpose_a: bool
    transpose_b: bool
    m: int
    n: int
    k: int
    alpha: float
    a: Array
    lda: int
    stride_a: int
    b: Array
    ldb: int
    stride_b: int
    beta: float
    c: Array
    ldc: int
    stride_c: int
    batch: int
    dtype: str
    c_dtype: str
    tf32: bool


def gemm(xp: Any, a: Array, b: Array, c: Array, *, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """Compute c = alpha * a @ b + beta * c, in place, and return c.

    Args:
        a: (M, K) or (B, M, K), of any strides; a transposed view is not copied.
        b: (K, N) or (B, K, N).
        c: (M, N) or (B, M, N), with contiguous rows; the dtype of a and b, or float32 for 16-bit a and b. Not read if
            beta is 0.

    Raises:
        ValueError: the shapes do not fit, or rows of `c` are not contiguous.
        TypeError: dtypes differ or are not floating.
    """
    dtype, c_dtype = dtype_of(a), dtype_of(c)
    wider = c_dtype == "float32" and a.dtype.itemsize == 2
    if dtype not in DTYPES or dtype_of(b) != dtype or (c_dtype != dtype and not wider):
        raise TypeError(f"gemm needs three arrays of one floating dtype, got {dtype}, {dtype_of(b)} and {c_dtype}")
    if not a.ndim == b.ndim == c.ndim or a.ndim not in (2, 3):
        raise ValueError(f"gemm needs matrices or batches of them, got shapes {a.shape}, {b.shape}, {c.shape}")
    if (*a.shape[:-1], b.shape[-1]) != c.shape or a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"gemm: shapes {a.shape} @ {b.shape} -> {c.shape} do not fit")
    rows, columns = c.shape[-2:]
    batch = c.shape[0] if c.ndim == 3 else 1
    if 0 in (rows, columns, batch):
        return c
    a, flip_a, lda, stride_a = _layout(xp, a)
    b, flip_b, ldb, stride_b = _layout(xp, b)
    out, flip_c, ldc, stride_c = _layout(xp, c)
    if flip_c or out is not c:
        raise ValueError(f"gemm: the rows of the result must be contiguous, got strides {c.strides}")
    # Row-major C = A B is column-major C^T = B^T A^T; a row-major matrix read column-major is its transpose already.
    product = Product(
        flip_b, flip_a, columns, rows, a.shape[-1], alpha, b, ldb, stride_b, a, lda, stride_a,
        beta, c, ldc, stride_c, batch, dtype, c_dtype, dtype == "float32" and get_matmul_precision() == "tf32",
    )  # fmt: skip
    if max(product.m, product.n, product.k, lda, ldb, ldc) >= 1 << 31:
        raise ValueError(f"gemm: a size of {a.shape} @ {b.shape} does not fit 32 bits; use smaller batches")
    runtime().gemm(product)
    return c


def _layout(xp: Any, a: Array) -> tuple[Array, bool, int, int]:
    """Return (array, whether it is stored transposed, leading dimension, batch stride); copy if no axis is contiguous."""
    size = a.dtype.itemsize
    rows, columns = a.shape[-2:]
    row, column = a.strides[-2] // size, a.strides[-1] // size
    batch = a.strides[0] // size if a.ndim == 3 else 0
    if batch >= 0:
        if (column == 1 or columns <= 1) and (row >= columns or rows <= 1):
            return a, False, max(row if rows > 1 else columns, columns, 1), batch
        if (row == 1 or rows <= 1) and (column >= rows or columns <= 1):
            return a, True, max(column if columns > 1 else rows, rows, 1), batch
    return _layout(xp, xp.ascontiguousarray(a))
