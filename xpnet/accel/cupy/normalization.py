"""Batch and layer normalisation: ``kernels/cuda/batch_norm.cu`` and ``kernels/cuda/layer_norm.cu``.

Saved for the backward pass are x, means and variances; the normalised x is recomputed, and so is the sign of what relu got.
"""

from __future__ import annotations

import math
from typing import Any

from xpnet.accel.cupy.activation import ACTIVATION_IDS
from xpnet.accel.cupy.launch import counters, grid_size, launch, vector_width
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
from xpnet.ops.normalization import (
    batch_norm_inference,
    batch_norm_training,
    batch_norm_with_statistics,
    gradient_of_output,
    layer_norm,
)
from xpnet.ops.shapes import normalize_axes

Array = Any

UNMASKED, FROM_X, FROM_Y = range(3)
"""Where the kernels find what relu has cut off, as in ``batch_norm.cu``."""


def _sums_exist(kind: str, width: int, per_row: bool, mask: int) -> bool:
    return valid_vector(kind, width) and not (per_row and mask)


def _gradient_exists(kind: str, width: int, training: bool, mask: int) -> bool:
    return valid_vector(kind, width) and (training or not mask)


_FUSED = (ACTIVATION_IDS[None], ACTIVATION_IDS["relu"])
_moments = Kernel("batch_norm", "batch_moments", FLOATS, VECTORS, only=valid_vector)
_apply = Kernel("batch_norm", "batch_norm_apply", FLOATS, VECTORS, (False, True), _FUSED, only=valid_vector)
_sums = Kernel("batch_norm", "norm_gradient_sums", FLOATS, VECTORS, (False, True), (UNMASKED, FROM_X, FROM_Y), only=_sums_exist)
_backward = Kernel(
    "batch_norm", "batch_norm_backward", FLOATS, VECTORS, (False, True), (UNMASKED, FROM_X), only=_gradient_exists
)
_layer = Kernel("layer_norm", "layer_norm", FLOATS, VECTORS, (32, 256), only=valid_vector)
_layer_backward = Kernel("layer_norm", "layer_norm_backward", FLOATS, VECTORS, (32, 256), only=valid_vector)


def _vectors_fit(size: int, *vectors: Array | None) -> bool:
    return all(v is None or tuple(v.shape) == (size,) for v in vectors)


def _statistics(xp: Any, x: Array, running: tuple[Array, Array] | None = None, momentum: float = 0) -> tuple[Array, Array]:
    """Return mean and variance of x, (C,) in the accumulator dtype, and update the running ones."""
    C = x.shape[-1]
    rows = x.size // C
    V = vector_width(C, x)
    split = partition(rows, C // V)
    wide = accumulator(xp, x)
    partial = xp.empty((split.parts, 2, C), dtype=wide)
    mean, variance = xp.empty((C,), dtype=wide), xp.empty((C,), dtype=wide)
    rest = 1 - momentum
    launch(
        _moments[c_name(x), V], split.grid, split.block, x, partial, mean, variance, *(running or (None, None)),
        counters(split.grid[0]), rows, split.part_rows, C, momentum, rest, rest * rows / max(rows - 1, 1),
    )  # fmt: skip
    return mean, variance


def _normalize(
    xp: Any, x: Array, y: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, epsilon: float,
    residual: Array | None = None, activation: str | None = None,
) -> None:  # fmt: skip
    """Set y = activation((x - mean) / sqrt(variance + epsilon) * scale + offset + residual)."""
    if y.size == 0:
        return
    C = x.shape[-1]
    rows = x.size // C
    V = vector_width(C, x, y) if residual is None else vector_width(C, x, y, residual)
    split = partition(rows, C // V, waves=16)
    launch(
        _apply[c_name(x), V, residual is not None, ACTIVATION_IDS[activation]], split.grid, split.block, x, mean, variance,
        scale, offset, residual, y, rows, split.part_rows, C, epsilon,
    )  # fmt: skip


def _gradient_sums(
    xp: Any, dy: Array, x: Array, mean: Array, variance: Array, shape: tuple[int, ...], into: Any, epsilon: float, *,
    per_row: bool = False, mask: int = UNMASKED, y: Array | None = None, more: Array | None = None,
    scale: Array | None = None, offset: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Return the sums over all rows of dz * xhat and of dz, in the accumulator dtype: the gradients of scale and offset.

    Args:
        shape: that of the two gradients.
        into: their buffers, see `sum_buffer`.
        per_row: whether mean and variance belong to rows.
        mask, y, scale, offset: how dz follows from dy; y is given for FROM_Y.
        more: for FROM_Y, what is to be added to dy, or None.

    Returns:
        the two sums, and dz, which is dy itself unless the mask is FROM_Y.
    """
    columns = math.prod(shape)
    rows = x.size // max(columns, 1)
    if rows == 0:
        return xp.zeros(shape, dtype=mean.dtype), xp.zeros(shape, dtype=mean.dtype), dy
    dscale, doffset = sum_buffer(xp, shape, x, into[1]), sum_buffer(xp, shape, x, into[2])
    dz = None if mask != FROM_Y else xp.empty(dy.shape, dtype=dy.dtype)
    V = vector_width(columns, *(a for a in (dy, more, x, y, dz) if a is not None))
    split = partition(rows, columns // V)
    partial = xp.empty((split.parts, 2, columns), dtype=mean.dtype)
    launch(
        _sums[c_name(x), V, per_row, mask], split.grid, split.block, dy, more, x, y, mean, variance, scale, offset, dz,
        partial, dscale, doffset, counters(split.grid[0]), rows, split.part_rows, columns, epsilon,
    )  # fmt: skip
    return dscale, doffset, dy if dz is None else dz


def _as_vectors(x: Array, dscale: Array, doffset: Array, needs: tuple[bool, ...], into: Any) -> tuple[Any, Any]:
    """Return the gradients of scale and offset from the two sums."""
    return (
        as_gradient(dscale, x, into[1]) if needs[1] else None,
        as_gradient(doffset, x, into[2]) if needs[2] else None,
    )


@batch_norm_with_statistics.accelerate("cupy")
def _batch_norm(xp: Any, x: Array, scale: Array | None = None, offset: Array | None = None, *, epsilon: float) -> Any:
    if not supported(x, scale, offset) or x.ndim < 2 or x.size == 0 or not _vectors_fit(x.shape[-1], scale, offset):
        return NotImplemented
    x, scale, offset = contiguous(xp, x), contiguous(xp, scale), contiguous(xp, offset)
    mean, variance = _statistics(xp, x)
    y = xp.empty(x.shape, dtype=x.dtype)
    _normalize(xp, x, y, mean, variance, scale, offset, epsilon)
    return (y, mean, variance), (x, mean, variance, scale)


@_batch_norm.backward
def _(xp: Any, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, ...], into: Any = (None,) * 3) -> Any:
    x, mean, variance, scale = saved
    dy = xp.zeros(x.shape, dtype=x.dtype) if dys[0] is None else contiguous(xp, dys[0])
    dmean, dvariance = (None if d is None else contiguous(xp, d.astype(mean.dtype, copy=False)) for d in dys[1:])
    dscale, doffset, dy = _gradient_sums(xp, dy, x, mean, variance, mean.shape, into, epsilon)
    dx = None
    if needs[0]:
        dx = _data_gradient(xp, dy, x, mean, variance, scale, (dscale, doffset), epsilon, statistics=(dmean, dvariance))
    return dx, *_as_vectors(x, dscale, doffset, needs, into)


def _data_gradient(
    xp: Any, dy: Array, x: Array, mean: Array, variance: Array, scale: Any, sums: tuple[Any, Any], epsilon: float, *,
    statistics: tuple[Any, Any] = (None, None), training: bool = True, mask: int = UNMASKED, offset: Any = None,
) -> Array:  # fmt: skip
    """Return dx from the gradients of scale and offset and, in training, those of mean and variance."""
    dx = xp.empty(x.shape, dtype=x.dtype)
    C = x.shape[-1]
    if dx.size:
        rows = x.size // C
        V = vector_width(C, dy, x, dx)
        split = partition(rows, C // V, waves=16)
        launch(
            _backward[c_name(x), V, training, mask], split.grid, split.block, dy, x, mean, variance, scale, offset, *sums,
            *statistics, dx, rows, split.part_rows, C, epsilon,
        )  # fmt: skip
    return dx


@batch_norm_training.accelerate("cupy")
def _batch_norm_training(
    xp: Any, x: Array, scale: Array | None = None, offset: Array | None = None, residual: Array | None = None, *,
    running_mean: Array | None, running_variance: Array | None, momentum: float, epsilon: float, activation: str | None,
    save: bool,
) -> Any:  # fmt: skip
    running = None if running_mean is None or running_variance is None else (running_mean, running_variance)
    if (
        not supported(x, scale, offset, residual)
        or x.ndim < 2
        or x.size == 0
        or not _vectors_fit(x.shape[-1], scale, offset, running_mean, running_variance)
        or (residual is not None and residual.shape != x.shape)
        or activation not in (None, "relu")
        or not all(v is None or (v.dtype == accumulator(xp, x) and v.flags.c_contiguous) for v in running or ())
    ):
        return NotImplemented
    x, scale, offset, residual = (contiguous(xp, a) for a in (x, scale, offset, residual))
    y = xp.empty(x.shape, dtype=x.dtype)  # before anything is updated: there may be no memory for it
    mean, variance = _statistics(xp, x, running, momentum)
    _normalize(xp, x, y, mean, variance, scale, offset, epsilon, residual, activation)
    kept = y if activation is not None and residual is not None else None
    return y if running is None else (y, *running), (x, mean, variance, scale, offset, kept) if save else None


@_batch_norm_training.backward(adds=True)
def _(
    xp: Any, dy: Any, saved: Any, *, epsilon: float, activation: str | None, needs: tuple[bool, ...],
    into: Any = (None,) * 4, **settings: Any,
) -> Any:  # fmt: skip
    x, mean, variance, scale, offset, y = saved
    mask = UNMASKED if activation is None else FROM_X if y is None else FROM_Y
    dy, more = gradient_of_output(dy), None
    if type(dy) is list:
        dy, more = dy if mask == FROM_Y and dy[0].dtype == dy[1].dtype else (dy[0] + dy[1], None)
    dy, more = contiguous(xp, dy), contiguous(xp, more)
    vectors = {"scale": scale, "offset": offset} if mask == FROM_X else {}
    dscale, doffset, dz = _gradient_sums(
        xp, dy, x, mean, variance, mean.shape, into, epsilon, mask=mask, y=y, more=more, **vectors
    )
    dx = None
    if needs[0]:
        mask, offset = (FROM_X, offset) if mask == FROM_X else (UNMASKED, None)
        dx = _data_gradient(xp, dz, x, mean, variance, scale, (dscale, doffset), epsilon, mask=mask, offset=offset)
    return dx, *_as_vectors(x, dscale, doffset, needs, into), dz if needs[3] else None


@batch_norm_inference.accelerate("cupy")
def _batch_norm_inference(
    xp: Any, x: Array, scale: Array | None = None, offset: Array | None = None, *, mean: Array, variance: Array, epsilon: float
) -> Any:
    C = x.shape[-1] if x.ndim else 0
    if not supported(x, scale, offset) or x.ndim < 1 or not _vectors_fit(C, scale, offset, mean, variance):
        return NotImplemented
    x, scale, offset = contiguous(xp, x), contiguous(xp, scale), contiguous(xp, offset)
    wide = accumulator(xp, x)
    mean, variance = (contiguous(xp, v.astype(wide, copy=False)) for v in (mean, variance))
    y = xp.empty(x.shape, dtype=x.dtype)
    _normalize(xp, x, y, mean, variance, scale, offset, epsilon)
    return y, (x, mean, variance, scale)


@_batch_norm_inference.backward
def _(
    xp: Any, dy: Array, saved: Any, *, mean: Array, variance: Array, epsilon: float, needs: tuple[bool, ...],
    into: Any = (None,) * 3,
) -> Any:  # fmt: skip
    x, mean, variance, scale = saved
    dy = contiguous(xp, dy)
    vectors: tuple[Any, Any] = None, None
    if needs[1] or needs[2]:
        dscale, doffset, _ = _gradient_sums(xp, dy, x, mean, variance, mean.shape, into, epsilon)
        vectors = _as_vectors(x, dscale, doffset, needs, into)
    dx = None
    if needs[0]:
        dx = _data_gradient(xp, dy, x, mean, variance, scale, (None, None), epsilon, training=False)
    return dx, *vectors


_SHORT = 1024  # rows of up to so many elements get a warp, longer ones a block


@layer_norm.accelerate("cupy")
def _layer_norm(
    xp: Any, x: Array, scale: Array | None = None, offset: Array | None = None, *, axis: Any, epsilon: float
) -> Any:
    axes = tuple(sorted(normalize_axes(axis, x.ndim)))
    shape = tuple(x.shape[a] for a in axes)
    given = all(v is None or tuple(v.shape) == shape for v in (scale, offset))
    if not supported(x, scale, offset) or not given or axes != tuple(range(x.ndim - len(axes), x.ndim)) or x.size == 0:
        return NotImplemented
    x, scale, offset = contiguous(xp, x), contiguous(xp, scale), contiguous(xp, offset)
    K = math.prod(shape)
    rows = x.size // K
    y = xp.empty(x.shape, dtype=x.dtype)
    mean, variance = (xp.empty((rows,), dtype=accumulator(xp, x)) for _ in range(2))
    V = vector_width(K, *(a for a in (x, y, scale, offset) if a is not None))
    lanes = 32 if K <= _SHORT else 256
    launch(
        _layer[c_name(x), V, lanes], grid_size(rows, 256 // lanes), 256, x, scale, offset, y, mean, variance, rows, K,
        epsilon,
    )  # fmt: skip
    return y, (x, scale, mean, variance)


@_layer_norm.backward
def _(xp: Any, dy: Array, saved: Any, *, axis: Any, epsilon: float, needs: tuple[bool, ...], into: Any = (None,) * 3) -> Any:
    x, scale, mean, variance = saved
    dy = contiguous(xp, dy)
    rows = mean.size
    K = x.size // rows
    shape = tuple(x.shape[a] for a in sorted(normalize_axes(axis, x.ndim)))
    dx = None
    if needs[0]:
        dx = xp.empty(x.shape, dtype=x.dtype)
        V = vector_width(K, *(a for a in (dy, x, dx, scale) if a is not None))
        lanes = 32 if K <= _SHORT else 256
        launch(
            _layer_backward[c_name(x), V, lanes], grid_size(rows, 256 // lanes), 256, dy, x, scale, mean, variance, dx,
            rows, K, epsilon,
        )  # fmt: skip
    vectors: tuple[Any, Any] = None, None
    if needs[1] or needs[2]:
        dscale, doffset, _ = _gradient_sums(xp, dy, x, mean, variance, shape, into, epsilon, per_row=True)
        vectors = _as_vectors(x, dscale, doffset, needs, into)
    return dx, *vectors
