"""Max and average pooling on the device: ``kernels/cuda/pooling.cu``."""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.launch import INT32_LIMIT, THREADS, counters, grid_size, launch, vector_width
from xpnet.accel.cupy.reductions import partition
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import VECTORS, as_gradient, c_name, contiguous, sum_buffer, supported, valid_vector
from xpnet.ops import pooling
from xpnet.ops.geometry import Geometry, windows

Array = Any

_WINDOWS = (0, 2, 3)


def _listed(kind: str, width: int, kh: int, kw: int, switches: bool) -> bool:
    return valid_vector(kind, width) and kh == kw


_max_pool = Kernel("pooling", "max_pool", FLOATS, VECTORS, _WINDOWS, _WINDOWS, (False, True), only=_listed)
_max_pool_backward = Kernel("pooling", "max_pool_backward", FLOATS, VECTORS, only=valid_vector)
_average_pool = Kernel("pooling", "average_pool", FLOATS, VECTORS, (False, True), only=valid_vector)
_average_pool_backward = Kernel("pooling", "average_pool_backward", FLOATS, VECTORS, (False, True), only=valid_vector)


def too_large(*arrays: Array) -> bool:
    """Return whether the batch must be split, as 32-bit indices are too short for it."""
    return bool(max(a.size for a in arrays) >= INT32_LIMIT and arrays[0].shape[0] > 1)


def max_pool(
    xp: Any, x: Array, geometry: Geometry, switches: bool, out: tuple[Array, Array | None] | None = None
) -> tuple[Array, Array | None]:
    """Compute the maximum of each window of x (N, H, W, C), C-contiguous.

    Returns:
        y (N, OH, OW, C), and with `switches` (for windows of at most 256 pixels) the argmax mask: the offset kh * KW + kw of
        each maximum in its window as uint8; else None. `out`: the buffers of both.
    """
    h, w = geometry
    N, C = x.shape[0], x.shape[-1]
    if out is None:
        shape = (N, h.out, w.out, C)
        out = xp.empty(shape, dtype=x.dtype), xp.empty(shape, dtype=xp.uint8) if switches else None
    y, s = out
    if too_large(x, y):
        half = N // 2
        max_pool(xp, x[:half], geometry, switches, (y[:half], None if s is None else s[:half]))
        max_pool(xp, x[half:], geometry, switches, (y[half:], None if s is None else s[half:]))
        return out
    V = vector_width(C, x, y) if s is None else vector_width(C, x, y, s)
    size = (h.window, w.window) if h.window == w.window and h.window in _WINDOWS else (0, 0)
    vectors = y.size // V
    launch(
        _max_pool[c_name(x), V, *size, switches], grid_size(vectors), THREADS, x, y, s, vectors, h.size,
        w.size, C, h.window, w.window, h.stride, w.stride, h.before, w.before, C // V, w.out, h.out,
    )  # fmt: skip
    return out


def max_pool_backward(xp: Any, dy: Array, switches: Array, geometry: Geometry, out: Array | None = None) -> Array:
    """Compute the gradient of max pooling: each pixel gathers dy of the windows whose switch points to it.

    dy and switches (uint8) are (N, OH, OW, C), C-contiguous; the result (N, H, W, C) is written to `out` if given.
    """
    h, w = geometry
    N, C = dy.shape[0], dy.shape[-1]
    dx = xp.empty((N, h.size, w.size, C), dtype=dy.dtype) if out is None else out
    if too_large(dx, dy):
        half = N // 2
        max_pool_backward(xp, dy[:half], switches[:half], geometry, dx[:half])
        max_pool_backward(xp, dy[half:], switches[half:], geometry, dx[half:])
        return dx
    _launch_backward(xp, dy, switches, None, dx, geometry)
    return dx


def relu_max_pool_backward(
    xp: Any, dy: Array, switches: Array, y: Array | None, geometry: Geometry, need_bias: bool, into: Array | None
) -> tuple[Array, Array | None]:
    """Compute the gradient of max pooling, and of a bias and a relu in front of it.

    Args:
        y: the output of the pooling; None without a relu.
        into: a buffer for the gradient of the bias, see `sum_buffer`.

    Returns:
        dz (N, H, W, C), the gradient before the relu; and that of the bias (C,) or None.
    """
    N, C = dy.shape[0], dy.shape[-1]
    dz = xp.empty((N, geometry.h.size, geometry.w.size, C), dtype=dy.dtype)
    dbias = sum_buffer(xp, (C,), dy, into) if need_bias else None
    if dbias is not None and dz.size == 0:
        dbias[...] = 0
    _launch_backward(xp, dy, switches, y, dz, geometry, dbias)
    return dz, None if dbias is None else as_gradient(dbias, dy, into)


def _launch_backward(
    xp: Any, dy: Array, switches: Array, y: Array | None, dx: Array, geometry: Geometry, dbias: Array | None = None
) -> None:
    if dx.size == 0:
        return
    h, w = geometry
    C = dx.shape[-1]
    rows = dx.size // C
    V = vector_width(C, dy, dx, switches) if y is None else vector_width(C, dy, dx, switches, y)
    split = partition(rows, C // V, waves=16 if dbias is None else 8)
    partial = counting = None
    if dbias is not None:
        partial, counting = xp.empty((split.parts, C), dtype=dbias.dtype), counters(split.grid[0])
    launch(
        _max_pool_backward[c_name(dy), V], split.grid, split.block, dy, switches, y, dx, partial, dbias, counting, rows,
        split.part_rows, C, h.window, w.window, h.out, w.out, h.stride, w.stride, h.before, w.before, w.size, h.size,
        h.stride, w.stride,
    )  # fmt: skip


def average_pool(xp: Any, x: Array, geometry: Geometry, count_include_pad: bool, out: Array | None = None) -> Array:
    """Compute the mean of each window of x (N, H, W, C), C-contiguous: (N, OH, OW, C), written to `out` if given.

    With `count_include_pad` the divisor is KH*KW everywhere, else the number of pixels inside the image.
    """
    h, w = geometry
    N, C = x.shape[0], x.shape[-1]
    y = xp.empty((N, h.out, w.out, C), dtype=x.dtype) if out is None else out
    if too_large(x, y):
        half = N // 2
        average_pool(xp, x[:half], geometry, count_include_pad, y[:half])
        average_pool(xp, x[half:], geometry, count_include_pad, y[half:])
        return y
    V = vector_width(C, x, y)
    vectors = y.size // V
    launch(
        _average_pool[c_name(x), V, count_include_pad], grid_size(vectors), THREADS, x, y, vectors, h.size,
        w.size, C, h.window, w.window, h.stride, w.stride, h.before, w.before, C // V, w.out, h.out,
    )  # fmt: skip
    return y


def average_pool_backward(xp: Any, dy: Array, geometry: Geometry, count_include_pad: bool, out: Array | None = None) -> Array:
    """Compute the gradient of average pooling: (N, OH, OW, C) -> (N, H, W, C). Arguments as in `average_pool`."""
    h, w = geometry
    N, C = dy.shape[0], dy.shape[-1]
    dx = xp.empty((N, h.size, w.size, C), dtype=dy.dtype) if out is None else out
    if too_large(dx, dy):
        half = N // 2
        average_pool_backward(xp, dy[:half], geometry, count_include_pad, dx[:half])
        average_pool_backward(xp, dy[half:], geometry, count_include_pad, dx[half:])
        return dx
    V = vector_width(C, dy, dx)
    vectors = dx.size // V
    launch(
        _average_pool_backward[c_name(dy), V, count_include_pad], grid_size(vectors), THREADS, dy, dx,
        vectors, h.size, w.size, C, h.window, w.window, h.out, w.out, h.stride, w.stride, h.before, w.before, C // V,
        w.size, h.size, h.stride, w.stride,
    )  # fmt: skip
    return dx


MAX_WINDOW = 256
"""The most pixels of a window, so that offsets fit a byte."""


@pooling.max_pool2d.accelerate("cupy")
def _max_pool2d(xp: Any, x: Array, *, window: Any, stride: Any, padding: Any, save: bool) -> Any:
    g = pooling.pool_geometry("max_pool2d", x, window, stride, padding)
    if not supported(x) or g.h.window * g.w.window > MAX_WINDOW:
        return NotImplemented
    y, switches = max_pool(xp, contiguous(xp, x), g, save)
    return y, (tuple(x.shape), switches) if save else None


@_max_pool2d.backward
def _(xp: Any, dy: Array, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    shape, switches = saved
    g = windows(shape, window, window if stride is None else stride, padding)
    return max_pool_backward(xp, contiguous(xp, dy), switches, g)


@pooling.max_pool2d_with_switches.accelerate("cupy")
def _max_pool2d_with_switches(xp: Any, x: Array, *, window: Any, stride: Any, padding: Any) -> Any:
    g = pooling.pool_geometry("max_pool2d", x, window, stride, padding)
    if not supported(x) or g.h.window * g.w.window > MAX_WINDOW:
        return NotImplemented
    y, switches = max_pool(xp, contiguous(xp, x), g, True)
    return (y, switches), (tuple(x.shape), switches)


@_max_pool2d_with_switches.backward
def _(xp: Any, dys: Any, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    shape, switches = saved
    g = windows(shape, window, window if stride is None else stride, padding)
    return max_pool_backward(xp, contiguous(xp, dys[0]), contiguous(xp, switches), g)


@pooling.average_pool2d.accelerate("cupy")
def _average_pool2d(xp: Any, x: Array, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = pooling.pool_geometry("average_pool2d", x, window, stride, padding)
    if not supported(x):
        return NotImplemented
    return average_pool(xp, contiguous(xp, x), g, count_include_pad), tuple(x.shape)


@_average_pool2d.backward
def _(xp: Any, dy: Array, shape: Any, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = windows(shape, window, window if stride is None else stride, padding)
    return average_pool_backward(xp, contiguous(xp, dy), g, count_include_pad)
