"""Batch normalisation for NumPy: two passes over the data forward and two backward, in chunks on all threads. A residual is
added and relu applied to a chunk while it is in the cache.

Nothing the size of x is saved but x itself: forward is (x - centre) * factor + shift with one factor and shift a channel,
backward is dy * factor + (x - centre) * slope + shift. The centre is 0, or where that would lose digits the mean, rounded; what
the rounding took away is part of the shift. Several rows of few channels are merged into one, so that NumPy's loops run over
a thousand elements instead of sixty.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import ELEMENTWISE_CHUNK, PASS_SECONDS, balanced_chunk_size
from xpnet.accel.numpy.epilogue import apply_mask, relu_to, sum_products, sum_rows
from xpnet.accel.numpy.workspace import FLOATS, Floats, workspace
from xpnet.ops.normalization import (
    batch_norm_training,
    batch_norm_with_statistics,
    gradient_of_output,
    update_running,
)
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


def _covers(x: Any, scale: Any, offset: Any) -> bool:
    if x.dtype not in FLOATS or x.ndim < 2 or x.size < _SMALL:
        return False
    return all(v is None or (v.dtype == x.dtype and v.shape == x.shape[-1:]) for v in (scale, offset))


@batch_norm_with_statistics.accelerate("numpy")
def forward(xp: Any, x: Floats, scale: Floats | None, offset: Floats | None, *, epsilon: float) -> Any:
    """Compute the statistics in one pass over x, the output in another."""
    if not _covers(x, scale, offset):
        return NotImplemented
    return _normalized(x, scale, offset, epsilon)


def _normalized(
    x: Floats,
    scale: Floats | None,
    offset: Floats | None,
    epsilon: float,
    residual: Floats | None = None,
    activation: str | None = None,
) -> tuple[tuple[Floats, Floats, Floats], Any]:
    """Return the output, mean and variance; and what `_gradients` needs of them."""
    dtype = x.dtype
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
    side = None if residual is None else np.ascontiguousarray(residual).reshape(rows.shape)
    y = np.empty(rows.shape, dtype)

    def output(number: int) -> None:
        part = rows.part(number)
        source, out = flat[part], y[part]
        if long_centre is not None:
            source = np.subtract(source, long_centre, out=out)
        np.multiply(source, long_factor, out=out)
        np.add(out, long_shift, out=out)
        if side is not None:
            np.add(out, side[part], out=out)
        if activation is not None:
            relu_to(out, out)

    parallel(output, rows.chunks, 4 * PASS_SECONDS * x.size, 2)
    return (y.reshape(x.shape), mean, variance), (x, centre, rest, inverse, scale)


@forward.backward(owns_result=True)
def backward(xp: Any, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, bool, bool]) -> Any:
    """Compute the sums of dy and dy * (x - centre) in one pass, dx in another."""
    dy, dmean, dvariance = dys
    dy = np.zeros(saved[0].shape, saved[0].dtype) if dy is None else dy
    return _gradients(dy, saved, needs, dmean, dvariance)[:3]


@batch_norm_training.accelerate("numpy")
def training_forward(
    xp: Any,
    x: Floats,
    scale: Floats | None,
    offset: Floats | None,
    residual: Floats | None,
    *,
    running_mean: Floats | None,
    running_variance: Floats | None,
    momentum: float,
    epsilon: float,
    activation: str | None,
    save: bool,
) -> Any:
    """Add the residual and apply relu in the pass that computes the output."""
    if not _covers(x, scale, offset) or activation not in (None, "relu"):
        return NotImplemented
    if residual is not None and (residual.dtype != x.dtype or residual.shape != x.shape):
        return NotImplemented
    if (running_mean is None) != (running_variance is None):
        return NotImplemented
    if any(v is not None and v.shape != x.shape[-1:] for v in (running_mean, running_variance)):
        return NotImplemented
    (y, mean, variance), saved = _normalized(x, scale, offset, epsilon, residual, activation)
    kept = (saved, y if activation is not None else None) if save else None
    if running_mean is None or running_variance is None:
        return y, kept
    count = x.size // x.shape[-1]
    return (y, *update_running(xp, running_mean, running_variance, mean, variance, count, momentum)), kept


@training_forward.backward
def training_backward(xp: Any, dys: Any, saved: Any, *, needs: tuple[bool, ...], **settings: Any) -> Any:
    """Mask the gradient in the pass that sums it."""
    saved, y = saved
    dy: Any = gradient_of_output(dys)
    dx, dscale, doffset, dz = _gradients(dy, saved, needs, y=y)
    return dx, dscale, doffset, dz if needs[3] else None


def _gradients(
    dy: Floats,
    saved: Any,
    needs: tuple[bool, ...],
    dmean: Floats | None = None,
    dvariance: Floats | None = None,
    y: Floats | None = None,
) -> tuple[Any, Any, Any, Floats]:
    """Return the gradients of x, scale and offset, and dy where y > 0, else 0; dy itself without y."""
    x, centre, rest, inverse, scale = saved
    dtype = x.dtype
    C = x.shape[-1]
    count = x.size // C
    rows = _Rows(x.shape, C, count)
    flat = np.ascontiguousarray(x).reshape(rows.shape)
    given = dflat = np.ascontiguousarray(dy, dtype).reshape(rows.shape)
    positive = None if y is None else y.reshape(rows.shape)
    if positive is not None:
        dflat = np.empty(rows.shape, dtype)
    long_centre = None if centre is None else rows.repeat(centre)
    sums = np.empty((2, rows.chunks, C), np.float64)

    def total(number: int) -> None:
        part = rows.part(number)
        source = flat[part]
        if positive is not None:
            apply_mask(given[part], np.greater(positive[part], 0), dflat[part])
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
        slope = ((0 if dvariance is None else 2 * dvariance) - factor * dscale * inverse) / count
        shift = ((0 if dmean is None else dmean) - factor * doffset) / count - rest * slope
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
    vectors = (dscale.astype(dtype) if needs[1] else None, doffset.astype(dtype) if needs[2] else None)
    return dx, *vectors, dy if y is None else dflat.reshape(x.shape)


# -- what it allocates, on fake arrays --


@forward.footprint
def _footprint(xp: Any, x: Any, scale: Any, offset: Any, *, epsilon: float) -> Any:
    if not _covers(x, scale, offset):
        return NotImplemented
    C = x.shape[-1]
    mean, variance, inverse = (xp.empty((C,), dtype=x.dtype) for _ in range(3))
    y = xp.empty_like(x)
    return (y, mean, variance), (x, mean, inverse, scale)


@_footprint.backward
def _(xp: Any, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, ...]) -> Any:
    dy = xp.empty_like(saved[0]) if dys[0] is None else xp.ascontiguousarray(dys[0])
    return _gradients_footprint(xp, dy, saved, needs)


def _gradients_footprint(xp: Any, dy: Any, saved: Any, needs: tuple[bool, ...]) -> Any:
    x, mean, _, _ = saved
    dx = None
    if needs[0]:
        dx = xp.empty_like(x)
        rows = _Rows(x.shape, x.shape[-1], x.size // x.shape[-1])
        xp.workspace(x.dtype, rows.chunks, (min(rows.height, rows.shape[0]), rows.shape[1]))
    del dy
    return dx, xp.empty_like(mean) if needs[1] else None, xp.empty_like(mean) if needs[2] else None


@training_forward.footprint
def _training_footprint(
    xp: Any, x: Any, scale: Any, offset: Any, residual: Any, *, running_mean: Any, running_variance: Any, epsilon: float,
    activation: str | None, save: bool, **settings: Any,
) -> Any:  # fmt: skip
    made = _footprint.forward(xp, x, scale, offset, epsilon=epsilon)
    if made is NotImplemented:
        return made
    (y, _, _), saved = made
    kept = (saved, y if activation is not None else None) if save else None
    return y if running_mean is None else (y, running_mean, running_variance), kept


@_training_footprint.backward
def _(xp: Any, dys: Any, saved: Any, *, needs: tuple[bool, ...], **settings: Any) -> Any:
    saved, y = saved
    dy = xp.ascontiguousarray(gradient_of_output(dys))
    dz = dy if y is None else xp.empty_like(dy)
    return *_gradients_footprint(xp, dz, saved, needs), dz if needs[3] else None
