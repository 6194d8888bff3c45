"""Max pooling for NumPy: shifted images compared, a chunk at a time, no windows made.

A window's maximum is taken along its rows first, then over them: KH + KW - 2 comparisons an element instead of
KH*KW - 1, and the first of equal elements, in the order of the window, stays the winner.

What backward needs is the outcome of each comparison, a bool. With those a gradient is split in the reverse order: what
the last comparison's winner gets, what is left for the others, and so on; subtracted as integers, so that what is left is
exactly the gradient or 0. The *switches* that `max_pool2d_with_switches` returns are one byte a window instead; they are
also what is kept where the windows overlap so much that the comparisons' outcomes would be more memory than half of x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from xpnet.accel.numpy.pooling_tiles import Band, apart, clear_outside, combine, for_bands, gradient
from xpnet.accel.numpy.workspace import FLOATS, Floats, integers, keep_where, scratch
from xpnet.ops.geometry import Geometry, windows
from xpnet.ops.pooling import max_pool2d, max_pool2d_with_switches, pool_geometry


class Won(NamedTuple):
    """Which comparisons a later element has won.

    Fields:
        across: (KW - 1, N, rows, OW, C) bool, along the rows of the windows; rows are those of the padded images.
        down: (KH - 1, N, OH, OW, C) bool, over the rows.
    """

    across: Floats
    down: Floats

    @staticmethod
    def shapes(N: int, g: Geometry, C: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of across and down for N images."""
        rows = (g.h.out - 1) * g.h.stride + g.h.window
        return (g.w.window - 1, N, rows, g.w.out, C), (g.h.window - 1, N, g.h.out, g.w.out, C)

    @classmethod
    def empty(cls, N: int, g: Geometry, C: int) -> Won:
        """For all images."""
        across, down = cls.shapes(N, g, C)
        return cls(np.empty(across, bool), np.empty(down, bool))

    @classmethod
    def small(cls, x_shape: Sequence[int], g: Geometry, itemsize: int) -> bool:
        """Whether it takes no more than half of the memory of x."""
        across, down = cls.shapes(x_shape[0], g, x_shape[3])
        return (prod(across) + prod(down)) * 2 <= prod(x_shape) * itemsize

    def part(self, band: Band, lines: slice) -> Won:
        """What belongs to a band whose output rows are `lines`."""
        rows = slice(band.first, band.first + band.rows)
        return Won(self.across[:, band.images, rows], self.down[:, band.images, lines])


def _largest(band: Band, x: Floats, out: Floats, won: Won) -> None:
    """The largest element of each window, and which comparisons were won."""
    P, temporary = scratch(x.dtype, band.shape, band.across, slot="pool")
    band.deal(x, P, -np.inf)
    _compare(band, P, temporary, out, won, np.greater)
    if np.isnan(np.maximum.reduce(out, axis=None)):
        _compare(band, P, temporary, out, won, _above)


def _above(other: Floats, best: Floats, out: Floats) -> None:
    """other > best, where a NaN is above every number."""
    np.greater(other, best, out=out)
    out |= np.isnan(other) & ~np.isnan(best)


def _compare(band: Band, P: Floats, temporary: Floats, out: Floats, won: Won, above: Callable[..., Any]) -> None:
    best = band.element(P, 0)
    for kw in range(1, band.g.w.window):
        other = band.element(P, kw)
        above(other, best, out=won.across[kw - 1])
        best = np.maximum(best, other, out=temporary)
    across, best = best, band.below(best, 0)
    for kh in range(1, band.g.h.window):
        other = band.below(across, kh)
        above(other, best, out=won.down[kh - 1])
        best = np.maximum(best, other, out=out)
    if band.g.h.window == 1:
        np.copyto(out, best)


def _switches(band: Band, won: Won, out: Floats) -> None:
    """The number kh * KW + kw of each window's winner."""
    h, w = band.g.h.window, band.g.w.window
    which: Any = np.zeros(band.across, np.uint8)
    for kw in range(1, w):
        # A later winner has a larger number than all before it: the maximum of the numbers is the last winner's.
        np.maximum(which, won.across[kw - 1].view(np.uint8) * np.uint8(kw), out=which)
    out[...] = band.below(which, 0)
    for kh in range(1, h):
        number = band.below(which, kh) + np.uint8(kh * w)
        np.maximum(out, won.down[kh - 1].view(np.uint8) * number, out=out)


def _largest_and_switches(band: Band, x: Floats, out: Floats, switches: Floats) -> None:
    """The largest element of each window, and its number."""
    g, (n, lines, _, C) = band.g, band.out
    across, down = scratch(
        np.dtype(bool), (g.w.window - 1, *band.across), (g.h.window - 1, n, lines, g.w.out, C), slot="won"
    )  # fmt: skip
    won = Won(across, down)
    _largest(band, x, out, won)
    _switches(band, won, switches)


def pool_chunk(x: Floats, g: Geometry, y: Floats, won: Won | None, images: slice) -> None:
    """Max pooling of the whole images x, in this thread; `won` is that of all images, of which x are the given ones."""
    band = Band(g, (0, x.shape[0], 0, g.h.out), x.shape[3])
    if won is None:
        combine(np.maximum, x, band, -np.inf, y)
    else:
        _largest(band, x, y, Won(won.across[:, images], won.down[:, images]))


def unpool_chunk(dy: Floats, won: Won, g: Geometry, dx: Floats) -> None:
    """The gradient dx of whole images, in this thread."""
    band = Band(g, (0, dy.shape[0], 0, g.h.out), dy.shape[3])
    clear_outside(dx, g)
    (P,) = scratch(dy.dtype, band.shape, slot="pool")
    _hand_back(band, dy, won, P)
    band.collect(P, dx, 0)


def _split(total: Floats, won: Floats, places: Sequence[Floats], step: int, left: Floats, spare: Floats) -> None:
    """Give every number of `total` to the place of its winner, 0 to the others.

    Args:
        total: the gradients.
        won: (K - 1, ...) the outcomes of the comparisons.
        places: K arrays like total, which may overlap: places[k] and places[k + step] do. Where they do not, the places
            behind are written to, and those before are added to.
        step: see there.
        left, spare: working memory like total.
    """
    K = len(places)
    whole = integers(total.dtype)
    for k in range(K - 1, 0, -1):
        fresh = k + step >= K
        part = places[k] if fresh else spare
        keep_where(total, won[k - 1], part)
        rest = places[0] if k == 1 and step >= K else left
        np.subtract(total.view(whole), part.view(whole), out=rest.view(whole))
        total = rest
        if not fresh:
            np.add(places[k], part, out=places[k])
    if step < K:
        np.add(places[0], total, out=places[0])
    elif K == 1:
        np.copyto(places[0], total)


def _hand_back(band: Band, dy: Floats, won: Won, P: Floats) -> None:
    """Every gradient to its winner: over the rows of the windows first, then along them, into the phases P."""
    h, w = band.g.h, band.g.w
    rows, rest, spare, left = scratch(dy.dtype, band.across, band.across, band.across, band.out, slot="unpool")
    if h.stride > h.window:
        rows[...] = 0
    # Places that overlap are added to: what the last ones do not write has to be 0.
    rows[:, : max(0, h.window - h.stride)] = 0
    places = [band.below(rows, k) for k in range(h.window)]
    _split(dy, won.down, places, h.stride, left, spare[:, : band.lines])
    for phase in range(band.phases):
        last = (w.window - 1 - phase) // w.stride
        P[phase][:, :, :last] = 0
        P[phase][:, :, last + w.out :] = 0
    _split(rows, won.across, [band.element(P, k) for k in range(w.window)], w.stride, rest, spare)


def _scatter(band: Band, dy: Floats, switches: Floats, P: Floats) -> None:
    """Every dy at the place its switch names in the phases P."""
    g = band.g
    disjoint = apart(g)
    (temporary,) = scratch(dy.dtype, dy.shape, slot="unpool")
    if not disjoint:
        P[...] = 0
    for kh in range(g.h.window):
        for kw in range(g.w.window):
            place = band.below(band.element(P, kw), kh)
            hit = np.equal(switches, np.uint8(kh * g.w.window + kw))
            if disjoint:
                keep_where(dy, hit, place)
            else:
                keep_where(dy, hit, temporary)
                np.add(place, temporary, out=place)


def _takes(x: Floats, g: Geometry) -> bool:
    return x.dtype in FLOATS and x.size > 0 and g.h.window * g.w.window <= 256 and min(g.h.out, g.w.out) > 0


def _with_switches(x: Floats, g: Geometry) -> tuple[Floats, Floats]:
    shape = (x.shape[0], g.h.out, g.w.out, x.shape[3])
    y, switches = np.empty(shape, x.dtype), np.empty(shape, np.uint8)
    for_bands(x.shape, g, x.itemsize, lambda band, part: _largest_and_switches(band, x, y[part], switches[part]))
    return y, switches


def _unpool(dy: Floats, switches: Floats, shape: tuple[int, ...], g: Geometry) -> Floats:
    """Every dy (N, OH, OW, C) at the place its switch names, in an array of `shape`."""
    return gradient(shape, g, dy.dtype, lambda band, part, P: _scatter(band, dy[part], switches[part], P))


@max_pool2d_with_switches.accelerate("numpy")
def forward_with_switches(xp: Any, x: Floats, *, window: Any, stride: Any, padding: Any) -> Any:
    """Columns compared first, then rows; the winners' numbers from the outcomes."""
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not _takes(x, g):
        return NotImplemented
    y, switches = _with_switches(x, g)
    return (y, switches), (x.shape, switches)


@forward_with_switches.fresh_backward
def backward_with_switches(xp: Any, dys: Any, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    """Each gradient goes to the element that won."""
    shape, switches = saved
    return _unpool(dys[0], switches, shape, windows(shape, window, window if stride is None else stride, padding))


@max_pool2d.accelerate("numpy")
def forward(xp: Any, x: Floats, *, window: Any, stride: Any, padding: Any, save: bool) -> Any:
    """With the outcomes of the comparisons; rows compared first where nothing must be kept: longer runs."""
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not _takes(x, g):
        return NotImplemented
    if save and not Won.small(x.shape, g, x.itemsize):
        y, switches = _with_switches(x, g)
        return y, (x.shape, switches)
    y = np.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), x.dtype)
    if not save:
        for_bands(x.shape, g, x.itemsize, lambda band, part: combine(np.maximum, x, band, -np.inf, y[part]))
        return y, None
    won = Won.empty(x.shape[0], g, x.shape[3])
    for_bands(x.shape, g, x.itemsize, lambda band, part: _largest(band, x, y[part], won.part(band, part[1])))
    return y, (x.shape, won)


@forward.fresh_backward
def backward(xp: Any, dy: Floats, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    """Each gradient goes to the element that won."""
    shape, kept = saved
    g = windows(shape, window, window if stride is None else stride, padding)
    if not isinstance(kept, Won):
        return _unpool(dy, kept, shape, g)
    return gradient(shape, g, dy.dtype, lambda band, part, P: _hand_back(band, dy[part], kept.part(band, part[1]), P))
