"""Convolution on the device: a plain product where it is one, else im2col and products, in chunks that fit the L2 cache, or
an implicit GEMM, or cuDNN; `autotune` decides.

The columns of a whole batch are KH*KW times the images; written to memory and read again they would cost more than the
product. A chunk of images whose columns stay in the cache costs neither; an implicit GEMM never writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xpnet.accel.cupy import cudnn, depthwise, implicit_gemm
from xpnet.accel.cupy.activation import NUMBERS, add_bias_and_activate, bias_and_activation_gradients
from xpnet.accel.cupy.autotune import choose, convolution, wanted
from xpnet.accel.cupy.gemm import gemm
from xpnet.accel.cupy.im2col import col2im, im2col
from xpnet.accel.cupy.launch import LIMIT, runtime
from xpnet.accel.cupy.support import contiguous, delivered, takes
from xpnet.ops.convolution import conv2d, conv_geometry
from xpnet.ops.geometry import Geometry

Array = Any
_Compute = Callable[[], Array]


def _pointwise(g: Geometry) -> bool:
    """Whether the columns are the images themselves."""
    return g.unpadded and all(axis.window == 1 and axis.stride == 1 for axis in g)


def _chunks(x: Array, g: Geometry) -> Iterator[slice]:
    """Runs of images whose columns fit the cache, and at least one image."""
    elements = g.h.out * g.w.out * g.h.window * g.w.window * x.shape[3]
    fitting = min(runtime().chunk_bytes // x.dtype.itemsize, LIMIT - 1) // max(elements, 1)
    size = max(fitting, 1)
    for start in range(0, x.shape[0], size):
        yield slice(start, min(start + size, x.shape[0]))


def _by_group(xp: Any, rows: Array, groups: int) -> Array:
    """(P, G*C) as (G, P, C), a view."""
    return xp.swapaxes(xp.reshape(rows, (rows.shape[0], groups, rows.shape[1] // groups)), 0, 1)


def _weights(xp: Any, kernel: Array, groups: int) -> Array:
    """The kernel as one matrix a group, a view: (G, KH*KW*C/G, O/G)."""
    KH, KW, Cg, O = kernel.shape
    return _by_group(xp, xp.reshape(kernel, (KH * KW * Cg, O)), groups)


class _Columns:
    """The columns of one chunk after the other as (G, P, KH*KW*C/G), in one buffer."""

    def __init__(self, xp: Any, x: Array, g: Geometry, groups: int) -> None:
        self.xp, self.x, self.g, self.groups = xp, x, g, groups
        self.positions = g.h.out * g.w.out
        self.inner = g.h.window * g.w.window * (x.shape[3] // groups)
        self._buffer: Array | None = None

    def shape(self, images: int) -> tuple[int, ...]:
        g = self.g
        return (self.groups, images, g.h.out, g.w.out, g.h.window, g.w.window, self.x.shape[3] // self.groups)

    def room(self, images: int) -> Array:
        """Memory for the columns of so many images; the first chunk is the largest."""
        size = self.groups * images * self.positions * self.inner
        if self._buffer is None:
            self._buffer = self.xp.empty((size,), dtype=self.x.dtype)
        return self.xp.reshape(self._buffer[:size], self.shape(images))

    def matrices(self, cols: Array) -> Array:
        return self.xp.reshape(cols, (self.groups, cols.shape[1] * self.positions, self.inner))

    def of(self, chunk: slice) -> Array:
        return self.matrices(im2col(self.xp, self.x[chunk], self.g, self.groups, self.room(chunk.stop - chunk.start)))


@conv2d.accelerate("cupy")
def _conv2d(
    xp: Any,
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    save: bool,
) -> Any:
    g = conv_geometry(x, kernel, bias, stride, padding, dilation, groups)
    if not takes(x, kernel, bias) or activation not in NUMBERS:
        return NotImplemented
    x, kernel = contiguous(xp, x), contiguous(xp, kernel)
    N, O = x.shape[0], kernel.shape[3]
    bias = contiguous(xp, bias)
    if depthwise.covers(x, kernel, g, groups):
        y = depthwise.forward(xp, x, kernel, g)
        add_bias_and_activate(xp, xp.reshape(y, (N * g.h.out * g.w.out, O)), bias, activation)
        return y, (x, kernel, y if activation else None) if save else None
    y = _chosen(
        _Pass("fprop", x, kernel, g, groups, bias, activation),
        lambda: _products(xp, x, kernel, bias, activation, g, groups),
        lambda: implicit_gemm.forward(xp, x, kernel, bias, activation, g, groups),
        lambda: cudnn.forward(xp, x, kernel, bias, activation, g),
    )
    return y, (x, kernel, y if activation else None) if save else None


class _Pass(NamedTuple):
    """One pass of a convolution."""

    step: str  # of autotune.PASSES
    x: Array
    kernel: Array
    g: Geometry
    groups: int
    bias: Array | None = None
    activation: str | None = None


def _chosen(this: _Pass, products: _Compute, implicit: _Compute, by_cudnn: _Compute) -> Array:
    """One pass, computed in the way that `autotune` names."""
    step, x, kernel, g, groups, bias, activation = this
    candidates = {"product" if _pointwise(g) else "im2col": products}
    if x.shape[0]:
        if wanted("implicit") and implicit_gemm.covers(x, kernel, g, groups):
            candidates["implicit"] = implicit
        if wanted("cudnn") and cudnn.covers(step, x, kernel, g, bias, activation):
            candidates["cudnn"] = by_cudnn
    return candidates[choose(candidates, lambda: convolution(step, x, kernel, g))]()


def _products(xp: Any, x: Array, kernel: Array, bias: Array | None, activation: str | None, g: Geometry, groups: int) -> Array:
    """The forward pass as products of matrices."""
    N, C, O = x.shape[0], x.shape[3], kernel.shape[3]
    weights = _weights(xp, kernel, groups)
    y = xp.empty((N, g.h.out, g.w.out, O), dtype=x.dtype)
    rows = xp.reshape(y, (N * g.h.out * g.w.out, O))
    if _pointwise(g):
        gemm(xp, _by_group(xp, xp.reshape(x, (rows.shape[0], C)), groups), weights, _by_group(xp, rows, groups))
        add_bias_and_activate(xp, rows, bias, activation)
        return y
    columns = _Columns(xp, x, g, groups)
    for chunk in _chunks(x, g):
        part = rows[chunk.start * columns.positions : chunk.stop * columns.positions]
        gemm(xp, columns.of(chunk), weights, _by_group(xp, part, groups))
        add_bias_and_activate(xp, part, bias, activation)  # while the chunk is in the cache
    return y


@_conv2d.backward
def _(
    xp: Any,
    dy: Array,
    saved: Any,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    needs: tuple[bool, ...],
    into: Any = (None,) * 3,
) -> Any:
    x, kernel, y = saved
    g = conv_geometry(x, kernel, None, stride, padding, dilation, groups)
    O = kernel.shape[3]
    count = x.shape[0] * g.h.out * g.w.out
    y = None if y is None else xp.reshape(y, (count, O))
    dz, dbias = bias_and_activation_gradients(xp, xp.reshape(contiguous(xp, dy), (count, O)), y, activation, needs[2], into[2])
    dx = dkernel = None
    images = xp.reshape(dz, (x.shape[0], g.h.out, g.w.out, O))
    if depthwise.covers(x, kernel, g, groups):
        dx = depthwise.data_gradient(xp, images, kernel, g) if needs[0] else None
        dkernel = depthwise.kernel_gradient(xp, x, images, g) if needs[1] else None
    else:
        if needs[0]:
            dx = _chosen(
                _Pass("dgrad", x, kernel, g, groups),
                lambda: _data_gradient(xp, dz, _weights(xp, kernel, groups), x, g, groups),
                lambda: implicit_gemm.data_gradient(xp, images, kernel, g, groups),
                lambda: cudnn.data_gradient(xp, x, images, kernel, g),
            )
        if needs[1]:
            dkernel = _chosen(
                _Pass("wgrad", x, kernel, g, groups),
                lambda: _kernel_gradient(xp, dz, x, g, groups),
                lambda: implicit_gemm.kernel_gradient(xp, x, images, g, groups),
                lambda: cudnn.kernel_gradient(xp, x, images, kernel, g),
            )
            dkernel = xp.reshape(dkernel, kernel.shape)
    if dkernel is not None:
        dkernel = delivered(dkernel, kernel, into[1])
    return dx, dkernel, dbias


def _data_gradient(xp: Any, dz: Array, weights: Array, x: Array, g: Geometry, groups: int) -> Array:
    """dx: the product of dz (P, O) with the transposed kernel, scattered back by col2im."""
    dx = xp.empty(x.shape, dtype=x.dtype)
    transposed = xp.swapaxes(weights, 1, 2)
    if _pointwise(g):
        rows = xp.reshape(dx, (dz.shape[0], x.shape[3]))
        gemm(xp, _by_group(xp, dz, groups), transposed, _by_group(xp, rows, groups))
        return dx
    columns = _Columns(xp, x, g, groups)
    for chunk in _chunks(x, g):
        part = dz[chunk.start * columns.positions : chunk.stop * columns.positions]
        room = columns.room(chunk.stop - chunk.start)
        gemm(xp, _by_group(xp, part, groups), transposed, columns.matrices(room))
        col2im(xp, room, g, dx[chunk])
    return dx


def _kernel_gradient(xp: Any, dz: Array, x: Array, g: Geometry, groups: int) -> Array:
    """The kernel's gradient (KH*KW*C/G, O): the transposed columns times dz, added up over the chunks.

    The columns are made again: kept from the forward pass they would be KH*KW times the size of x. The sum over chunks is
    kept in float32 for 16-bit arrays.
    """
    O, inner = dz.shape[1], g.h.window * g.w.window * (x.shape[3] // groups)
    dtype = xp.float32 if x.dtype.itemsize == 2 else x.dtype
    total = xp.empty((inner, O), dtype=dtype)
    if dz.size == 0:
        total[...] = 0
        return total
    by_group = _by_group(xp, total, groups)
    if _pointwise(g):
        rows = xp.reshape(x, (dz.shape[0], x.shape[3]))
        gemm(xp, xp.swapaxes(_by_group(xp, rows, groups), 1, 2), _by_group(xp, dz, groups), by_group)
        return total
    columns = _Columns(xp, x, g, groups)
    for chunk in _chunks(x, g):
        part = dz[chunk.start * columns.positions : chunk.stop * columns.positions]
        beta = 1.0 if chunk.start else 0.0
        gemm(xp, xp.swapaxes(columns.of(chunk), 1, 2), _by_group(xp, part, groups), by_group, beta=beta)
    return total
