"""Convolution as an implicit GEMM: launches of ``kernels/implicit_gemm.cu``.

The columns of the images are made tile by tile in shared memory and never written to global memory. There are two kernels:
one for tensor cores (16-bit floats, and float32 where TF32 is allowed; compute capability 8.0 and later; channels in
multiples of 16 bytes) and one that runs float32 and float64 everywhere.
"""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.activation import NUMBERS
from xpnet.accel.cupy.columns import sum_slabs
from xpnet.accel.cupy.launch import LIMIT, address, launch, runtime
from xpnet.accel.cupy.source import Kernel
from xpnet.accel.cupy.support import WIDTHS, accumulator, c_name
from xpnet.accel.settings import get_matmul_precision
from xpnet.ops.geometry import Geometry

Array = Any

_BLOCK = 256
# Few instances, because compiling one takes seconds: vectors only where speed counts.
_plain = Kernel(
    "implicit_gemm",
    "implicit_gemm",
    ("float", "double"),
    (1, 4),
    (False, True),
    only=lambda kind, V, _: kind == "float" or V == 1,
)


def _has_room(kind: str, width: int, weights: bool) -> bool:
    """TF32 in wide tiles has too few registers, except for the kernel's gradient."""
    return kind != "float" or width == 64 or weights


_mma = Kernel("implicit_gemm", "implicit_gemm_mma", ("float", "float16", "bfloat16"), (64, 128), (False, True), only=_has_room)

_PARTIAL_BYTES = 64 << 20  # at most, of the sums that a split gradient of the kernel writes


def covers(x: Array, kernel: Array, g: Geometry, groups: int) -> bool:
    """Whether the kernels here can do all three passes of this convolution.

    Args:
        x: (N, H, W, C).
        kernel: (KH, KW, C/groups, O).
        g: its geometry.
        groups: one, or it cannot.
    """
    N, H, W, C = x.shape
    KH, KW, _, O = kernel.shape
    largest = max(N * g.h.out * g.w.out, N * H * W, KH * KW * max(C, O), H * W * C, g.h.out * g.w.out * O)
    if groups != 1 or 0 in (C, O) or largest + 4 * _BLOCK >= LIMIT or max(g.h.padded, g.w.padded) >= 1 << 28:
        return False
    return x.dtype.itemsize > 2 or _on_tensor_cores(x, C, O)


def _on_tensor_cores(x: Array, C: int, O: int) -> bool:
    kind = c_name(x)
    if runtime().architecture < 80 or kind == "double" or (kind == "float" and get_matmul_precision() != "tf32"):
        return False
    return C % WIDTHS[kind] == 0 and O % WIDTHS[kind] == 0


def forward(xp: Any, x: Array, kernel: Array, bias: Array | None, activation: str | None, g: Geometry) -> Array:
    """activation(conv2d(x, kernel) + bias), where `covers` says so.

    Args:
        xp: the namespace of the arrays.
        x: (N, H, W, C), C-contiguous.
        kernel: (KH, KW, C, O), C-contiguous.
        bias: (O,) or None.
        activation: one of NUMBERS.
        g: the geometry.

    Returns:
        (N, OH, OW, O).
    """
    y = xp.empty((x.shape[0], g.h.out, g.w.out, kernel.shape[3]), dtype=x.dtype)
    lines = [(a.stride, -a.before, a.dilation, 1) for a in g]
    _product(x, kernel, bias, y, None, activation, g, lines)
    return y


def data_gradient(xp: Any, dz: Array, kernel: Array, g: Geometry) -> Array:
    """The gradient of the images: every pixel gathers the positions whose windows saw it, tap by tap.

    Args:
        xp: the namespace of the arrays.
        dz: (N, OH, OW, O), the gradient before the activation, C-contiguous.
        kernel: (KH, KW, C, O).
        g: the geometry of the forward pass.

    Returns:
        (N, H, W, C).
    """
    dx = xp.empty((dz.shape[0], g.h.size, g.w.size, kernel.shape[2]), dtype=dz.dtype)
    turned = xp.ascontiguousarray(xp.swapaxes(kernel, 2, 3))  # (KH, KW, O, C)
    lines = [(1, a.before, -a.dilation, a.stride) for a in g]
    _product(dz, turned, None, dx, None, None, g, lines)
    return dx


def kernel_gradient(xp: Any, x: Array, dz: Array, g: Geometry) -> Array:
    """The gradient of the kernel, as a matrix.

    Args:
        xp: the namespace of the arrays.
        x: (N, H, W, C), C-contiguous.
        dz: (N, OH, OW, O), C-contiguous.
        g: the geometry of the forward pass.

    Returns:
        (KH*KW*C, O), float32 for 16-bit arrays.
    """
    inner, O = g.h.window * g.w.window * x.shape[3], dz.shape[3]
    dtype = accumulator(xp, x)
    positions = x.shape[0] * g.h.out * g.w.out
    if positions == 0:
        return xp.zeros((inner, O), dtype=dtype)
    splits, span = _split(positions, inner, O, dtype=x.dtype)
    partial = xp.empty((splits, inner * O), dtype=dtype)
    lines = [(a.stride, -a.before, a.dilation, 1) for a in g]
    _product(x, dz, None, None, partial, None, g, lines, span)
    total = partial[0] if splits == 1 else sum_slabs(xp, partial)
    return xp.reshape(total, (inner, O))


def _split(positions: int, inner: int, outer: int, dtype: Any) -> tuple[int, int]:
    """How many runs the positions are cut into, and how long each is: enough to fill the device twice, none of them short."""
    tiles = -(-inner // 128) * -(-outer // 64)
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
    g: Geometry,
    lines: list[tuple[int, int, int, int]],
    span: int = 0,
) -> None:
    """Launch: y = activation(columns of x @ b + bias), or partial sums of the transposed columns of x @ b.

    `lines` has for each axis scale, offset, step and ratio as ``kernels/gather.cuh`` defines them.
    """
    N, H, W, C = x.shape
    O = b.shape[-1]
    at_h, at_w = (g.h.out, g.w.out) if y is None else y.shape[1:3]
    positions, inner = N * at_h * at_w, g.h.window * g.w.window * C
    weights = y is None
    used = [a for a in (x, b, bias, y, partial) if a is not None]
    aligned = all(address(a) % 16 == 0 for a in used)
    kind = c_name(x)
    rows = inner if weights else positions
    if _on_tensor_cores(x, C, O) and aligned:
        BM = 128
        wide = O > 64 and _has_room(kind, 128, weights) and -(-rows // BM) * -(-O // 128) >= runtime().multiprocessors
        BN = 128 if wide else 64
        kernel = _mma[kind, BN, weights]
    else:
        BM, BN = (128 if kind == "float" else 64), 64
        V = 4 if kind == "float" and aligned and C % 4 == 0 and O % 4 == 0 else 1
        kernel = _plain[kind, V, weights]
    splits = 1 if partial is None else partial.shape[0]
    (scale_h, offset_h, step_h, ratio_h), (scale_w, offset_w, step_w, ratio_w) = lines
    launch(
        kernel, (-(-rows // BM) * -(-O // BN), 1, splits), _BLOCK, x, b, bias, y, partial, positions, inner, O, span,
        NUMBERS[activation], H, W, C, scale_h, scale_w, offset_h, offset_w, step_h, step_w, C, g.w.window, at_w, at_h,
        ratio_h, ratio_w,
    )  # fmt: skip
