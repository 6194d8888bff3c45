"""Depthwise convolution on the device: ``kernels/cuda/depthwise.cu``.

With one input and one output channel a group a GEMM would have a single column: these kernels read the images directly and are
bound by memory bandwidth.
"""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.launch import INT32_LIMIT, THREADS, counters, grid_size, launch, vector_width
from xpnet.accel.cupy.reductions import partition
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import VECTORS, c_name, sum_buffer, valid_vector
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


def wgrad(xp: Any, x: Array, dy: Array, g: Geometry, into: Array | None = None) -> Array:
    """Compute the gradient of the kernel (KH, KW, 1, C), in the accumulator dtype, or in `into`, see `sum_buffer`.

    There is one block for each multiprocessor, which reads memory fast enough, as each of its threads has ten loads or more
    under way. Tiles of columns are no wider than a line of 128 bytes, so that many last blocks have little to add: for 3x3
    windows and 32 channels one of them 132 parts of 1.2 KB, in less than 3 us, for 128 channels four of them 33 parts each.
    """
    h, w = g
    C, elements = x.shape[3], h.window * w.window
    rows = dy.shape[0] * h.out * w.out
    sums = sum_buffer(xp, (h.window, w.window, 1, C), x, into)
    if rows == 0:
        sums[...] = 0
        return sums
    V = vector_width(C, x, dy)
    split = partition(rows, C // V, waves=1, widest=8 if V > 1 else 32)
    tiles, parts, groups = split.grid[0], split.parts, -(-elements // (9 if V == 8 else 13))
    partial = xp.empty((parts, elements, C), dtype=sums.dtype)
    launch(
        _wgrad[c_name(x), V], (tiles, parts, groups), split.block, x, dy, partial, sums, counters(tiles * groups), rows,
        split.part_rows, h.size, w.size, C, h.window, w.window, h.stride, w.stride, h.dilation, w.dilation, h.before, w.before,
        w.out, h.out,
    )  # fmt: skip
    return sums
