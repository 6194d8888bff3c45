"""Measurements of predictions, and their sums over an epoch, on native arrays: xpnet.metrics checks what it hands them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpnet.backend import Array, Namespace, as_array, is_asynchronous, is_floating
from xpnet.ops.function import Function


@Function
def accuracy(xp: Namespace, prediction: Array, target: Array) -> Array:
    """Compute the share of rows (..., K) whose largest prediction is at the right class, in float64; NaN where there is one.

    Args:
        xp: the namespace.
        prediction: (..., K), not empty.
        target: class indices (...) or probabilities (..., K).
    """
    right = xp.argmax(target, axis=-1) if target.ndim == prediction.ndim else target
    return _mean(xp, xp.argmax(prediction, axis=-1) == right, prediction, target)


@Function
def binary_accuracy(xp: Namespace, prediction: Array, target: Array) -> Array:
    """Compute the share of elements where prediction > 0 agrees with target > 0.5, in float64; NaN where there is one."""
    return _mean(xp, (prediction > 0) == (target > 0.5), prediction, target)


def _mean(xp: Namespace, values: Array, *given: Array) -> Array:
    """Return the mean of the values, float64; NaN where one of `given`, the prediction or the target, is NaN."""
    values = xp.astype(values, xp.float64)
    for array in given:  # NaN is neither above 0 nor below, nor the largest of a row: a comparison would take it for a class
        if is_floating(array) and (is_asynchronous(xp) or math.isnan(xp.max(array))):  # which is NaN if one is
            largest = xp.max(array, axis=-1) if array.ndim > values.ndim else array
            values = xp.where(xp.isnan(largest), xp.full_like(values, math.nan), values)
    return as_array(xp, xp.mean(values))


@Function
def add_means(xp: Namespace, first: Array, totals: Sequence[Any], means: Sequence[Any], examples: int) -> None:
    """Add each mean (0-d) times the number of examples to its total (0-d, float64), in place.

    first: one of the totals.
    """
    for total, mean in zip(totals, means):
        total += xp.astype(mean, xp.float64) * examples
