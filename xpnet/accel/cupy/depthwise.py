"""Depthwise convolution on the device: ``kernels/cuda/depthwise.cu``.

With one input and one output channel a group a GEMM would have a single column: these kernels read the images directly and are
bound by memory bandwidth.
"""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.launch import INT32_LIMIT, THREADS, grid_size, launch, vector_width
from xpnet.accel.cupy.reductions import partition, sum_partials
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import VECTORS, accumulator, c_name, valid_vector
from xpnet.ops.geometry import Geometry

Array = Any

_fprop = Kernel("depthwise", "depthwise_fprop", FLOATS, VECTORS, only=valid_vector)
_dgrad = Kernel("depthwise", "depthwise_dgrad", FLOATS, VECTORS, only=valid_vector)
_wgrad = Kernel("depthwise", "depthwise_wgrad", FLOATS, VECTORS, only=valid_vector)


def covers(x: Array, kernel: Array, g: Geometry, groups: int) -> bool:
    """Return whether these kernels can compute a convolution: one channel in and out a group, 32-bit indices."""
    C = x.shape[3]
    positions = x.shape[0] * max(g.h.out * g.w.out, g.h.size * g.w.size)
    return bool(1 < groups == C == kernel.shape[3] and positions * C < INT32_LIMIT and g.h.window * g.w.window <= 65535)


def fprop(xp: Any, x: Array, kernel: Array, g: Geometry) -> Array:
    """Convolve x (N, H, W, C) with a kernel (KH, KW, 1, C): (N, OH, OW, C)."""
    h, w = g
    N, C = x.shape[0], x.shape[3]
    y = xp.empty((N, h.out, w.out, C), dtype=x.dtype)
    V = vector_width(C, x, kernel, y)
    vectors = y.size // V
    launch(
        _fprop[c_name(x), V], grid_size(vectors), THREADS, x, kernel, y, vectors, h.size, w.size, C, h.window, w.window,
        h.stride, w.stride, h.dilation, w.dilation, h.before, w.before, C // V, w.out, h.out,
    )  # fmt: skip
    return y


def dgrad(xp: Any, dy: Array, kernel: Array, g: Geometry) -> Array:
    """Compute the gradient of x (N, H, W, C) from dy (N, OH, OW, C)."""
    h, w = g
    N, C = dy.shape[0], dy.shape[3]
    dx = xp.empty((N, h.size, w.size, C), dtype=dy.dtype)
    V = vector_width(C, dy, kernel, dx)
    vectors = dx.size // V
    launch(
        _dgrad[c_name(dy), V], grid_size(vectors), THREADS, dy, kernel, dx, vectors, C, h.window, w.window, h.out, w.out,
        h.dilation, w.dilation, h.before, w.before, C // V, w.size, h.size, h.stride, w.stride,
    )  # fmt: skip
    return dx


def wgrad(xp: Any, x: Array, dy: Array, g: Geometry) -> Array:
    """Compute the gradient of the kernel (KH, KW, 1, C), in the accumulator dtype."""
    h, w = g
    C = x.shape[3]
    shape = (h.window, w.window, 1, C)
    rows = dy.shape[0] * h.out * w.out
    wide = accumulator(xp, x)
    if rows == 0:
        return xp.zeros(shape, dtype=wide)
    V = vector_width(C, x, dy)
    split = partition(rows, C // V)
    elements = h.window * w.window
    partial = xp.empty((split.parts, elements * C), dtype=wide)
    launch(
        _wgrad[c_name(x), V], (split.grid[0], split.grid[1], elements), split.block, x, dy, partial, rows, split.part_rows,
        h.size, w.size, C, h.stride, w.stride, h.dilation, w.dilation, h.before, w.before, w.window, w.out, h.out,
    )  # fmt: skip
    return xp.reshape(sum_partials(xp, partial), shape)
