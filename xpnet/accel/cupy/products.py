"""The Array API's products of CuPy arrays through `gemm`: they may be captured, broadcast without copies and respect TF32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpnet.accel.cupy.gemm import DTYPES, gemm
from xpnet.accel.cupy.source import dtype_of

Array = Any


def matmul(xp: Any, x: Array, y: Array) -> Array:
    """Compute x @ y over the last two axes, as numpy.matmul does: vectors are rows or columns, other axes broadcast.

    Returns:
        The product, or NotImplemented for dtypes that cuBLAS has no GEMM for and for shapes that do not fit.
    """
    if x.dtype != y.dtype:
        if dtype_of(x) not in DTYPES or dtype_of(y) not in DTYPES:
            return NotImplemented
        dtype = xp.result_type(x, y)
        x, y = x.astype(dtype, copy=False), y.astype(dtype, copy=False)
    if dtype_of(x) not in DTYPES or x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[0 if y.ndim == 1 else -2]:
        return NotImplemented
    rows = x[None, :] if x.ndim == 1 else x
    columns = y[:, None] if y.ndim == 1 else y
    try:
        lead = _broadcast(rows.shape[:-2], columns.shape[:-2])
    except ValueError:
        return NotImplemented
    m, k, n = rows.shape[-2], rows.shape[-1], columns.shape[-1]
    shape = (*lead, *((m,) if x.ndim > 1 else ()), *((n,) if y.ndim > 1 else ()))
    if k == 0 or 0 in shape:
        return xp.zeros(shape, dtype=x.dtype)
    if columns.ndim == 2:  # one matrix for all rows
        count = math.prod(rows.shape[:-1])
        product = gemm(xp, xp.reshape(rows, (count, k)), columns, xp.empty((count, n), dtype=x.dtype))
    else:
        count = math.prod(lead)
        product = xp.empty((count, m, n), dtype=x.dtype)
        gemm(xp, _stack(xp, rows, lead, count), _stack(xp, columns, lead, count), product)
    return xp.reshape(product, shape)


def _broadcast(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """Return the common shape of two; raise a ValueError if there is none."""
    size = max(len(one), len(other))
    lead = []
    for a, b in zip((*(1,) * (size - len(one)), *one), (*(1,) * (size - len(other)), *other)):
        if a != b and 1 not in (a, b):
            raise ValueError(f"shapes {tuple(one)} and {tuple(other)} do not broadcast")
        lead.append(b if a == 1 else a)
    return tuple(lead)


def _stack(xp: Any, matrices: Array, lead: tuple[int, ...], count: int) -> Array:
    """Return matrices (..., m, n) broadcast to `lead` as (count, m, n); a single one is repeated by a stride of 0."""
    last = matrices.shape[-2:]
    if math.prod(matrices.shape[:-2]) == 1:
        return xp.broadcast_to(xp.reshape(matrices, (1, *last)), (count, *last))
    return xp.reshape(xp.broadcast_to(matrices, (*lead, *last)), (count, *last))


def tensordot(xp: Any, x: Array, y: Array, axes: int | Sequence[Sequence[int]] = 2) -> Array:
    """Sum the products over pairs of axes, as numpy.tensordot does; NotImplemented as for `matmul`."""
    if isinstance(axes, int):
        left, right = list(range(x.ndim - axes, x.ndim)), list(range(axes))
    else:
        left, right = ([a % s.ndim for a in ((given,) if isinstance(given, int) else given)] for s, given in zip((x, y), axes))
    if [x.shape[a] for a in left] != [y.shape[a] for a in right]:
        return NotImplemented
    kept_x = [a for a in range(x.ndim) if a not in left]
    kept_y = [a for a in range(y.ndim) if a not in right]
    inner = math.prod(x.shape[a] for a in left)
    rows = xp.reshape(xp.transpose(x, (*kept_x, *left)), (math.prod(x.shape[a] for a in kept_x), inner))
    columns = xp.reshape(xp.transpose(y, (*right, *kept_y)), (inner, math.prod(y.shape[a] for a in kept_y)))
    product = matmul(xp, rows, columns)
    if product is NotImplemented:
        return NotImplemented
    return xp.reshape(product, (*(x.shape[a] for a in kept_x), *(y.shape[a] for a in kept_y)))


def vecdot(xp: Any, x: Array, y: Array, axis: int = -1) -> Array:
    """Compute the scalar products along an axis, the others broadcast; NotImplemented as for `matmul`."""
    if not (-x.ndim <= axis < x.ndim and -y.ndim <= axis < y.ndim) or x.shape[axis] != y.shape[axis]:
        return NotImplemented
    x, y = xp.moveaxis(x, axis, -1), xp.moveaxis(y, axis, -1)
    product = matmul(xp, x[..., None, :], y[..., None])
    return product if product is NotImplemented else product[..., 0, 0]
