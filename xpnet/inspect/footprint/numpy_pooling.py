"""Pooling for NumPy, on fake arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import balanced_chunk_size, image_row_chunks
from xpnet.accel.numpy.max_pooling import MaxMask, supported
from xpnet.accel.numpy.pooling_tiles import CHUNK, PoolTile, seconds
from xpnet.accel.numpy.workspace import FLOATS, WORKSPACE_LIMIT
from xpnet.inspect.footprint.fake_array import FakeArray
from xpnet.inspect.footprint.numpy_workspace import Shape, moment, workspace
from xpnet.ops.geometry import Geometry, windows
from xpnet.ops.pooling import average_pool2d, max_pool2d, max_pool2d_with_switches, pool_geometry


def mask_of(xp: Any, N: int, g: Geometry, C: int) -> MaxMask:
    """The outcomes of all comparisons."""
    across, down = MaxMask.shapes(N, g, C)
    return MaxMask(xp.empty(across, dtype=np.bool), xp.empty(down, dtype=np.bool))


def largest(dtype: Any, tile: PoolTile, count: int) -> None:
    """The working memory of max_pooling._max_and_mask."""
    workspace(dtype, count, tile.shape, tile.across, slot="pool")


def combined(dtype: Any, tile: PoolTile, count: int) -> None:
    """The working memory of pooling_tiles.reduce_windows."""
    g, (n, lines, _, C) = tile.g, tile.out
    columns = (g.w.out - 1) * g.w.stride + g.w.window
    padded = (n, tile.rows, columns, C) if tile.top < 0 or g.w.before or columns > g.w.size else (0,)
    workspace(dtype, count, padded, (n, lines, columns, C), slot="pool")


def handed_back(dtype: Any, tile: PoolTile, count: int) -> None:
    """The working memory of max_pooling._unpool_with_mask."""
    workspace(dtype, count, tile.across, tile.across, tile.across, tile.out, slot="unpool")


def _tiles(x: FakeArray, g: Geometry) -> tuple[PoolTile, int]:
    """The first, largest of the chunks of pooling_tiles.for_tiles, and how many there are."""
    N, _, W, C = x.shape
    chunks = image_row_chunks(N, g.h.out, g.h.stride * W * C * x.itemsize, CHUNK, seconds(x.shape, g))
    return PoolTile(g, chunks[0], C), len(chunks)


def _spread_back(xp: Any, shape: Shape, g: Geometry, dtype: Any) -> tuple[FakeArray, PoolTile, int]:
    """pooling_tiles.pooling_gradient: dx, and its first chunk and how many there are; the working memory of its phases."""
    N, _, W, C = shape
    dx: FakeArray = xp.empty(shape, dtype=dtype)
    line = g.h.stride * W * C * dx.itemsize
    images = balanced_chunk_size(N, max(1, CHUNK // (g.h.out * line)), seconds(shape, g))
    lines = g.h.out if images > 1 else max(1, min(g.h.out, WORKSPACE_LIMIT // 3 // line))
    tile, count = PoolTile(g, (0, min(images, N), 0, lines), C), -(-N // images)
    workspace(dtype, count, tile.shape, slot="pool")
    return dx, tile, count


def _with_switches(xp: Any, x: FakeArray, g: Geometry) -> tuple[FakeArray, FakeArray]:
    N, C = x.shape[0], x.shape[3]
    y, switches = (xp.empty((N, g.h.out, g.w.out, C), dtype=dtype) for dtype in (x.dtype, np.uint8))
    tile, count = _tiles(x, g)
    workspace(np.dtype(bool), count, (g.w.window - 1, *tile.across), (g.h.window - 1, *tile.out), slot="mask")
    largest(x.dtype, tile, count)
    moment(np.uint8, tile.across, tile.across)  # the winners' numbers
    return y, switches


def _unpool(xp: Any, dy: FakeArray, shape: Shape, g: Geometry) -> FakeArray:
    dx, tile, count = _spread_back(xp, shape, g, dy.dtype)
    workspace(dy.dtype, count, tile.out, slot="unpool")
    moment(np.bool, tile.out)
    return dx


@max_pool2d_with_switches.accelerate("fake_numpy")
def _max_pool_with_switches(xp: Any, x: FakeArray, *, window: Any, stride: Any, padding: Any) -> Any:
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not supported(x, g):  # type: ignore[arg-type]
        return NotImplemented
    y, switches = _with_switches(xp, x, g)
    return (y, switches), (x.shape, switches)


@_max_pool_with_switches.backward
def _(xp: Any, dys: Any, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    return _unpool(xp, dys[0], saved[0], windows(saved[0], window, window if stride is None else stride, padding))


@max_pool2d.accelerate("fake_numpy")
def _max_pool(xp: Any, x: FakeArray, *, window: Any, stride: Any, padding: Any, save: bool) -> Any:
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not supported(x, g):  # type: ignore[arg-type]
        return NotImplemented
    if save and not MaxMask.is_small(x.shape, g, x.itemsize):
        y, switches = _with_switches(xp, x, g)
        return y, (x.shape, switches)
    y = xp.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), dtype=x.dtype)
    mask = mask_of(xp, x.shape[0], g, x.shape[3]) if save else None
    (largest if save else combined)(x.dtype, *_tiles(x, g))
    return y, (x.shape, mask) if save else None


@_max_pool.backward
def _(xp: Any, dy: FakeArray, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    shape, kept = saved
    g = windows(shape, window, window if stride is None else stride, padding)
    if not isinstance(kept, MaxMask):
        return _unpool(xp, dy, shape, g)
    dx, tile, count = _spread_back(xp, shape, g, dy.dtype)
    handed_back(dy.dtype, tile, count)
    return dx


@average_pool2d.accelerate("fake_numpy")
def _average_pool(xp: Any, x: FakeArray, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = pool_geometry("average_pool2d", x, window, stride, padding)
    if x.dtype not in FLOATS or not x.size or min(g.h.out, g.w.out) == 0:
        return NotImplemented
    y = xp.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), dtype=x.dtype)
    combined(x.dtype, *_tiles(x, g))
    return y, x.shape


@_average_pool.backward
def _(xp: Any, dy: FakeArray, shape: Any, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = windows(shape, window, window if stride is None else stride, padding)
    dx, tile, count = _spread_back(xp, shape, g, dy.dtype)
    workspace(dy.dtype, count, tile.out, slot="unpool")
    return dx
