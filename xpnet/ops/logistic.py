"""The logistic loss, from logits."""

from __future__ import annotations

import math
from typing import Any

from xpnet.backend import Array, Namespace, dtype_name, kind_of
from xpnet.ops.activations import _sigmoid
from xpnet.ops.registry import op
from xpnet.ops.shapes import ShapeError, is_float
from xpnet.ops.softmax import check_reduction, mean_of_nothing
from xpnet.ops.sums import total


@op(indices=("labels",))
def sigmoid_cross_entropy(xp: Namespace, logits: Array, labels: Array, *, reduction: str = "mean", save: bool = True) -> Any:
    """Compute -(labels * log sigmoid(logits) + (1 - labels) * log(1 - sigmoid(logits))), numerically stable.

    Args:
        logits: any shape, floating.
        labels: the same shape: 0 or 1 of any dtype, or probabilities. They have no gradient.
        reduction: "mean" (NaN where there is none) or "sum" over all elements (0-d result), or "none" (the shape of the
            logits).

    Raises:
        ShapeError: shapes that differ, or logits that are not floating.
        ValueError: an unknown reduction.

    Source: CS231n, "Neural networks part 2", attribute classification.
    """
    check_reduction("sigmoid_cross_entropy", reduction)
    if not is_float(xp, logits) or tuple(labels.shape) != tuple(logits.shape):
        raise ShapeError(
            f"sigmoid_cross_entropy: logits {tuple(logits.shape)} {logits.dtype} and labels {tuple(labels.shape)}; expected "
            f"floating logits and one label for each, of the same shape"
        )
    if kind_of(labels.dtype) in ("complex", "other"):
        raise TypeError(f"sigmoid_cross_entropy: labels have dtype {dtype_name(labels)}, expected 0, 1 or probabilities")
    y = xp.astype(labels, logits.dtype, copy=False)
    # log(1 + exp(-|x|)) is the same for both labels; a logit on the wrong side of 0 adds |x|. Nothing is subtracted from a
    # large number, so that a tiny loss keeps its digits.
    wrong = xp.where(logits < 0, -logits * y, logits * (1 - y))
    losses = wrong + xp.log1p(xp.exp(-xp.abs(logits)))
    saved = (logits, y) if save else None
    if reduction == "none":
        return losses, saved
    loss = total(xp, losses)
    if reduction == "sum":
        return loss, saved
    count = math.prod(logits.shape)
    return (loss / count if count else mean_of_nothing(xp, loss)), saved


@sigmoid_cross_entropy.backward
def _(xp: Namespace, dloss: Array, saved: Any, *, reduction: str) -> Any:
    x, y = saved
    share = dloss / max(math.prod(x.shape), 1) if reduction == "mean" else dloss
    return (_sigmoid(xp, x) - y) * share, None
