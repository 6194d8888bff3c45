"""Convolution as an implicit GEMM: ``kernels/cuda/implicit_gemm.cu``.

Tiles of the im2col matrix are built in shared memory and never written to global memory. There are two kernels: one for tensor
cores (16-bit floats, and float32 if TF32 is allowed; compute capability 8.0 and later; channels of a group in multiples of 16
bytes) and one without (SIMT) for every dtype, shape and architecture. Groups are a dimension of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from xpnet.accel.cupy.activation import ACTIVATION_IDS
from xpnet.accel.cupy.launch import INT32_LIMIT, address, aligned, launch, runtime
from xpnet.accel.cupy.reductions import sum_partials
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import WIDTHS, accumulator, c_name
from xpnet.ops.geometry import Axis, Geometry
from xpnet.runtime.precision import get_matmul_precision

Array = Any

_BLOCK = 256
# Few instances, because each takes seconds to compile: vectorised loads for float32 only.
_simt = Kernel(
    "implicit_gemm", "implicit_gemm", FLOATS, (1, 4), (False, True), only=lambda kind, V, _: kind == "float" or V == 1
)


def _is_tile(kind: str, BM: int, BN: int, for_wgrad: bool) -> bool:
    """Return whether there is a tile of BM by BN; TF32 at 128 by 128 spills registers, except in wgrad."""
    return (BM, BN) in _TILES and (kind != "float" or BN < 128 or for_wgrad)


_TILES = ((128, 32), (64, 64), (128, 64), (128, 128))
_mma = Kernel(
    "implicit_gemm",
    "implicit_gemm_mma",
    ("float", "float16", "bfloat16"),
    (64, 128),
    (32, 64, 128),
    (False, True),
    only=_is_tile,
)

_PARTIAL_BYTES = 64 << 20  # the most that the partial sums of split-K may take


def covers(x: Array, kernel: Array, g: Geometry, groups: int) -> bool:
    """Return whether these kernels can compute all three passes of a convolution: indices must fit 32 bits."""
    N, H, W, C = x.shape
    KH, KW, _, O = kernel.shape
    largest = max(N * g.h.out * g.w.out, N * H * W, KH * KW * max(C, O), H * W * C, g.h.out * g.w.out * O)
    return 0 not in (C, O) and groups <= 65535 and largest + 4 * _BLOCK < INT32_LIMIT and max(g.h.padded, g.w.padded) < 1 << 28


def _uses_tensor_cores(x: Array, C: int, O: int) -> bool:
    """Return whether the device has tensor cores for this dtype, and C and O of a group are multiples of 16 bytes."""
    kind = c_name(x)
    if runtime().architecture < 80 or kind == "double" or (kind == "float" and get_matmul_precision() != "tf32"):
        return False
    return C % WIDTHS[kind] == 0 and O % WIDTHS[kind] == 0


def fprop(xp: Any, x: Array, kernel: Array, bias: Array | None, activation: str | None, g: Geometry, groups: int = 1) -> Array:
    """Compute activation(conv2d(x, kernel) + bias), where `covers` says so.

    Args:
        x: (N, H, W, C), C-contiguous.
        kernel: (KH, KW, C/groups, O), C-contiguous.
        bias: (O,) or None.
        activation: one of ACTIVATION_IDS.

    Returns:
        (N, OH, OW, O).
    """
    y = xp.empty((x.shape[0], g.h.out, g.w.out, kernel.shape[3]), dtype=x.dtype)
    _launch_gemm(aligned(x), aligned(kernel), bias, y, None, activation, [_fprop_axis(a) for a in g], groups)
    return y


def dgrad(xp: Any, dz: Array, kernel: Array, g: Geometry, groups: int = 1) -> Array:
    """Compute the gradient of x: every pixel gathers dz from the windows that cover it.

    Pixels that are equal modulo the stride are covered by the same taps (strided dgrad): one GEMM for each such class.
    Positions beyond dz are multiplied as zeros: where the kernel holds an infinity or NaN, so do the pixels at the border.

    Args:
        dz: (N, OH, OW, O), the gradient before the activation, C-contiguous.
        kernel: (KH, KW, C/groups, O).

    Returns:
        (N, H, W, C).
    """
    KH, KW, Cg, O = kernel.shape
    vertical, horizontal = (list(_dgrad_axes(a)) for a in g)
    covered = all(axis is not None for axis in (*vertical, *horizontal))
    dx = (xp.empty if covered else xp.zeros)((dz.shape[0], g.h.size, g.w.size, groups * Cg), dtype=dz.dtype)
    by_group = xp.reshape(kernel, (KH, KW, Cg, groups, O // groups))
    dz = aligned(dz)
    for h in vertical:
        for w in horizontal:
            if h is None or w is None:
                continue  # no window covers these pixels
            taps = xp.swapaxes(by_group[h.tap :: h.tap_step, w.tap :: w.tap_step], 2, 4)
            transposed = xp.reshape(xp.ascontiguousarray(taps), (h.window, w.window, O // groups, groups * Cg))
            _launch_gemm(dz, aligned(transposed), None, dx, None, None, [h, w], groups)
    return dx


class _AxisMap(NamedTuple):
    """One axis of an implicit im2col matrix; scale, offset and step as in ``kernels/cuda/implicit_im2col.cuh``."""

    window: int
    scale: int
    offset: int
    step: int
    positions: int
    first: int = 0  # the first output index
    every: int = 1  # the stride of output indices
    tap: int = 0  # the first tap of the kernel
    tap_step: int = 1  # the stride of taps


def _fprop_axis(a: Axis) -> _AxisMap:
    """Return the map of an axis for fprop and wgrad."""
    return _AxisMap(a.window, a.stride, -a.before, a.dilation, a.out)


def _dgrad_axes(a: Axis) -> Iterator[_AxisMap | None]:
    """Yield the maps of an axis for dgrad, one for each class of pixels modulo the stride; None if no tap reaches it.

    Tap k reaches pixel p from position (p + before - k * dilation) / stride, where that is an integer.
    """
    apart = a.stride // math.gcd(a.stride, a.dilation)
    for first in range(min(a.stride, a.size)):
        taps = [k for k in range(min(apart, a.window)) if (first + a.before - k * a.dilation) % a.stride == 0]
        if not taps:
            yield None
            continue
        offset = (first + a.before - taps[0] * a.dilation) // a.stride
        window, positions = -(-(a.window - taps[0]) // apart), -(-(a.size - first) // a.stride)
        yield _AxisMap(window, 1, offset, -(apart * a.dilation // a.stride), positions, first, a.stride, taps[0], apart)


def wgrad(xp: Any, x: Array, dz: Array, g: Geometry, groups: int = 1) -> Array:
    """Compute the gradient of the kernel, as a matrix, with split-K over the positions.

    Args:
        x: (N, H, W, C), C-contiguous.
        dz: (N, OH, OW, O), C-contiguous.

    Returns:
        (KH*KW*C/groups, O), float32 for 16-bit arrays.
    """
    inner, O = g.h.window * g.w.window * (x.shape[3] // groups), dz.shape[3]
    dtype = accumulator(xp, x)
    positions = x.shape[0] * g.h.out * g.w.out
    if positions == 0:
        return xp.zeros((inner, O), dtype=dtype)
    splits, split_size = _split_k(positions, inner, O, _choose_tile(x, inner, O, groups, True), groups, x.dtype)
    partial = xp.empty((splits, inner * O), dtype=dtype)
    _launch_gemm(aligned(x), aligned(dz), None, None, partial, None, [_fprop_axis(a) for a in g], groups, split_size)
    total = partial[0] if splits == 1 else sum_partials(xp, partial)
    return xp.reshape(total, (inner, O))


class _Tile(NamedTuple):
    """The output tile of a block."""

    rows: int
    columns: int
    tensor_cores: bool


def _choose_tile(x: Array, rows: int, outer: int, groups: int, for_wgrad: bool) -> _Tile:
    """Return the largest tile that occupies every multiprocessor and is not mostly empty, for a GEMM of (rows, outer)."""
    kind = c_name(x)
    O = outer // groups
    if not _uses_tensor_cores(x, x.shape[3] // groups, O):
        return _Tile(64 if kind == "double" else 128, 64, False)
    if O <= 32:
        return _Tile(128, 32, True)
    if for_wgrad:  # split-K occupies every multiprocessor
        wide = O > 64
        return _Tile(128 if wide or -rows % 128 < 64 else 64, 128 if wide else 64, True)

    def busy(BM: int, BN: int) -> bool:
        return groups * -(-rows // BM) * -(-O // BN) >= runtime().multiprocessors

    if O > 64 and _is_tile(kind, 128, 128, False) and busy(128, 128):
        return _Tile(128, 128, True)
    return _Tile(128 if busy(128, 64) else 64, 64, True)


def _split_k(positions: int, inner: int, outer: int, tile: _Tile, groups: int, dtype: Any) -> tuple[int, int]:
    """Return the number of splits of the positions and their size: enough to fill the device twice, at least 256 each."""
    tiles = groups * -(-inner // tile.rows) * -(-(outer // groups) // tile.columns)
    wanted = max(2 * runtime().multiprocessors // tiles, 1)
    affordable = max(_PARTIAL_BYTES // (inner * outer * max(dtype.itemsize, 4)), 1)
    longest = -(-positions // 256)
    splits = min(wanted, affordable, longest, 65535)
    split_size = -(-positions // (splits * 32)) * 32
    return -(-positions // split_size), split_size


def _launch_gemm(
    x: Array,
    b: Array,
    bias: Array | None,
    y: Array | None,
    partial: Array | None,
    activation: str | None,
    axes: list[_AxisMap],
    groups: int,
    split_size: int = 0,
) -> None:
    """Launch y = activation(im2col(x) @ b + bias), or without y partial = im2col(x).T @ b in splits, group by group."""
    N, H, W, pixel = x.shape
    pitch = b.shape[-1]
    C, O = pixel // groups, pitch // groups
    h, w = axes
    positions, inner = N * h.positions * w.positions, h.window * w.window * C
    for_wgrad = y is None
    kind = c_name(x)
    rows = inner if for_wgrad else positions
    y_image, y_row = (0, 0) if y is None else (y.shape[1] * y.shape[2] * pitch, y.shape[2] * pitch)
    offsets = (h.first * y_row + w.first * pitch, y_image, h.every * y_row, w.every * pitch)
    im2col = (H, W, pixel, h.scale, w.scale, h.offset, w.offset, h.step, w.step, C, w.window, w.positions, h.positions)
    BM, BN, tensor_cores = _choose_tile(x, rows, pitch, groups, for_wgrad)
    if tensor_cores:
        kernel = _mma[kind, BM, BN, for_wgrad]
    else:
        bias_fits = bias is None or address(bias) % 16 == 0
        V = 4 if kind == "float" and bias_fits and C % 4 == 0 and O % 4 == 0 else 1
        kernel = _simt[kind, V, for_wgrad]
    grid = (-(-rows // BM) * -(-O // BN), groups, 1 if partial is None else partial.shape[0])
    launch(
        kernel, grid, _BLOCK, x, b, bias, y, partial, positions, inner, O, pitch, split_size, ACTIVATION_IDS[activation],
        *offsets, *im2col,
    )  # fmt: skip
