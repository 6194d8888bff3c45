"""Convolution as an implicit GEMM: launches of ``kernels/cuda/implicit_gemm.cu``.

The columns of the images are made tile by tile in shared memory and never written to global memory. There are two kernels:
one for tensor cores (16-bit floats, and float32 where TF32 is allowed; compute capability 8.0 and later; channels of a group
in multiples of 16 bytes) and one that runs every dtype and shape everywhere. Groups are a dimension of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from xpnet.accel.cupy.activation import NUMBERS
from xpnet.accel.cupy.launch import LIMIT, address, launch, runtime
from xpnet.accel.cupy.reductions import sum_partials
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import WIDTHS, accumulator, c_name
from xpnet.ops.geometry import Axis, Geometry
from xpnet.runtime.precision import get_matmul_precision

Array = Any

_BLOCK = 256
# Few instances, because compiling one takes seconds: vectors only where speed counts.
_plain = Kernel(
    "implicit_gemm",
    "implicit_gemm",
    FLOATS,
    (1, 4),
    (False, True),
    only=lambda kind, V, _: kind == "float" or V == 1,
)


def _has_room(kind: str, BM: int, BN: int, weights: bool) -> bool:
    """The tiles that there are; TF32 in the widest has too few registers, except for the kernel's gradient."""
    return (BM, BN) in _TILES and (kind != "float" or BN < 128 or weights)


_TILES = ((128, 32), (64, 64), (128, 64), (128, 128))
_mma = Kernel(
    "implicit_gemm",
    "implicit_gemm_mma",
    ("float", "float16", "bfloat16"),
    (64, 128),
    (32, 64, 128),
    (False, True),
    only=_has_room,
)

_PARTIAL_BYTES = 64 << 20  # at most, of the sums that a split gradient of the kernel writes


def covers(x: Array, kernel: Array, g: Geometry, groups: int) -> bool:
    """Whether the kernels here can do all three passes of this convolution: where indices fit 32 bits.

    Args:
        x: (N, H, W, C).
        kernel: (KH, KW, C/groups, O).
        g: its geometry.
        groups: they share the channels evenly.
    """
    N, H, W, C = x.shape
    KH, KW, _, O = kernel.shape
    largest = max(N * g.h.out * g.w.out, N * H * W, KH * KW * max(C, O), H * W * C, g.h.out * g.w.out * O)
    return 0 not in (C, O) and groups <= 65535 and largest + 4 * _BLOCK < LIMIT and max(g.h.padded, g.w.padded) < 1 << 28


def _on_tensor_cores(x: Array, C: int, O: int) -> bool:
    """Whether channels come in and go out (of each group) in runs that the tensor cores' kernel takes, and there are any."""
    kind = c_name(x)
    if runtime().architecture < 80 or kind == "double" or (kind == "float" and get_matmul_precision() != "tf32"):
        return False
    return C % WIDTHS[kind] == 0 and O % WIDTHS[kind] == 0


def forward(
    xp: Any,
    x: Array,
    kernel: Array,
    bias: Array | None,
    activation: str | None,
    g: Geometry,
    groups: int = 1,
) -> Array:
    """activation(conv2d(x, kernel) + bias), where `covers` says so.

    Args:
        xp: the namespace of the arrays.
        x: (N, H, W, C), C-contiguous.
        kernel: (KH, KW, C/groups, O), C-contiguous.
        bias: (O,) or None.
        activation: one of NUMBERS.
        g: the geometry.
        groups: the number of groups.

    Returns:
        (N, OH, OW, O).
    """
    y = xp.empty((x.shape[0], g.h.out, g.w.out, kernel.shape[3]), dtype=x.dtype)
    _product(_aligned(x), _aligned(kernel), bias, y, None, activation, [_convolved(a) for a in g], groups)
    return y


def data_gradient(xp: Any, dz: Array, kernel: Array, g: Geometry, groups: int = 1) -> Array:
    """The gradient of the images: every pixel gathers the positions whose windows saw it, tap by tap.

    Pixels that lie a stride apart are seen by the same taps, and those by no others: one product for each such lattice.

    Args:
        xp: the namespace of the arrays.
        dz: (N, OH, OW, O), the gradient before the activation, C-contiguous.
        kernel: (KH, KW, C/groups, O).
        g: the geometry of the forward pass.
        groups: the number of groups.

    Returns:
        (N, H, W, C).
    """
    KH, KW, Cg, O = kernel.shape
    vertical, horizontal = (list(_lattices(a)) for a in g)
    seen = all(line is not None for line in (*vertical, *horizontal))
    dx = (xp.empty if seen else xp.zeros)((dz.shape[0], g.h.size, g.w.size, groups * Cg), dtype=dz.dtype)
    by_group = xp.reshape(kernel, (KH, KW, Cg, groups, O // groups))
    dz = _aligned(dz)
    for h in vertical:
        for w in horizontal:
            if h is None or w is None:
                continue  # no window sees these pixels
            taps = xp.swapaxes(by_group[h.tap :: h.tap_step, w.tap :: w.tap_step], 2, 4)
            turned = xp.reshape(xp.ascontiguousarray(taps), (h.window, w.window, O // groups, groups * Cg))
            _product(dz, _aligned(turned), None, dx, None, None, [h, w], groups)
    return dx


class _Line(NamedTuple):
    """What a product reads and writes along one axis; scale, offset and step as ``kernels/cuda/gather.cuh`` defines them."""

    window: int
    scale: int
    offset: int
    step: int
    positions: int
    first: int = 0  # where the first of them is written,
    every: int = 1  # and how far apart they are
    tap: int = 0  # the kernel's first tap that is used,
    tap_step: int = 1  # and how far apart they are


def _convolved(a: Axis) -> _Line:
    """An axis of a convolution."""
    return _Line(a.window, a.stride, -a.before, a.dilation, a.out)


def _lattices(a: Axis) -> Iterator[_Line | None]:
    """An axis of the gradient of the images: for every remainder of a pixel by the stride what it gathers, None if nothing.

    Tap k sees pixel p at position (p + before - k * dilation) / stride, where that is a whole number.
    """
    apart = a.stride // math.gcd(a.stride, a.dilation)
    for first in range(min(a.stride, a.size)):
        taps = [k for k in range(min(apart, a.window)) if (first + a.before - k * a.dilation) % a.stride == 0]
        if not taps:
            yield None
            continue
        offset = (first + a.before - taps[0] * a.dilation) // a.stride
        window, positions = -(-(a.window - taps[0]) // apart), -(-(a.size - first) // a.stride)
        yield _Line(window, 1, offset, -(apart * a.dilation // a.stride), positions, first, a.stride, taps[0], apart)


def kernel_gradient(xp: Any, x: Array, dz: Array, g: Geometry, groups: int = 1) -> Array:
    """The gradient of the kernel, as a matrix.

    Args:
        xp: the namespace of the arrays.
        x: (N, H, W, C), C-contiguous.
        dz: (N, OH, OW, O), C-contiguous.
        g: the geometry of the forward pass.
        groups: the number of groups.

    Returns:
        (KH*KW*C/groups, O), float32 for 16-bit arrays.
    """
    inner, O = g.h.window * g.w.window * (x.shape[3] // groups), dz.shape[3]
    dtype = accumulator(xp, x)
    positions = x.shape[0] * g.h.out * g.w.out
    if positions == 0:
        return xp.zeros((inner, O), dtype=dtype)
    splits, span = _split(positions, inner, O, _tile(x, inner, O, groups, True), groups, x.dtype)
    partial = xp.empty((splits, inner * O), dtype=dtype)
    _product(_aligned(x), _aligned(dz), None, None, partial, None, [_convolved(a) for a in g], groups, span)
    total = partial[0] if splits == 1 else sum_partials(xp, partial)
    return xp.reshape(total, (inner, O))


def _aligned(a: Array) -> Array:
    """The array itself where its address is a multiple of 16 bytes; a copy of a view that begins elsewhere."""
    return a if address(a) % 16 == 0 else a.copy()


class _Tile(NamedTuple):
    """What a block makes."""

    rows: int
    columns: int
    on_tensor_cores: bool


def _tile(x: Array, rows: int, outer: int, groups: int, weights: bool) -> _Tile:
    """The largest tile that keeps every multiprocessor busy and is not mostly empty; for (rows, outer) of all groups."""
    kind = c_name(x)
    O = outer // groups
    if not _on_tensor_cores(x, x.shape[3] // groups, O):
        return _Tile(64 if kind == "double" else 128, 64, False)
    if O <= 32:
        return _Tile(128, 32, True)
    if weights:  # the sums are split until every multiprocessor is busy
        wide = O > 64
        return _Tile(128 if wide or -rows % 128 < 64 else 64, 128 if wide else 64, True)

    def busy(BM: int, BN: int) -> bool:
        return groups * -(-rows // BM) * -(-O // BN) >= runtime().multiprocessors

    if O > 64 and _has_room(kind, 128, 128, False) and busy(128, 128):
        return _Tile(128, 128, True)
    return _Tile(128 if busy(128, 64) else 64, 64, True)


def _split(positions: int, inner: int, outer: int, tile: _Tile, groups: int, dtype: Any) -> tuple[int, int]:
    """How many runs the positions are cut into, and how long each is: enough to fill the device twice, none of them short."""
    tiles = groups * -(-inner // tile.rows) * -(-(outer // groups) // tile.columns)
    wanted = max(2 * runtime().multiprocessors // tiles, 1)
    room = max(_PARTIAL_BYTES // (inner * outer * max(dtype.itemsize, 4)), 1)
    deepest = -(-positions // 256)
    splits = min(wanted, room, deepest, 65535)
    span = -(-positions // (splits * 32)) * 32
    return -(-positions // span), span


def _product(
    x: Array,
    b: Array,
    bias: Array | None,
    y: Array | None,
    partial: Array | None,
    activation: str | None,
    lines: list[_Line],
    groups: int,
    span: int = 0,
) -> None:
    """Launch: y = activation(columns of x @ b + bias), or partial sums of the transposed columns of x @ b, by groups."""
    N, H, W, pixel = x.shape
    pitch = b.shape[-1]
    C, O = pixel // groups, pitch // groups
    h, w = lines
    positions, inner = N * h.positions * w.positions, h.window * w.window * C
    weights = y is None
    kind = c_name(x)
    rows = inner if weights else positions
    y_image, y_row = (0, 0) if y is None else (y.shape[1] * y.shape[2] * pitch, y.shape[2] * pitch)
    places = (h.first * y_row + w.first * pitch, y_image, h.every * y_row, w.every * pitch)
    gather = (
        H, W, pixel, h.scale, w.scale, h.offset, w.offset, h.step, w.step, C, w.window, w.positions, h.positions,
    )  # fmt: skip
    BM, BN, on_tensor_cores = _tile(x, rows, pitch, groups, weights)
    if on_tensor_cores:
        kernel = _mma[kind, BM, BN, weights]
    else:
        aligned = bias is None or address(bias) % 16 == 0
        V = 4 if kind == "float" and aligned and C % 4 == 0 and O % 4 == 0 else 1
        kernel = _plain[kind, V, weights]
    grid = (-(-rows // BM) * -(-O // BN), groups, 1 if partial is None else partial.shape[0])
    launch(
        kernel, grid, _BLOCK, x, b, bias, y, partial, positions, inner, O, pitch, span, NUMBERS[activation], *places, *gather
    )  # fmt: skip
