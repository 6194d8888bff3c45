"""Losses with a term for each element, measurements, and the sums of an epoch: ``kernels/cuda/losses.cu``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from xpnet.accel.cupy.launch import THREADS, counters, grid_size, launch, runtime, vector_width
from xpnet.accel.cupy.source import FLOATS, Kernel, dtype_of
from xpnet.accel.cupy.support import VECTORS, accumulator, c_name, contiguous, supported, valid_vector
from xpnet.backend import kind_of
from xpnet.ops import measures
from xpnet.ops.logistic import sigmoid_cross_entropy
from xpnet.ops.regression import absolute_error, huber_error, squared_error
from xpnet.ops.root_gradient import constants_of, is_root_gradient
from xpnet.ops.softmax import check_reduction

Array = Any

LOSS_IDS = {"sigmoid_cross_entropy": 0, "squared_error": 1, "absolute_error": 2, "huber_error": 3}
"""The number in the CUDA source of each loss."""

_PAIRS = 4  # totals in one launch
_SMALL = ("int8", "uint8")


def _vector_of(kind: str, width: int, number: int) -> bool:
    return valid_vector(kind, width)


# 16-bit floats are computed in float32: divided by the number of terms, their gradients would be too small for float16.
_elementwise = Kernel("losses", "elementwise_loss", ("float", "double"), VECTORS, tuple(LOSS_IDS.values()), only=_vector_of)
_binary_accuracy = Kernel("losses", "binary_accuracy", FLOATS)
_add_means = Kernel("losses", "add_means", tuple(range(1, _PAIRS + 1)))


@constants_of("cupy")
def _one(loss: Array) -> Any:
    return runtime().one(loss)


class GridSum(NamedTuple):
    """What a kernel with `grid_sum` (``grid_sum.cuh``) works with; both are None where it has one block, or no sum."""

    partial: Array | None = None
    counter: Array | None = None


def grid_sum(xp: Any, blocks: int, dtype: Any) -> GridSum:
    """Return the memory for a sum over all threads of so many blocks."""
    return GridSum() if blocks == 1 else GridSum(xp.empty((blocks,), dtype=dtype), counters(1))


def empty_loss(xp: Any, like: Array, shape: tuple[int, ...], reduction: str) -> Array:
    """Return the loss where there are no terms: those of `shape`, the sum 0, or no mean."""
    if reduction == "none":
        return xp.empty(shape, dtype=like.dtype)
    return xp.full((), math.nan if reduction == "mean" else 0, dtype=like.dtype)


def times_gradient_of_loss(gradient: Array, dloss: Array) -> Array:
    """Return the gradient of a loss that forward has computed times what comes from behind: nothing, mostly."""
    return gradient if is_root_gradient(dloss) else gradient * dloss


def _loss(
    xp: Any, operation: str, x: Array, target: Array, reduction: str, save: bool, delta: float = 0.0, scale: float = 1.0
) -> Any:
    """Compute an elementwise loss and its gradient in x in one launch."""
    check_reduction(operation, reduction)
    if tuple(target.shape) != tuple(x.shape) or not supported(x, target) or kind_of(x.dtype) == "half":
        return NotImplemented  # the reference raises, or takes them
    x, target = contiguous(xp, x), contiguous(xp, target)
    gradient = xp.empty(x.shape, dtype=x.dtype) if save else None
    if not x.size:
        return empty_loss(xp, x, x.shape, reduction), gradient
    terms, loss, sums = None, None, GridSum()
    V = vector_width(x.size, x, target)
    blocks = grid_size(x.size // V, waves=8)
    if reduction == "none":
        terms = xp.empty(x.shape, dtype=x.dtype)
    else:
        loss, sums = xp.empty((), dtype=x.dtype), grid_sum(xp, blocks, accumulator(xp, x))
    divisor = x.size if reduction == "mean" else 1
    launch(
        _elementwise[c_name(x), V, LOSS_IDS[operation]], blocks, THREADS, x, target, terms, gradient, loss, *sums, x.size,
        delta, scale, divisor, scale / divisor,
    )  # fmt: skip
    return terms if loss is None else loss, gradient


@sigmoid_cross_entropy.accelerate("cupy")
def _logistic(xp: Any, logits: Array, labels: Array, *, reduction: str, save: bool) -> Any:
    if kind_of(labels.dtype) in ("complex", "other") or not supported(logits):
        return NotImplemented  # the reference raises, or takes them
    return _loss(xp, "sigmoid_cross_entropy", logits, labels.astype(logits.dtype, copy=False), reduction, save)


@_logistic.backward
def _(xp: Any, dloss: Array, gradient: Array, *, reduction: str) -> Any:
    return times_gradient_of_loss(gradient, dloss), None


def _both(dloss: Array, gradient: Array, needs: tuple[bool, ...]) -> Any:
    """Return the gradients of a function of the difference of two arrays."""
    gradient = times_gradient_of_loss(gradient, dloss)
    return gradient if needs[0] else None, -gradient if needs[1] else None


@squared_error.accelerate("cupy")
def _squared(xp: Any, prediction: Array, target: Array, *, reduction: str, scale: float, save: bool) -> Any:
    return _loss(xp, "squared_error", prediction, target, reduction, save, scale=scale)


@_squared.backward
def _(xp: Any, dloss: Array, gradient: Array, *, needs: tuple[bool, ...], reduction: str, scale: float) -> Any:
    return _both(dloss, gradient, needs)


@absolute_error.accelerate("cupy")
def _absolute(xp: Any, prediction: Array, target: Array, *, reduction: str, save: bool) -> Any:
    return _loss(xp, "absolute_error", prediction, target, reduction, save)


@_absolute.backward
def _(xp: Any, dloss: Array, gradient: Array, *, needs: tuple[bool, ...], reduction: str) -> Any:
    return _both(dloss, gradient, needs)


@huber_error.accelerate("cupy")
def _huber(xp: Any, prediction: Array, target: Array, *, delta: float, reduction: str, save: bool) -> Any:
    return _loss(xp, "huber_error", prediction, target, reduction, save, delta=delta)


@_huber.backward
def _(xp: Any, dloss: Array, gradient: Array, *, needs: tuple[bool, ...], delta: float, reduction: str) -> Any:
    return _both(dloss, gradient, needs)


# -- measurements --


def exact_in(target: Array, prediction: Array) -> bool:
    """Return whether a target in the dtype of the prediction holds the same numbers: its own, or small integers."""
    return target.dtype == prediction.dtype or kind_of(target.dtype) == "boolean" or dtype_of(target) in _SMALL


@measures.binary_accuracy.accelerate("cupy")
def _binary_accuracy_of(xp: Any, prediction: Array, target: Array) -> Any:
    if not supported(prediction) or not exact_in(target, prediction):
        return NotImplemented
    prediction, target = contiguous(xp, prediction), contiguous(xp, target.astype(prediction.dtype, copy=False))
    blocks, share = grid_size(prediction.size, waves=8), xp.empty((), dtype=xp.float64)
    sums = grid_sum(xp, blocks, xp.float64)
    launch(_binary_accuracy[c_name(prediction),], blocks, THREADS, prediction, target, share, *sums, prediction.size)
    return share


@measures.add_means.accelerate("cupy")
def _add_means_to(xp: Any, first: Array, totals: Sequence[Array], means: Sequence[Array], examples: int) -> None:
    kinds = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
    for start in range(0, len(totals), _PAIRS):
        arguments: list[Any] = []
        pairs = list(zip(totals, means))[start : start + _PAIRS]
        for total, mean in pairs:
            if dtype_of(mean) not in kinds:
                mean = mean.astype(xp.float64)
            arguments += [total, mean.reshape(1).view(xp.uint8), kinds[dtype_of(mean)]]
        missing = [None, None, 0] * (_PAIRS - len(pairs))
        launch(_add_means[len(pairs),], 1, 32, *arguments, *missing, examples)
