"""Normalisation over the batch, a layer or groups of channels, and local response normalisation.

All share one pair of formulas. With xhat = (x - mean) / sqrt(variance + epsilon) over some axes,
dx = (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) / sqrt(variance + epsilon), the means over the same axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from xpnet.backend import Array, Namespace, refuse_subclass
from xpnet.ops.activations import relu
from xpnet.ops.elementwise import add
from xpnet.ops.registry import op, statistics_in_float32
from xpnet.ops.shapes import ShapeError, expect_rank, normalize_axes
from xpnet.ops.sums import far_from_zero, total


def _count(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Return the number of elements over axes, the divisor of a mean; 1 for none."""
    count = 1
    for a in axes:
        count *= shape[a]
    return count or 1


def _normalize(xp: Namespace, x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array, Array]:
    """Return xhat, 1/sqrt(variance + epsilon), mean and variance, the last three with the axes kept as 1."""
    count = _count(x.shape, axes)
    mean = total(xp, x, axes, True) / count
    centred = x - mean
    variance = total(xp, centred * centred, axes, True) / count
    if far_from_zero(xp, mean, variance):  # where the deviation is small, the mean was rounded too early
        rest = total(xp, centred, axes, True) / count
        mean, centred = mean + rest, centred - rest
        variance = total(xp, centred * centred, axes, True) / count
    inverse = 1 / xp.sqrt(variance + epsilon)
    return centred * inverse, inverse, mean, variance


def _normalize_backward(xp: Namespace, dxhat: Array, xhat: Array, inverse: Array, axes: tuple[int, ...]) -> Array:
    count = _count(xhat.shape, axes)
    mean = total(xp, dxhat, axes, True) / count
    return (dxhat - mean - xhat * (total(xp, dxhat * xhat, axes, True) / count)) * inverse


def _affine(y: Array, scale: Array | None, offset: Array | None) -> Array:
    y = y if scale is None else y * scale
    return y if offset is None else y + offset


def _check_vectors(operation: str, shape: tuple[int, ...], **vectors: Array | None) -> None:
    for name, vector in vectors.items():
        if vector is not None and tuple(vector.shape) != shape:
            raise ShapeError(f"{operation}: {name} has shape {tuple(vector.shape)}, expected {shape}")


def _vector_gradients(
    xp: Namespace, dy: Array, xhat: Array, axes: tuple[int, ...], needs: tuple[bool, ...]
) -> tuple[Array | None, Array | None]:
    """Return the gradients of scale and offset, summed over all axes that they do not have."""
    return (
        total(xp, dy * xhat, axes) if needs[1] else None,
        total(xp, dy, axes) if needs[2] else None,
    )


@op(half=statistics_in_float32, absent=True)
def batch_norm_with_statistics(
    xp: Namespace, x: Array, scale: Array | None = None, offset: Array | None = None, *, epsilon: float = 1e-5
) -> Any:
    """Normalise every channel (last axis) over all other axes, then multiply by `scale` and add `offset`.

    Args:
        x: (N, ..., C).
        scale, offset: (C,), or None.
        epsilon: added to the variance.

    Returns:
        y: the shape of x.
        mean, variance: (C,), the batch's own; the variance is the biased one (divided by the count).

    Source: Ioffe and Szegedy, "Batch normalization", 2015.
    """
    if x.ndim < 2:
        raise ShapeError(f"batch_norm: x has shape {tuple(x.shape)}, expected (N, ..., C)")
    _check_vectors("batch_norm", (x.shape[-1],), scale=scale, offset=offset)
    axes = tuple(range(x.ndim - 1))
    xhat, inverse, mean, variance = _normalize(xp, x, axes, epsilon)
    C = x.shape[-1]
    outputs = _affine(xhat, scale, offset), xp.reshape(mean, (C,)), xp.reshape(variance, (C,))
    return outputs, (xhat, inverse, scale)


@batch_norm_with_statistics.backward
def _(xp: Namespace, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, ...]) -> Any:
    dy, dmean, dvariance = dys
    xhat, inverse, scale = saved
    axes = tuple(range(xhat.ndim - 1))
    count = max(math.prod(xhat.shape[:-1]), 1)
    dx = None
    dy = cast(Array, xp.zeros_like(xhat)) if dy is None else dy
    if needs[0]:
        dx = _normalize_backward(xp, dy if scale is None else dy * scale, xhat, inverse, axes)
        # The statistics are outputs too: mean = sum x / count, variance = sum (x - mean)^2 / count.
        dx = dx if dmean is None else dx + dmean / count
        dx = dx if dvariance is None else dx + 2 * dvariance * xhat / inverse / count
    return dx, *_vector_gradients(xp, dy, xhat, axes, needs)


@op(half=statistics_in_float32, absent=True)
def batch_norm_training(
    xp: Namespace,
    x: Array,
    scale: Array | None = None,
    offset: Array | None = None,
    residual: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_variance: Array | None = None,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    activation: str | None = None,
    save: bool = True,
) -> Any:
    """Compute ``activation(batch_norm(x, scale, offset) + residual)``, and update running statistics.

    Args:
        x, scale, offset, epsilon: as in :func:`batch_norm_with_statistics`.
        residual: the shape of x, or None.
        running_mean, running_variance: (C,), both or neither. They become momentum * running + (1 - momentum) * batch, with the
            unbiased variance of the batch (divided by the count - 1); of an empty batch they stay as they are.
        momentum: which part of the running statistics is kept.
        activation: None or "relu".

    Returns:
        y: the shape of x.
        running_mean, running_variance: if they were given. They are the given arrays, updated in place, wherever arrays can be
            changed, and have no gradient.
    """
    if activation not in (None, "relu"):
        raise ValueError(f"batch_norm: activation must be None or 'relu', got {activation!r}")
    if residual is not None and residual.shape != x.shape:
        raise ShapeError(f"batch_norm: residual has shape {tuple(residual.shape)}, expected that of x, {tuple(x.shape)}")
    if (running_mean is None) != (running_variance is None):
        raise ValueError("batch_norm: give both running_mean and running_variance, or neither")
    inner = {"epsilon": epsilon}
    (y, mean, variance), kept, first = batch_norm_with_statistics.run(xp, (x, scale, offset), inner, save)
    sign = second = None
    if residual is not None:
        y = add.run(xp, (y, residual), {}, False)[0]
    if activation is not None:
        y, sign, second = relu.run(xp, (y,), {}, save)
    saved = (kept, first, sign, second) if save else None
    if running_mean is None or running_variance is None:
        return y, saved
    _check_vectors("batch_norm", (x.shape[-1],), running_mean=running_mean, running_variance=running_variance)
    count = math.prod(x.shape[:-1])
    running = update_running(xp, running_mean, running_variance, mean, variance, count, momentum)
    return (y, *running), saved


def update_running(
    xp: Namespace, running_mean: Array, running_variance: Array, mean: Array, variance: Array, count: int, momentum: float
) -> tuple[Array, Array]:
    """Return running statistics after a batch with these, from `count` rows; in place where arrays can be changed."""
    if count:  # captured steps hold the arrays
        rest = 1 - momentum
        running_mean *= momentum
        running_mean += rest * xp.astype(mean, running_mean.dtype, copy=False)
        running_variance *= momentum
        running_variance += rest * count / max(count - 1, 1) * xp.astype(variance, running_variance.dtype, copy=False)
    return running_mean, running_variance


def gradient_of_output(dys: Any) -> Array:
    """Return the gradient of the first output of :func:`batch_norm_training` from those of all."""
    dy = dys[0] if type(dys) is tuple else dys
    if dy is None:
        raise TypeError("batch_norm: the running statistics have no gradient; use batch_norm_with_statistics")
    return cast(Array, dy)


@batch_norm_training.backward
def _(xp: Namespace, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, ...], **settings: Any) -> Any:
    kept, first, sign, second = saved
    dz: Any = gradient_of_output(dys)
    if second is not None:
        (dz,) = relu.gradients(second, xp, dz, sign, {}, (True,))
    vectors = batch_norm_with_statistics.gradients(first, xp, (dz, None, None), kept, {"epsilon": epsilon}, needs[:3])
    return *vectors, dz if needs[3] else None


@op
def batch_norm_inference(
    xp: Namespace,
    x: Array,
    scale: Array | None = None,
    offset: Array | None = None,
    *,
    mean: Array,
    variance: Array,
    epsilon: float = 1e-5,
) -> Any:
    """Normalise x (N, ..., C) with given, constant statistics (C,)."""
    _check_vectors("batch_norm", (x.shape[-1],), scale=scale, offset=offset, mean=mean, variance=variance)
    for statistic in (mean, variance):
        refuse_subclass(statistic)
    # The statistics are constants, which do not widen the result.
    mean, variance = (v if v.dtype == x.dtype else xp.astype(v, x.dtype) for v in (mean, variance))
    inverse = 1 / xp.sqrt(variance + epsilon)
    xhat = (x - mean) * inverse
    return _affine(xhat, scale, offset), (xhat, inverse, scale)


@batch_norm_inference.backward
def _(xp: Namespace, dy: Array, saved: Any, *, mean: Array, variance: Array, epsilon: float, needs: tuple[bool, ...]) -> Any:
    xhat, inverse, scale = saved
    dx = dy * (inverse if scale is None else scale * inverse)
    return dx, *_vector_gradients(xp, dy, xhat, tuple(range(xhat.ndim - 1)), needs)


def batch_norm(
    x: Any,
    scale: Any = None,
    offset: Any = None,
    *,
    mean: Any = None,
    variance: Any = None,
    epsilon: float = 1e-5,
) -> Any:
    """Normalise x (N, ..., C) over all axes but the last.

    `mean` and `variance` (C,), usually the running statistics, are used as constants if given, else the batch's own. Other
    arguments as in :func:`batch_norm_with_statistics`, which also returns the statistics.
    """
    if (mean is None) != (variance is None):
        raise ValueError("batch_norm: give both mean and variance, or neither")
    if mean is None:
        return batch_norm_with_statistics(x, scale, offset, epsilon=epsilon)[0]
    return batch_norm_inference(x, scale, offset, mean=mean, variance=variance, epsilon=epsilon)


@op
def layer_norm(
    xp: Namespace,
    x: Array,
    scale: Array | None = None,
    offset: Array | None = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-5,
) -> Any:
    """Normalise over `axis`, then multiply by `scale` and add `offset`, whose shape is that of x over `axis`.

    Source: Ba et al., "Layer normalization", 2016.
    """
    axes = tuple(sorted(normalize_axes(axis, x.ndim)))
    if axes != tuple(range(x.ndim - len(axes), x.ndim)):
        raise ShapeError(f"layer_norm: axis {axis} of shape {tuple(x.shape)}: expected the last axes")
    _check_vectors("layer_norm", tuple(x.shape[a] for a in axes), scale=scale, offset=offset)
    xhat, inverse, _, _ = _normalize(xp, x, axes, epsilon)
    return _affine(xhat, scale, offset), (xhat, inverse, scale)


@layer_norm.backward
def _(xp: Namespace, dy: Array, saved: Any, *, axis: int | Sequence[int], epsilon: float, needs: tuple[bool, ...]) -> Any:
    xhat, inverse, scale = saved
    axes = normalize_axes(axis, xhat.ndim)
    dx = _normalize_backward(xp, dy if scale is None else dy * scale, xhat, inverse, axes) if needs[0] else None
    return dx, *_vector_gradients(xp, dy, xhat, tuple(range(xhat.ndim - len(axes))), needs)


@op
def group_norm(
    xp: Namespace,
    x: Array,
    scale: Array | None = None,
    offset: Array | None = None,
    *,
    groups: int,
    epsilon: float = 1e-5,
) -> Any:
    """Normalise each example over each of `groups` groups of channels and all positions.

    Args:
        x: (N, ..., C).
        scale, offset: (C,), or None.
        groups: a divisor of C; 1 normalises over everything, C each channel alone (instance normalisation).

    Source: Wu and He, "Group normalization", 2018.
    """
    if x.ndim < 2 or groups < 1 or x.shape[-1] % groups:
        raise ShapeError(f"group_norm: x {tuple(x.shape)} must be (N, ..., C) with C a multiple of groups={groups}")
    _check_vectors("group_norm", (x.shape[-1],), scale=scale, offset=offset)
    grouped = _grouped(xp, x, groups)
    xhat, inverse, _, _ = _normalize(xp, grouped, (1, 3), epsilon)
    xhat = xp.reshape(xhat, x.shape)
    return _affine(xhat, scale, offset), (xhat, inverse, scale)


def _grouped(xp: Namespace, x: Array, groups: int) -> Array:
    """Reshape (N, ..., C) to (N, positions, groups, C/groups)."""
    return cast(Array, xp.reshape(x, (x.shape[0], math.prod(x.shape[1:-1]), groups, x.shape[-1] // groups)))


@group_norm.backward
def _(xp: Namespace, dy: Array, saved: Any, *, groups: int, epsilon: float, needs: tuple[bool, ...]) -> Any:
    xhat, inverse, scale = saved
    dx = None
    if needs[0]:
        dxhat = _grouped(xp, dy if scale is None else dy * scale, groups)
        dx = _normalize_backward(xp, dxhat, _grouped(xp, xhat, groups), inverse, (1, 3))
        dx = xp.reshape(dx, dy.shape)
    return dx, *_vector_gradients(xp, dy, xhat, tuple(range(xhat.ndim - 1)), needs)


@op
def local_response_norm(
    xp: Namespace, x: Array, *, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
) -> Any:
    """Compute x / (k + alpha * s)**beta, s the sum of squares over `size` neighbouring channels, centred.

    Args:
        x: (N, H, W, C).
        size: odd, the number of channels summed.
        k, alpha, beta: the constants; alpha multiplies the sum, as in the paper (PyTorch divides it by `size` first).

    Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012, section 3.3.
    """
    expect_rank("local_response_norm", "x", x, "N H W C")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"local_response_norm: size must be odd, got {size}")
    base = k + alpha * _channel_sums(xp, x * x, size)
    return x * base ** (-beta), (x, base)


def _channel_sums(xp: Namespace, x: Array, size: int) -> Array:
    """Sum `size` neighbouring channels around each channel, with zeros beyond the ends."""
    half = size // 2
    shape = (*x.shape[:-1], half)
    zeros = xp.zeros(shape, dtype=x.dtype, device=x.device)
    padded = xp.concat((zeros, x, zeros), axis=-1)
    total: Array = padded[..., : x.shape[-1]]
    for i in range(1, size):
        total = total + padded[..., i : i + x.shape[-1]]
    return total


@local_response_norm.backward
def _(xp: Namespace, dy: Array, saved: Any, *, size: int, k: float, alpha: float, beta: float) -> Any:
    x, base = saved
    inner = _channel_sums(xp, dy * x * base ** (-beta - 1), size)
    return dy * base ** (-beta) - 2 * alpha * beta * x * inner
