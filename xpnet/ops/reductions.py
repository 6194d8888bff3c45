"""Sums, means and extremes over axes, in the input's dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpnet.backend import Array, Namespace, is_floating
from xpnet.ops.registry import op
from xpnet.ops.shapes import normalize_axes

Axes = int | Sequence[int] | None


def _kept(shape: Sequence[int], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The reduced shape with the reduced axes kept as 1."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _dtype(xp: Namespace, x: Array) -> Any:
    """Floats keep their dtype (the standard would let a library widen it); integers sum in the library's default."""
    return x.dtype if is_floating(x) else None


@op
def sum(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False) -> Any:
    """The sum over `axis` (an int, several, or None for all)."""
    axes = normalize_axes(axis, x.ndim)
    return xp.sum(x, axis=axes, keepdims=keepdims, dtype=_dtype(xp, x)), x.shape


@sum.backward
def _(xp: Namespace, dy: Array, shape: Any, *, axis: Axes, keepdims: bool) -> Any:
    kept = _kept(shape, normalize_axes(axis, len(shape)))
    return xp.broadcast_to(xp.reshape(dy, kept), shape)


@op
def mean(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False) -> Any:
    """The mean over `axis` (an int, several, or None for all)."""
    axes = normalize_axes(axis, x.ndim)
    count = math.prod(x.shape[a] for a in axes)
    total = xp.sum(x, axis=axes, keepdims=keepdims, dtype=_dtype(xp, x))
    return total / count if count else total * math.nan, x.shape


@mean.backward
def _(xp: Namespace, dy: Array, shape: Any, *, axis: Axes, keepdims: bool) -> Any:
    axes = normalize_axes(axis, len(shape))
    count = math.prod(shape[a] for a in axes)
    return xp.broadcast_to(xp.reshape(dy / count if count else dy, _kept(shape, axes)), shape)


@op
def max(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False) -> Any:
    """The largest element over `axis`; where several are equal they share the gradient."""
    return _extreme(xp, xp.max, x, axis, keepdims)


@op
def min(xp: Namespace, x: Array, axis: Axes = None, keepdims: bool = False) -> Any:
    """The smallest element over `axis`; where several are equal they share the gradient."""
    return _extreme(xp, xp.min, x, axis, keepdims)


def _extreme(xp: Namespace, function: Any, x: Array, axis: Axes, keepdims: bool) -> Any:
    axes = normalize_axes(axis, x.ndim)
    kept = function(x, axis=axes, keepdims=True)
    y = kept if keepdims else xp.reshape(kept, tuple(n for i, n in enumerate(x.shape) if i not in axes))
    return y, (x, kept)


def _extreme_backward(xp: Namespace, dy: Array, saved: Any, *, axis: Axes, keepdims: bool) -> Any:
    x, kept = saved
    hit = xp.astype(x == kept, dy.dtype)
    axes = normalize_axes(axis, x.ndim)
    share = hit / xp.sum(hit, axis=axes, keepdims=True, dtype=hit.dtype)
    return xp.reshape(dy, kept.shape) * share


max.backward(_extreme_backward)
min.backward(_extreme_backward)
