"""Pooling of images (N, H, W, C)."""

from __future__ import annotations

import math
from typing import Any, cast

from xpnet.backend import Array, Namespace, kind_of
from xpnet.ops.convolution import col2im, gather_windows
from xpnet.ops.geometry import Geometry, Padding, Size, windows
from xpnet.ops.reductions import mean
from xpnet.ops.registry import op
from xpnet.ops.shapes import ShapeError, expect_rank, is_float
from xpnet.ops.sums import total


def pool_geometry(operation: str, x: Array, window: Size, stride: Size | None, padding: Padding) -> Geometry:
    """Check the input of a pooling and return its geometry; a stride of None is the window.

    Raises:
        ShapeError: x does not have four axes.
        ValueError: the window is larger than the padded input, or the padding is not smaller than the window (some windows
            would then lie in the padding alone).
    """
    expect_rank(operation, "x", x, "N H W C")
    g = windows(x.shape, window, window if stride is None else stride, padding)
    for axis in g:
        if max(axis.before, axis.after) >= axis.window:
            raise ValueError(f"{operation}: padding {padding} must be smaller than the window {window}")
    return g


def _lowest(xp: Namespace, x: Array) -> Any:
    kind = kind_of(x.dtype)
    return -math.inf if kind in ("float", "half") else False if kind == "boolean" else xp.iinfo(x.dtype).min


def _inside(xp: Namespace, x: Array, g: Geometry) -> Array:
    """Return which elements of each window lie in the image: booleans (1, OH, OW, KH*KW, 1)."""
    axes = []
    for axis in g:
        starts = xp.arange(axis.out, device=x.device) * axis.stride - axis.before
        places = starts[:, None] + xp.arange(axis.window, device=x.device)[None, :]
        axes.append((places >= 0) & (places < axis.size))
    both = axes[0][:, None, :, None] & axes[1][None, :, None, :]
    return cast(Array, xp.reshape(both, (1, g.h.out, g.w.out, g.h.window * g.w.window, 1)))


@op(integers="keep")
def max_pool2d_with_switches(xp: Namespace, x: Array, window: Size, *, stride: Size | None = None, padding: Padding = 0) -> Any:
    """Return the maximum of every window and its index within the window (the switch); of equal elements the first.

    Integers stay integers. A NaN counts as larger than everything, as in maximum(); the switch is then that of the first NaN.

    Args:
        x: (N, H, W, C).
        window: int or (KH, KW).
        stride: int or (h, w); None means the window, so that windows do not overlap.
        padding: as in conv2d; it is never the maximum, and no switch points to it.

    Returns:
        y: (N, OH, OW, C), dtype of x.
        switches: (N, OH, OW, C), kh * KW + kw of the maximum: uint8 up to 256 elements a window, else int32.

    Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014 (switches).
    """
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    cols = gather_windows(xp, x, g, _lowest(xp, x))
    count = g.h.window * g.w.window
    cols = xp.reshape(cols, (*cols.shape[:3], count, cols.shape[5]))  # (N,OH,OW,KH*KW,C)
    y = xp.max(cols, axis=3)
    places = cols
    if not g.unpadded:
        # The padding is no larger than anything, but as large as -inf, or as 0 of unsigned bytes: it must not be the first.
        largest = cols == y[:, :, :, None, :]
        if is_float(xp, x):
            largest = largest | xp.isnan(cols)
        places = xp.astype(largest & _inside(xp, x, g), xp.uint8)
    elif kind_of(x.dtype) == "boolean":
        places = xp.astype(cols, xp.uint8)
    switches = xp.astype(xp.argmax(places, axis=3), xp.uint8 if count <= 256 else xp.int32)
    return (y, switches), (tuple(x.shape), switches)


def _scatter(xp: Namespace, cols: Array, g: Geometry, shape: tuple[int, ...]) -> Array:
    return cast(Array, col2im.run(xp, (cols,), {"input_shape": shape, **g.settings}, False)[0])


def unpool(xp: Namespace, dy: Array, switches: Array, shape: tuple[int, ...], g: Geometry) -> Array:
    """Add every dy to the element that its switch points to: (N,OH,OW,C) -> (N,H,W,C)."""
    count = g.h.window * g.w.window
    which = xp.reshape(xp.arange(count, dtype=switches.dtype, device=dy.device), (1, 1, 1, count, 1))
    hit = switches[:, :, :, None, :] == which
    cols = xp.where(hit, dy[:, :, :, None, :], xp.zeros((), dtype=dy.dtype, device=dy.device))
    cols = xp.reshape(cols, (*dy.shape[:3], g.h.window, g.w.window, dy.shape[3]))
    return _scatter(xp, cols, g, shape)


@max_pool2d_with_switches.backward
def _(xp: Namespace, dys: Any, saved: Any, *, window: Size, stride: Size | None, padding: Padding) -> Any:
    shape, switches = saved
    g = windows(shape, window, window if stride is None else stride, padding)
    return unpool(xp, dys[0], switches, shape, g)


@op(integers="keep")
def max_pool2d(
    xp: Namespace, x: Array, window: Size, *, stride: Size | None = None, padding: Padding = 0, save: bool = True
) -> Any:
    """Return the maximum of every window: (N, H, W, C) -> (N, OH, OW, C).

    Arguments and errors as in :func:`max_pool2d_with_switches`; the gradient goes to the maximum, of equal ones the first.
    """
    settings = {"window": window, "stride": stride, "padding": padding}
    if save:
        (y, switches), _, _ = max_pool2d_with_switches.run(xp, (x,), settings, True)
        return y, (tuple(x.shape), switches)
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    return xp.max(gather_windows(xp, x, g, _lowest(xp, x)), axis=(3, 4)), None


@max_pool2d.backward
def _(xp: Namespace, dy: Array, saved: Any, *, window: Size, stride: Size | None, padding: Padding) -> Any:
    shape, switches = saved
    return unpool(xp, dy, switches, shape, windows(shape, window, window if stride is None else stride, padding))


def window_counts(xp: Namespace, g: Geometry, count_include_pad: bool, like: Array) -> Array:
    """Return how many elements each window averages over: (OH, OW, 1), in the dtype of `like`."""
    counts: list[Array] = []
    for axis in g:
        inside = [axis.window] * axis.out
        if not count_include_pad:
            starts = [i * axis.stride - axis.before for i in range(axis.out)]
            inside = [min(s + axis.window, axis.size) - max(s, 0) for s in starts]
        counts.append(xp.asarray(inside, dtype=like.dtype, device=like.device))
    return (counts[0][:, None] * counts[1][None, :])[:, :, None]


@op
def average_pool2d(
    xp: Namespace,
    x: Array,
    window: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    count_include_pad: bool = False,
) -> Any:
    """Return the mean of every window: (N, H, W, C) -> (N, OH, OW, C).

    Args:
        x: (N, H, W, C).
        window, stride, padding: as in max_pool2d.
        count_include_pad: divide by the window's size even where part of it lies in the padding.
    """
    g = pool_geometry("average_pool2d", x, window, stride, padding)
    return total(xp, gather_windows(xp, x, g), (3, 4)) / window_counts(xp, g, count_include_pad, x), tuple(x.shape)


@average_pool2d.backward
def _(
    xp: Namespace, dy: Array, shape: Any, *, window: Size, stride: Size | None, padding: Padding, count_include_pad: bool
) -> Any:
    g = windows(shape, window, window if stride is None else stride, padding)
    dy = dy / window_counts(xp, g, count_include_pad, dy)
    return _to_windows(xp, dy, g, shape)


def _to_windows(xp: Namespace, dy: Array, g: Geometry, shape: tuple[int, ...]) -> Array:
    """Add every dy to all elements of its window."""
    N, OH, OW, C = dy.shape
    cols = xp.broadcast_to(dy[:, :, :, None, None, :], (N, OH, OW, g.h.window, g.w.window, C))
    return _scatter(xp, cols, g, shape)


@op
def lp_pool2d(
    xp: Namespace, x: Array, window: Size, *, p: float = 2.0, stride: Size | None = None, padding: Padding = 0
) -> Any:
    """Return the p-norm of every window, (sum |x|**p)**(1/p): (N, H, W, C) -> (N, OH, OW, C); p=2 is L2-norm pooling.

    The gradient of a window of zeros is 0.

    Raises:
        ValueError: p below 1.
    """
    if p < 1:
        raise ValueError(f"lp_pool2d: p must be at least 1, got {p}")
    g = pool_geometry("lp_pool2d", x, window, stride, padding)
    cols = xp.abs(gather_windows(xp, x, g))
    # Divided by the largest element first, so that the powers neither overflow nor underflow.
    largest = xp.max(cols, axis=(3, 4), keepdims=True)
    largest = xp.where((largest > 0) & (largest < math.inf), largest, xp.ones_like(largest))
    y = total(xp, (cols / largest) ** p, (3, 4)) ** (1 / p) * largest[:, :, :, 0, 0, :]
    return y, (x, y)


@lp_pool2d.backward
def _(xp: Namespace, dy: Array, saved: Any, *, window: Size, p: float, stride: Size | None, padding: Padding) -> Any:
    x, y = saved
    g = windows(x.shape, window, window if stride is None else stride, padding)
    cols = gather_windows(xp, x, g)
    norm = xp.where(y > 0, y, xp.ones_like(y))[:, :, :, None, None, :]
    slope = xp.sign(cols) * (xp.abs(cols) / norm) ** (p - 1)
    return _scatter(xp, slope * dy[:, :, :, None, None, :], g, tuple(x.shape))


def global_average_pool2d(x: Any) -> Any:
    """Return the mean of every channel over the whole image: (N, H, W, C) -> (N, C). Source: Lin et al., 2013."""
    expect_rank("global_average_pool2d", "x", x, "N H W C")
    if 0 in x.shape[1:3]:
        raise ShapeError(f"global_average_pool2d: x {tuple(x.shape)} has no pixels")
    return mean(x, axis=(1, 2))
