"""conv2d for NumPy: chooses the algorithm for a shape (Winograd, im2col, pointwise or depthwise)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import isnan, prod
from typing import Any, TypeAlias

import numpy as np

from xpnet.accel.numpy import depthwise, im2col, winograd
from xpnet.accel.numpy.epilogue import ACTIVATIONS, GradientTiles, ImageTiles, OutputTiles, StridedOutputTiles, TileFootprint
from xpnet.accel.numpy.finite import QUIET, SERIAL_DOT
from xpnet.accel.numpy.im2col import Windows
from xpnet.accel.numpy.workspace import FLOATS, Floats
from xpnet.ops.convolution import conv2d, conv_geometry, geometry_of_shapes
from xpnet.ops.geometry import Geometry

Shape: TypeAlias = tuple[int, ...]


def geometry_of(
    x: Floats, kernel: Floats, bias: Floats | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Geometry:
    """Return what conv_geometry returns, without a call where it is remembered."""
    try:
        shape = None if bias is None else bias.shape
        return geometry_of_shapes(x.shape, kernel.shape, shape, stride, padding, dilation, groups)
    except TypeError:  # lists have no hash
        return conv_geometry(x, kernel, bias, stride, padding, dilation, groups)


@lru_cache(maxsize=4096)
def windows_of(g: Geometry) -> Windows:
    """Return the windows of a geometry."""
    return Windows(
        (g.h.window, g.w.window),
        (g.h.stride, g.w.stride),
        (g.h.dilation, g.w.dilation),
        (g.h.before, g.w.before),
        (g.h.out, g.w.out),
    )


MIN_WINOGRAD_OUTPUTS = 384
"""Outputs a channel from which Winograd is faster than im2col. Below, transforming the kernel costs more than it saves: at 64,
128, 256, 338 and 392 outputs Winograd ran at 0.37, 0.51, 0.86, 0.99 and 1.12 times the speed of im2col."""


def winograd_tile(w: Windows, size: tuple[int, int], C: int, O: int) -> int:
    """Return the tile of a Winograd convolution with outputs of `size`, or 0 where it is slower or impossible.

    A dilation of d makes it d * d convolutions of every d-th row and column.
    """
    if not winograd.enabled or w.window[0] != w.window[1] or w.stride != (1, 1):
        return 0
    return winograd.best_tile(-(-size[0] // w.dilation[0]), -(-size[1] // w.dilation[1]), C, O, w.window[0])


def _phases(w: Windows) -> Iterator[tuple[slice, slice, slice, slice, tuple[int, int]]]:
    """Split a dilated convolution into plain ones: yield the rows and columns of input and output, and the padding, of each."""
    axes = []
    for d, pad, size in zip(w.dilation, w.pads, w.size):
        # Output a + d*j sees the inputs a + d*(j + k) - pad: every d-th, from (a - pad) % d on.
        starts = [(a, (a - pad) % d, -((a - pad) // d)) for a in range(min(d, size))]
        axes.append([(slice(first, None, d), slice(a, None, d), before) for a, first, before in starts])
    for rows, out_rows, top in axes[0]:
        for columns, out_columns, left in axes[1]:
            yield rows, columns, out_rows, out_columns, (top, left)


@conv2d.accelerate("numpy")
def forward(
    xp: Any,
    x: Floats,
    kernel: Floats,
    bias: Floats | None,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    save: bool,
) -> Any:
    """Convolve in chunks that fit the caches, on all threads."""
    dtype = x.dtype
    if (
        dtype not in FLOATS
        or kernel.dtype != dtype
        or (bias is not None and bias.dtype != dtype)
        or activation not in ACTIVATIONS
    ):
        return NotImplemented
    g = geometry_of(x, kernel, bias, stride, padding, dilation, groups)
    if not (x.size and kernel.size and g.h.out and g.w.out):
        return NotImplemented
    w = windows_of(g)
    C, O = kernel.shape[2:]
    y = np.empty((x.shape[0], *w.size, O), dtype)
    if groups > 1 and C == 1:
        depthwise.convolve(ImageTiles(x), kernel, bias, w, OutputTiles(y, activation))
    elif groups == 1 and is_pointwise(g, x):
        im2col.pointwise(x.reshape(-1, C), kernel.reshape(C, O), bias, y.reshape(-1, O), activation)
    else:
        with np.errstate(**QUIET):
            if groups == 1:
                convolve(ImageTiles(x), kernel, bias, w, OutputTiles(y, activation))
            else:
                for ins, outs in _group_slices(groups, C, O // groups):
                    part = None if bias is None else bias[outs]
                    im2col.convolve(ImageTiles(x[..., ins]), kernel[..., outs], part, w, OutputTiles(y[..., outs], activation))
    return y, (x, kernel, y if activation else None) if save else None


def convolve(
    x: ImageTiles, kernel: Floats, bias: Floats | None, w: Windows, target: OutputTiles, checked: bool = False
) -> None:
    """Convolve without groups, with the algorithm that is expected to be faster; `checked`: the kernel is finite."""
    C, O = kernel.shape[2:]
    positions = x.shape[0] * w.size[0] * w.size[1]
    m = winograd_tile(w, w.size, C, O) if positions >= MIN_WINOGRAD_OUTPUTS else 0
    impossible = not m or (w.dilation != (1, 1) and (x.whole_images or target.whole_images))
    if impossible or not (checked or all_finite(kernel)):
        im2col.convolve(x, kernel, bias, w, target)
        return
    t = winograd.transforms(m, w.window[0], x.dtype)
    U = winograd.transform_kernel(kernel, t)
    if w.dilation == (1, 1):
        winograd.convolve(x, kernel, U, t, bias, w.pads, target)
        return
    for rows, across, out_rows, out_across, pads in _phases(w):
        part = StridedOutputTiles(target.y[:, out_rows, out_across], target.activation)
        winograd.convolve(x.at(rows, across), kernel, U, t, bias, pads, part)


def is_pointwise(g: Geometry, x: Floats) -> bool:
    """Return whether the pixels of x already are the rows of the im2col matrix."""
    return g.h.window == g.w.window == g.h.stride == g.w.stride == 1 and g.unpadded and x.flags.c_contiguous


def _group_slices(groups: int, C: int, O: int) -> list[tuple[slice, slice]]:
    """Return the input and output channels of each group."""
    return [(slice(i * C, (i + 1) * C), slice(i * O, (i + 1) * O)) for i in range(groups)]


@forward.backward(owns_result=True)
def backward(
    xp: Any,
    dy: Floats,
    saved: Any,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    needs: tuple[bool, bool, bool],
) -> Any:
    """Compute the gradients in such chunks.

    The derivative of the activation is applied as dy is loaded, and the im2col matrix or the transforms of x are recomputed.
    """
    x, kernel, y = saved
    g = geometry_of(x, kernel, None, stride, padding, dilation, groups)
    w = windows_of(g)
    dy = dy.astype(x.dtype, copy=False)
    with np.errstate(**QUIET):
        if groups > 1 and kernel.shape[2] == 1:
            flipped = w.stride == (1, 1) and all_finite(kernel)
            return depthwise.gradients(ImageTiles(x), kernel, GradientTiles(dy, y, activation), w, needs, flipped)
        return _gradients(x, kernel, dy, y, activation, w, groups, needs)


def _gradients(
    x: Floats,
    kernel: Floats,
    dy: Floats,
    y: Floats | None,
    activation: str | None,
    w: Windows,
    groups: int,
    needs: tuple[bool, bool, bool],
) -> Any:
    C, O = kernel.shape[2:]
    dx = np.empty(x.shape, x.dtype) if needs[0] else None
    if groups == 1:
        source = GradientTiles(dy, y, activation)
        if dx is not None:
            data_gradient(source, kernel, w, dx)
        if not (needs[1] or needs[2]):
            return dx, None, None
        dkernel, dbias = kernel_gradient(ImageTiles(x), source, w, kernel.shape)
        return dx, dkernel if needs[1] else None, dbias if needs[2] else None
    dkernel, dbias = np.empty_like(kernel), np.empty(O, x.dtype)
    for ins, outs in _group_slices(groups, C, O // groups):
        source = GradientTiles(dy[..., outs], None if y is None else y[..., outs], activation)
        if dx is not None:
            data_gradient(source, kernel[..., outs], w, dx[..., ins])
        if needs[1] or needs[2]:
            shape = (*kernel.shape[:3], O // groups)
            dkernel[..., outs], dbias[outs] = im2col.kernel_gradient(ImageTiles(x[..., ins]), source, w, shape)
    return dx, dkernel if needs[1] else None, dbias if needs[2] else None


def all_finite(x: Floats) -> bool:
    """Return whether no element of x is infinite or NaN."""
    if x.size > SERIAL_DOT:
        return bool(np.isfinite(x).all())
    return not isnan(x.reshape(-1).dot(np.zeros(x.size, x.dtype)))


def kernel_gradient(x: ImageTiles, dy: ImageTiles, w: Windows, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Return the gradients of kernel and bias of a convolution without groups."""
    m = winograd_tile(w, w.size, shape[2], shape[3])
    if not m or (w.dilation != (1, 1) and dy.whole_images):
        return im2col.kernel_gradient(x, dy, w, shape)
    t = winograd.transforms(m, w.window[0], x.dtype)
    with np.errstate(over="ignore"):
        if w.dilation == (1, 1):
            dkernel, dbias = winograd.kernel_gradient(x, dy, t, w.pads)
        else:
            dkernel, dbias = np.zeros(shape, x.dtype), np.zeros(shape[3], x.dtype)
            for rows, across, out_rows, out_across, pads in _phases(w):
                part = winograd.kernel_gradient(x.at(rows, across), dy.at(out_rows, out_across), t, pads)
                dkernel += part[0]
                dbias += part[1]
    return (dkernel, dbias) if all_finite(dkernel) else im2col.kernel_gradient(x, dy, w, shape, single=True)


def data_gradient(dy: ImageTiles, kernel: Floats, w: Windows, dx: Floats) -> None:
    """Compute dx (N, H, W, C) of a convolution without groups."""
    if w.stride != (1, 1) or not all_finite(kernel):
        im2col.strided_data_gradient(dy, kernel, w, dx)
        return
    # dx is a convolution of dy with the kernel flipped along both axes, C and O exchanged.
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    top, left = (d * (k - 1) - p for d, k, p in zip(w.dilation, w.window, w.pads))
    pads, size = (top, left), (dx.shape[1], dx.shape[2])
    back = Windows(w.window, (1, 1), w.dilation, pads, size)
    if dx.flags.c_contiguous:
        convolve(dy, flipped, None, back, OutputTiles(dx), checked=True)
    else:
        im2col.convolve(dy, flipped, None, back, OutputTiles(dx))


# -- what it allocates, on fake arrays --


def convolve_footprint(
    xp: Any, shape: Shape, kernel: Shape, bias: bool, w: Windows, source: TileFootprint, target: TileFootprint, flipped: bool
) -> None:
    """Count what `convolve` of images of `shape` allocates; `flipped`: the kernel is not contiguous."""
    N, (C, O), (OH, OW), dtype = shape[0], kernel[2:], w.size, source.dtype
    m = winograd_tile(w, w.size, C, O) if N * OH * OW >= MIN_WINOGRAD_OUTPUTS else 0
    if not m or (w.dilation != (1, 1) and (source.whole_images or target.whole_images)):
        im2col.convolve_footprint(xp, shape, O, bias, w, source, target, flipped)
        return
    t = winograd.transforms(m, w.window[0], dtype)
    transformed = xp.empty((t.a * t.a * C * O + (prod(kernel) if flipped else 0),), dtype=dtype)
    outputs = (N, -(-OH // w.dilation[0]), -(-OW // w.dilation[1]), O)  # those of one phase
    winograd.convolve_footprint(xp, outputs, C, bias, t, source, target, w.dilation != (1, 1))
    del transformed


def kernel_gradient_footprint(xp: Any, shape: Shape, kernel: Shape, w: Windows, source: TileFootprint) -> tuple[Any, Any]:
    """Return the gradients of `kernel_gradient` of images of `shape`; count what it allocates."""
    (C, O), (OH, OW), dtype = kernel[2:], w.size, source.dtype
    m = winograd_tile(w, w.size, C, O)
    if not m or (w.dilation != (1, 1) and source.whole_images):
        sums = im2col.kernel_gradient_footprint(xp, shape, O, w, source)
    else:
        outputs = (shape[0], -(-OH // w.dilation[0]), -(-OW // w.dilation[1]), O)
        t = winograd.transforms(m, w.window[0], dtype)
        sums = winograd.kernel_gradient_footprint(xp, outputs, C, t, source)
    gradients = xp.empty(kernel, dtype=dtype), xp.empty((O,), dtype=dtype)
    del sums
    return gradients


def data_gradient_footprint(xp: Any, x: Any, kernel: Shape, w: Windows, source: TileFootprint) -> Any:
    """Return dx of `data_gradient`; count what it allocates."""
    (KH, KW, C, O), (N, H, W, _) = kernel, x.shape
    dx = xp.empty_like(x)
    shape = (N, *w.size, O)
    if w.stride != (1, 1):
        im2col.strided_data_gradient_footprint(xp, shape, kernel, w, source)
        return dx
    top, left = (d * (k - 1) - p for d, k, p in zip(w.dilation, w.window, w.pads))
    back = Windows(w.window, (1, 1), w.dilation, (top, left), (H, W))
    target = TileFootprint(x.dtype)
    convolve_footprint(xp, shape, (KH, KW, O, C), False, back, source, target, flipped=True)
    return dx


@forward.footprint
def _footprint(
    xp: Any, x: Any, kernel: Any, bias: Any, *, stride: Any, padding: Any, dilation: Any, groups: int,
    activation: str | None, save: bool,
) -> Any:  # fmt: skip
    if (
        x.dtype not in FLOATS
        or any(a is not None and a.dtype != x.dtype for a in (kernel, bias))
        or activation not in ACTIVATIONS
    ):
        return NotImplemented
    g = conv_geometry(x, kernel, bias, stride, padding, dilation, groups)
    if not (x.size and kernel.size and g.h.out and g.w.out):
        return NotImplemented
    w, O = windows_of(g), kernel.shape[3]
    y = xp.empty((x.shape[0], *w.size, O), dtype=x.dtype)
    if groups == 1 and not is_pointwise(g, x):
        tiles = TileFootprint(x.dtype)
        convolve_footprint(xp, x.shape, kernel.shape, bias is not None, w, tiles, tiles, flipped=False)
    return y, (x, kernel, y if activation else None) if save else None


@_footprint.backward
def _(
    xp: Any, dy: Any, saved: Any, *, stride: Any, padding: Any, dilation: Any, groups: int, activation: str | None,
    needs: tuple[bool, ...],
) -> Any:  # fmt: skip
    x, kernel, _ = saved
    w, O = windows_of(conv_geometry(x, kernel, None, stride, padding, dilation, groups)), kernel.shape[3]
    if groups > 1:
        dx = xp.empty_like(x) if needs[0] else None
        dkernel, dbias = xp.empty_like(kernel), xp.empty((O,), dtype=x.dtype)
    else:
        source = TileFootprint(x.dtype)
        dx = data_gradient_footprint(xp, x, kernel.shape, w, source) if needs[0] else None
        if not (needs[1] or needs[2]):
            return dx, None, None
        dkernel, dbias = kernel_gradient_footprint(xp, x.shape, kernel.shape, w, source)
    return dx, dkernel if needs[1] else None, dbias if needs[2] else None
