"""Fused convolution, bias, activation and max pooling of a chunk of images while it is in the cache.

Of the convolution's output only the pooled quarter and the argmax mask reach memory, and backward the gradient of the whole
output exists one chunk at a time. The activations are monotonic, so they are applied after the pooling, to a quarter of the
elements; a tie of equal activated values then goes to the larger value before the activation instead of the first, where
the derivative is 0 either way.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from xpnet.accel.numpy import convolution
from xpnet.accel.numpy.convolution import convolve, data_gradient, kernel_gradient, windows_of
from xpnet.accel.numpy.epilogue import ACTIVATIONS, ImageTiles, TileFootprint
from xpnet.accel.numpy.finite import QUIET
from xpnet.accel.numpy.max_pooling import MaxMask
from xpnet.accel.numpy.pooled_tiles import PooledOutputTiles, PooledTileFootprint, UnpooledTiles, images_per_chunk
from xpnet.accel.numpy.workspace import FLOATS, WORKSPACE_LIMIT, Floats
from xpnet.ops.convolution import conv_geometry
from xpnet.ops.fused import conv2d_max_pool2d
from xpnet.ops.geometry import Geometry
from xpnet.ops.pooling import pool_geometry

MATERIALIZE_LIMIT = 4 << 20
"""Bytes up to which the gradient of the whole output is computed at once if both gradients of the convolution read it."""


def _geometries(
    x: Floats, kernel: Floats, bias: Floats | None, window: Any, settings: dict[str, Any]
) -> tuple[Geometry, Geometry]:
    """Return the windows of the convolution on x, and of the pooling on its output."""
    g = conv_geometry(x, kernel, bias, settings["stride"], settings["padding"], settings["dilation"], settings["groups"])
    y = np.broadcast_to(x.dtype.type(0), (x.shape[0], g.h.out, g.w.out, kernel.shape[3]))
    return g, pool_geometry("max_pool2d", y, window, settings["pool_stride"], settings["pool_padding"])


def _fits(x: Floats, O: int, g: Geometry) -> bool:
    """Return whether one image, with its im2col matrix or transforms, is small enough to be a chunk."""
    pixels = max(g.h.out * g.w.out, g.h.size * g.w.size)
    return bool(pixels * (x.shape[3] + O) * x.itemsize * 4 <= WORKSPACE_LIMIT // 2)


@conv2d_max_pool2d.accelerate("numpy")
def forward(xp: Any, x: Floats, kernel: Floats, bias: Floats | None, *, window: Any, save: bool, **settings: Any) -> Any:
    """Convolve and pool chunks of whole images."""
    activation = settings["activation"]
    dtype = x.dtype
    if (
        dtype not in FLOATS
        or kernel.dtype != dtype
        or (bias is not None and bias.dtype != dtype)
        or activation not in ACTIVATIONS
        or settings["groups"] != 1
    ):
        return NotImplemented
    g, p = _geometries(x, kernel, bias, window, settings)
    O = kernel.shape[3]
    count = p.h.window * p.w.window
    if not (x.size and kernel.size and min(p.h.out, p.w.out) > 0 and count <= 256 and _fits(x, O, g)):
        return NotImplemented
    N = x.shape[0]
    y = np.empty((N, p.h.out, p.w.out, O), dtype)
    mask = MaxMask.empty(N, p, O) if save else None
    target = PooledOutputTiles((N, g.h.out, g.w.out, O), y, mask, activation, p)
    with np.errstate(**QUIET):
        convolve(ImageTiles(x), kernel, bias, windows_of(g), target)
    if save and activation in ("sigmoid", "tanh") and np.isnan(np.maximum.reduce(y, axis=None)):
        return NotImplemented  # backward, the derivative at a NaN is NaN, also where the pooling did not choose it
    return y, (x, kernel, y, mask) if save else None


@forward.backward(owns_result=True)
def backward(xp: Any, dy: Floats, saved: Any, *, window: Any, needs: tuple[bool, bool, bool], **settings: Any) -> Any:
    """Compute the gradients, unpooling dy a chunk at a time as it is read."""
    x, kernel, y, mask = saved
    g, p = _geometries(x, kernel, None, window, settings)
    w = windows_of(g)
    pooled = UnpooledTiles(dy.astype(x.dtype, copy=False), y, mask, settings["activation"], p)
    twice = needs[0] and (needs[1] or needs[2])
    source = pooled.materialize() if twice and prod(pooled.shape) * x.itemsize <= MATERIALIZE_LIMIT else pooled
    dx = dkernel = dbias = None
    with np.errstate(**QUIET):
        if needs[0]:
            dx = np.empty(x.shape, x.dtype)
            data_gradient(source, kernel, w, dx)
        if needs[1] or needs[2]:
            dkernel, dbias = kernel_gradient(ImageTiles(x), source, w, kernel.shape)
    return dx, dkernel if needs[1] else None, dbias if needs[2] else None


# -- what it allocates, on fake arrays --


@forward.footprint
def _footprint(xp: Any, x: Any, kernel: Any, bias: Any, *, window: Any, save: bool, **settings: Any) -> Any:
    if (
        x.dtype not in FLOATS
        or any(a is not None and a.dtype != x.dtype for a in (kernel, bias))
        or settings["activation"] not in ACTIVATIONS
        or settings["groups"] != 1
    ):
        return NotImplemented
    g, p = _geometries(x, kernel, bias, window, settings)
    N, O = x.shape[0], kernel.shape[3]
    count = p.h.window * p.w.window
    if not (x.size and kernel.size and min(p.h.out, p.w.out) > 0 and count <= 256 and _fits(x, O, g)):
        return NotImplemented
    y = xp.empty((N, p.h.out, p.w.out, O), dtype=x.dtype)
    mask = MaxMask.empty(N, p, O, xp) if save else None
    source, target = TileFootprint(x.dtype), PooledTileFootprint(xp, x.dtype, O, p, save)
    convolution.convolve_footprint(xp, x.shape, kernel.shape, bias is not None, windows_of(g), source, target, flipped=False)
    return y, (x, kernel, y, mask) if save else None


@_footprint.backward
def _(xp: Any, dy: Any, saved: Any, *, window: Any, needs: tuple[bool, ...], **settings: Any) -> Any:
    x, kernel, _, _ = saved
    g, p = _geometries(x, kernel, None, window, settings)
    w = windows_of(g)
    dz = None
    source: TileFootprint = PooledTileFootprint(xp, x.dtype, kernel.shape[3], p)
    whole = (x.shape[0], g.h.out, g.w.out, kernel.shape[3])
    if needs[0] and (needs[1] or needs[2]) and prod(whole) * x.itemsize <= MATERIALIZE_LIMIT:
        dz = xp.empty(whole, dtype=x.dtype)
        images = images_per_chunk(whole, x.dtype)
        source.load(images, -(-whole[0] // images))
        source = TileFootprint(x.dtype)
    dx = convolution.data_gradient_footprint(xp, x, kernel.shape, w, source) if needs[0] else None
    dkernel = dbias = None
    if needs[1] or needs[2]:
        dkernel, dbias = convolution.kernel_gradient_footprint(xp, x.shape, kernel.shape, w, source)
    del dz
    return dx, dkernel if needs[1] else None, dbias if needs[2] else None
