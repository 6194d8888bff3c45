"""Average pooling for NumPy: adds shifted images, a tile at a time, without materialising windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy import pooling_tiles
from xpnet.accel.numpy.pooling_tiles import PoolTile, disjoint_windows, for_tiles, pooling_gradient, reduce_windows
from xpnet.accel.numpy.workspace import FLOATS, Floats, workspace
from xpnet.ops.geometry import Geometry, windows
from xpnet.ops.pooling import average_pool2d, pool_geometry, window_counts
from xpnet.ops.sums import SHORT


def _covers(x: Any, g: Geometry) -> bool:
    if x.dtype not in FLOATS or not x.size or min(g.h.out, g.w.out) == 0:
        return False
    # Elements are added one after the other: sums over large windows are exact in the reference, which copies every window.
    return max(g.h.window, g.w.window) <= SHORT or g.h.out * g.w.out * g.h.window * g.w.window > 2 * g.h.size * g.w.size


@average_pool2d.accelerate("numpy")
def forward(xp: Any, x: Floats, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    """Sum shifted images, times one over the count."""
    g = pool_geometry("average_pool2d", x, window, stride, padding)
    if not _covers(x, g):
        return NotImplemented
    y = np.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), x.dtype)
    share: Any = 1 / window_counts(np, g, count_include_pad, x)  # (OH, OW, 1)

    def average(tile: PoolTile, part: Any) -> None:
        reduce_windows(np.add, x, tile, 0.0, y[part])
        np.multiply(y[part], share[part[1]], out=y[part])

    for_tiles(x.shape, g, x.itemsize, average)
    return y, x.shape


def _column_sums(tile: PoolTile) -> tuple[int, ...]:
    """Return the shape of the sums over the rows of large windows that overlap, which shorten the sums over all elements."""
    h, w = tile.g
    return tile.across if h.window * w.window > SHORT and not disjoint_windows(tile.g) else (0,)


@forward.backward(owns_result=True)
def backward(xp: Any, dy: Floats, shape: Any, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    """Give every element of a window an equal share."""
    g = windows(shape, window, window if stride is None else stride, padding)
    share: Any = 1 / window_counts(np, g, count_include_pad, dy)
    disjoint = disjoint_windows(g)

    def fill(tile: PoolTile, part: Any, P: Floats) -> None:
        shares, columns = workspace(dy.dtype, tile.out, _column_sums(tile), slot="unpool")
        np.multiply(dy[part], share[part[1]], out=shares)
        if columns.size:
            P[...] = columns[...] = 0
            for kh in range(g.h.window):
                place = tile.at_row(columns, kh)
                np.add(place, shares, out=place)
            for kw in range(g.w.window):
                place = tile.at_column(P, kw)
                np.add(place, columns, out=place)
            return
        if not disjoint:
            P[...] = 0
        for kh in range(g.h.window):
            for kw in range(g.w.window):
                place = tile.at_row(tile.at_column(P, kw), kh)
                if disjoint:
                    np.copyto(place, shares)
                else:
                    np.add(place, shares, out=place)

    return pooling_gradient(shape, g, dy.dtype, fill)


# -- what it allocates, on fake arrays --


@forward.footprint
def _footprint(xp: Any, x: Any, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = pool_geometry("average_pool2d", x, window, stride, padding)
    if not _covers(x, g):
        return NotImplemented
    y = xp.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), dtype=x.dtype)
    pooling_tiles.reduce_footprint(xp, x.dtype, *pooling_tiles.tiles_footprint(x, g))
    return y, x.shape


@_footprint.backward
def _(xp: Any, dy: Any, shape: Any, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = windows(shape, window, window if stride is None else stride, padding)
    dx, tile, count = pooling_tiles.gradient_footprint(xp, shape, g, dy.dtype)
    xp.workspace(dy.dtype, count, tile.out, _column_sums(tile), slot="unpool")
    return dx
