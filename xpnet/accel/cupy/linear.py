"""Dense layers and matrix products through `gemm`; small dense layers also as convolutions of images of one pixel.

cuBLAS leaves bias and activation to a second kernel. Beside a small product that takes as long as the product itself, as each
node of a CUDA graph takes about 2.5 microseconds; the implicit GEMM ends in bias and activation. `autotune` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xpnet.accel.cupy import implicit_gemm
from xpnet.accel.cupy.activation import ACTIVATION_IDS, add_bias_and_activate, bias_and_activation_gradients
from xpnet.accel.cupy.autotune import ConvolutionKey, choose, convolution_key, enabled
from xpnet.accel.cupy.gemm import gemm
from xpnet.accel.cupy.launch import runtime
from xpnet.accel.cupy.support import contiguous, out_buffer, supported
from xpnet.ops.convolution import conv_geometry
from xpnet.ops.linear import dense, matmul

Array = Any

_LAUNCH = 2.5
"""Microseconds of one node of a CUDA graph more."""


@dense.accelerate("cupy")
def _dense(xp: Any, x: Array, kernel: Array, bias: Array | None = None, *, activation: str | None, save: bool) -> Any:
    if kernel.ndim != 2 or x.ndim == 0 or x.shape[-1] != kernel.shape[0] or not supported(x, kernel, bias):
        return NotImplemented  # the reference raises
    units = kernel.shape[1]
    if (bias is not None and tuple(bias.shape) != (units,)) or activation not in ACTIVATION_IDS:
        return NotImplemented
    rows = xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    y = xp.reshape(_product(xp, rows, kernel, contiguous(xp, bias), activation), (*x.shape[:-1], units))
    return y, (x, kernel, y if activation else None) if save else None


def _product(xp: Any, rows: Array, kernel: Array, bias: Array | None, activation: str | None) -> Array:
    """Compute activation(rows @ kernel + bias)."""

    def by_gemm() -> Array:
        y = gemm(xp, rows, kernel, xp.empty((rows.shape[0], kernel.shape[1]), dtype=rows.dtype))
        add_bias_and_activate(xp, y, bias, activation)
        return y

    count, C = rows.shape
    if (bias is None and activation is None) or not _is_small(rows, kernel) or not enabled("implicit"):
        return by_gemm()
    images, window = xp.reshape(rows, (count, 1, 1, C)), xp.reshape(kernel, (1, 1, *kernel.shape))
    g = conv_geometry(images, window, None, 1, 0, 1, 1)
    candidates: dict[str, Callable[[], Array]] = {
        "product": by_gemm,
        "implicit": lambda: implicit_gemm.fprop(xp, images, window, bias, activation, g),
    }

    def key() -> ConvolutionKey:
        """Return one key for all batches of a size between two powers of two: changing lengths are not measured for ever."""
        return convolution_key("fprop", images, window, g)._replace(x=(1 << (count - 1).bit_length(), 1, 1, C))

    return candidates[choose(candidates, key)]()


def _is_small(rows: Array, kernel: Array) -> bool:
    """Return whether a product is estimated to take less than one launch more; empty ones and copies of operands are not."""
    products = rows.size * kernel.shape[1]
    speed = implicit_gemm.PRODUCTS * (6 if implicit_gemm.uses_tensor_cores(rows, *kernel.shape) else 1)
    return bool(
        0 < products < _LAUNCH * speed * runtime().multiprocessors and rows.flags.c_contiguous and kernel.flags.c_contiguous
    )


@_dense.backward
def _(xp: Any, dy: Array, saved: Any, *, activation: str | None, needs: tuple[bool, ...], into: Any = (None,) * 3) -> Any:
    x, kernel, y = saved
    count, units = math.prod(x.shape[:-1]), kernel.shape[1]
    dy = xp.reshape(contiguous(xp, dy), (count, units))
    y = None if y is None else xp.reshape(y, (count, units))
    dz, dbias = bias_and_activation_gradients(xp, dy, y, activation, needs[2], into[2])
    dx = dkernel = None
    if needs[0]:
        dx = xp.reshape(gemm(xp, dz, kernel.T, xp.empty((count, kernel.shape[0]), dtype=x.dtype)), x.shape)
    if needs[1]:
        rows = xp.reshape(x, (count, kernel.shape[0]))
        dkernel = gemm(xp, rows.T, dz, out_buffer(xp, kernel.shape, kernel, into[1]))
    return dx, dkernel, dbias


@matmul.accelerate("cupy")
def _matmul(xp: Any, x: Array, y: Array) -> Any:
    """Multiply matrices, a stack of matrices by a matrix, or stacks of equal shape; the reference does the rest."""
    if not supported(x, y) or min(x.ndim, y.ndim) < 2 or x.shape[-1] != y.shape[-2]:
        return NotImplemented
    if y.ndim == 2:
        z = _times_matrix(xp, x, y)
    elif x.shape[:-2] == y.shape[:-2]:
        z = _stacks(xp, x, y)
    else:
        return NotImplemented
    return z, (x, y)


def _times_matrix(xp: Any, x: Array, y: Array) -> Array:
    rows = x if x.ndim == 2 else xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    z = gemm(xp, rows, y, xp.empty((rows.shape[0], y.shape[1]), dtype=x.dtype))
    return xp.reshape(z, (*x.shape[:-1], y.shape[1]))


def _stacks(xp: Any, x: Array, y: Array) -> Array:
    count = math.prod(x.shape[:-2])
    left = xp.reshape(x, (count, *x.shape[-2:]))
    right = xp.reshape(y, (count, *y.shape[-2:]))
    z = gemm(xp, left, right, xp.empty((count, x.shape[-2], y.shape[-1]), dtype=x.dtype))
    return xp.reshape(z, (*x.shape[:-1], y.shape[-1]))


@_matmul.backward
def _(xp: Any, dz: Array, saved: Any, *, needs: tuple[bool, ...]) -> Any:
    x, y = saved
    dx = dy = None
    if y.ndim == 2:
        dx = _times_matrix(xp, dz, y.T) if needs[0] else None
        if needs[1]:
            count = math.prod(x.shape[:-1])
            rows, dzs = xp.reshape(x, (count, x.shape[-1])), xp.reshape(dz, (count, y.shape[1]))
            dy = gemm(xp, rows.T, dzs, xp.empty(y.shape, dtype=y.dtype))
    else:
        dx = _stacks(xp, dz, xp.swapaxes(y, -1, -2)) if needs[0] else None
        dy = _stacks(xp, xp.swapaxes(x, -1, -2), dz) if needs[1] else None
    return dx, dy
