"""Depthwise convolution on the device: launches of ``kernels/cuda/depthwise.cu``.

With one input and one output channel a group the product of matrices has one column: a kernel that reads the images
directly does the same work at the speed of memory.
"""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.launch import LIMIT, THREADS, blocks_for, launch, vector_width
from xpnet.accel.cupy.reductions import partition, sum_partials
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import VECTORS, accumulator, c_name, fits
from xpnet.ops.geometry import Geometry

Array = Any

_forward = Kernel("depthwise", "depthwise", FLOATS, VECTORS, only=fits)
_data = Kernel("depthwise", "depthwise_data", FLOATS, VECTORS, only=fits)
_kernel = Kernel("depthwise", "depthwise_kernel", FLOATS, VECTORS, only=fits)


def covers(x: Array, kernel: Array, g: Geometry, groups: int) -> bool:
    """Whether these kernels do this convolution: one channel in and out a group, indices of 32 bits."""
    C = x.shape[3]
    positions = x.shape[0] * max(g.h.out * g.w.out, g.h.size * g.w.size)
    return bool(1 < groups == C == kernel.shape[3] and positions * C < LIMIT and g.h.window * g.w.window <= 65535)


def forward(xp: Any, x: Array, kernel: Array, g: Geometry) -> Array:
    """The convolution of x (N, H, W, C) with a kernel (KH, KW, 1, C): (N, OH, OW, C)."""
    h, w = g
    N, C = x.shape[0], x.shape[3]
    y = xp.empty((N, h.out, w.out, C), dtype=x.dtype)
    V = vector_width(C, x, kernel, y)
    vectors = y.size // V
    launch(
        _forward[c_name(x), V], blocks_for(vectors), THREADS, x, kernel, y, vectors, h.size, w.size, C, h.window, w.window,
        h.stride, w.stride, h.dilation, w.dilation, h.before, w.before, C // V, w.out, h.out,
    )  # fmt: skip
    return y


def data_gradient(xp: Any, dy: Array, kernel: Array, g: Geometry) -> Array:
    """The gradient of x (N, H, W, C), from dy (N, OH, OW, C)."""
    h, w = g
    N, C = dy.shape[0], dy.shape[3]
    dx = xp.empty((N, h.size, w.size, C), dtype=dy.dtype)
    V = vector_width(C, dy, kernel, dx)
    vectors = dx.size // V
    launch(
        _data[c_name(dy), V], blocks_for(vectors), THREADS, dy, kernel, dx, vectors, C, h.window, w.window, h.out, w.out,
        h.dilation, w.dilation, h.before, w.before, C // V, w.size, h.size, h.stride, w.stride,
    )  # fmt: skip
    return dx


def kernel_gradient(xp: Any, x: Array, dy: Array, g: Geometry) -> Array:
    """The gradient of the kernel (KH, KW, 1, C), in the type that kernels compute in."""
    h, w = g
    C = x.shape[3]
    shape = (h.window, w.window, 1, C)
    rows = dy.shape[0] * h.out * w.out
    wide = accumulator(xp, x)
    if rows == 0:
        return xp.zeros(shape, dtype=wide)
    V = vector_width(C, x, dy)
    parts = partition(rows, C // V)
    elements = h.window * w.window
    partial = xp.empty((parts.count, elements * C), dtype=wide)
    launch(
        _kernel[c_name(x), V], (parts.grid[0], parts.grid[1], elements), parts.block, x, dy, partial, rows, parts.part_rows,
        h.size, w.size, C, h.stride, w.stride, h.dilation, w.dilation, h.before, w.before, w.window, w.out, h.out,
    )  # fmt: skip
    return xp.reshape(sum_partials(xp, partial), shape)
