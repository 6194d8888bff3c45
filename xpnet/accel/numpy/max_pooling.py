"""Max pooling for NumPy: compares shifted images, a tile at a time, without materialising windows.

The maximum of a window is taken along its rows first, then over them: KH + KW - 2 comparisons an element instead of
KH*KW - 1. Of equal elements the first in the window is the argmax.

Backward needs the outcome of each comparison, a bool: the argmax mask. A gradient is routed in reverse order: the share of
the last comparison's winner, the rest for the others, and so on; subtracted as integers, so that the rest is exactly the
gradient or 0. The *switches* of `max_pool2d_with_switches` are the argmax as one byte a window instead; they are also kept
where windows overlap so much that the mask would take more than half of the memory of x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from xpnet.accel.numpy import pooling_tiles
from xpnet.accel.numpy.epilogue import apply_mask, integer_dtype
from xpnet.accel.numpy.pooling_tiles import PoolTile, disjoint_windows, for_tiles, pooling_gradient, reduce_windows, zero_gaps
from xpnet.accel.numpy.workspace import FLOATS, Floats, workspace
from xpnet.ops.geometry import Geometry, windows
from xpnet.ops.pooling import max_pool2d, max_pool2d_with_switches, pool_geometry


class MaxMask(NamedTuple):
    """The argmax mask: for each comparison whether the later element was greater.

    Fields:
        across: (KW - 1, N, rows, OW, C) bool, along the rows of the windows; rows are those of the padded images.
        down: (KH - 1, N, OH, OW, C) bool, over the rows.
    """

    across: Floats
    down: Floats

    @staticmethod
    def shapes(N: int, g: Geometry, C: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of across and down for N images."""
        rows = (g.h.out - 1) * g.h.stride + g.h.window
        return (g.w.window - 1, N, rows, g.w.out, C), (g.h.window - 1, N, g.h.out, g.w.out, C)

    @classmethod
    def empty(cls, N: int, g: Geometry, C: int, xp: Any = np) -> MaxMask:
        """Return an uninitialised mask of N images."""
        return cls(*(xp.empty(shape, dtype=bool) for shape in cls.shapes(N, g, C)))

    @classmethod
    def is_small(cls, x_shape: Sequence[int], g: Geometry, itemsize: int) -> bool:
        """Return whether the mask takes no more than half of the memory of x."""
        return sum(map(prod, cls.shapes(x_shape[0], g, x_shape[3]))) * 2 <= prod(x_shape) * itemsize

    def of_tile(self, tile: PoolTile, lines: slice) -> MaxMask:
        """Return the part of a tile with the output rows `lines`."""
        rows = slice(tile.first, tile.first + tile.rows)
        return MaxMask(self.across[:, tile.images, rows], self.down[:, tile.images, lines])


def _max_and_mask(tile: PoolTile, x: Floats, out: Floats, mask: MaxMask) -> None:
    """Compute the maximum of each window, and the argmax mask."""
    P, temporary = workspace(x.dtype, tile.shape, tile.across, slot="pool")
    tile.deinterleave(x, P, -np.inf)
    across = _compare(tile, P, temporary, out, mask, np.greater)
    if np.isnan(np.maximum.reduce(out, axis=None)):
        _compare(tile, P, temporary, out, mask, _greater_or_nan)
    if not tile.g.unpadded and not np.minimum.reduce(out, axis=None) > -np.inf:
        _prefer_image(tile, across, out, mask)


def _prefer_image(tile: PoolTile, across: Floats, out: Floats, mask: MaxMask) -> None:
    """Let the first element inside the image win where all of a window are -inf, as large as the padding before them."""
    h, w = tile.g
    for column in range(w.out):
        first = w.before - column * w.stride
        if 0 < first < w.window:
            mask.across[first - 1][:, :, column] |= across[:, :, column] == -np.inf
    for line in range(tile.lines):
        first = -tile.top - line * h.stride
        if 0 < first < h.window:
            mask.down[first - 1][:, line] |= out[:, line] == -np.inf


def _greater_or_nan(other: Floats, best: Floats, out: Floats) -> None:
    """Compute other > best, where a NaN is greater than every number."""
    np.greater(other, best, out=out)
    out |= np.isnan(other) & ~np.isnan(best)


def _compare(tile: PoolTile, P: Floats, temporary: Floats, out: Floats, mask: MaxMask, greater: Callable[..., Any]) -> Floats:
    """Compute the maximum of each window and the argmax mask; return the maxima of the rows of the windows."""
    best = tile.at_column(P, 0)
    for kw in range(1, tile.g.w.window):
        other = tile.at_column(P, kw)
        greater(other, best, out=mask.across[kw - 1])
        best = np.maximum(best, other, out=temporary)
    across, best = best, tile.at_row(best, 0)
    for kh in range(1, tile.g.h.window):
        other = tile.at_row(across, kh)
        greater(other, best, out=mask.down[kh - 1])
        best = np.maximum(best, other, out=out)
    if tile.g.h.window == 1:
        np.copyto(out, best)
    return across


def _switches(tile: PoolTile, mask: MaxMask, out: Floats) -> None:
    """Compute the index kh * KW + kw of each window's maximum."""
    h, w = tile.g.h.window, tile.g.w.window
    argmax: Any = np.zeros(tile.across, np.uint8)
    for kw in range(1, w):
        # The last comparison won has the largest index: the argmax is the maximum of all of them.
        np.maximum(argmax, mask.across[kw - 1].view(np.uint8) * np.uint8(kw), out=argmax)
    out[...] = tile.at_row(argmax, 0)
    for kh in range(1, h):
        index = tile.at_row(argmax, kh) + np.uint8(kh * w)
        np.maximum(out, mask.down[kh - 1].view(np.uint8) * index, out=out)


def _max_and_switches(tile: PoolTile, x: Floats, out: Floats, switches: Floats) -> None:
    """Compute the maximum of each window, and its index."""
    h, w = tile.g.h.window, tile.g.w.window
    mask = MaxMask(*workspace(np.dtype(bool), (w - 1, *tile.across), (h - 1, *tile.out), slot="mask"))
    _max_and_mask(tile, x, out, mask)
    _switches(tile, mask, switches)


def pool_chunk(x: Floats, g: Geometry, y: Floats, mask: MaxMask | None, images: slice) -> None:
    """Pool the whole images x in this thread; `mask` is that of all images, of which x are `images`."""
    tile = PoolTile(g, (0, x.shape[0], 0, g.h.out), x.shape[3])
    if mask is None:
        reduce_windows(np.maximum, x, tile, -np.inf, y)
    else:
        _max_and_mask(tile, x, y, MaxMask(mask.across[:, images], mask.down[:, images]))


def unpool_chunk(dy: Floats, mask: MaxMask, g: Geometry, dx: Floats) -> None:
    """Compute the gradient dx of whole images in this thread."""
    tile = PoolTile(g, (0, dy.shape[0], 0, g.h.out), dy.shape[3])
    zero_gaps(dx, g)
    (P,) = workspace(dy.dtype, tile.shape, slot="pool")
    _unpool_with_mask(tile, dy, mask, P)
    tile.interleave(P, dx, 0)


def _route_gradient(total: Floats, mask: Floats, places: Sequence[Floats], step: int, left: Floats, spare: Floats) -> None:
    """Route every number of `total` to the place of its argmax, 0 to the others.

    Args:
        total: the gradients.
        mask: (K - 1, ...), the outcomes of the comparisons.
        places: K arrays like total. places[k] and places[k + step] overlap: the last `step` places are written, the others
            added to.
        step: the stride.
        left, spare: workspace like total.
    """
    K = len(places)
    whole = integer_dtype(total.dtype)
    for k in range(K - 1, 0, -1):
        fresh = k + step >= K
        part = places[k] if fresh else spare
        apply_mask(total, mask[k - 1], part)
        rest = places[0] if k == 1 and step >= K else left
        np.subtract(total.view(whole), part.view(whole), out=rest.view(whole))
        total = rest
        if not fresh:
            np.add(places[k], part, out=places[k])
    if step < K:
        np.add(places[0], total, out=places[0])
    elif K == 1:
        np.copyto(places[0], total)


def _unpool_with_mask(tile: PoolTile, dy: Floats, mask: MaxMask, P: Floats) -> None:
    """Route every gradient to its argmax in the phases P: over the rows of the windows first, then along them."""
    h, w = tile.g.h, tile.g.w
    rows, rest, spare, left = workspace(dy.dtype, tile.across, tile.across, tile.across, tile.out, slot="unpool")
    if h.stride > h.window:
        rows[...] = 0
    # Zero what the last places do not write: the others are added to.
    rows[:, : max(0, h.window - h.stride)] = 0
    places = [tile.at_row(rows, k) for k in range(h.window)]
    _route_gradient(dy, mask.down, places, h.stride, left, spare[:, : tile.lines])
    for phase in range(tile.phases):
        last = (w.window - 1 - phase) // w.stride
        P[phase][:, :, :last] = 0
        P[phase][:, :, last + w.out :] = 0
    _route_gradient(rows, mask.across, [tile.at_column(P, k) for k in range(w.window)], w.stride, rest, spare)


def _unpool_with_switches(tile: PoolTile, dy: Floats, switches: Floats, P: Floats) -> None:
    """Route every dy to the element its switch names in the phases P."""
    g = tile.g
    disjoint = disjoint_windows(g)
    (temporary,) = workspace(dy.dtype, dy.shape, slot="unpool")
    if not disjoint:
        P[...] = 0
    for kh in range(g.h.window):
        for kw in range(g.w.window):
            place = tile.at_row(tile.at_column(P, kw), kh)
            hit = np.equal(switches, np.uint8(kh * g.w.window + kw))
            if disjoint:
                apply_mask(dy, hit, place)
            else:
                apply_mask(dy, hit, temporary)
                np.add(place, temporary, out=place)


def supported(x: Floats, g: Geometry) -> bool:
    """Return whether max pooling of x is computed here rather than by the reference."""
    return x.dtype in FLOATS and x.size > 0 and g.h.window * g.w.window <= 256 and min(g.h.out, g.w.out) > 0


def _with_switches(x: Floats, g: Geometry) -> tuple[Floats, Floats]:
    shape = (x.shape[0], g.h.out, g.w.out, x.shape[3])
    y, switches = np.empty(shape, x.dtype), np.empty(shape, np.uint8)
    for_tiles(x.shape, g, x.itemsize, lambda tile, part: _max_and_switches(tile, x, y[part], switches[part]))
    return y, switches


def _unpool(dy: Floats, switches: Floats, shape: tuple[int, ...], g: Geometry) -> Floats:
    """Return dx of `shape`, with every dy (N, OH, OW, C) at the element its switch names."""
    return pooling_gradient(shape, g, dy.dtype, lambda tile, part, P: _unpool_with_switches(tile, dy[part], switches[part], P))


@max_pool2d_with_switches.accelerate("numpy")
def forward_with_switches(xp: Any, x: Floats, *, window: Any, stride: Any, padding: Any) -> Any:
    """Compute the argmax mask, and the switches from it."""
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not supported(x, g):
        return NotImplemented
    y, switches = _with_switches(x, g)
    return (y, switches), (x.shape, switches)


@forward_with_switches.backward(owns_result=True)
def backward_with_switches(xp: Any, dys: Any, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    """Route each gradient to the maximum of its window."""
    shape, switches = saved
    return _unpool(dys[0], switches, shape, windows(shape, window, window if stride is None else stride, padding))


@max_pool2d.accelerate("numpy")
def forward(xp: Any, x: Floats, *, window: Any, stride: Any, padding: Any, save: bool) -> Any:
    """Compute the argmax mask too if `save`; otherwise compare over the rows first, which are longer runs."""
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not supported(x, g):
        return NotImplemented
    if save and not MaxMask.is_small(x.shape, g, x.itemsize):
        y, switches = _with_switches(x, g)
        return y, (x.shape, switches)
    y = np.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), x.dtype)
    if not save:
        for_tiles(x.shape, g, x.itemsize, lambda tile, part: reduce_windows(np.maximum, x, tile, -np.inf, y[part]))
        return y, None
    mask = MaxMask.empty(x.shape[0], g, x.shape[3])
    for_tiles(x.shape, g, x.itemsize, lambda tile, part: _max_and_mask(tile, x, y[part], mask.of_tile(tile, part[1])))
    return y, (x.shape, mask)


@forward.backward(owns_result=True)
def backward(xp: Any, dy: Floats, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    """Route each gradient to the maximum of its window."""
    shape, kept = saved
    g = windows(shape, window, window if stride is None else stride, padding)
    if not isinstance(kept, MaxMask):
        return _unpool(dy, kept, shape, g)
    return pooling_gradient(
        shape, g, dy.dtype, lambda tile, part, P: _unpool_with_mask(tile, dy[part], kept.of_tile(tile, part[1]), P)
    )


# -- what it allocates, on fake arrays --


def mask_footprint(xp: Any, dtype: Any, tile: PoolTile, count: int) -> None:
    """Count the workspace of `_max_and_mask` for `count` tiles."""
    xp.workspace(dtype, count, tile.shape, tile.across, slot="pool")


def unpool_footprint(xp: Any, dtype: Any, tile: PoolTile, count: int) -> None:
    """Count the workspace of `_unpool_with_mask` for `count` tiles."""
    xp.workspace(dtype, count, tile.across, tile.across, tile.across, tile.out, slot="unpool")


def _switches_footprint(xp: Any, x: Any, g: Geometry) -> tuple[Any, Any]:
    shape = (x.shape[0], g.h.out, g.w.out, x.shape[3])
    y, switches = xp.empty(shape, dtype=x.dtype), xp.empty(shape, dtype=np.uint8)
    tile, count = pooling_tiles.tiles_footprint(x, g)
    xp.workspace(np.dtype(bool), count, (g.w.window - 1, *tile.across), (g.h.window - 1, *tile.out), slot="mask")
    mask_footprint(xp, x.dtype, tile, count)
    xp.temporary(np.uint8, tile.across, tile.across)  # the indices of the maxima
    return y, switches


def _unpool_switches_footprint(xp: Any, dy: Any, shape: tuple[int, ...], g: Geometry) -> Any:
    dx, tile, count = pooling_tiles.gradient_footprint(xp, shape, g, dy.dtype)
    xp.workspace(dy.dtype, count, tile.out, slot="unpool")
    xp.temporary(np.bool, tile.out)
    return dx


@forward_with_switches.footprint
def _footprint_with_switches(xp: Any, x: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not supported(x, g):
        return NotImplemented
    y, switches = _switches_footprint(xp, x, g)
    return (y, switches), (x.shape, switches)


@_footprint_with_switches.backward
def _(xp: Any, dys: Any, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    shape = saved[0]
    g = windows(shape, window, window if stride is None else stride, padding)
    return _unpool_switches_footprint(xp, dys[0], shape, g)


@forward.footprint
def _footprint(xp: Any, x: Any, *, window: Any, stride: Any, padding: Any, save: bool) -> Any:
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not supported(x, g):
        return NotImplemented
    if save and not MaxMask.is_small(x.shape, g, x.itemsize):
        y, switches = _switches_footprint(xp, x, g)
        return y, (x.shape, switches)
    y = xp.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), dtype=x.dtype)
    mask = MaxMask.empty(x.shape[0], g, x.shape[3], xp) if save else None
    (mask_footprint if save else pooling_tiles.reduce_footprint)(xp, x.dtype, *pooling_tiles.tiles_footprint(x, g))
    return y, (x.shape, mask) if save else None


@_footprint.backward
def _(xp: Any, dy: Any, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    shape, kept = saved
    g = windows(shape, window, window if stride is None else stride, padding)
    if not isinstance(kept, MaxMask):
        return _unpool_switches_footprint(xp, dy, shape, g)
    dx, tile, count = pooling_tiles.gradient_footprint(xp, shape, g, dy.dtype)
    unpool_footprint(xp, dy.dtype, tile, count)
    return dx
