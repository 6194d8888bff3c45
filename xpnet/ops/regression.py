"""The errors of a prediction, element by element, and their mean: squared, absolute, and between the two Huber's."""

from __future__ import annotations

import math
from typing import Any

from xpnet.backend import Array, Namespace
from xpnet.ops.registry import op
from xpnet.ops.shapes import ShapeError, expect_real
from xpnet.ops.softmax import check_reduction, mean_of_nothing
from xpnet.ops.sums import total


def check_pair(operation: str, reduction: str, prediction: Array, target: Array) -> None:
    """Raise an error unless both hold real numbers and have one shape, and the reduction exists."""
    check_reduction(operation, reduction)
    expect_real(operation, prediction=prediction, target=target)
    if tuple(prediction.shape) != tuple(target.shape):
        raise ShapeError(
            f"{operation}: prediction {tuple(prediction.shape)} and target {tuple(target.shape)}; expected the same shape"
        )


def _reduced(xp: Namespace, terms: Array, reduction: str, scale: float) -> Array:
    if reduction != "none":
        count = math.prod(terms.shape)
        terms = total(xp, terms)
        if reduction == "mean":
            terms = terms / count if count else mean_of_nothing(xp, terms)
    return terms if scale == 1 else terms * scale


def _gradients(xp: Namespace, slope: Array, dloss: Array, reduction: str, scale: float, needs: tuple[bool, ...]) -> Any:
    """Return the gradients of prediction and target: the slope of the terms times that of the result, with both signs."""
    divisor = max(math.prod(slope.shape), 1) if reduction == "mean" else 1
    gradient = slope * (dloss * (scale / divisor))
    return gradient if needs[0] else None, -gradient if needs[1] else None


@op
def squared_error(xp: Namespace, prediction: Array, target: Array, *, reduction: str = "mean", scale: float = 1.0) -> Any:
    """Compute scale * (prediction - target)**2.

    Args:
        prediction, target: of one shape.
        reduction: "mean" (NaN where there is none) or "sum" over all elements (0-d result), or "none".
        scale: what the result is multiplied by, such as 0.5.

    Raises:
        ShapeError: shapes that differ.
        ValueError: an unknown reduction.
    """
    check_pair("squared_error", reduction, prediction, target)
    difference = prediction - target
    return _reduced(xp, difference * difference, reduction, scale), difference


@squared_error.backward
def _(xp: Namespace, dloss: Array, difference: Array, *, needs: tuple[bool, ...], reduction: str, scale: float) -> Any:
    return _gradients(xp, 2 * difference, dloss, reduction, scale, needs)


@op
def absolute_error(xp: Namespace, prediction: Array, target: Array, *, reduction: str = "mean") -> Any:
    """Compute |prediction - target|; the gradient where they are equal is 0. Arguments as in :func:`squared_error`."""
    check_pair("absolute_error", reduction, prediction, target)
    difference = prediction - target
    return _reduced(xp, xp.abs(difference), reduction, 1), difference


@absolute_error.backward
def _(xp: Namespace, dloss: Array, difference: Array, *, needs: tuple[bool, ...], reduction: str) -> Any:
    return _gradients(xp, xp.sign(difference), dloss, reduction, 1, needs)


@op
def huber_error(xp: Namespace, prediction: Array, target: Array, *, delta: float = 1.0, reduction: str = "mean") -> Any:
    """Compute, with r = prediction - target, r**2 / 2 where |r| <= delta, and delta * (|r| - delta / 2) beyond.

    Args:
        prediction, target, reduction: as in :func:`squared_error`.
        delta: above 0, where the parabola becomes a straight line.

    Source: Huber, "Robust estimation of a location parameter", 1964.
    """
    check_pair("huber_error", reduction, prediction, target)
    difference = prediction - target
    distance = xp.abs(difference)
    near = xp.where(distance > delta, xp.full_like(distance, delta), distance)  # a NaN stays one
    return _reduced(xp, 0.5 * near * near + (distance - near) * delta, reduction, 1), difference


@huber_error.backward
def _(xp: Namespace, dloss: Array, difference: Array, *, needs: tuple[bool, ...], delta: float, reduction: str) -> Any:
    far = xp.abs(difference) > delta
    slope = xp.where(far, xp.sign(difference) * delta, difference)
    return _gradients(xp, slope, dloss, reduction, 1, needs)
