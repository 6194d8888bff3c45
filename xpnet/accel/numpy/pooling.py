"""Max and average pooling for NumPy: shifted images compared or added, a cache-sized chunk at a time, no windows made.

A window's maximum is taken along its rows first, then over them; so it takes KH + KW - 2 comparisons an element instead
of KH*KW - 1, and the first of equal elements, in the order of the window, stays the winner.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from xpnet.accel.numpy.columns import reach
from xpnet.accel.numpy.scratch import FLOATS, Floats, images_and_lines, keep_where, scratch
from xpnet.ops.geometry import Axis, Geometry, windows
from xpnet.ops.pooling import average_pool2d, max_pool2d, max_pool2d_with_switches, pool_geometry, window_counts
from xpnet.threads import parallel

_CHUNK = 3 << 18
"""Bytes of input in a chunk."""


def _source(x: Floats, g: Geometry, where: tuple[int, int, int, int], value: float) -> Floats:
    """The rows of x that a chunk of outputs sees, with padding of `value`: x itself where there is no padding."""
    n0, n1, r0, r1 = where
    top, rows = r0 * g.h.stride - g.h.before, (r1 - r0 - 1) * g.h.stride + g.h.window
    columns = (g.w.out - 1) * g.w.stride + g.w.window
    left = g.w.before
    if top >= 0 and top + rows <= g.h.size and left == 0 and columns <= g.w.size:
        return x[n0:n1, top : top + rows, :columns]
    (P,) = scratch(x.dtype, (n1 - n0, rows, columns, x.shape[3]))
    lo, hi = max(top, 0), min(top + rows, g.h.size)
    right = min(columns, left + g.w.size)
    P[:, : lo - top] = value
    P[:, hi - top :] = value
    P[:, lo - top : hi - top, :left] = value
    P[:, lo - top : hi - top, right:] = value
    np.copyto(P[:, lo - top : hi - top, left:right], x[n0:n1, lo:hi, : right - left])
    return P


def _take(a: Axis, k: int, count: int) -> slice:
    """Element k of `count` windows."""
    return slice(k, k + (count - 1) * a.stride + 1, a.stride)


def _accumulate(combine: Any, P: Floats, g: Geometry, lines: int, out: Floats) -> None:
    """Combine the elements of each window, its rows first: P (n, rows, columns, C) -> out (n, lines, OW, C)."""
    if g.w.window == 1:
        P = P[:, :, _take(g.w, 0, g.w.out)]
    down = P[:, _take(g.h, 0, lines)]
    if g.h.window > 1:
        down = combine(down, P[:, _take(g.h, 1, lines)], out=out if g.w.window == 1 else None)
        for kh in range(2, g.h.window):
            combine(down, P[:, _take(g.h, kh, lines)], out=down)
    if g.w.window > 1:
        combine(down[:, :, _take(g.w, 0, g.w.out)], down[:, :, _take(g.w, 1, g.w.out)], out=out)
        for kw in range(2, g.w.window):
            combine(out, down[:, :, _take(g.w, kw, g.w.out)], out=out)
    elif g.h.window == 1:
        np.copyto(out, down)


def largest(P: Floats, g: Geometry, lines: int, out: Floats, switches: Floats) -> None:
    """The largest element of each window of P (n, rows, columns, C), and its position as kh * KW + kw."""
    # Along each row: the largest and which it was.
    if g.w.window == 1:
        across, which = P[:, :, _take(g.w, 0, g.w.out)], None
    else:
        first, second = P[:, :, _take(g.w, 0, g.w.out)], P[:, :, _take(g.w, 1, g.w.out)]
        which = np.greater(second, first).view(np.uint8)
        across = np.maximum(first, second)
        for kw in range(2, g.w.window):
            other = P[:, :, _take(g.w, kw, g.w.out)]
            # A later winner has a larger number than all before it: the maximum of the numbers is the last winner's.
            np.maximum(which, np.greater(other, across).view(np.uint8) * np.uint8(kw), out=which)
            np.maximum(across, other, out=across)
    # Over the rows, the same.
    row = _take(g.h, 0, lines)
    if which is None:
        switches[...] = 0
    else:
        np.copyto(switches, which[:, row])
    if g.h.window == 1:
        np.copyto(out, across[:, row])
    best = across[:, row]
    for kh in range(1, g.h.window):
        row = _take(g.h, kh, lines)
        won = np.greater(across[:, row], best).view(np.uint8)
        number = np.uint8(kh * g.w.window) if which is None else which[:, row] + np.uint8(kh * g.w.window)
        np.multiply(won, number, out=won)
        np.maximum(switches, won, out=switches)
        best = np.maximum(best, across[:, row], out=out)


def _forward(x: Floats, g: Geometry, switch: bool) -> tuple[Floats, Floats | None]:
    N, C = x.shape[0], x.shape[3]
    shape = (N, g.h.out, g.w.out, C)
    y = np.empty(shape, x.dtype)
    switches = np.empty(shape, np.uint8) if switch else None
    chunks = images_and_lines(N, g.h.out, g.h.stride * g.w.size * C * x.itemsize, _CHUNK)

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = where = chunks[number]
        P = _source(x, g, where, -np.inf)
        if switches is None:
            _accumulate(np.maximum, P, g, r1 - r0, y[n0:n1, r0:r1])
        else:
            largest(P, g, r1 - r0, y[n0:n1, r0:r1], switches[n0:n1, r0:r1])

    parallel(chunk, len(chunks))
    return y, switches


def _tiles(g: Geometry) -> bool:
    """Whether every pixel lies in at most one window."""
    return g.h.stride >= g.h.window and g.w.stride >= g.w.window


def elements(g: Geometry, lines: tuple[int, int]) -> Iterator[tuple[int, Any, Any]]:
    """For each element k of the windows: k, the outputs whose element k lies inside of the image, and where it lies.

    The second is an index into the output rows `lines` of some images, the third into the images; elements that lie
    in the padding for all outputs are left out.
    """
    for kh in range(g.h.window):
        first, last, down = reach(g.h.size, g.h.out, g.h.stride, kh - g.h.before)
        first, last = max(first, lines[0]), min(last, lines[1])
        rows = slice(first * g.h.stride + down, (last - 1) * g.h.stride + down + 1, g.h.stride)
        for kw in range(g.w.window):
            left, right, across = reach(g.w.size, g.w.out, g.w.stride, kw - g.w.before)
            if first < last and left < right:
                columns = slice(left * g.w.stride + across, (right - 1) * g.w.stride + across + 1, g.w.stride)
                outputs = slice(None), slice(first - lines[0], last - lines[0]), slice(left, right)
                yield kh * g.w.window + kw, outputs, (slice(None), rows, columns)


def _covered(g: Geometry) -> bool:
    """Whether the windows tile the image without gaps, so that each pixel gets exactly one gradient."""
    return all(a.stride == a.window and a.before == 0 and a.out * a.stride == a.size for a in g)


def unpool(dy: Floats, switches: Floats, shape: tuple[int, ...], g: Geometry) -> Floats:
    """Every dy (N, OH, OW, C) at the place its switch names, in an array of `shape`."""
    dx = np.empty(shape, dy.dtype)
    tiles, covered = _tiles(g), _covered(g)
    chunks = _image_chunks(g, shape, dy.itemsize)

    def chunk(number: int) -> None:
        n0, n1, bands = chunks[number]
        if not covered:
            dx[n0:n1] = 0
        for r0, r1 in bands:
            part, which = dy[n0:n1, r0:r1], switches[n0:n1, r0:r1]

            for k, outputs, place in elements(g, (r0, r1)):
                hit = np.equal(which[outputs], np.uint8(k))
                target = dx[n0:n1][place]
                if tiles:
                    keep_where(part[outputs], hit, target)
                else:
                    kept = np.empty(hit.shape, dy.dtype)
                    keep_where(part[outputs], hit, kept)
                    np.add(target, kept, out=target)

    parallel(chunk, len(chunks))
    return dx


def _image_chunks(g: Geometry, shape: tuple[int, ...], itemsize: int) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Chunks of whole images, so that no two threads add to one pixel, each cut into bands of output rows."""
    N, _, W, C = shape
    merged: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for n0, n1, r0, r1 in images_and_lines(N, g.h.out, g.h.stride * W * C * itemsize, _CHUNK):
        merged.setdefault((n0, n1), []).append((r0, r1))
    return [(n0, n1, bands) for (n0, n1), bands in merged.items()]


def _takes(x: Floats, g: Geometry) -> bool:
    return x.dtype in FLOATS and x.size > 0 and g.h.window * g.w.window <= 256 and min(g.h.out, g.w.out) > 0


@max_pool2d_with_switches.accelerate("numpy")
def max_forward_with_switches(xp: Any, x: Floats, *, window: Any, stride: Any, padding: Any) -> Any:
    """Rows compared first, then columns, with the winners' numbers beside."""
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not _takes(x, g):
        return NotImplemented
    y, switches = _forward(x, g, True)
    return (y, switches), (x.shape, switches)


@max_forward_with_switches.backward
def max_backward_with_switches(xp: Any, dys: Any, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    """Each gradient goes to the element that won."""
    shape, switches = saved
    return unpool(dys[0], switches, shape, windows(shape, window, window if stride is None else stride, padding))


@max_pool2d.accelerate("numpy")
def max_forward(xp: Any, x: Floats, *, window: Any, stride: Any, padding: Any, save: bool) -> Any:
    """Columns compared first where nothing must be kept: longer runs."""
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not _takes(x, g):
        return NotImplemented
    y, switches = _forward(x, g, save)
    return y, (x.shape, switches) if save else None


@max_forward.backward
def max_backward(xp: Any, dy: Floats, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    """Each gradient goes to the element that won."""
    shape, switches = saved
    return unpool(dy, switches, shape, windows(shape, window, window if stride is None else stride, padding))


@average_pool2d.accelerate("numpy")
def average_forward(xp: Any, x: Floats, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    """Sums of shifted images, times one over the count."""
    g = pool_geometry("average_pool2d", x, window, stride, padding)
    if not _takes(x, g):
        return NotImplemented
    N, C = x.shape[0], x.shape[3]
    y = np.empty((N, g.h.out, g.w.out, C), x.dtype)
    share = 1 / window_counts(np, g, count_include_pad, x)  # (OH, OW, 1)
    chunks = images_and_lines(N, g.h.out, g.h.stride * g.w.size * C * x.itemsize, _CHUNK)

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = where = chunks[number]
        part = y[n0:n1, r0:r1]
        _accumulate(np.add, _source(x, g, where, 0.0), g, r1 - r0, part)
        np.multiply(part, share[r0:r1], out=part)

    parallel(chunk, len(chunks))
    return y, x.shape


@average_forward.backward
def average_backward(
    xp: Any, dy: Floats, shape: Any, *, window: Any, stride: Any, padding: Any, count_include_pad: bool
) -> Any:
    """Every element of a window gets an equal share."""
    g = windows(shape, window, window if stride is None else stride, padding)
    share = 1 / window_counts(np, g, count_include_pad, dy)
    dx = np.empty(shape, dy.dtype)
    tiles, covered = _tiles(g), _covered(g)
    chunks = _image_chunks(g, shape, dy.itemsize)

    def chunk(number: int) -> None:
        n0, n1, bands = chunks[number]
        if not covered:
            dx[n0:n1] = 0
        for r0, r1 in bands:
            part = dy[n0:n1, r0:r1] * share[r0:r1]

            for _, outputs, place in elements(g, (r0, r1)):
                target = dx[n0:n1][place]
                if tiles:
                    np.copyto(target, part[outputs])
                else:
                    np.add(target, part[outputs], out=target)

    parallel(chunk, len(chunks))
    return dx
