"""Batch and layer normalisation: ``kernels/cuda/batch_norm.cu`` and ``kernels/cuda/layer_norm.cu``.

Saved for the backward pass are x, means and variances; the normalised x is recomputed.
"""

from __future__ import annotations

import math
from typing import Any

from xpnet.accel.cupy.launch import grid_size, launch, vector_width
from xpnet.accel.cupy.reductions import merge_moments, partition, sum_partials
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import VECTORS, accumulator, c_name, contiguous, store_gradient, supported, valid_vector
from xpnet.ops.normalization import batch_norm_inference, batch_norm_with_statistics, layer_norm
from xpnet.ops.shapes import normalize_axes

Array = Any

_moments = Kernel("batch_norm", "batch_moments", FLOATS, VECTORS, only=valid_vector)
_apply = Kernel("batch_norm", "batch_norm_apply", FLOATS, VECTORS, only=valid_vector)
_sums = Kernel("batch_norm", "norm_gradient_sums", FLOATS, VECTORS, (False, True), only=valid_vector)
_backward = Kernel("batch_norm", "batch_norm_backward", FLOATS, VECTORS, (False, True), only=valid_vector)
_layer = Kernel("layer_norm", "layer_norm", FLOATS, VECTORS, (32, 256), only=valid_vector)
_layer_backward = Kernel("layer_norm", "layer_norm_backward", FLOATS, VECTORS, (32, 256), only=valid_vector)


def _vectors_fit(x: Array, size: int, *vectors: Array | None) -> bool:
    return all(v is None or v.size == size for v in vectors)


def _normalized(
    xp: Any, x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, epsilon: float
) -> Array:
    C = x.shape[-1]
    rows = math.prod(x.shape[:-1])
    y = xp.empty(x.shape, dtype=x.dtype)
    if y.size:
        V = vector_width(C, x, y)
        split = partition(rows, C // V, waves=16)
        launch(
            _apply[c_name(x), V], split.grid, split.block, x, mean, variance, scale, offset, y, rows, split.part_rows, C,
            epsilon,
        )  # fmt: skip
    return y


def _gradient_sums(
    xp: Any, dy: Array, x: Array, mean: Array, variance: Array, rows: int, C: int, per_row: bool, epsilon: float
) -> Array:
    """Return the sums over all rows of dy and of dy * xhat: (2, C), in the accumulator dtype."""
    if rows == 0:
        return xp.zeros((2, C), dtype=mean.dtype)
    V = vector_width(C, dy, x)
    split = partition(rows, C // V)
    partial = xp.empty((split.parts, 2 * C), dtype=mean.dtype)
    launch(
        _sums[c_name(x), V, per_row], split.grid, split.block, dy, x, mean, variance, partial, rows, split.part_rows, C,
        epsilon,
    )  # fmt: skip
    return xp.reshape(sum_partials(xp, partial), (2, C))


def _as_vectors(sums: Array, like: Array, shape: tuple[int, ...], needs: tuple[bool, ...], into: Any) -> tuple[Any, Any]:
    """Return the gradients of scale and offset from the two sums."""
    return (
        store_gradient(sums[1].reshape(shape), like, into[1]) if needs[1] else None,
        store_gradient(sums[0].reshape(shape), like, into[2]) if needs[2] else None,
    )


@batch_norm_with_statistics.accelerate("cupy")
def _batch_norm(xp: Any, x: Array, scale: Array | None = None, offset: Array | None = None, *, epsilon: float) -> Any:
    if not supported(x, scale, offset) or x.ndim < 2 or x.size == 0 or not _vectors_fit(x, x.shape[-1], scale, offset):
        return NotImplemented
    x, scale, offset = contiguous(xp, x), contiguous(xp, scale), contiguous(xp, offset)
    C = x.shape[-1]
    rows = math.prod(x.shape[:-1])
    V = vector_width(C, x)
    split = partition(rows, C // V)
    partial = xp.empty((split.parts, 2, C), dtype=accumulator(xp, x))
    launch(_moments[c_name(x), V], split.grid, split.block, x, partial, rows, split.part_rows, C)
    mean, variance = merge_moments(xp, partial, rows, split.part_rows)
    y = _normalized(xp, x, mean, variance, scale, offset, epsilon)
    return (y, mean, variance), (x, mean, variance, scale)


@_batch_norm.backward
def _(xp: Any, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, ...], into: Any = (None,) * 3) -> Any:
    x, mean, variance, scale = saved
    dy = contiguous(xp, dys[0])
    dmean, dvariance = (contiguous(xp, d.astype(mean.dtype, copy=False)) for d in dys[1:])
    C = x.shape[-1]
    rows = math.prod(x.shape[:-1])
    sums = _gradient_sums(xp, dy, x, mean, variance, rows, C, False, epsilon)
    dx = None
    if needs[0]:
        dx = _data_gradient(xp, dy, x, mean, variance, scale, sums, dmean, dvariance, True, epsilon)
    return dx, *_as_vectors(sums, x, (C,), needs, into)


def _data_gradient(
    xp: Any, dy: Array, x: Array, mean: Array, variance: Array, scale: Any, sums: Any, dmean: Any, dvariance: Any,
    training: bool, epsilon: float,
) -> Array:  # fmt: skip
    dx = xp.empty(x.shape, dtype=x.dtype)
    C = x.shape[-1]
    rows = math.prod(x.shape[:-1])
    if dx.size:
        V = vector_width(C, dy, x, dx)
        split = partition(rows, C // V, waves=16)
        launch(
            _backward[c_name(x), V, training], split.grid, split.block, dy, x, mean, variance, scale, sums, dmean,
            dvariance, dx, rows, split.part_rows, C, epsilon,
        )  # fmt: skip
    return dx


@batch_norm_inference.accelerate("cupy")
def _batch_norm_inference(
    xp: Any, x: Array, scale: Array | None = None, offset: Array | None = None, *, mean: Array, variance: Array, epsilon: float
) -> Any:
    C = x.shape[-1] if x.ndim else 0
    if not supported(x, scale, offset) or x.ndim < 1 or not _vectors_fit(x, C, scale, offset, mean, variance):
        return NotImplemented
    x, scale, offset = contiguous(xp, x), contiguous(xp, scale), contiguous(xp, offset)
    wide = accumulator(xp, x)
    mean, variance = (contiguous(xp, v.astype(wide, copy=False)) for v in (mean, variance))
    return _normalized(xp, x, mean, variance, scale, offset, epsilon), (x, mean, variance, scale)


@_batch_norm_inference.backward
def _(
    xp: Any, dy: Array, saved: Any, *, mean: Array, variance: Array, epsilon: float, needs: tuple[bool, ...],
    into: Any = (None,) * 3,
) -> Any:  # fmt: skip
    x, mean, variance, scale = saved
    dy = contiguous(xp, dy)
    C = x.shape[-1]
    sums = None
    if needs[1] or needs[2]:
        sums = _gradient_sums(xp, dy, x, mean, variance, math.prod(x.shape[:-1]), C, False, epsilon)
    dx = _data_gradient(xp, dy, x, mean, variance, scale, sums, None, None, False, epsilon) if needs[0] else None
    return dx, *(_as_vectors(sums, x, (C,), needs, into) if sums is not None else (None, None))


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
        vectors = _as_vectors(_gradient_sums(xp, dy, x, mean, variance, rows, K, True, epsilon), x, shape, needs, into)
    return dx, *vectors
