"""Convolution as an implicit GEMM: ``kernels/cuda/implicit_gemm.cu``.

Tiles of the im2col matrix are built in shared memory and never written to global memory. There are two kernels: one for tensor
cores (16-bit floats, and float32 if TF32 is allowed; compute capability 8.0 and later; channels of a group in multiples of 16
bytes) and one without (SIMT) for every dtype, shape and architecture. Each pass is one launch: groups are a dimension of the
grid, and so are the splits of split-K, whose sums the last blocks add, or in dgrad the classes of pixels.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from xpnet.accel.cupy.activation import ACTIVATION_IDS
from xpnet.accel.cupy.launch import INT32_LIMIT, address, aligned, counters, launch, runtime
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import WIDTHS, accumulator, c_name, sum_buffer
from xpnet.ops.geometry import Geometry
from xpnet.runtime.precision import get_matmul_precision

Array = Any

PASSES = FORWARD, DATA, WEIGHTS = 0, 1, 2
"""The numbers in the CUDA source of fprop, dgrad and wgrad."""

_BLOCK = 256


def _is_simt(kind: str, V: int, BM: int, number: int) -> bool:
    """Return whether there is this instance. Few, because each takes seconds to compile: vectorised loads for float32 only, and
    low tiles for the gradients of kernels that take few inputs, as those of a first layer."""
    rows = 64 if kind == "double" else 128
    return ((V == 1 or kind == "float") and rows == BM) or (V == 1 and BM == 32 and number == WEIGHTS)


_simt = Kernel("implicit_gemm", "implicit_gemm", FLOATS, (1, 4), (32, 64, 128), PASSES, only=_is_simt)


def _is_tile(kind: str, BM: int, BN: int, number: int) -> bool:
    """Return whether there is a tile of BM by BN; TF32 at 128 by 128 spills registers, except in wgrad."""
    return (BM, BN) in _TILES and (kind != "float" or BN < 128 or number == WEIGHTS)


_TILES = ((128, 32), (64, 64), (128, 64), (128, 128))
_mma = Kernel(
    "implicit_gemm",
    "implicit_gemm_mma",
    ("float", "float16", "bfloat16"),
    (64, 128),
    (32, 64, 128),
    PASSES,
    only=_is_tile,
)


def covers(x: Array, kernel: Array, g: Geometry, groups: int) -> bool:
    """Return whether these kernels can compute all three passes of a convolution: indices must fit 32 bits, the grid 16."""
    N, H, W, C = x.shape
    KH, KW, _, O = kernel.shape
    pixels = N * (H + g.h.stride) * (W + g.w.stride)
    largest = max(N * g.h.out * g.w.out, pixels, KH * KW * max(C, O), C * O, H * W * C, g.h.out * g.w.out * O)
    fits = largest + 4 * _BLOCK < INT32_LIMIT and max(g.h.padded, g.w.padded) < 1 << 28
    return 0 not in (C, O) and fits and max(groups, _pixel_classes(g)) <= 65535


def _pixel_classes(g: Geometry) -> int:
    """Return the number of classes of pixels modulo the stride."""
    return math.prod(min(axis.stride, axis.size) for axis in g)


def uses_tensor_cores(x: Array, C: int, O: int) -> bool:
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
    _launch_gemm(xp, FORWARD, aligned(x), aligned(kernel), y, g, groups, bias, activation)
    return y


def dgrad(xp: Any, dz: Array, kernel: Array, g: Geometry, groups: int = 1) -> Array:
    """Compute the gradient of x: every pixel gathers dz from the windows that cover it.

    Pixels that are equal modulo the stride are covered by the same taps (strided dgrad): each class is a GEMM of its own.
    Positions beyond dz are multiplied as zeros: where the kernel holds an infinity or NaN, so do the pixels at the border.

    Args:
        dz: (N, OH, OW, O), the gradient before the activation, C-contiguous.
        kernel: (KH, KW, C/groups, O).

    Returns:
        (N, H, W, C).
    """
    dx = xp.empty((dz.shape[0], g.h.size, g.w.size, groups * kernel.shape[2]), dtype=dz.dtype)
    _launch_gemm(xp, DATA, aligned(dz), aligned(kernel), dx, g, groups)
    return dx


def wgrad(xp: Any, x: Array, dz: Array, g: Geometry, groups: int = 1, into: Array | None = None) -> Array:
    """Compute the gradient of the kernel, as a matrix.

    Args:
        x: (N, H, W, C), C-contiguous.
        dz: (N, OH, OW, O), C-contiguous.
        into: a buffer for the gradient, see `sum_buffer`.

    Returns:
        (KH*KW*C/groups, O), float32 for 16-bit arrays; or `into`.
    """
    sums = sum_buffer(xp, (g.h.window * g.w.window * (x.shape[3] // groups), dz.shape[3]), x, into)
    if dz.size == 0:
        sums[...] = 0
    else:
        _launch_gemm(xp, WEIGHTS, aligned(x), aligned(dz), sums, g, groups)
    return sums


class _Tile(NamedTuple):
    """The output tile of a block."""

    rows: int
    columns: int
    tensor_cores: bool


def _choose_tile(x: Array, C: int, rows: int, outer: int, gemms: int, number: int) -> _Tile:
    """Return the largest tile that occupies every multiprocessor and is not mostly empty, for GEMMs of (rows, outer)."""
    kind = c_name(x)
    if not uses_tensor_cores(x, C, outer):
        if number == WEIGHTS and rows <= 32:
            return _Tile(32, 64, False)
        return _Tile(64 if kind == "double" else 128, 64, False)
    if outer <= 32:
        return _Tile(128, 32, True)
    if number == WEIGHTS:  # split-K occupies every multiprocessor
        wide = outer > 64
        return _Tile(128 if wide or -rows % 128 < 64 else 64, 128 if wide else 64, True)

    def busy(BM: int, BN: int) -> bool:
        return gemms * -(-rows // BM) * -(-outer // BN) >= runtime().multiprocessors

    if outer > 64 and _is_tile(kind, 128, 128, number) and busy(128, 128):
        return _Tile(128, 128, True)
    return _Tile(128 if busy(128, 64) else 64, 64, True)


# Estimates for choosing the splits: the bytes that a block reads from the L2 cache in a microsecond, the products of float32
# that a multiprocessor adds in one, microseconds of a slice of the inner dimension that only waits for memory, and those until
# the last block knows that it is the last.
_BYTES, PRODUCTS, _SLICE, _ARRIVAL = 60e3, 130e3, 0.3, 1.0


class _Splits(NamedTuple):
    """How an inner dimension is split, and how many splits the first level of `add_splits` adds."""

    splits: int
    size: int
    fan_in: int


@functools.lru_cache(maxsize=4096)
def _split_k(length: int, rows: int, outer: int, tile: _Tile, groups: int, width: int, multiprocessors: int) -> _Splits:
    """Return the splits of an inner dimension of this length that are estimated to take the shortest, for elements of `width`
    bytes: enough to occupy the device, but not so many that the last blocks take longer to add them than all to multiply.

    The last blocks add the splits within the same launch. A second kernel on all multiprocessors would add them faster, but it
    is a node of 2.5 us of a CUDA graph, and starts and ends in another 1 us. By these estimates, for 132 multiprocessors, both
    take the same within 2.5 us for wgrad of every layer of LeNet-5, ResNet-20 and VGG (7 to 60 us) but one: 64 images of 16 by
    16 with 128 channels in and out take 29 us instead of 24, as 25 slabs of 64 KB are added.
    """
    BM, BN, tensor_cores = tile
    tiles = groups * -(-rows // BM) * -(-outer // BN)
    step = 64 // width if tensor_cores else 16
    one_slice = max((BM + BN) * step * width / _BYTES, 0 if tensor_cores else BM * BN * step / PRODUCTS, _SLICE)
    slab = min(rows, BM) * min(outer, BN) * max(width, 4) / _BYTES
    best, shortest = _Splits(1, length, 1), math.inf
    for count in range(1, max(min(2 * multiprocessors // max(tiles, 1), length // 64, 65535), 1) + 1):
        size = max(-(-length // (count * 32)), 1) * 32  # also of no positions
        if -(-length // size) < count:
            continue  # the same as with fewer
        crowded = max(0.65 * tiles * count / multiprocessors, 1.0)
        time = -(-size // step) * one_slice * crowded
        fan_in = count
        if count > 1:
            root = math.isqrt(count - 1) + 1
            at_once, in_two = (1 + count) * slab + _ARRIVAL, (2 + root + -(-count // root)) * slab + 2 * _ARRIVAL
            fan_in = count if at_once <= in_two else root
            time += min(at_once, in_two)
        if time < shortest:
            best, shortest = _Splits(count, size, fan_in), time
    return best


def _launch_gemm(
    xp: Any,
    number: int,
    x: Array,
    b: Array,
    out: Array,
    g: Geometry,
    groups: int,
    bias: Array | None = None,
    activation: str | None = None,
) -> None:
    """Launch one pass. x, b and `out` are x, the kernel and y in FORWARD; dz, the kernel and dx in DATA; x, dz and the sums in
    WEIGHTS."""
    N, H, W, pixel = x.shape
    pitch = b.shape[-1]
    C, outer = pixel // groups, (b.shape[2] if number == DATA else pitch // groups)
    if number == DATA:
        places, before = [-(-axis.size // axis.stride) for axis in g], [axis.before for axis in g]
    else:
        places, before = [axis.out for axis in g], [-axis.before for axis in g]
    positions, inner = N * math.prod(places), g.h.window * g.w.window * C
    rows, length = (inner, positions) if number == WEIGHTS else (positions, inner)
    depth = _pixel_classes(g) if number == DATA else 1
    tile = _choose_tile(x, C, rows, outer, groups * depth, number)
    BM, BN, tensor_cores = tile
    kind = c_name(x)
    if tensor_cores:
        kernel = _mma[kind, BM, BN, number]
    else:
        bias_fits = bias is None or address(bias) % 16 == 0
        out_fits = number != WEIGHTS or address(out) % 16 == 0
        V = 4 if kind == "float" and BM != 32 and bias_fits and out_fits and C % 4 == 0 and outer % 4 == 0 else 1
        kernel = _simt[kind, V, BM, number]
    tiles = -(-rows // BM) * -(-outer // BN)
    splits, partial, counting = _Splits(1, length, 1), None, None
    if rows and (number == WEIGHTS or (number == FORWARD and BM * BN < 128 * 128)):
        splits = _split_k(length, rows, outer, tile, groups, x.dtype.itemsize, runtime().multiprocessors)
        depth = splits.splits
        if depth > 1:
            partial = xp.empty((groups * tiles * depth * BM * BN,), dtype=accumulator(xp, x))
            counting = counters(groups * tiles * (-(-depth // splits.fan_in) + 1))
    y, sums = (None, out) if number == WEIGHTS else (out, None)
    launch(
        kernel, (tiles, groups, depth), _BLOCK, x, b, bias, y, sums, partial, counting, positions, inner, outer, pitch,
        splits.size, splits.fan_in, ACTIVATION_IDS[activation], g.h.size, g.w.size, H, W, pixel, g.h.stride, g.w.stride,
        *before, g.h.dilation, g.w.dilation, C, g.w.window, places[1], places[0],
    )  # fmt: skip
