"""Max and average pooling for NumPy: shifted images compared or added, a cache-sized chunk at a time, no windows made.

NumPy's loops want long runs, and a strided image offers only one pixel's channels at a time. So a chunk is first dealt
out into its *phases*: the columns 0, s, 2s, ..., the columns 1, s+1, ..., for a stride of s. In them all elements kw of
the windows lie side by side. Backward, the gradients are summed in phases and dealt back.

A window's maximum is taken along its rows first, then over them: KH + KW - 2 comparisons an element instead of
KH*KW - 1, and the first of equal elements, in the order of the window, stays the winner.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.scratch import FLOATS, LIMIT, Floats, evenly, fill_padded, images_and_lines, keep_where, scratch
from xpnet.ops.geometry import Geometry, windows
from xpnet.ops.pooling import average_pool2d, max_pool2d, max_pool2d_with_switches, pool_geometry, window_counts
from xpnet.threads import parallel

_CHUNK = 3 << 20
"""Bytes of input in a chunk."""


class _Band:
    """What the windows of some output rows see of some images, dealt out into phases."""

    def __init__(self, g: Geometry, where: tuple[int, int, int, int], C: int) -> None:
        self.g = g
        n0, n1, r0, r1 = where
        self.images = slice(n0, n1)
        self.lines = r1 - r0
        self.top = r0 * g.h.stride - g.h.before  # the first row seen, which may lie above the image
        self.rows = (self.lines - 1) * g.h.stride + g.h.window
        columns = (g.w.out - 1) * g.w.stride + g.w.window
        self.phases = min(g.w.stride, g.w.window)
        self.wide = -(-columns // g.w.stride)
        self.shape = (self.phases, n1 - n0, self.rows, self.wide, C)

    def element(self, P: Floats, kw: int) -> Floats:
        """Element kw of all windows along the width: (n, rows, OW, C)."""
        first = kw // self.g.w.stride
        phase: Floats = P[kw % self.g.w.stride]
        return phase[:, :, first : first + self.g.w.out]

    def below(self, array: Floats, kh: int) -> Floats:
        """Element kh of all windows along the height: (n, lines, OW, C) of (n, rows, OW, C)."""
        stride = self.g.h.stride
        return array[:, kh : kh + (self.lines - 1) * stride + 1 : stride]

    def inside(self, phase: int) -> tuple[slice, slice, slice, slice]:
        """Which rows and columns of a phase lie inside of the image, and which of the image's those are."""
        h, w = self.g
        lo, hi = max(self.top, 0), min(self.top + self.rows, h.size)
        first = max(0, -(-(w.before - phase) // w.stride))
        last = min(self.wide, -(-(w.size + w.before - phase) // w.stride))
        start = first * w.stride + phase - w.before
        columns = slice(start, start + (last - first - 1) * w.stride + 1, w.stride) if last > first else slice(0, 0)
        return slice(lo - self.top, hi - self.top), slice(first, max(first, last)), slice(lo, hi), columns

    def deal(self, x: Floats, P: Floats, value: float) -> None:
        """Copy the images into the phases, with `value` in the padding."""
        for phase in range(self.phases):
            rows, columns, from_rows, from_columns = self.inside(phase)
            part = P[phase]
            part[:, : rows.start] = value
            part[:, rows.stop :] = value
            part[:, rows, : columns.start] = value
            part[:, rows, columns.stop :] = value
            np.copyto(part[:, rows, columns], x[self.images, from_rows, from_columns])

    def collect(self, P: Floats, dx: Floats, done: int) -> None:
        """Copy the phases to the images; rows before `done` have been written already and are added to."""
        for phase in range(self.phases):
            rows, columns, to_rows, to_columns = self.inside(phase)
            again = min(max(done, to_rows.start), to_rows.stop)
            cut = rows.start + again - to_rows.start
            if again > to_rows.start:
                target = dx[self.images, to_rows.start : again, to_columns]
                np.add(target, P[phase][:, rows.start : cut, columns], out=target)
            np.copyto(dx[self.images, again : to_rows.stop, to_columns], P[phase][:, cut : rows.stop, columns])


def _combine(combine: Any, x: Floats, band: _Band, value: float, out: Floats) -> None:
    """Combine the elements of each window, over the rows first: those are long, so nothing needs to be dealt out.

    The images' rows are copied only where padding of `value` has to be put around them.
    """
    g, lines = band.g, band.lines
    columns = (g.w.out - 1) * g.w.stride + g.w.window
    n, C = out.shape[0], out.shape[3]
    if band.top >= 0 and band.top + band.rows <= g.h.size and g.w.before == 0 and columns <= g.w.size:
        (temporary,) = scratch(x.dtype, (n, lines, columns, C), slot="pool")
        P = x[band.images, band.top : band.top + band.rows, :columns]
    else:
        P, temporary = scratch(x.dtype, (n, band.rows, columns, C), (n, lines, columns, C), slot="pool")
        fill_padded(P, x, None, None, (band.images.start, band.images.stop), band.top, -g.w.before, value)
    total = band.below(P, 0)
    for kh in range(1, g.h.window):
        total = combine(total, band.below(P, kh), out=temporary)
    wide = (g.w.out - 1) * g.w.stride + 1
    result = total[:, :, : wide : g.w.stride]
    for kw in range(1, g.w.window):
        result = combine(result, total[:, :, kw : kw + wide : g.w.stride], out=out)
    if g.w.window == 1:
        np.copyto(out, result)


def _largest(band: _Band, P: Floats, temporary: Floats, out: Floats, switches: Floats) -> None:
    """The largest element of each window, along the rows first, and its position as kh * KW + kw."""
    h, w = band.g.h.window, band.g.w.window
    across, which = band.element(P, 0), None
    for kw in range(1, w):
        other = band.element(P, kw)
        won = np.greater(other, across).view(np.uint8)
        if which is None:
            which = won
        else:
            # A later winner has a larger number than all before it: the maximum of the numbers is the last winner's.
            np.multiply(won, np.uint8(kw), out=won)
            np.maximum(which, won, out=which)
        across = np.maximum(across, other, out=temporary)
    switches[...] = 0 if which is None else band.below(which, 0)
    best = band.below(across, 0)
    for kh in range(1, h):
        other = band.below(across, kh)
        won = np.greater(other, best).view(np.uint8)
        number = np.uint8(kh * w) if which is None else band.below(which, kh) + np.uint8(kh * w)
        np.multiply(won, number, out=won)
        np.maximum(switches, won, out=switches)
        best = np.maximum(best, other, out=out)
    if h == 1:
        np.copyto(out, best)


def _forward(x: Floats, g: Geometry, switch: bool) -> tuple[Floats, Floats | None]:
    """Max pooling, and the switches if they are wanted."""
    shape = (x.shape[0], g.h.out, g.w.out, x.shape[3])
    y = np.empty(shape, x.dtype)
    switches = np.empty(shape, np.uint8) if switch else None

    def chunk(band: _Band, part: Any) -> None:
        if switches is None:
            _combine(np.maximum, x, band, -np.inf, y[part])
        else:
            P, temporary = scratch(x.dtype, band.shape, (*band.shape[1:3], g.w.out, x.shape[3]), slot="pool")
            band.deal(x, P, -np.inf)
            _largest(band, P, temporary, y[part], switches[part])

    _for_bands(x.shape, g, x.itemsize, chunk)
    return y, switches


def pool_chunk(x: Floats, g: Geometry, y: Floats, switches: Floats | None) -> None:
    """Max pooling of whole images, in this thread."""
    band = _Band(g, (0, x.shape[0], 0, g.h.out), x.shape[3])
    if switches is None:
        _combine(np.maximum, x, band, -np.inf, y)
    else:
        P, temporary = scratch(x.dtype, band.shape, (*band.shape[1:3], g.w.out, x.shape[3]), slot="pool")
        band.deal(x, P, -np.inf)
        _largest(band, P, temporary, y, switches)


def unpool_chunk(dy: Floats, switches: Floats, g: Geometry, dx: Floats) -> None:
    """`unpool` of whole images to dx, in this thread."""
    band = _Band(g, (0, dy.shape[0], 0, g.h.out), dy.shape[3])
    if not _covered(g):
        dx[...] = 0
    P, temporary = scratch(dy.dtype, band.shape, dy.shape, slot="pool")
    _scatter(band, dy, switches, P, temporary)
    band.collect(P, dx, 0)


def _for_bands(shape: tuple[int, ...], g: Geometry, itemsize: int, work: Any) -> None:
    """Call work(band, output part) for chunks of the images, shared out over the threads."""
    N, _, W, C = shape
    chunks = images_and_lines(N, g.h.out, g.h.stride * W * C * itemsize, _CHUNK)

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = where = chunks[number]
        work(_Band(g, where, C), (slice(n0, n1), slice(r0, r1)))

    parallel(chunk, len(chunks))


def _gradient(shape: tuple[int, ...], g: Geometry, dtype: np.dtype[Any], fill: Any) -> Floats:
    """dx of `shape`: fill(band, output part, P, temporary) sums a band's gradients in its phases P.

    Chunks are whole images, or bands of one image that one thread does in order: no two threads add to one row.
    """
    N, _, W, C = shape
    dx = np.empty(shape, dtype)
    line = g.h.stride * W * C * dtype.itemsize
    images = evenly(N, max(1, _CHUNK // (g.h.out * line)))
    lines = g.h.out if images > 1 else max(1, min(g.h.out, LIMIT // 3 // line))
    covered = _covered(g)

    def chunk(number: int) -> None:
        n0, n1 = number * images, min((number + 1) * images, N)
        if not covered:
            dx[n0:n1] = 0
        done = 0
        for r0 in range(0, g.h.out, lines):
            r1 = min(r0 + lines, g.h.out)
            band = _Band(g, (n0, n1, r0, r1), C)
            P, temporary = scratch(dtype, band.shape, (n1 - n0, r1 - r0, g.w.out, C), slot="pool")
            fill(band, (slice(n0, n1), slice(r0, r1)), P, temporary)
            band.collect(P, dx, done)
            done = max(done, band.top + band.rows)

    parallel(chunk, -(-N // images))
    return dx


def _apart(g: Geometry) -> bool:
    """Whether every element of the phases belongs to exactly one window."""
    return g.h.stride == g.h.window and g.w.stride >= g.w.window


def _covered(g: Geometry) -> bool:
    """Whether every pixel lies in at least one window."""
    return all(a.stride <= a.window and (a.out - 1) * a.stride + a.window - a.before >= a.size for a in g)


def _scatter(band: _Band, dy: Floats, switches: Floats, P: Floats, temporary: Floats) -> None:
    """Every dy at the place its switch names in the phases P."""
    g = band.g
    apart = _apart(g)
    if not apart:
        P[...] = 0
    for kh in range(g.h.window):
        for kw in range(g.w.window):
            place = band.below(band.element(P, kw), kh)
            hit = np.equal(switches, np.uint8(kh * g.w.window + kw))
            if apart:
                keep_where(dy, hit, place)
            else:
                keep_where(dy, hit, temporary)
                np.add(place, temporary, out=place)


def unpool(dy: Floats, switches: Floats, shape: tuple[int, ...], g: Geometry) -> Floats:
    """Every dy (N, OH, OW, C) at the place its switch names, in an array of `shape`."""

    def fill(band: _Band, part: Any, P: Floats, temporary: Floats) -> None:
        _scatter(band, dy[part], switches[part], P, temporary)

    return _gradient(shape, g, dy.dtype, fill)


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
    y = np.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), x.dtype)
    share = 1 / window_counts(np, g, count_include_pad, x)  # (OH, OW, 1)

    def chunk(band: _Band, part: Any) -> None:
        _combine(np.add, x, band, 0.0, y[part])
        np.multiply(y[part], share[part[1]], out=y[part])

    _for_bands(x.shape, g, x.itemsize, chunk)
    return y, x.shape


@average_forward.backward
def average_backward(
    xp: Any, dy: Floats, shape: Any, *, window: Any, stride: Any, padding: Any, count_include_pad: bool
) -> Any:
    """Every element of a window gets an equal share."""
    g = windows(shape, window, window if stride is None else stride, padding)
    share = 1 / window_counts(np, g, count_include_pad, dy)
    apart = _apart(g)

    def fill(band: _Band, part: Any, P: Floats, temporary: Floats) -> None:
        np.multiply(dy[part], share[part[1]], out=temporary)
        if not apart:
            P[...] = 0
        for kh in range(g.h.window):
            for kw in range(g.w.window):
                place = band.below(band.element(P, kw), kh)
                if apart:
                    np.copyto(place, temporary)
                else:
                    np.add(place, temporary, out=place)

    return _gradient(shape, g, dy.dtype, fill)
