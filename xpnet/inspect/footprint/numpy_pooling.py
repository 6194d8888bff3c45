"""Pooling for NumPy, on shadows."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.max_pooling import Won, _takes
from xpnet.accel.numpy.pooling_tiles import CHUNK, Band, seconds
from xpnet.accel.numpy.workspace import FLOATS, LIMIT, evenly, images_and_lines
from xpnet.inspect.footprint.fake_array import Shadow
from xpnet.inspect.footprint.numpy_workspace import Shape, moment, scratch
from xpnet.ops.geometry import Geometry, windows
from xpnet.ops.pooling import average_pool2d, max_pool2d, max_pool2d_with_switches, pool_geometry


def won_of(xp: Any, N: int, g: Geometry, C: int) -> Won:
    """The outcomes of all comparisons."""
    across, down = Won.shapes(N, g, C)
    return Won(xp.empty(across, dtype=np.bool), xp.empty(down, dtype=np.bool))


def largest(dtype: Any, band: Band, count: int) -> None:
    """The working memory of max_pooling._largest."""
    scratch(dtype, count, band.shape, band.across, slot="pool")


def combined(dtype: Any, band: Band, count: int) -> None:
    """The working memory of bands.combine."""
    g, (n, lines, _, C) = band.g, band.out
    columns = (g.w.out - 1) * g.w.stride + g.w.window
    padded = (n, band.rows, columns, C) if band.top < 0 or g.w.before or columns > g.w.size else (0,)
    scratch(dtype, count, padded, (n, lines, columns, C), slot="pool")


def handed_back(dtype: Any, band: Band, count: int) -> None:
    """The working memory of max_pooling._hand_back."""
    scratch(dtype, count, band.across, band.across, band.across, band.out, slot="unpool")


def _bands(x: Shadow, g: Geometry) -> tuple[Band, int]:
    """The first, largest of the chunks of bands.for_bands, and how many there are."""
    N, _, W, C = x.shape
    chunks = images_and_lines(N, g.h.out, g.h.stride * W * C * x.itemsize, CHUNK, seconds(x.shape, g))
    return Band(g, chunks[0], C), len(chunks)


def _spread_back(xp: Any, shape: Shape, g: Geometry, dtype: Any) -> tuple[Shadow, Band, int]:
    """bands.gradient: dx, and its first chunk and how many there are; the working memory of its phases."""
    N, _, W, C = shape
    dx: Shadow = xp.empty(shape, dtype=dtype)
    line = g.h.stride * W * C * dx.itemsize
    images = evenly(N, max(1, CHUNK // (g.h.out * line)), seconds(shape, g))
    lines = g.h.out if images > 1 else max(1, min(g.h.out, LIMIT // 3 // line))
    band, count = Band(g, (0, min(images, N), 0, lines), C), -(-N // images)
    scratch(dtype, count, band.shape, slot="pool")
    return dx, band, count


def _with_switches(xp: Any, x: Shadow, g: Geometry) -> tuple[Shadow, Shadow]:
    N, C = x.shape[0], x.shape[3]
    y, switches = (xp.empty((N, g.h.out, g.w.out, C), dtype=dtype) for dtype in (x.dtype, np.uint8))
    band, count = _bands(x, g)
    scratch(np.dtype(bool), count, (g.w.window - 1, *band.across), (g.h.window - 1, *band.out), slot="won")
    largest(x.dtype, band, count)
    moment(np.uint8, band.across, band.across)  # the winners' numbers
    return y, switches


def _unpool(xp: Any, dy: Shadow, shape: Shape, g: Geometry) -> Shadow:
    dx, band, count = _spread_back(xp, shape, g, dy.dtype)
    scratch(dy.dtype, count, band.out, slot="unpool")
    moment(np.bool, band.out)
    return dx


@max_pool2d_with_switches.accelerate("shadow_numpy")
def _max_pool_with_switches(xp: Any, x: Shadow, *, window: Any, stride: Any, padding: Any) -> Any:
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not _takes(x, g):  # type: ignore[arg-type]
        return NotImplemented
    y, switches = _with_switches(xp, x, g)
    return (y, switches), (x.shape, switches)


@_max_pool_with_switches.backward
def _(xp: Any, dys: Any, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    return _unpool(xp, dys[0], saved[0], windows(saved[0], window, window if stride is None else stride, padding))


@max_pool2d.accelerate("shadow_numpy")
def _max_pool(xp: Any, x: Shadow, *, window: Any, stride: Any, padding: Any, save: bool) -> Any:
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not _takes(x, g):  # type: ignore[arg-type]
        return NotImplemented
    if save and not Won.small(x.shape, g, x.itemsize):
        y, switches = _with_switches(xp, x, g)
        return y, (x.shape, switches)
    y = xp.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), dtype=x.dtype)
    won = won_of(xp, x.shape[0], g, x.shape[3]) if save else None
    (largest if save else combined)(x.dtype, *_bands(x, g))
    return y, (x.shape, won) if save else None


@_max_pool.backward
def _(xp: Any, dy: Shadow, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    shape, kept = saved
    g = windows(shape, window, window if stride is None else stride, padding)
    if not isinstance(kept, Won):
        return _unpool(xp, dy, shape, g)
    dx, band, count = _spread_back(xp, shape, g, dy.dtype)
    handed_back(dy.dtype, band, count)
    return dx


@average_pool2d.accelerate("shadow_numpy")
def _average_pool(xp: Any, x: Shadow, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = pool_geometry("average_pool2d", x, window, stride, padding)
    if x.dtype not in FLOATS or not x.size or min(g.h.out, g.w.out) == 0:
        return NotImplemented
    y = xp.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), dtype=x.dtype)
    combined(x.dtype, *_bands(x, g))
    return y, x.shape


@_average_pool.backward
def _(xp: Any, dy: Shadow, shape: Any, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = windows(shape, window, window if stride is None else stride, padding)
    dx, band, count = _spread_back(xp, shape, g, dy.dtype)
    scratch(dy.dtype, count, band.out, slot="unpool")
    return dx
