"""Convolution on the device: a plain GEMM for 1x1 windows, else im2col and GEMM in chunks that fit the L2 cache, an implicit
GEMM, or cuDNN; `autotune` chooses.

The im2col matrix of a whole batch has KH*KW times the size of the images; writing it to memory and reading it again would take
longer than the GEMM. Chunks stay in the L2 cache, and an implicit GEMM never writes the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xpnet.accel.cupy import cudnn, depthwise, implicit_gemm
from xpnet.accel.cupy.activation import ACTIVATION_IDS, add_bias_and_activate, bias_and_activation_gradients
from xpnet.accel.cupy.autotune import choose, convolution_key, enabled
from xpnet.accel.cupy.gemm import gemm
from xpnet.accel.cupy.im2col import col2im, im2col
from xpnet.accel.cupy.launch import INT32_LIMIT, runtime
from xpnet.accel.cupy.support import contiguous, store_gradient, sum_buffer, supported
from xpnet.ops.convolution import conv2d, conv_geometry
from xpnet.ops.geometry import Geometry

Array = Any
_Algorithm = Callable[[], Array]


def _pointwise(g: Geometry) -> bool:
    """Return whether the im2col matrix is the images themselves."""
    return g.unpadded and all(axis.window == 1 and axis.stride == 1 for axis in g)


def _chunks(x: Array, g: Geometry) -> Iterator[slice]:
    """Yield runs of images whose im2col matrix fits the L2 cache, at least one image each."""
    elements = g.h.out * g.w.out * g.h.window * g.w.window * x.shape[3]
    fitting = min(runtime().chunk_bytes // x.dtype.itemsize, INT32_LIMIT - 1) // max(elements, 1)
    size = max(fitting, 1)
    for start in range(0, x.shape[0], size):
        yield slice(start, min(start + size, x.shape[0]))


def _split_groups(xp: Any, rows: Array, groups: int) -> Array:
    """Return (P, G*C) as (G, P, C), a view."""
    return xp.swapaxes(xp.reshape(rows, (rows.shape[0], groups, rows.shape[1] // groups)), 0, 1)


def _kernel_matrices(xp: Any, kernel: Array, groups: int) -> Array:
    """Return the kernel as one matrix a group, a view: (G, KH*KW*C/G, O/G)."""
    KH, KW, Cg, O = kernel.shape
    return _split_groups(xp, xp.reshape(kernel, (KH * KW * Cg, O)), groups)


class _Im2colWorkspace:
    """A workspace for the im2col matrices (G, P, KH*KW*C/G) of one chunk after the other."""

    def __init__(self, xp: Any, x: Array, g: Geometry, groups: int) -> None:
        self.xp, self.x, self.g, self.groups = xp, x, g, groups
        self.positions = g.h.out * g.w.out
        self.inner = g.h.window * g.w.window * (x.shape[3] // groups)
        self._buffer: Array | None = None

    def shape(self, images: int) -> tuple[int, ...]:
        g = self.g
        return (self.groups, images, g.h.out, g.w.out, g.h.window, g.w.window, self.x.shape[3] // self.groups)

    def reserve(self, images: int) -> Array:
        """Return the workspace for the windows of so many images; the first chunk is the largest."""
        size = self.groups * images * self.positions * self.inner
        if self._buffer is None:
            self._buffer = self.xp.empty((size,), dtype=self.x.dtype)
        return self.xp.reshape(self._buffer[:size], self.shape(images))

    def matrices(self, cols: Array) -> Array:
        return self.xp.reshape(cols, (self.groups, cols.shape[1] * self.positions, self.inner))

    def fill(self, chunk: slice) -> Array:
        return self.matrices(im2col(self.xp, self.x[chunk], self.g, self.groups, self.reserve(chunk.stop - chunk.start)))


@conv2d.accelerate("cupy")
def convolve(
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
    """Compute conv2d, and for backward keep x, the kernel and, if there is an activation, the output."""
    g = conv_geometry(x, kernel, bias, stride, padding, dilation, groups)
    if not supported(x, kernel, bias) or activation not in ACTIVATION_IDS:
        return NotImplemented
    x, kernel = contiguous(xp, x), contiguous(xp, kernel)
    N, O = x.shape[0], kernel.shape[3]
    bias = contiguous(xp, bias)
    if depthwise.covers(x, kernel, g, groups):
        y = depthwise.fprop(xp, x, kernel, g)
        add_bias_and_activate(xp, xp.reshape(y, (N * g.h.out * g.w.out, O)), bias, activation)
        return y, (x, kernel, y if activation else None) if save else None
    y = _autotuned(
        _Pass("fprop", x, kernel, g, groups, bias, activation),
        lambda: _gemm_fprop(xp, x, kernel, bias, activation, g, groups),
        lambda: implicit_gemm.fprop(xp, x, kernel, bias, activation, g, groups),
        lambda: cudnn.fprop(xp, x, kernel, bias, activation, g),
    )
    return y, (x, kernel, y if activation else None) if save else None


class _Pass(NamedTuple):
    """One pass of a convolution."""

    pass_name: str  # of autotune.PASSES
    x: Array
    kernel: Array
    g: Geometry
    groups: int
    bias: Array | None = None
    activation: str | None = None


def _autotuned(this: _Pass, by_gemm: _Algorithm, implicit: _Algorithm, by_cudnn: _Algorithm) -> Array:
    """Compute one pass with the algorithm that `autotune` chooses."""
    pass_name, x, kernel, g, groups, bias, activation = this
    candidates = {"product" if _pointwise(g) else "im2col": by_gemm}
    if x.shape[0]:
        if enabled("implicit") and implicit_gemm.covers(x, kernel, g, groups):
            candidates["implicit"] = implicit
        if enabled("cudnn") and cudnn.covers(pass_name, x, kernel, g, bias, activation):
            candidates["cudnn"] = by_cudnn
    return candidates[choose(candidates, lambda: convolution_key(pass_name, x, kernel, g))]()


def _gemm_fprop(
    xp: Any, x: Array, kernel: Array, bias: Array | None, activation: str | None, g: Geometry, groups: int
) -> Array:
    """Compute the forward pass by matrix products."""
    N, C, O = x.shape[0], x.shape[3], kernel.shape[3]
    weights = _kernel_matrices(xp, kernel, groups)
    y = xp.empty((N, g.h.out, g.w.out, O), dtype=x.dtype)
    rows = xp.reshape(y, (N * g.h.out * g.w.out, O))
    if _pointwise(g):
        gemm(xp, _split_groups(xp, xp.reshape(x, (rows.shape[0], C)), groups), weights, _split_groups(xp, rows, groups))
        add_bias_and_activate(xp, rows, bias, activation)
        return y
    workspace = _Im2colWorkspace(xp, x, g, groups)
    for chunk in _chunks(x, g):
        part = rows[chunk.start * workspace.positions : chunk.stop * workspace.positions]
        gemm(xp, workspace.fill(chunk), weights, _split_groups(xp, part, groups))
        add_bias_and_activate(xp, part, bias, activation)  # while the chunk is in the L2 cache
    return y


@convolve.backward
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
    dz_images = xp.reshape(dz, (x.shape[0], g.h.out, g.w.out, O))
    return *convolution_gradients(xp, dz_images, x, kernel, g, groups, needs, into), dbias


def convolution_gradients(
    xp: Any, dz_images: Array, x: Array, kernel: Array, g: Geometry, groups: int, needs: tuple[bool, ...], into: Any
) -> tuple[Array | None, Array | None]:
    """Compute the gradients of x and kernel from dz (N, OH, OW, O), the gradient before bias and activation.

    `needs` and `into` are those of the operation; what is not needed is None.
    """
    dx = dkernel = None
    dz = xp.reshape(dz_images, (x.shape[0] * g.h.out * g.w.out, kernel.shape[3]))
    if depthwise.covers(x, kernel, g, groups):
        dx = depthwise.dgrad(xp, dz_images, kernel, g) if needs[0] else None
        dkernel = depthwise.wgrad(xp, x, dz_images, g, into[1]) if needs[1] else None
    else:
        if needs[0]:
            dx = _autotuned(
                _Pass("dgrad", x, kernel, g, groups),
                lambda: _gemm_dgrad(xp, dz, _kernel_matrices(xp, kernel, groups), x, g, groups),
                lambda: implicit_gemm.dgrad(xp, dz_images, kernel, g, groups),
                lambda: cudnn.dgrad(xp, x, dz_images, kernel, g),
            )
        if needs[1]:
            dkernel = _autotuned(
                _Pass("wgrad", x, kernel, g, groups),
                lambda: _gemm_wgrad(xp, dz, x, g, groups, into[1]),
                lambda: implicit_gemm.wgrad(xp, x, dz_images, g, groups, into[1]),
                lambda: cudnn.wgrad(xp, x, dz_images, kernel, g),
            )
    if dkernel is not None and dkernel is not into[1]:
        dkernel = store_gradient(xp.reshape(dkernel, kernel.shape), kernel, into[1])
    return dx, dkernel


def _gemm_dgrad(xp: Any, dz: Array, weights: Array, x: Array, g: Geometry, groups: int) -> Array:
    """Compute dx: the product of dz (P, O) and the transposed kernel, scattered back by col2im."""
    dx = xp.empty(x.shape, dtype=x.dtype)
    transposed = xp.swapaxes(weights, 1, 2)
    if _pointwise(g):
        rows = xp.reshape(dx, (dz.shape[0], x.shape[3]))
        gemm(xp, _split_groups(xp, dz, groups), transposed, _split_groups(xp, rows, groups))
        return dx
    workspace = _Im2colWorkspace(xp, x, g, groups)
    for chunk in _chunks(x, g):
        part = dz[chunk.start * workspace.positions : chunk.stop * workspace.positions]
        cols = workspace.reserve(chunk.stop - chunk.start)
        gemm(xp, _split_groups(xp, part, groups), transposed, workspace.matrices(cols))
        col2im(xp, cols, g, dx[chunk])
    return dx


def _gemm_wgrad(xp: Any, dz: Array, x: Array, g: Geometry, groups: int, into: Array | None) -> Array:
    """Compute the gradient of the kernel (KH*KW*C/G, O): the transposed im2col matrix times dz, summed over the chunks.

    The matrix is computed again: saved by the forward pass it would have KH*KW times the size of x. The sum over chunks is
    float32 for 16-bit arrays. It is `into` itself, in its shape, where that can take it, see `sum_buffer`.
    """
    O, inner = dz.shape[1], g.h.window * g.w.window * (x.shape[3] // groups)
    sums = sum_buffer(xp, (inner, O), x, into)
    if dz.size == 0:
        sums[...] = 0
        return sums
    total = xp.reshape(sums, (inner, O))
    by_group = _split_groups(xp, total, groups)
    if _pointwise(g):
        rows = xp.reshape(x, (dz.shape[0], x.shape[3]))
        gemm(xp, xp.swapaxes(_split_groups(xp, rows, groups), 1, 2), _split_groups(xp, dz, groups), by_group)
        return sums
    workspace = _Im2colWorkspace(xp, x, g, groups)
    for chunk in _chunks(x, g):
        part = dz[chunk.start * workspace.positions : chunk.stop * workspace.positions]
        beta = 1.0 if chunk.start else 0.0
        gemm(xp, xp.swapaxes(workspace.fill(chunk), 1, 2), _split_groups(xp, part, groups), by_group, beta=beta)
    return sums
