"""Sums as exact as pairwise summation, along whatever axis.

Array libraries sum pairwise, or in a tree, along the axis whose elements lie next to each other in memory. Along any other one
NumPy adds row after row: after a million rows of float32 the last digits of each are lost, and the mean of a constant column is
not that constant. Here long sums are made of short ones: of blocks of rows, whose sums are summed in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from xpnet.backend import Array, Namespace, is_asynchronous

SHORT = 128
"""Elements that may be added one after the other: NumPy's own pairwise sums end at blocks of that many."""

_SHORT_ON_GPU = 1 << 16
"""The same for CuPy, where the threads of a block share the elements of a sum."""

_BLOCK = 16
_WIDE = 512
"""Rows of fewer elements are merged: adding rows of two elements costs as much as adding rows of hundreds."""

_FEW = 1 << 15
"""Elements up to which that is not worth its calls."""


def total(xp: Namespace, x: Array, axes: Sequence[int] | None = None, keepdims: bool = False, dtype: Any = None) -> Array:
    """Return the sum over `axes` (none negative; None for all) of floating or complex x, in `dtype`, by default that of x."""
    dtype = x.dtype if dtype is None else dtype
    shape = x.shape
    chosen = tuple(range(len(shape))) if axes is None else tuple(axes)
    count = 1
    for a in chosen:
        count *= shape[a]
    if count <= SHORT or (count <= _SHORT_ON_GPU and is_asynchronous(xp)):
        return cast(Array, xp.sum(x, axis=chosen, keepdims=keepdims, dtype=dtype))
    kept = tuple(1 if i in chosen else n for i, n in enumerate(shape))
    if 0 not in shape:
        x = _ordered(xp, x)
        # From the last axis to the first, neighbouring axes at once.
        end = len(shape)
        while end:
            start = end - 1
            while start and (start - 1 in chosen) == (end - 1 in chosen):
                start -= 1
            if end - 1 in chosen:
                inner = math.prod(kept[end:])
                x = _middle(xp, xp.reshape(x, (math.prod(shape[:start]), math.prod(shape[start:end]), inner)), dtype)
            end = start
    else:
        x = xp.sum(x, axis=chosen, dtype=dtype)
    return cast(Array, xp.reshape(x, kept if keepdims else tuple(n for i, n in enumerate(shape) if i not in chosen)))


def _ordered(xp: Namespace, x: Array) -> Array:
    """Return the array in C order, if the library says that it is in another one: then no axis but the first might be long."""
    flags = getattr(x, "flags", None)
    if flags is None or flags.c_contiguous:
        return x
    return cast(Array, xp.reshape(xp.reshape(x, (-1,)), x.shape))  # a copy


def _middle(xp: Namespace, x: Array, dtype: Any) -> Array:
    """Sum (outer, n, inner) over its middle axis: (outer, inner)."""
    outer, n, inner = x.shape
    if inner == 1:  # neighbours in memory
        return cast(Array, xp.sum(xp.reshape(x, (outer, n)), axis=1, dtype=dtype))
    merged = min(_WIDE // inner, n // 64) if n * inner > _FEW else 1
    if merged < 2:
        return _rows(xp, x, dtype)
    whole = n - n % merged
    rows = _rows(xp, xp.reshape(x[:, :whole, :], (outer, whole // merged, merged * inner)), dtype)
    parts = xp.reshape(rows, (outer, merged, inner))
    rest = None if whole == n else xp.astype(x[:, whole:, :], dtype, copy=False)
    return _rows(xp, parts if rest is None else xp.concat((parts, rest), axis=1), dtype)


@lru_cache(maxsize=4096)
def _block(n: int) -> int:
    """Return how many rows a block has: few, and if possible a divisor of n, so that none are left over."""
    least = _BLOCK if n > SHORT * _BLOCK else -(-n // (2 * _BLOCK))  # then one round leaves a short sum
    return next((block for block in range(least, 2 * least) if n % block == 0), least)


def _rows(xp: Namespace, x: Array, dtype: Any) -> Array:
    """Sum (outer, n, inner) over its middle axis: blocks of rows, then their sums in the same way."""
    outer, n, inner = x.shape
    while n > SHORT // 2:
        block = _block(n)
        count = n // block
        whole = count * block
        if whole == n:
            x = xp.sum(xp.reshape(x, (outer, count, block, inner)), axis=2, dtype=dtype)
        else:
            sums = xp.sum(xp.reshape(x[:, :whole, :], (outer, count, block, inner)), axis=2, dtype=dtype)
            x = xp.concat((sums, xp.sum(x[:, whole:, :], axis=1, keepdims=True, dtype=dtype)), axis=1)
        n = x.shape[1]
    return cast(Array, xp.sum(x, axis=1, dtype=dtype))
