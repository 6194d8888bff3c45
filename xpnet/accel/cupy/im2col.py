"""im2col and col2im on the device: ``kernels/cuda/im2col.cu``."""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.launch import INT32_LIMIT, THREADS, grid_size, launch, vector_width
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import VECTORS, c_name, contiguous, supported, valid_vector
from xpnet.ops import convolution
from xpnet.ops.geometry import Geometry, windows
from xpnet.ops.shapes import expect_rank

Array = Any

_WINDOWS = (0, 3, 5)  # window sizes known at compile time; 0: any


def _listed(kind: str, width: int, kh: int, kw: int) -> bool:
    return valid_vector(kind, width) and kh == kw


_im2col = Kernel("im2col", "im2col", FLOATS, VECTORS, _WINDOWS, _WINDOWS, only=_listed)
_col2im = Kernel("im2col", "col2im", FLOATS, VECTORS, _WINDOWS, _WINDOWS, only=_listed)


def _window(geometry: Geometry) -> tuple[int, int]:
    kh, kw = geometry.h.window, geometry.w.window
    return (kh, kw) if kh == kw and kh in _WINDOWS else (0, 0)


def im2col(xp: Any, x: Array, geometry: Geometry, groups: int = 1, out: Array | None = None) -> Array:
    """Copy the sliding windows of images x (N, H, W, G*C), C-contiguous, to a matrix for each of the G groups.

    The result (G, N, OH, OW, KH, KW, C) is written to `out` if given.
    """
    h, w = geometry
    N, pixel = x.shape[0], x.shape[-1]
    C = pixel // groups
    cols = xp.empty((groups, N, h.out, w.out, h.window, w.window, C), dtype=x.dtype) if out is None else out
    if cols.size >= INT32_LIMIT and N > 1 and groups == 1:
        half = N // 2
        im2col(xp, x[:half], geometry, 1, cols[:, :half])
        im2col(xp, x[half:], geometry, 1, cols[:, half:])
        return cols
    V = vector_width(C, x, cols)
    kernel = _im2col[c_name(x), V, *_window(geometry)]
    vectors = cols.size // V
    launch(
        kernel, grid_size(vectors), THREADS, x, cols, vectors, N, h.size, w.size, C, pixel, h.out, h.window, w.window,
        h.stride, w.stride, h.dilation, w.dilation, h.before, w.before, C // V, w.window, h.window, w.out, h.out, N,
    )  # fmt: skip
    return cols


def col2im(xp: Any, cols: Array, geometry: Geometry, out: Array | None = None) -> Array:
    """Compute the adjoint of `im2col`: every pixel is the sum of its elements in all windows.

    cols is (G, N, OH, OW, KH, KW, C), C-contiguous; the result (N, H, W, G*C) is written to `out` if given.
    """
    h, w = geometry
    groups, N, C = cols.shape[0], cols.shape[1], cols.shape[-1]
    x = xp.empty((N, h.size, w.size, groups * C), dtype=cols.dtype) if out is None else out
    if max(x.size, cols.size) >= INT32_LIMIT and N > 1 and groups == 1:
        half = N // 2
        col2im(xp, cols[:, :half], geometry, x[:half])
        col2im(xp, cols[:, half:], geometry, x[half:])
        return x
    V = vector_width(C, x, cols)
    kernel = _col2im[c_name(x), V, *_window(geometry)]
    vectors = x.size // V
    launch(
        kernel, grid_size(vectors), THREADS, cols, x, vectors, N, h.size, w.size, C, h.out, w.out, h.window, w.window,
        h.stride, w.stride, h.dilation, w.dilation, h.before, w.before, C // V, groups, w.size, h.size, h.stride,
        w.stride,
    )  # fmt: skip
    return x


@convolution.im2col.accelerate("cupy")
def _im2col_op(xp: Any, x: Array, *, window: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    expect_rank("im2col", "x", x, "N H W C")
    if not supported(x):
        return NotImplemented
    geometry = windows(x.shape, window, stride, padding, dilation)
    return im2col(xp, contiguous(xp, x), geometry)[0], x.shape


@convolution.col2im.accelerate("cupy")
def _col2im_op(xp: Any, cols: Array, *, input_shape: Any, window: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    g = windows(input_shape, window, stride, padding, dilation)
    expected = (input_shape[0], g.h.out, g.w.out, g.h.window, g.w.window, input_shape[3])
    if not supported(cols) or tuple(cols.shape) != expected:
        return NotImplemented  # the reference explains a wrong shape
    return col2im(xp, contiguous(xp, cols)[None, ...], g), None
