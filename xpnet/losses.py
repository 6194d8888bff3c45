"""Losses: how wrong a prediction is, as one number to be made small.

Every loss is called with the prediction, the target and ``reduction``: "mean" or "sum" over all its terms (a 0-d result),
or "none". Tensors in, a Tensor out; native arrays in, a native array out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet import ops
from xpnet.backend import Array
from xpnet.ops.shapes import ShapeError
from xpnet.ops.softmax import check_reduction

Loss = Callable[..., Any]


def reduce(name: str, terms: Any, reduction: str) -> Any:
    """`terms` summed, averaged or left as they are."""
    check_reduction(name, reduction)
    if reduction == "none":
        return terms
    return ops.mean(terms) if reduction == "mean" else ops.sum(terms)


def same_shape(name: str, prediction: Any, target: Any) -> None:
    """Raise a ShapeError unless both have one shape: broadcasting here would hide a mistake."""
    if tuple(prediction.shape) != tuple(target.shape):
        hint = (
            "reshape one of them"
            if prediction.size != target.size
            else f"use target.reshape({', '.join(map(str, prediction.shape))})"
        )
        raise ShapeError(
            f"{name}: the prediction has shape {tuple(prediction.shape)}, the target {tuple(target.shape)}; "
            f"they must be equal: {hint}"
        )


def softmax_cross_entropy(logits: Any, labels: Array, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Any:
    """-sum(labels * log softmax(logits)) for each row of the last axis.

    Args:
        logits: (..., K), before the softmax.
        labels: class numbers, integers (...), or probabilities (..., K).
        reduction: over the rows.
        label_smoothing: the share of each label's probability that is spread evenly over all K classes.

    Raises:
        ShapeError: shapes or dtypes that do not fit.
        ValueError: a class number outside 0..K-1, or an unknown reduction.

    Source: CS231n, "Linear classification"; Szegedy et al., 2016 (label smoothing).
    """
    hard = ops.softmax_cross_entropy(logits, labels, reduction=reduction)
    if not label_smoothing:
        return hard
    # Cross entropy is linear in the labels: the smoothed loss is a mix of the hard one and that of even labels.
    even = ops.multiply(-1.0, ops.mean(ops.log_softmax(logits), axis=-1))
    return (1 - label_smoothing) * hard + label_smoothing * reduce("softmax_cross_entropy", even, reduction)


def mean_squared_error(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """(prediction - target)**2 for each element; the shapes are equal."""
    same_shape("mean_squared_error", prediction, target)
    return reduce("mean_squared_error", ops.square(ops.subtract(prediction, target)), reduction)


NAMES: dict[str, Loss] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "mean_squared_error": mean_squared_error,
    "mse": mean_squared_error,
}


def get(loss: str | Loss) -> Loss:
    """A loss by name, or the function itself.

    Raises:
        ValueError: no such name.
    """
    if callable(loss):
        return loss
    if loss not in NAMES:
        raise ValueError(f"unknown loss {loss!r}: expected a function or one of {', '.join(NAMES)}")
    return NAMES[loss]
