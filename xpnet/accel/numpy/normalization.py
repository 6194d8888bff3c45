"""Batch normalisation for NumPy: two passes over the data forward and two backward, in chunks on all threads.

Nothing the size of x is saved but x itself: forward is (x - centre) * factor + shift with one factor and shift a channel,
backward is dy * factor + (x - centre) * slope + shift. The centre is 0, or where that would lose digits the mean, rounded; what
the rounding took away is part of the shift. Several rows of few channels are merged into one, so that NumPy's loops run over
a thousand elements instead of sixty.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import ELEMENTWISE_CHUNK, PASS_SECONDS, balanced_chunk_size
from xpnet.accel.numpy.epilogue import sum_products, sum_rows
from xpnet.accel.numpy.workspace import FLOATS, Floats, workspace
from xpnet.ops.normalization import batch_norm_with_statistics
from xpnet.runtime.threads import parallel

_SMALL = 1 << 14


class _Rows:
    """The layout of x (..., C) as rows of k * C elements, in chunks of equal height."""

    def __init__(self, shape: tuple[int, ...], C: int, count: int) -> None:
        self.k = k = _divisor(count, max(1, 1024 // C))
        self.C = C
        self.shape = (count // k, k * C)
        self.height = balanced_chunk_size(self.shape[0], max(1, ELEMENTWISE_CHUNK // (k * C)), 4 * PASS_SECONDS * count * C)
        self.chunks = -(-self.shape[0] // self.height)

    def part(self, number: int) -> slice:
        return slice(number * self.height, (number + 1) * self.height)

    def repeat(self, vector: Floats) -> Floats:
        """Return a vector (C,) repeated to the length of a row."""
        return np.tile(vector, self.k) if self.k > 1 else vector

    def channels(self, sums: Floats) -> Floats:
        """Return the sum of each channel from those of the columns."""
        total: Floats = np.add.reduce(sums.reshape(self.k, self.C), axis=0)
        return total


def _divisor(n: int, limit: int) -> int:
    """Return the largest divisor of n up to `limit`."""
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)


def _cancels(mean: Floats, variance: Floats) -> bool:
    """Return whether a mean is so far from 0 that sums of x * x, and x * factor, lose digits by cancellation."""
    return bool((mean * mean > 64 * variance).any())


def _statistics(flat: Floats, rows: _Rows) -> tuple[Floats, Floats, Floats | None]:
    """Return mean and biased variance of each channel, float64 (C,), and the centre, None for 0.

    One pass sums x and x * x, as exactly as pairwise within a chunk and in float64 over the chunks; where squares that large
    would lose digits, a second one does so for the differences from the mean.
    """
    sums = np.empty((2, rows.chunks, rows.C), np.float64)
    count = flat.size // rows.C

    def add(number: int) -> None:
        part = flat[rows.part(number)]
        if long_centre is not None:
            (difference,) = workspace(part.dtype, part.shape)
            part = np.subtract(part, long_centre, out=difference)
        sums[0, number] = rows.channels(sum_rows(part))
        sums[1, number] = rows.channels(sum_products(part, part))

    def moments() -> tuple[Floats, Floats]:
        first, second = sums.sum(axis=1) / count
        return first, np.maximum(second - first * first, 0)

    long_centre: Floats | None = None
    parallel(add, rows.chunks, 3 * PASS_SECONDS * flat.size, 3)
    mean, variance = moments()
    if not _cancels(mean, variance):
        return mean, variance, None
    centre = mean.astype(flat.dtype)
    long_centre = rows.repeat(centre)
    parallel(add, rows.chunks, 4 * PASS_SECONDS * flat.size, 4)
    rest, variance = moments()
    return centre + rest, variance, centre


@batch_norm_with_statistics.accelerate("numpy")
def forward(xp: Any, x: Floats, scale: Floats | None, offset: Floats | None, *, epsilon: float) -> Any:
    """Compute the statistics in one pass over x, the output in another."""
    dtype = x.dtype
    if (
        dtype not in FLOATS
        or x.ndim < 2
        or x.size < _SMALL
        or any(v is not None and (v.dtype != dtype or v.shape != x.shape[-1:]) for v in (scale, offset))
    ):
        return NotImplemented
    C = x.shape[-1]
    count = x.size // C
    rows = _Rows(x.shape, C, count)
    flat = np.ascontiguousarray(x).reshape(rows.shape)
    mean64, variance64, centre = _statistics(flat, rows)
    mean, variance = mean64.astype(dtype), variance64.astype(dtype)
    inverse = (1 / np.sqrt(variance64 + epsilon)).astype(dtype)
    factor = inverse if scale is None else inverse * scale
    if centre is None and not np.isfinite(factor).all():
        centre = mean  # x * factor + shift could be inf - inf
    rest = mean64 if centre is None else mean64 - centre
    shift = -rest * np.where(rest == 0, 0, factor)  # an infinite one, too
    shift = (shift if offset is None else shift + offset).astype(dtype)
    long_centre = None if centre is None else rows.repeat(centre)
    long_factor, long_shift = rows.repeat(factor), rows.repeat(shift)
    y = np.empty(rows.shape, dtype)

    def output(number: int) -> None:
        part = rows.part(number)
        source, out = flat[part], y[part]
        if long_centre is not None:
            source = np.subtract(source, long_centre, out=out)
        np.multiply(source, long_factor, out=out)
        np.add(out, long_shift, out=out)

    parallel(output, rows.chunks, 4 * PASS_SECONDS * x.size, 2)
    return (y.reshape(x.shape), mean, variance), (x, centre, rest, inverse, scale)


@forward.backward(owns_result=True)
def backward(xp: Any, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, bool, bool]) -> Any:
    """Compute the sums of dy and dy * (x - centre) in one pass, dx in another."""
    dy, dmean, dvariance = dys
    x, centre, rest, inverse, scale = saved
    dtype = x.dtype
    C = x.shape[-1]
    count = x.size // C
    rows = _Rows(x.shape, C, count)
    flat = np.ascontiguousarray(x).reshape(rows.shape)
    dy = np.zeros(x.shape, dtype) if dy is None else dy
    dmean, dvariance = (0 if d is None else d for d in (dmean, dvariance))
    dflat = np.ascontiguousarray(dy, dtype).reshape(rows.shape)
    long_centre = None if centre is None else rows.repeat(centre)
    sums = np.empty((2, rows.chunks, C), np.float64)

    def total(number: int) -> None:
        part = rows.part(number)
        source = flat[part]
        if long_centre is not None:
            (centred,) = workspace(dtype, source.shape)
            source = np.subtract(source, long_centre, out=centred)
        sums[0, number] = rows.channels(sum_rows(dflat[part]))
        sums[1, number] = rows.channels(sum_products(source, dflat[part]))

    parallel(total, rows.chunks, 4 * PASS_SECONDS * x.size, 3)
    doffset, dcentred = sums.sum(axis=1)
    dcentred -= rest * doffset
    dscale = dcentred * inverse
    dx = None
    if needs[0]:
        # dx = factor * (dy - mean(dy) - xhat * mean(dy * xhat)) + (dmean + 2 * dvariance * (x - mean)) / count
        factor = inverse.astype(np.float64) if scale is None else inverse.astype(np.float64) * scale
        slope = (2 * dvariance - factor * dscale * inverse) / count
        shift = (dmean - factor * doffset) / count - rest * slope
        long_factor, long_slope, long_shift = (rows.repeat(v.astype(dtype)) for v in (factor, slope, shift))
        out = np.empty(rows.shape, dtype)

        def gradient(number: int) -> None:
            part = rows.part(number)
            (term,) = workspace(dtype, flat[part].shape)
            source = flat[part] if long_centre is None else np.subtract(flat[part], long_centre, out=term)
            np.multiply(source, long_slope, out=term)
            np.add(term, long_shift, out=term)
            np.multiply(dflat[part], long_factor, out=out[part])
            np.add(out[part], term, out=out[part])

        parallel(gradient, rows.chunks, 7 * PASS_SECONDS * x.size, 4)
        dx = out.reshape(x.shape)
    return dx, dscale.astype(dtype) if needs[1] else None, doffset.astype(dtype) if needs[2] else None


# -- what it allocates, on fake arrays --


@forward.footprint
def _footprint(xp: Any, x: Any, scale: Any, offset: Any, *, epsilon: float) -> Any:
    if x.dtype not in FLOATS or x.ndim < 2 or x.size < _SMALL:
        return NotImplemented
    C = x.shape[-1]
    mean, variance, inverse = (xp.empty((C,), dtype=x.dtype) for _ in range(3))
    y = xp.empty_like(x)
    return (y, mean, variance), (x, mean, inverse, scale)


@_footprint.backward
def _(xp: Any, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, ...]) -> Any:
    x, mean, _, _ = saved
    dy = xp.empty_like(x) if dys[0] is None else xp.ascontiguousarray(dys[0])
    dx = None
    if needs[0]:
        dx = xp.empty_like(x)
        rows = _Rows(x.shape, x.shape[-1], x.size // x.shape[-1])
        xp.workspace(x.dtype, rows.chunks, (min(rows.height, rows.shape[0]), rows.shape[1]))
    del dy
    return dx, xp.empty_like(mean) if needs[1] else None, xp.empty_like(mean) if needs[2] else None
