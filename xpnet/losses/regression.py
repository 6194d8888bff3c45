"""Losses for regression."""

from __future__ import annotations

import math
from typing import Any

from xpnet import ops
from xpnet.losses.base import matching, not_empty, reduce, widened
from xpnet.runtime.settings import check_numbers


def _operands(name: str, prediction: Any, target: Any, reduction: str) -> tuple[Any, Any]:
    """Return the prediction and its target, which fit and of which there is a mean, if it is asked for."""
    target = matching(name, prediction, target)
    if reduction == "mean" and 0 in prediction.shape:
        not_empty(name, prediction)
    return prediction, target


def mean_squared_error(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Compute (prediction - target)**2 for each element; the shapes are equal."""
    return ops.squared_error(*_operands("mean_squared_error", prediction, target, reduction), reduction=reduction)


def half_squared_error(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Compute 1/2 (prediction - target)**2 for each element; with reduction="sum" the textbook's E = 1/2 sum (t - o)**2."""
    return ops.squared_error(*_operands("half_squared_error", prediction, target, reduction), reduction=reduction, scale=0.5)


def quadratic_cost(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Compute 1/2 |prediction - target|**2 for each example, summed over all its elements.

    The mean over n examples is C = 1/(2n) sum |y - a|**2.

    Args:
        prediction, target: (N, ...), the same shape.
        reduction: over the examples.

    Source: Nielsen, "Neural networks and deep learning", equation (6).
    """
    if reduction in ("mean", "sum"):
        prediction, target = _operands("quadratic_cost", prediction, target, reduction)
        count = prediction.shape[0] if reduction == "mean" else 1
        return ops.squared_error(prediction, target, reduction="sum", scale=0.5 / count)
    given, prediction, target = prediction, *widened(prediction, matching("quadratic_cost", prediction, target))
    squares = ops.squared_error(prediction, target, reduction="none", scale=0.5)
    shape = tuple(prediction.shape)
    rows = ops.reshape(squares, (shape[0], math.prod(shape[1:])))
    return reduce("quadratic_cost", ops.sum(rows, axis=1), reduction, given)


def mean_absolute_error(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Compute |prediction - target| for each element (L1); the gradient where they are equal is 0."""
    return ops.absolute_error(*_operands("mean_absolute_error", prediction, target, reduction), reduction=reduction)


def huber(prediction: Any, target: Any, *, delta: float = 1.0, reduction: str = "mean") -> Any:
    """Compute, with r = prediction - target, r**2 / 2 where |r| <= delta, and delta * (|r| - delta/2) beyond.

    Args:
        prediction, target: the same shape.
        delta: above 0, where the parabola becomes a straight line.
        reduction: over the elements.

    Source: Huber, "Robust estimation of a location parameter", 1964.
    """
    check_numbers("huber", "(0, inf)", delta=delta)
    return ops.huber_error(*_operands("huber", prediction, target, reduction), delta=float(delta), reduction=reduction)
