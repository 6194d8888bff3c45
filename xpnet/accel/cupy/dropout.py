"""Dropout with masks computed on the device: ``kernels/cuda/dropout.cu``."""

from __future__ import annotations

import math
from typing import Any

from xpnet.accel.cupy.launch import THREADS, grid_size, launch, vector_width
from xpnet.accel.cupy.source import FLOATS, Kernel, dtype_of
from xpnet.accel.cupy.support import VECTORS, c_name, contiguous, supported, valid_vector
from xpnet.backend import half_dtypes
from xpnet.ops.dropout import dropout, dropout_key
from xpnet.ops.half import cast
from xpnet.ops.shapes import ShapeError
from xpnet.random import Key, threshold

Array = Any

_dropout = Kernel("dropout", "dropout", FLOATS, VECTORS, only=valid_vector)
_keep_mask = Kernel("dropout", "keep_mask", (1, 16))
_PER_THREAD = 16  # elements a Philox block


def _step_arguments(step: Any) -> tuple[int, Array | None]:
    """Return a step as the kernels take it: a number, and an array on the device (0-d uint64) that is added to it."""
    return (step, None) if isinstance(step, int) else (0, step)


def keep_mask(xp: Any, key: Key, step: Any, shape: tuple[int, ...], rate: float) -> Array:
    """Compute the mask of `xpnet.random.keep_mask`, bit for bit, on the device."""
    mask = xp.empty(shape, dtype=xp.uint8)
    V = 16 if mask.size % 16 == 0 and vector_width(mask.size, mask) == 16 else 1
    blocks = grid_size(-(-mask.size // _PER_THREAD))
    launch(_keep_mask[(V,)], blocks, THREADS, mask, mask.size, key.low, key.high, *_step_arguments(step), threshold(rate))
    return mask.view(xp.bool_)


def drop(xp: Any, x: Array, key: Key, step: Any, rate: float, scale: float) -> Array:
    """Return x * scale where `xpnet.random.keep_mask` is true for x's shape, else 0; x is C-contiguous."""
    y = xp.empty(x.shape, dtype=x.dtype)
    V = vector_width(x.size, x, y)
    launch(
        _dropout[c_name(x), V], grid_size(-(-x.size // _PER_THREAD)), THREADS, x, y, x.size, key.low, key.high,
        *_step_arguments(step), threshold(rate), scale,
    )  # fmt: skip
    return y


@dropout.accelerate("cupy")
def _dropout_op(xp: Any, x: Array, *, rate: float, key: Any, step: Any, shape: Any, inverted: bool) -> Any:
    if not supported(x) or not 0 <= rate <= 1:
        return NotImplemented  # the reference explains a wrong rate
    size = tuple(x.shape) if shape is None else tuple(shape)
    if len(size) != x.ndim or any(m not in (1, n) for m, n in zip(size, x.shape)):
        raise ShapeError(f"dropout: a mask of shape {size} does not broadcast to x {tuple(x.shape)}")
    return _apply(xp, x, size, rate, key, step, inverted), size


@_dropout_op.backward
def _(xp: Any, dy: Array, size: Any, *, rate: float, key: Any, step: Any, shape: Any, inverted: bool) -> Any:
    return _apply(xp, dy, size, rate, key, step, inverted)


def _apply(xp: Any, x: Array, size: tuple[int, ...], rate: float, key: Any, step: Any, inverted: bool) -> Array:
    words = dropout_key(key)
    scale = 1 / (1 - rate) if inverted and rate < 1 else 1.0
    if math.prod(size) == x.size:
        return drop(xp, contiguous(xp, x), words, step, rate, scale)
    if x.dtype in half_dtypes:
        return cast(_apply(xp, cast(x, "float32"), size, rate, key, step, inverted), dtype_of(x))
    mask = keep_mask(xp, words, step, size, rate)
    return xp.where(mask, x * scale, xp.zeros((), dtype=x.dtype))
