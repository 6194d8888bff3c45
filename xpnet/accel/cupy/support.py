"""Helpers of the accelerated operations."""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.source import C_NAMES, FLOATS, dtype_of

Array = Any

WIDTHS = {"float": 4, "double": 2, "float16": 8, "bfloat16": 8}
"""The number of elements of a C++ type in 16 bytes."""

VECTORS = (1, 2, 4, 8)


def valid_vector(kind: str, width: int, *_: object) -> bool:
    """Return whether a vector of `width` elements of the C++ type `kind` is one element or 16 bytes."""
    return width in (1, WIDTHS[kind])


def supported(*arrays: Array | None) -> bool:
    """Return whether all arrays (but None) have the same floating dtype, one that the kernels take."""
    names = {dtype_of(a) for a in arrays if a is not None}
    return len(names) == 1 and C_NAMES.get(names.pop()) in FLOATS


def c_name(array: Array) -> str:
    """Return the C++ type of an array's elements."""
    return C_NAMES[dtype_of(array)]


def accumulator(xp: Any, array: Array) -> Any:
    """Return the accumulator dtype of kernels for this array: float64 for float64, else float32."""
    return xp.float64 if array.dtype.itemsize == 8 else xp.float32


def contiguous(xp: Any, array: Array | None) -> Any:
    """Return the array itself if it is C-contiguous, else a copy that is; None for None."""
    return array if array is None or array.flags.c_contiguous else xp.ascontiguousarray(array)


def store_gradient(gradient: Array, like: Array, into: Array | None) -> Any:
    """Return a gradient in the accumulator dtype as the dtype of `like`; or store it unrounded in `into`, the buffer of the
    parameter's gradient, if that has the accumulator dtype."""
    if into is not None and into.dtype == gradient.dtype:
        into[...] = gradient.reshape(into.shape)
        return into
    return gradient.astype(like.dtype, copy=False)


def sum_buffer(xp: Any, shape: tuple[int, ...], like: Array, into: Array | None) -> Array:
    """Return where a kernel writes sums in the accumulator dtype, the gradient of an array like `like`: `into`, the buffer of
    the parameter's gradient, where that can take them, else a new array."""
    wide = accumulator(xp, like)
    if into is not None and into.dtype == wide and into.flags.c_contiguous:
        return into
    return xp.empty(shape, dtype=wide)


def as_gradient(sums: Array, like: Array, into: Array | None) -> Array:
    """Return the sums in a `sum_buffer` as the gradient: `into` itself, or in the dtype of `like`."""
    return sums if sums is into else sums.astype(like.dtype, copy=False)


def out_buffer(xp: Any, shape: tuple[int, ...], like: Array, into: Array | None) -> Any:
    """Return the buffer for a GEMM that computes the gradient of `like`: `into` if a GEMM can write it, else a new array."""
    wider = into is not None and into.dtype.itemsize == 4 and like.dtype.itemsize == 2
    if into is not None and into.flags.c_contiguous and (into.dtype == like.dtype or wider):
        return into
    return xp.empty(shape, dtype=like.dtype)
