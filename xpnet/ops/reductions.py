"""Sums, means, variances and extrema over axes, in the input's dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpnet.backend import Array, Namespace, kind_of
from xpnet.ops.registry import op
from xpnet.ops.shapes import normalize_axes
from xpnet.ops.sums import far_from_zero, total

Axes = int | Sequence[int] | None


def _kept(shape: Sequence[int], axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the reduced shape with the reduced axes kept as 1."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


@op(integers="keep", linear=True)
def sum(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False) -> Any:
    """Compute the sum over `axis` (an int, several, or None for all); that of integers is exact, in the library's widest."""
    axes = normalize_axes(axis, x.ndim)
    if kind_of(x.dtype) in ("integer", "boolean"):
        return xp.sum(x if kind_of(x.dtype) == "integer" else xp.astype(x, xp.int64), axis=axes, keepdims=keepdims), x.shape
    return total(xp, x, axes, keepdims), x.shape


@sum.backward
def _(xp: Namespace, dy: Array, shape: Any, *, axis: Axes, keepdims: bool) -> Any:
    kept = _kept(shape, normalize_axes(axis, len(shape)))
    return xp.broadcast_to(xp.reshape(dy, kept), shape)


@op(linear=True)
def mean(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False) -> Any:
    """Compute the mean over `axis` (an int, several, or None for all)."""
    axes = normalize_axes(axis, x.ndim)
    count = math.prod(x.shape[a] for a in axes)
    y = total(xp, x, axes, keepdims)
    return y / count if count else y * math.nan, x.shape


@mean.backward
def _(xp: Namespace, dy: Array, shape: Any, *, axis: Axes, keepdims: bool) -> Any:
    axes = normalize_axes(axis, len(shape))
    count = math.prod(shape[a] for a in axes)
    return xp.broadcast_to(xp.reshape(dy / count if count else dy, _kept(shape, axes)), shape)


@op
def var(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False, correction: float = 0) -> Any:
    """Compute the variance over `axis`: the sum of squared deviations from the mean, divided by the count - `correction`.

    Args:
        x: any shape.
        axis: an int, several, or None for all.
        keepdims: keep the reduced axes, with size 1.
        correction: 0 for the biased, 1 for the unbiased estimate. The result is NaN where the divisor is not positive.
    """
    y, saved = _variance(xp, x, axis, correction)
    return _shaped(xp, y, x.shape, axis, keepdims), saved


@var.backward
def _(xp: Namespace, dy: Array, saved: Any, *, axis: Axes, keepdims: bool, correction: float) -> Any:
    difference, count = saved
    kept = _kept(difference.shape, normalize_axes(axis, difference.ndim))
    return difference * (xp.reshape(dy, kept) * (2 / count))


@op
def std(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False, correction: float = 0) -> Any:
    """Compute the standard deviation over `axis`, the square root of :func:`var`. Where it is 0 its gradient is 0.

    Args: as in :func:`var`.
    """
    y, (difference, count) = _variance(xp, x, axis, correction)
    y = xp.sqrt(y)
    return _shaped(xp, y, x.shape, axis, keepdims), (difference, count, y)


@std.backward
def _(xp: Namespace, dy: Array, saved: Any, *, axis: Axes, keepdims: bool, correction: float) -> Any:
    difference, count, y = saved
    slope = xp.reshape(dy, y.shape) / xp.where(y == 0, xp.ones_like(y), y)
    return difference * (slope * (1 / count))


def _variance(xp: Namespace, x: Array, axis: Axes, correction: float) -> tuple[Array, tuple[Array, float]]:
    """Return the variance with the reduced axes kept, and what both gradients need: x - mean, and the divisor."""
    axes = normalize_axes(axis, x.ndim)
    number = math.prod(x.shape[a] for a in axes)
    count = number - correction if number > correction else math.nan
    mean = total(xp, x, axes, keepdims=True) / (number or math.nan)
    difference = x - mean
    squares = total(xp, difference * difference, axes, keepdims=True)
    if far_from_zero(xp, mean, squares / (number or math.nan)):  # the mean was rounded too early
        difference = difference - total(xp, difference, axes, keepdims=True) / number
        squares = total(xp, difference * difference, axes, keepdims=True)
    return squares / count, (difference, count)


def _shaped(xp: Namespace, kept: Array, shape: Sequence[int], axis: Axes, keepdims: bool) -> Array:
    """Return a result whose reduced axes have size 1 without those axes, unless `keepdims`."""
    axes = normalize_axes(axis, len(shape))
    return kept if keepdims else xp.reshape(kept, tuple(n for i, n in enumerate(shape) if i not in axes))


@op(integers="keep")
def max(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False) -> Any:
    """Return the maximum over `axis`; equal maxima share the gradient. A NaN is larger than any number."""
    return _extreme(xp, xp.max, x, axis, keepdims)


@op(integers="keep")
def min(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False) -> Any:
    """Return the minimum over `axis`; equal minima share the gradient. A NaN is smaller than any number."""
    return _extreme(xp, xp.min, x, axis, keepdims)


def _extreme(xp: Namespace, function: Any, x: Array, axis: Axes, keepdims: bool) -> Any:
    axes = normalize_axes(axis, x.ndim)
    kept = function(x, axis=axes, keepdims=True)
    return _shaped(xp, kept, x.shape, axis, keepdims), (x, kept)


def _extreme_backward(xp: Namespace, dy: Array, saved: Any, *, axis: Axes, keepdims: bool) -> Any:
    x, kept = saved
    hit = xp.astype((x == kept) | (x != x), dy.dtype)  # of several NaNs all are the extreme
    axes = normalize_axes(axis, x.ndim)
    share = hit / total(xp, hit, axes, keepdims=True)
    return xp.reshape(dy, kept.shape) * share


max.backward(_extreme_backward)
min.backward(_extreme_backward)
