"""Functions of the Array API for CuPy arrays that a CUDA graph can hold, where array-api-compat's cannot be captured.

They are in the namespace that operations get: see `namespace`, which says why each is here. The module imports CuPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
from array_api_compat import cupy as compat

from xpnet.accel.cupy import products

Array = Any

_FEW = 8
"""As many arrays CuPy concatenates without copying their addresses to the device."""

_sign = cupy.ElementwiseKernel(
    "T x", "T y", "y = x != x ? x : static_cast<T>(static_cast<int>(x > T(0)) - static_cast<int>(x < T(0)))", "xpnet_sign"
)


def matmul(x1: Array, x2: Array, /, **keywords: Any) -> Array:
    """Compute the matrix product as the standard says. Integers and complex numbers are CuPy's own work."""
    product = NotImplemented if keywords else products.matmul(cupy, x1, x2)
    return cupy.matmul(x1, x2, **keywords) if product is NotImplemented else product


def tensordot(x1: Array, x2: Array, /, *, axes: int | Sequence[Sequence[int]] = 2) -> Array:
    """Sum the products over pairs of axes as the standard says."""
    product = products.tensordot(cupy, x1, x2, axes)
    return cupy.tensordot(x1, x2, axes=axes) if product is NotImplemented else product


def vecdot(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:
    """Compute scalar products along an axis as the standard says."""
    product = products.vecdot(cupy, x1, x2, axis)
    return compat.vecdot(x1, x2, axis=axis) if product is NotImplemented else product


def dot(a: Array, b: Array, out: Array | None = None) -> Array:
    """Compute numpy.dot: a sum of products over the last axis of a and the last but one of b."""
    if out is not None or a.ndim == 0 or b.ndim == 0:
        return cupy.dot(a, b, out)
    product = products.tensordot(cupy, a, b, ((a.ndim - 1,), (max(b.ndim - 2, 0),)))
    return cupy.dot(a, b) if product is NotImplemented else product


def inner(a: Array, b: Array) -> Array:
    """Compute numpy.inner: a sum of products over the last axes."""
    if a.ndim == 0 or b.ndim == 0:
        return cupy.inner(a, b)
    product = products.tensordot(cupy, a, b, ((a.ndim - 1,), (b.ndim - 1,)))
    return cupy.inner(a, b) if product is NotImplemented else product


def sign(x: Array, /) -> Array:
    """Return -1, 0 or 1; NaN stays NaN."""
    if x.dtype.kind == "f":
        return _sign(x)
    return compat.sign(x) if x.dtype.kind == "c" else cupy.sign(x)


def clip(x: Array, /, min: Any = None, max: Any = None, *, out: Array | None = None) -> Array:
    """Limit x to min <= x <= max, each a number, an array or None, in the dtype of x. NaNs stay, and NaN limits give NaN."""
    y = x
    for limit, function, extreme in ((min, cupy.maximum, "min"), (max, cupy.minimum, "max")):
        if limit is None:
            continue
        if isinstance(limit, int) and x.dtype.kind in "iu":
            bounds = cupy.iinfo(x.dtype)
            if (limit <= bounds.min) if extreme == "min" else (limit >= bounds.max):
                continue
        if not isinstance(limit, (int, float)):
            limit = cupy.asarray(limit, dtype=x.dtype)
        y = function(y, int(limit) if x.dtype.kind in "iu" and isinstance(limit, float) else limit)
    if out is not None:
        out[...] = y
        return out
    return x.copy() if y is x else y.astype(x.dtype, copy=False)


def where(condition: Array, x1: Any, x2: Any, /) -> Array:
    """Return x1 where `condition` is true, else x2. (CuPy's turns two arrays of bfloat16 into float32.)"""
    y = cupy.where(condition, x1, x2)
    dtype = getattr(x1, "dtype", None)
    if dtype is not None and dtype != y.dtype and dtype == getattr(x2, "dtype", None):
        return y.astype(dtype)
    return y


def _capturing() -> bool:
    return bool(cupy.cuda.get_current_stream().is_capturing())


def concat(arrays: Sequence[Array], /, *, axis: int | None = 0, **keywords: Any) -> Array:
    """Join arrays along an existing axis; with None as vectors."""
    if len(arrays) <= _FEW or keywords or not _capturing():
        return cupy.concatenate(arrays, axis=axis, **keywords)
    if axis is None:
        arrays, axis = [cupy.reshape(a, (-1,)) for a in arrays], 0
    axis = axis % arrays[0].ndim
    shape = list(arrays[0].shape)
    shape[axis] = sum(a.shape[axis] for a in arrays)
    y = cupy.empty(tuple(shape), dtype=cupy.result_type(*arrays))
    start = 0
    for a in arrays:
        if (*a.shape[:axis], *a.shape[axis + 1 :]) != (*shape[:axis], *shape[axis + 1 :]):
            raise ValueError(f"concat: the shapes {arrays[0].shape} and {a.shape} differ outside axis {axis}")
        y[(slice(None),) * axis + (slice(start, start + a.shape[axis]),)] = a
        start += a.shape[axis]
    return y


def stack(arrays: Sequence[Array], /, *, axis: int = 0, **keywords: Any) -> Array:
    """Join arrays of one shape along a new axis."""
    if len(arrays) <= _FEW or keywords or not _capturing():
        return cupy.stack(arrays, axis=axis, **keywords)
    if len({a.shape for a in arrays}) > 1:
        raise ValueError(f"stack: shapes differ: {', '.join(str(a.shape) for a in arrays)}")
    return concat([cupy.expand_dims(a, axis) for a in arrays], axis=axis if axis >= 0 else axis % (arrays[0].ndim + 1))
