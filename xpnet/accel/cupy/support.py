"""Small helpers of the accelerated operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpnet.accel.cupy.source import C_NAMES, FLOATS, dtype_of

Array = Any

WIDTHS = {"float": 4, "double": 2, "float16": 8, "bfloat16": 8}
"""How many elements of a C type make 16 bytes."""

VECTORS = (1, 2, 4, 8)


def fits(kind: str, width: int, *_: object) -> bool:
    """Whether a vector of `width` elements of the C type `kind` is one element or 16 bytes."""
    return width in (1, WIDTHS[kind])


def takes(*arrays: Array | None) -> bool:
    """Whether all arrays (None aside) have one floating dtype that the kernels take."""
    names = {dtype_of(a) for a in arrays if a is not None}
    return len(names) == 1 and C_NAMES.get(names.pop()) in FLOATS


def c_name(array: Array) -> str:
    """The C type of an array's elements."""
    return C_NAMES[dtype_of(array)]


def accumulator(xp: Any, array: Array) -> Any:
    """The dtype that a kernel computes in for elements of this array: float64 for float64, else float32."""
    return xp.float64 if array.dtype.itemsize == 8 else xp.float32


def contiguous(xp: Any, array: Array | None) -> Any:
    """The array itself where it is C-contiguous, else a copy that is; None stays None."""
    return array if array is None or array.flags.c_contiguous else xp.ascontiguousarray(array)


def delivered(gradient: Array, like: Array, into: Array | None) -> Any:
    """A gradient, computed in the type that kernels sum in, in the dtype of `like`; or unrounded in `into`, where that has
    the gradient's dtype: the place that a parameter keeps it in."""
    if into is not None and into.dtype == gradient.dtype:
        into[...] = gradient.reshape(into.shape)
        return into
    return gradient.astype(like.dtype, copy=False)


def room(xp: Any, shape: tuple[int, ...], like: Array, into: Array | None) -> Any:
    """Where a product writes the gradient of an array like `like`: `into` if a product can, else a new array."""
    wider = into is not None and into.dtype.itemsize == 4 and like.dtype.itemsize == 2
    if into is not None and into.flags.c_contiguous and (into.dtype == like.dtype or wider):
        return into
    return xp.empty(shape, dtype=like.dtype)


def product(sizes: Sequence[int]) -> int:
    """The product of sizes, 1 for none."""
    total = 1
    for size in sizes:
        total *= size
    return total
