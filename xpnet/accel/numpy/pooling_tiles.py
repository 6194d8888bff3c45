"""Tiles of pooling windows: images deinterleaved so that element k of all windows is contiguous.

NumPy's loops want long runs, and a strided image offers only the channels of one pixel at a time. So a tile is first
deinterleaved into its *phases*: for a stride of s the columns 0, s, 2s, ..., the columns 1, s+1, ..., and so on. In a phase
the elements kw of all windows are adjacent. Backward, gradients are summed in the phases and interleaved again.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import PASS_SECONDS, Chunk, balanced_chunk_size, image_row_chunks
from xpnet.accel.numpy.epilogue import fill_padded
from xpnet.accel.numpy.workspace import WORKSPACE_LIMIT, Floats, packed_dtype, workspace
from xpnet.ops.geometry import Geometry
from xpnet.runtime.threads import parallel

CHUNK = 2 << 20
"""Bytes of input in a chunk."""


class PoolTile:
    """The input that the windows of some output rows see, as phases.

    Args:
        g: the windows.
        chunk: its rows are those of the outputs.
        C: channels.
    """

    def __init__(self, g: Geometry, chunk: Chunk, C: int) -> None:
        self.g = g
        n0, n1, r0, r1 = chunk
        self.images = slice(n0, n1)
        self.lines = r1 - r0  # output rows
        self.first = r0 * g.h.stride  # first row of the padded images
        self.top = self.first - g.h.before  # the same row of the images; may be negative
        self.rows = (self.lines - 1) * g.h.stride + g.h.window
        columns = (g.w.out - 1) * g.w.stride + g.w.window
        self.phases = min(g.w.stride, g.w.window)
        self.wide = -(-columns // g.w.stride)
        self.shape = (self.phases, n1 - n0, self.rows, self.wide, C)
        self.across = (n1 - n0, self.rows, g.w.out, C)  # one value for each row of a window
        self.out = (n1 - n0, self.lines, g.w.out, C)

    def at_column(self, P: Floats, kw: int) -> Floats:
        """Return element kw of all windows along the width: (n, rows, OW, C)."""
        first = kw // self.g.w.stride
        phase: Floats = P[kw % self.g.w.stride]
        return phase[:, :, first : first + self.g.w.out]

    def at_row(self, array: Floats, kh: int) -> Floats:
        """Return element kh of all windows along the height: (n, lines, OW, C) of (n, rows, OW, C)."""
        stride = self.g.h.stride
        return array[:, kh : kh + (self.lines - 1) * stride + 1 : stride]

    def inside(self, phase: int) -> tuple[slice, slice, slice, slice]:
        """Return the rows and columns of a phase inside the image, and the same rows and columns of the image."""
        h, w = self.g
        lo, hi = max(self.top, 0), min(self.top + self.rows, h.size)
        first = max(0, -(-(w.before - phase) // w.stride))
        last = min(self.wide, -(-(w.size + w.before - phase) // w.stride))
        start = first * w.stride + phase - w.before
        columns = slice(start, start + (last - first - 1) * w.stride + 1, w.stride) if last > first else slice(0, 0)
        return slice(lo - self.top, hi - self.top), slice(first, max(first, last)), slice(lo, hi), columns

    def deinterleave(self, x: Floats, P: Floats, value: float) -> None:
        """Copy the images to the phases, with `value` in the padding."""
        for phase in range(self.phases):
            rows, columns, from_rows, from_columns = self.inside(phase)
            part = P[phase]
            part[:, : rows.start] = value
            part[:, rows.stop :] = value
            part[:, rows, : columns.start] = value
            part[:, rows, columns.stop :] = value
            copy_pixels(part[:, rows, columns], x[self.images, from_rows, from_columns])

    def interleave(self, P: Floats, dx: Floats, done: int) -> None:
        """Copy the phases to the images; add to the rows before `done`, which have been written already."""
        for phase in range(self.phases):
            rows, columns, to_rows, to_columns = self.inside(phase)
            again = min(max(done, to_rows.start), to_rows.stop)
            cut = rows.start + again - to_rows.start
            if again > to_rows.start:
                target = dx[self.images, to_rows.start : again, to_columns]
                np.add(target, P[phase][:, rows.start : cut, columns], out=target)
            copy_pixels(dx[self.images, again : to_rows.stop, to_columns], P[phase][:, cut : rows.stop, columns])


def copy_pixels(target: Floats, source: Floats) -> None:
    """Copy (..., C) to (..., C). As items of C numbers, strided pixels are copied nearly as fast as contiguous ones."""
    C = target.shape[-1]
    if C > 1 and target.strides[-1] == source.strides[-1] == target.itemsize:
        item = packed_dtype(C, target.dtype)
        target, source = target.view(item), source.view(item)
    np.copyto(target, source)


def reduce_windows(ufunc: Any, x: Floats, tile: PoolTile, value: float, out: Floats) -> None:
    """Reduce each window, over its rows first: image rows are long runs, so nothing needs to be deinterleaved.

    The images are copied only where they must be padded with `value`.
    """
    g, lines = tile.g, tile.lines
    columns = (g.w.out - 1) * g.w.stride + g.w.window
    n, C = out.shape[0], out.shape[3]
    if tile.top >= 0 and tile.top + tile.rows <= g.h.size and g.w.before == 0 and columns <= g.w.size:
        (temporary,) = workspace(x.dtype, (n, lines, columns, C), slot="pool")
        P = x[tile.images, tile.top : tile.top + tile.rows, :columns]
    else:
        P, temporary = workspace(x.dtype, (n, tile.rows, columns, C), (n, lines, columns, C), slot="pool")
        fill_padded(P, x, None, None, (tile.images.start, tile.images.stop), tile.top, -g.w.before, value)
    total = tile.at_row(P, 0)
    for kh in range(1, g.h.window):
        total = ufunc(total, tile.at_row(P, kh), out=temporary)
    wide = (g.w.out - 1) * g.w.stride + 1
    result = total[:, :, : wide : g.w.stride]
    for kw in range(1, g.w.window):
        result = ufunc(result, total[:, :, kw : kw + wide : g.w.stride], out=out)
    if g.w.window == 1:
        np.copyto(out, result)


def _chunks(shape: tuple[int, ...], g: Geometry, itemsize: int) -> list[Chunk]:
    N, _, W, C = shape
    return image_row_chunks(N, g.h.out, g.h.stride * W * C * itemsize, CHUNK, seconds(shape, g))


def for_tiles(shape: tuple[int, ...], g: Geometry, itemsize: int, work: Callable[[PoolTile, Any], None]) -> None:
    """Call work(tile, output slices) for the tiles of all images, on all threads."""
    chunks = _chunks(shape, g, itemsize)

    def part(number: int) -> None:
        n0, n1, r0, r1 = chunk = chunks[number]
        work(PoolTile(g, chunk, shape[3]), (slice(n0, n1), slice(r0, r1)))

    parallel(part, len(chunks), seconds(shape, g), 10)


def pooling_gradient(
    shape: tuple[int, ...], g: Geometry, dtype: np.dtype[Any], fill: Callable[[PoolTile, Any, Floats], None]
) -> Floats:
    """Return dx of `shape`; fill(tile, output slices, P) sums the gradients of a tile in its phases P.

    Tiles are whole images, or rows of one image that one thread processes in order: no two threads add to one row.
    """
    N, C = shape[0], shape[3]
    dx = np.empty(shape, dtype)
    images, lines = _gradient_tile(shape, g, dtype.itemsize)

    def chunk(number: int) -> None:
        n0, n1 = number * images, min((number + 1) * images, N)
        zero_gaps(dx[n0:n1], g)
        done = 0
        for r0 in range(0, g.h.out, lines):
            r1 = min(r0 + lines, g.h.out)
            tile = PoolTile(g, (n0, n1, r0, r1), C)
            (P,) = workspace(dtype, tile.shape, slot="pool")
            fill(tile, (slice(n0, n1), slice(r0, r1)), P)
            tile.interleave(P, dx, done)
            done = max(done, tile.top + tile.rows)

    parallel(chunk, -(-N // images), seconds(shape, g), 12)
    return dx


def _gradient_tile(shape: tuple[int, ...], g: Geometry, itemsize: int) -> tuple[int, int]:
    """Return the images of a chunk of `pooling_gradient`, and the output rows of a tile."""
    N, _, W, C = shape
    line = g.h.stride * W * C * itemsize
    images = balanced_chunk_size(N, max(1, CHUNK // (g.h.out * line)), seconds(shape, g))
    return images, g.h.out if images > 1 else max(1, min(g.h.out, WORKSPACE_LIMIT // 3 // line))


def seconds(shape: tuple[int, ...], g: Geometry) -> float:
    """Estimate the seconds one thread takes for the pooling of images of `shape`, or for its gradient."""
    overlap = g.h.window * g.w.window / (g.h.stride * g.w.stride)
    return 2.5 * PASS_SECONDS * prod(shape) * (1 + overlap)


def disjoint_windows(g: Geometry) -> bool:
    """Return whether every element of the phases belongs to exactly one window."""
    return g.h.stride == g.h.window and g.w.stride >= g.w.window


def zero_gaps(dx: Floats, g: Geometry) -> None:
    """Set to 0 what no window covers of images dx (n, H, W, C)."""
    if any(a.stride > a.window for a in g):
        dx[...] = 0
        return
    lines, columns = ((a.out - 1) * a.stride + a.window - a.before for a in g)
    dx[:, lines:] = 0
    dx[:, :lines, columns:] = 0


# -- what it allocates, on fake arrays --


def tiles_footprint(x: Any, g: Geometry) -> tuple[PoolTile, int]:
    """Return the first, largest tile of `for_tiles`, and how many there are."""
    chunks = _chunks(x.shape, g, x.itemsize)
    return PoolTile(g, chunks[0], x.shape[3]), len(chunks)


def reduce_footprint(xp: Any, dtype: Any, tile: PoolTile, count: int) -> None:
    """Count the workspace of `reduce_windows` for `count` tiles."""
    g, (n, lines, _, C) = tile.g, tile.out
    columns = (g.w.out - 1) * g.w.stride + g.w.window
    padded = (n, tile.rows, columns, C) if tile.top < 0 or g.w.before or columns > g.w.size else (0,)
    xp.workspace(dtype, count, padded, (n, lines, columns, C), slot="pool")


def gradient_footprint(xp: Any, shape: tuple[int, ...], g: Geometry, dtype: Any) -> tuple[Any, PoolTile, int]:
    """Return dx of `pooling_gradient`, its first tile and the number of chunks; count the workspace of the phases."""
    dx = xp.empty(shape, dtype=dtype)
    images, lines = _gradient_tile(shape, g, dx.itemsize)
    tile, count = PoolTile(g, (0, min(images, shape[0]), 0, lines), shape[3]), -(-shape[0] // images)
    xp.workspace(dtype, count, tile.shape, slot="pool")
    return dx, tile, count
