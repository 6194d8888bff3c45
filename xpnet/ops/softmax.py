"""Softmax, its logarithm, and cross entropy from logits, numerically stable."""

from __future__ import annotations

import math
from typing import Any

from xpnet.backend import Array, Namespace, is_asynchronous, kind_of
from xpnet.ops.registry import op
from xpnet.ops.shapes import NOT_REAL, ShapeError, is_float, normalize_axes, not_real
from xpnet.ops.sums import total


def _sum(xp: Namespace, x: Array, axis: int) -> Array:
    return total(xp, x, normalize_axes((axis,), x.ndim), keepdims=True)


def _shifted_exp(xp: Namespace, x: Array, axis: int) -> tuple[Array, Array, Array]:
    """Return x - max(x), its exponential, and the sum of that: nothing can overflow."""
    shifted = x - xp.max(x, axis=axis, keepdims=True)
    e = xp.exp(shifted)
    return shifted, e, _sum(xp, e, axis)


@op
def softmax(xp: Namespace, x: Array, axis: int = -1) -> Any:
    """Compute exp(x) / sum(exp(x)) along `axis`, which must not be empty."""
    _, e, sums = _shifted_exp(xp, x, axis)
    y = e / sums
    return y, y


@softmax.backward
def _(xp: Namespace, dy: Array, y: Array, *, axis: int) -> Any:
    return y * (dy - _sum(xp, dy * y, axis))


@op
def log_softmax(xp: Namespace, x: Array, axis: int = -1) -> Any:
    """Compute log(softmax(x)) along `axis`, without taking the logarithm of a rounded 0."""
    shifted, _, sums = _shifted_exp(xp, x, axis)
    y = shifted - xp.log(sums)
    return y, y


@log_softmax.backward
def _(xp: Namespace, dy: Array, y: Array, *, axis: int) -> Any:
    return dy - xp.exp(y) * _sum(xp, dy, axis)


REDUCTIONS = ("mean", "sum", "none")


def check_reduction(operation: str, reduction: str) -> None:
    """Raise a ValueError unless `reduction` is one of REDUCTIONS."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'{operation}: reduction must be "mean", "sum" or "none", got {reduction!r}')


def check_labels(operation: str, xp: Namespace, logits: Array, labels: Array) -> bool:
    """Check that `labels` fit `logits`; return whether they are class indices (True) or probabilities (False).

    Raises:
        ShapeError: shapes or dtypes that do not fit.
        ValueError: a class index outside 0..K-1; not for arrays on a GPU, see `nan_outside`.
    """
    K = logits.shape[-1]
    if kind_of(labels.dtype) in NOT_REAL:
        raise not_real(operation, "target", labels, "class indices or probabilities")
    if K == 1:
        raise ShapeError(
            f"{operation}: the prediction {tuple(logits.shape)} has one class, to which every example belongs, so the loss is "
            f"always 0; for two classes with one output unit use sigmoid_cross_entropy with targets 0 and 1"
        )
    if xp.isdtype(labels.dtype, "integral"):
        if tuple(labels.shape) != tuple(logits.shape[:-1]):
            raise ShapeError(
                f"{operation}: integer labels have shape {tuple(labels.shape)}, expected {tuple(logits.shape[:-1])} for "
                f"logits {tuple(logits.shape)}: one class number for each row; for probabilities use a float dtype"
            )
        if math.prod(labels.shape) and not is_asynchronous(xp):
            low, high = int(xp.min(labels)), int(xp.max(labels))
            if low < 0 or high >= K:
                raise ValueError(
                    f"{operation}: labels run from {low} to {high}, but the logits {tuple(logits.shape)} have classes "
                    f"0..{K - 1}; {_remedy(low, high)}"
                )
        return True
    if tuple(labels.shape) != tuple(logits.shape):
        raise ShapeError(
            f"{operation}: labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; expected integers of shape "
            f"{tuple(logits.shape[:-1])} or probabilities of shape {tuple(logits.shape)}"
        )
    return False


def _remedy(low: int, high: int) -> str:
    """Return what to do about class indices low..high that are not those of a model."""
    if low < 0:
        return (
            "there is no class below 0: number the classes from 0, and take out examples without a label (or those marked "
            "by a number such as -100 or -1) before they get here"
        )
    return f"give the last layer {high + 1} units or number the classes from 0"


def mean_of_nothing(xp: Namespace, loss: Array) -> Array:
    """Return NaN: a mean over no terms is not defined."""
    undefined: Array = xp.full_like(loss, math.nan)
    return undefined


def nan_outside(xp: Namespace, values: Array, indices: Array, count: int) -> Array:
    """Return `values` with NaN wherever one of `indices`, which broadcast to them, is outside 0..count-1.

    For arrays on a GPU this is in place of an error, which would wait for the device; others were checked, and are returned.
    """
    if not is_asynchronous(xp):
        return values
    inside = (indices >= 0) & (indices < count)
    checked: Array = xp.where(inside, values, xp.full_like(values, math.nan))
    return checked


@op(indices=("labels",))
def softmax_cross_entropy(
    xp: Namespace,
    logits: Array,
    labels: Array,
    *,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    save: bool = True,
) -> Any:
    """Compute -sum(labels * log_softmax(logits)) over the last axis, numerically stable.

    Args:
        logits: (..., K), floating.
        labels: class indices, integers (...), or probabilities, floating (..., K). They have no gradient.
        reduction: "mean" (NaN where there is no row) or "sum" over all rows (0-d result), or "none" (shape (...)).
        label_smoothing: the share of each label's probability that is spread evenly over all K classes.

    Raises:
        ShapeError: shapes or dtypes that do not fit, or K = 1: the loss of the only class is always 0.
        ValueError: a class index outside 0..K-1 (on a GPU the loss is NaN instead), or an unknown reduction.

    Source: CS231n, "Linear classification", softmax classifier; Szegedy et al., 2016 (label smoothing).
    """
    check_reduction("softmax_cross_entropy", reduction)
    if logits.ndim == 0 or not is_float(xp, logits):
        raise ShapeError(f"softmax_cross_entropy: logits must be floating (..., K), got {tuple(logits.shape)} {logits.dtype}")
    shifted, e, sums = _shifted_exp(xp, logits, -1)
    log_p = shifted - xp.log(sums)
    indices = check_labels("softmax_cross_entropy", xp, logits, labels)
    if indices:
        # In int64: K class indices need not fit the dtype of the labels, which may be uint8.
        classes = xp.arange(logits.shape[-1], dtype=xp.int64, device=logits.device)
        target = xp.astype(xp.astype(labels, xp.int64, copy=False)[..., None] == classes, logits.dtype)
    else:
        target = xp.astype(labels, logits.dtype, copy=False)
    # A class of probability 0 costs nothing, even where its logit is -inf. Any other number counts as it is: a policy gradient
    # has negative ones, and NaN stays NaN.
    terms = xp.where(target == 0, xp.zeros_like(log_p), -target * log_p)
    losses = total(xp, terms, (terms.ndim - 1,))
    if label_smoothing:
        # Cross entropy is linear in the labels: the smoothed loss is a mixture of those of hard and of uniform labels.
        even = total(xp, log_p, (log_p.ndim - 1,)) / -log_p.shape[-1]
        losses = (1 - label_smoothing) * losses + label_smoothing * even
    if indices:
        losses = nan_outside(xp, losses, labels, logits.shape[-1])
    saved = None
    if save:
        saved = (e / sums, target)
    if reduction == "none":
        return losses, saved
    loss = total(xp, losses)
    if reduction == "sum":
        return loss, saved
    rows = math.prod(logits.shape[:-1])
    return (loss / rows if rows else mean_of_nothing(xp, loss)), saved


@softmax_cross_entropy.backward
def _(xp: Namespace, dloss: Array, saved: Any, *, reduction: str, label_smoothing: float) -> Any:
    p, target = saved
    # If the probabilities do not sum to 1, the softmax is weighted by their sum.
    gradient = p * _sum(xp, target, -1) - target
    if label_smoothing:
        gradient = (1 - label_smoothing) * gradient + label_smoothing * (p - 1 / p.shape[-1])
    if reduction == "none":
        return gradient * dloss[..., None], None
    rows = math.prod(p.shape[:-1])
    return gradient * (dloss / rows if reduction == "mean" and rows else dloss), None
