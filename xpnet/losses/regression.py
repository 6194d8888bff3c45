"""Losses for regression."""

from __future__ import annotations

import math
from typing import Any

from xpnet import ops
from xpnet.losses.base import matching, reduce, widened
from xpnet.runtime.settings import check_numbers


def mean_squared_error(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Compute (prediction - target)**2 for each element; the shapes are equal."""
    given, prediction, target = prediction, *widened(prediction, matching("mean_squared_error", prediction, target))
    return reduce("mean_squared_error", ops.square(ops.subtract(prediction, target)), reduction, given)


def half_squared_error(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Compute 1/2 (prediction - target)**2 for each element; with reduction="sum" the textbook's E = 1/2 sum (t - o)**2."""
    given, prediction, target = prediction, *widened(prediction, matching("half_squared_error", prediction, target))
    return reduce("half_squared_error", ops.multiply(ops.square(ops.subtract(prediction, target)), 0.5), reduction, given)


def quadratic_cost(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Compute 1/2 |prediction - target|**2 for each example, summed over all its elements.

    The mean over n examples is C = 1/(2n) sum |y - a|**2.

    Args:
        prediction, target: (N, ...), the same shape.
        reduction: over the examples.

    Source: Nielsen, "Neural networks and deep learning", equation (6).
    """
    given, prediction, target = prediction, *widened(prediction, matching("quadratic_cost", prediction, target))
    shape = tuple(prediction.shape)
    squares = ops.square(ops.subtract(prediction, target))
    rows = ops.reshape(squares, (shape[0], math.prod(shape[1:]))) if len(shape) != 1 else ops.reshape(squares, (shape[0], 1))
    return reduce("quadratic_cost", ops.multiply(ops.sum(rows, axis=1), 0.5), reduction, given)


def mean_absolute_error(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """Compute |prediction - target| for each element (L1); the gradient where they are equal is 0."""
    given, prediction, target = prediction, *widened(prediction, matching("mean_absolute_error", prediction, target))
    return reduce("mean_absolute_error", ops.abs(ops.subtract(prediction, target)), reduction, given)


def huber(prediction: Any, target: Any, *, delta: float = 1.0, reduction: str = "mean") -> Any:
    """Compute, with r = prediction - target, r**2 / 2 where |r| <= delta, and delta * (|r| - delta/2) beyond.

    Args:
        prediction, target: the same shape.
        delta: above 0, where the parabola becomes a straight line.
        reduction: over the elements.

    Source: Huber, "Robust estimation of a location parameter", 1964.
    """
    check_numbers("huber", "(0, inf)", delta=delta)
    given, prediction, target = prediction, *widened(prediction, matching("huber", prediction, target))
    distance = ops.abs(ops.subtract(prediction, target))
    near = ops.minimum(distance, float(delta))
    beyond = ops.subtract(distance, near)
    terms = ops.add(ops.multiply(ops.square(near), 0.5), ops.multiply(beyond, float(delta)))
    return reduce("huber", terms, reduction, given)
