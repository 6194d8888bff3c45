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
from xpnet.runtime.shortcuts import is_any, plain_sum, reshaped

SHORT = 128
"""Elements that may be added one after the other: NumPy's own pairwise sums end at blocks of that many."""

_SHORT_ON_GPU = 1 << 16
"""The same for CuPy, where the threads of a block share the elements of a sum."""

LONG = 1024
"""Rows of which no product is made in blocks."""

_PRODUCT = 4096
"""The same for a product of matrices, of which BLAS adds a few hundred at a time."""

_SMALL = 256
"""Elements of a product that BLAS has other kernels for, which add all of them one after the other."""

_BLOCK = 16
_WIDE = 512
"""Rows of fewer elements are merged: adding rows of two elements costs as much as adding rows of hundreds."""

_MEDIUM = 4096
"""Rows up to which two sums of at most twice the square root are enough."""


def total(xp: Namespace, x: Array, axes: Sequence[int] | None = None, keepdims: bool = False, dtype: Any = None) -> Array:
    """Return the sum over `axes` (none negative; None for all) of floating or complex x, in `dtype`, by default that of x."""
    dtype = x.dtype if dtype is None else dtype
    shape = x.shape
    chosen = tuple(range(len(shape))) if axes is None else tuple(axes)
    count = 1
    for a in chosen:
        count *= shape[a]
    if count <= SHORT or (count <= _SHORT_ON_GPU and is_asynchronous(xp)):
        return plain_sum(xp, x, chosen, dtype, keepdims)
    steps, result = _plan(shape, chosen, keepdims)
    if 0 in shape:
        x = plain_sum(xp, x, chosen, dtype)
    else:
        x = _ordered(xp, x)
        for step in steps:
            x = _middle(xp, reshaped(xp, x, step), dtype)
    return x if x.shape == result else reshaped(xp, x, result)


def _block(K: int, O: int) -> int:
    return SHORT if K * O <= _SMALL else _PRODUCT


def in_blocks(M: int, K: int, O: int) -> bool:
    """Return whether a product (M, K), (M, O) -> (K, O) has so many rows that blocks of them are multiplied."""
    return 8 * _block(K, O) < M


def row_product(xp: Namespace, x: Array, y: Array) -> Array:
    """Return the sum over rows of x (..., M, K) times y (..., M, O): (..., K, O), the other axes broadcast.

    BLAS adds the rows of a product with a vector, and of small ones, one after the other, and those of other products a few
    hundred at a time; where they are many, blocks of them are multiplied.
    """
    *outer, M, K = x.shape
    O = y.shape[-1]
    if not in_blocks(M, K, O) or y.shape[:-2] != x.shape[:-2] or is_asynchronous(xp):
        return cast(Array, xp.matmul(xp.matrix_transpose(x), y))
    block = SHORT if K * O <= _SMALL else _PRODUCT
    whole = M - M % block
    parts = [xp.reshape(a[..., :whole, :], (*outer, whole // block, block, n)) for a, n in ((x, K), (y, O))]
    blocks = xp.matmul(xp.matrix_transpose(parts[0]), parts[1])
    if whole < M:
        rest = xp.matmul(xp.matrix_transpose(x[..., whole:, :]), y[..., whole:, :])
        blocks = xp.concat((blocks, rest[..., None, :, :]), axis=-3)
    return total(xp, blocks, (len(outer),))


def far_from_zero(xp: Namespace, mean: Array, variance: Array) -> bool:
    """Return whether a mean is so far from 0 that its last digit counts beside the deviation from it.

    On a GPU it is not asked, as reading the answer would wait for the device.
    """
    if is_asynchronous(xp):
        return False
    far: Any = mean * mean > 64 * variance
    return is_any(xp, far)


@lru_cache(maxsize=4096)
def _plan(
    shape: tuple[int, ...], chosen: tuple[int, ...], keepdims: bool
) -> tuple[list[tuple[int, int, int]], tuple[int, ...]]:
    """Return the shapes (outer, n, inner) whose middle axes are summed one after the other, and the shape of the result.

    They go from the last axis to the first, neighbouring axes at once.
    """
    kept = tuple(1 if i in chosen else n for i, n in enumerate(shape))
    steps = []
    end = len(shape)
    while end:
        start = end - 1
        while start and (start - 1 in chosen) == (end - 1 in chosen):
            start -= 1
        if end - 1 in chosen:
            steps.append((math.prod(shape[:start]), math.prod(shape[start:end]), math.prod(kept[end:])))
        end = start
    return steps, kept if keepdims else tuple(n for i, n in enumerate(shape) if i not in chosen)


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
        return plain_sum(xp, reshaped(xp, x, (outer, n)), 1, dtype)
    if n <= SHORT:
        return plain_sum(xp, x, 1, dtype)
    merged = _merged(n, inner)
    whole = n - n % merged
    main = x if whole == n else x[:, :whole, :]
    wide = _rows(xp, reshaped(xp, main, (outer, whole // merged, merged * inner)), dtype)
    y = _rows(xp, reshaped(xp, wide, (outer, merged, inner)), dtype)
    return y if whole == n else y + _rows(xp, x[:, whole:, :], dtype)


@lru_cache(maxsize=4096)
def _merged(n: int, inner: int) -> int:
    """Return how many of n rows of `inner` elements are merged to one: if possible a divisor of n, so that none is left."""
    least = math.isqrt(n // 2) if n <= _MEDIUM else min(max(64, _WIDE // inner), n // 64)
    return next((count for count in range(least, 2 * least) if n % count == 0), least)


def _rows(xp: Namespace, x: Array, dtype: Any) -> Array:
    """Sum (outer, n, inner) over its middle axis: blocks of rows, then their sums in the same way."""
    outer, n, inner = x.shape
    while n > SHORT:
        count = n // _BLOCK
        whole = count * _BLOCK
        main = x if whole == n else x[:, :whole, :]
        sums = plain_sum(xp, reshaped(xp, main, (outer, count, _BLOCK, inner)), 2, dtype)
        if whole < n:
            sums = xp.concat((sums, plain_sum(xp, x[:, whole:, :], 1, dtype, True)), axis=1)
        x, n = sums, sums.shape[1]
    return plain_sum(xp, x, 1, dtype)
