"""relu and dropout for NumPy, without np.where, which takes five times as long as the arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet import random
from xpnet.accel.numpy.chunks import ELEMENTWISE_CHUNK, PASS_SECONDS, balanced_chunk_size
from xpnet.accel.numpy.epilogue import apply_mask, relu_to
from xpnet.accel.numpy.workspace import FLOATS, Floats
from xpnet.ops.activations import relu
from xpnet.ops.dropout import dropout, dropout_key
from xpnet.runtime.threads import parallel

_CHUNK = 1 << 17
"""Elements up to which an array is not split."""


def _flat_chunks(size: int) -> list[slice]:
    step = balanced_chunk_size(size, ELEMENTWISE_CHUNK, 4 * PASS_SECONDS * size)
    return [slice(i, min(i + step, size)) for i in range(0, size, step)]


@relu.accelerate("numpy")
def relu_forward(xp: Any, x: Floats) -> Any:
    """Compute max(x, 0)."""
    if x.dtype not in FLOATS or not x.flags.c_contiguous:
        return NotImplemented
    y = np.empty(x.shape, x.dtype)
    flat, out = x.reshape(-1), y.reshape(-1)
    if x.size <= _CHUNK:
        relu_to(flat, out)
    else:
        parts = _flat_chunks(x.size)
        parallel(lambda i: relu_to(flat[parts[i]], out[parts[i]]), len(parts), 3 * PASS_SECONDS * x.size)
    return y, y


@relu_forward.backward(owns_result=True)
def relu_backward(xp: Any, dy: Floats, y: Floats) -> Any:
    """Pass dy where y > 0."""
    dx = np.empty(dy.shape, dy.dtype)
    if dy.size <= _CHUNK or not (dy.flags.c_contiguous and y.flags.c_contiguous):
        apply_mask(dy, np.greater(y, 0), dx)
        return dx
    parts = _flat_chunks(dy.size)
    flat, kept, out = dy.reshape(-1), y.reshape(-1), dx.reshape(-1)

    def part(i: int) -> None:
        apply_mask(flat[parts[i]], np.greater(kept[parts[i]], 0), out[parts[i]])

    parallel(part, len(parts), 5 * PASS_SECONDS * dy.size, 2)
    return dx


def _drop(x: Floats, mask: Floats, rate: float, inverted: bool) -> Floats:
    """Return x / (1 - rate) where the mask is True, else 0."""
    y = x * x.dtype.type(1 / (1 - rate)) if inverted and rate < 1 else x.copy()
    apply_mask(y, np.broadcast_to(mask, y.shape), y)
    return y


@dropout.accelerate("numpy")
def dropout_forward(xp: Any, x: Floats, *, rate: float, key: Any, step: int, shape: Any, inverted: bool) -> Any:
    """Drop elements by the same mask as the reference."""
    if x.dtype not in FLOATS or shape is not None or not 0 <= rate <= 1:
        return NotImplemented
    mask: Any = random.keep_mask(np, dropout_key(key), step, x.shape, rate)
    return _drop(x, mask, rate, inverted), mask


@dropout_forward.backward(owns_result=True)
def dropout_backward(xp: Any, dy: Floats, mask: Floats, *, rate: float, key: Any, step: int, shape: Any, inverted: bool) -> Any:
    """Drop the same elements of the gradient."""
    return _drop(dy, mask, rate, inverted)


# -- what it allocates, on fake arrays --


@relu_forward.footprint
def _relu_footprint(xp: Any, x: Any) -> Any:
    if x.dtype not in FLOATS or not x.flags.c_contiguous:
        return NotImplemented
    y = xp.empty_like(x)
    return y, y


@_relu_footprint.backward
def _(xp: Any, dy: Any, y: Any) -> Any:
    dx = xp.empty_like(dy)
    xp.temporary(np.bool, (min(dy.size, _CHUNK),))
    return dx


@dropout_forward.footprint
def _dropout_footprint(xp: Any, x: Any, *, rate: float, key: Any, step: int, shape: Any, inverted: bool) -> Any:
    if x.dtype not in FLOATS or shape is not None or not 0 <= rate <= 1:
        return NotImplemented
    mask = xp.empty(x.shape, dtype=np.bool)
    xp.temporary(np.uint16, x.shape)  # the random numbers
    return xp.empty_like(x), mask


@_dropout_footprint.backward
def _(xp: Any, dy: Any, mask: Any, *, rate: float, key: Any, step: int, shape: Any, inverted: bool) -> Any:
    return xp.empty_like(dy)
