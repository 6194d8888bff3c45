"""Bias and activation as the epilogue of a matrix product, and elementwise activations: ``kernels/cuda/activation.cu``."""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.launch import THREADS, counters, grid_size, launch, vector_width
from xpnet.accel.cupy.reductions import partition
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import (
    VECTORS,
    accumulator,
    as_gradient,
    c_name,
    contiguous,
    sum_buffer,
    supported,
    valid_vector,
)
from xpnet.ops.activations import relu, sigmoid, tanh

Array = Any

ACTIVATION_IDS = {None: 0, "relu": 1, "sigmoid": 2, "tanh": 3}
"""The number in the CUDA sources of each activation that an epilogue can apply."""

_IDS = tuple(ACTIVATION_IDS.values())


def _has_activation(kind: str, width: int, number: int) -> bool:
    return valid_vector(kind, width) and number != 0


def _has_work(kind: str, width: int, number: int, sums: bool) -> bool:
    return valid_vector(kind, width) and (number != 0 or sums)


_bias = Kernel("activation", "bias_activation", FLOATS, VECTORS, _IDS, only=valid_vector)
_bias_backward = Kernel("activation", "bias_activation_backward", FLOATS, VECTORS, _IDS, (False, True), only=_has_work)
_forward = Kernel("activation", "activation", FLOATS, VECTORS, _IDS, only=_has_activation)
_backward = Kernel("activation", "activation_backward", FLOATS, VECTORS, _IDS, only=_has_activation)


def add_bias_and_activate(xp: Any, y: Array, bias: Array | None, activation: str | None) -> None:
    """Set y = activation(y + bias) in place, for y (rows, channels) and bias (channels,) or None."""
    if y.size == 0 or (bias is None and activation is None):
        return
    rows, channels = y.shape
    V = vector_width(channels, y) if bias is None else vector_width(channels, y, bias)
    split = partition(rows, channels // V, waves=16)
    kernel = _bias[c_name(y), V, ACTIVATION_IDS[activation]]
    launch(kernel, split.grid, split.block, y, bias, rows, split.part_rows, channels)


def bias_and_activation_gradients(
    xp: Any, dy: Array, y: Array | None, activation: str | None, need_bias: bool, into: Array | None = None
) -> tuple[Array, Array | None]:
    """Compute the gradient before the activation and that of the bias.

    Args:
        dy: (rows, channels).
        y: the output of the activation, (rows, channels); unused where `activation` is None.
        into: a buffer for the gradient of the bias, see `sum_buffer`.

    Returns:
        dz (rows, channels), dy itself without an activation; and the gradient of the bias (channels,) or None.
    """
    rows, channels = dy.shape
    if activation is None and not need_bias:
        return dy, None
    if dy.size == 0:
        return dy, xp.zeros((channels,), dtype=dy.dtype) if need_bias else None
    dz = None if activation is None else xp.empty(dy.shape, dtype=dy.dtype)
    used = [a for a in (dy, dz, y if activation else None) if a is not None]
    V = vector_width(channels, *used)
    split = partition(rows, channels // V)
    partial = dbias = counting = None
    if need_bias:
        partial = xp.empty((split.parts, channels), dtype=accumulator(xp, dy))
        dbias, counting = sum_buffer(xp, (channels,), dy, into), counters(split.grid[0])
    launch(
        _bias_backward[c_name(dy), V, ACTIVATION_IDS[activation], need_bias], split.grid, split.block, dy,
        y if activation else None, dz, partial, dbias, counting, rows, split.part_rows, channels,
    )  # fmt: skip
    return dy if dz is None else dz, None if dbias is None else as_gradient(dbias, dy, into)


def _elementwise(kernel: Kernel, xp: Any, activation: str, *arrays: Array) -> Array:
    sources = [contiguous(xp, a) for a in arrays]
    out = xp.empty(sources[0].shape, dtype=sources[0].dtype)
    V = vector_width(out.size, out, *sources)
    grid = grid_size(out.size // V)
    launch(kernel[c_name(out), V, ACTIVATION_IDS[activation]], grid, THREADS, *sources, out, out.size)
    return out


def _register(operation: Any, name: str) -> None:
    @operation.accelerate("cupy")  # type: ignore[untyped-decorator]
    def forward(xp: Any, x: Array) -> Any:
        if not supported(x):
            return NotImplemented
        y = _elementwise(_forward, xp, name, x)
        return y, y

    @forward.backward  # type: ignore[untyped-decorator]
    def backward(xp: Any, dy: Array, y: Array) -> Any:
        return _elementwise(_backward, xp, name, dy, y)


for _operation, _name in ((relu, "relu"), (sigmoid, "sigmoid"), (tanh, "tanh")):
    _register(_operation, _name)

__all__ = ["ACTIVATION_IDS", "add_bias_and_activate", "bias_and_activation_gradients"]
