"""Convolution and max pooling: backward, one kernel computes the gradients of pooling, relu and bias.

The maximum of a window is the output of the relu in front of the pooling at the one pixel that the gradient goes to. So the
gradient before the relu is gathered like that of the pooling alone, and the output of the convolution, several times larger
than that of the pooling, need not be kept.
"""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.convolution import convolution_gradients, convolve
from xpnet.accel.cupy.pooling import MAX_WINDOW, max_pool, relu_max_pool_backward, too_large
from xpnet.accel.cupy.support import contiguous
from xpnet.ops.convolution import conv_geometry
from xpnet.ops.fused import conv2d_max_pool2d
from xpnet.ops.geometry import Geometry, windows
from xpnet.ops.pooling import pool_geometry

Array = Any


@conv2d_max_pool2d.accelerate("cupy")
def _conv2d_max_pool2d(
    xp: Any,
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    window: Any,
    pool_stride: Any,
    pool_padding: Any,
    activation: str | None,
    save: bool,
    **settings: Any,
) -> Any:
    if activation not in (None, "relu"):
        return NotImplemented  # where an output is NaN, so are the gradients of others, also if the pooling did not choose it
    result = convolve.forward(xp, x, kernel, bias, activation=activation, save=save, **settings)
    if result is NotImplemented:
        return NotImplemented
    y, saved = result
    p = pool_geometry("max_pool2d", y, window, pool_stride, pool_padding)
    if p.h.window * p.w.window > MAX_WINDOW or too_large(y):
        return NotImplemented
    z, switches = max_pool(xp, y, p, save)
    return z, (*saved[:2], switches, z if activation else None) if save else None


@_conv2d_max_pool2d.backward
def _(
    xp: Any,
    dy: Array,
    saved: Any,
    *,
    window: Any,
    pool_stride: Any,
    pool_padding: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    needs: tuple[bool, ...],
    into: Any = (None,) * 3,
) -> Any:
    x, kernel, switches, z = saved
    g = conv_geometry(x, kernel, None, stride, padding, dilation, groups)
    p: Geometry = windows(
        (x.shape[0], g.h.out, g.w.out, kernel.shape[3]), window, window if pool_stride is None else pool_stride, pool_padding
    )
    dz, dbias = relu_max_pool_backward(xp, contiguous(xp, dy), switches, z, p, needs[2], into[2])
    return *convolution_gradients(xp, dz, x, kernel, g, groups, needs, into), dbias
