"""Losses: the error of a prediction, as one number to minimise.

Every loss is called with the prediction, the target and ``reduction``: "mean" or "sum" over all its terms (a 0-d result),
or "none". Tensors in, a Tensor out; native arrays in, a native array out. There is one term for each element in the
regression losses and in `sigmoid_cross_entropy`, and one for each example in all others. The mean of an empty batch is an
error. A NaN in the target is one in the loss.
"""

from __future__ import annotations

from xpnet.losses.base import Loss, reduce, same_shape
from xpnet.losses.classification import (
    attribute_hinge,
    attribute_logistic,
    hinge,
    negative_log_likelihood,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    squared_hinge,
)
from xpnet.losses.distances import contrastive, triplet
from xpnet.losses.regression import half_squared_error, huber, mean_absolute_error, mean_squared_error, quadratic_cost
from xpnet.runtime.foreign import refuse_foreign, refuse_lazy, refuse_truth_first
from xpnet.runtime.messages import quoted

NAMES: dict[str, Loss] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
    "attribute_logistic": attribute_logistic,
    "attribute_hinge": attribute_hinge,
    "negative_log_likelihood": negative_log_likelihood,
    "nll": negative_log_likelihood,
    "hinge": hinge,
    "squared_hinge": squared_hinge,
    "mean_squared_error": mean_squared_error,
    "mse": mean_squared_error,
    "mean_absolute_error": mean_absolute_error,
    "mae": mean_absolute_error,
    "huber": huber,
    "half_squared_error": half_squared_error,
    "quadratic_cost": quadratic_cost,
    "contrastive": contrastive,
    "triplet": triplet,
}


def get(loss: str | Loss) -> Loss:
    """Return a loss by name, or the function itself.

    Raises:
        ValueError: no such name.
        TypeError: neither a name nor a function; a function of another library, or one that takes the target first.
    """
    if callable(loss) and not isinstance(loss, type):
        refuse_foreign("a loss", loss, f"give one of {', '.join(NAMES)}, or a function of xn.ops")
        refuse_truth_first("a loss", loss)
        refuse_lazy("a loss", loss)
        return loss
    if not isinstance(loss, str):
        raise TypeError(f"a loss is a name or a function (prediction, target) -> Tensor, got {quoted(loss)}")
    if loss not in NAMES:
        raise ValueError(f"unknown loss {quoted(loss)}: expected a function or one of {', '.join(NAMES)}")
    return NAMES[loss]


__all__ = [
    "NAMES", "Loss", "attribute_hinge", "attribute_logistic", "contrastive", "get", "half_squared_error", "hinge", "huber",
    "mean_absolute_error", "mean_squared_error", "negative_log_likelihood", "quadratic_cost", "reduce", "same_shape",
    "sigmoid_cross_entropy", "softmax_cross_entropy", "squared_hinge", "triplet",
]  # fmt: skip
