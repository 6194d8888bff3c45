"""Losses for classes and attributes."""

from __future__ import annotations

import math
from typing import Any, cast

from xpnet import ops
from xpnet.autograd.tensor import bare
from xpnet.backend import Array, array_types, is_asynchronous, namespace
from xpnet.losses.base import admitted, as_target, float_dtype, matching, not_empty, reduce
from xpnet.ops.shapes import expect_real
from xpnet.ops.softmax import check_labels
from xpnet.runtime.settings import check_numbers


def softmax_cross_entropy(logits: Any, labels: Array, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Any:
    """Compute -sum(labels * log softmax(logits)) for each row of the last axis.

    Args:
        logits: (..., K), before the softmax.
        labels: class indices, integers (...), or probabilities (..., K). These may be any weights, also negative ones: those
            of a policy gradient are the advantages.
        reduction: over the rows.
        label_smoothing: the share of each label's probability that is spread evenly over all K classes.

    Raises:
        ShapeError: shapes or dtypes that do not fit.
        ValueError: a class index outside 0..K-1 (on a GPU the loss is NaN instead), or an unknown reduction.

    Source: CS231n, "Linear classification"; Szegedy et al., 2016 (label smoothing).
    """
    if type(labels) not in array_types:
        labels = as_target("softmax_cross_entropy", labels)
    if reduction == "mean" and 0 in labels.shape:
        not_empty("softmax_cross_entropy", labels)
    if not label_smoothing:
        return ops.softmax_cross_entropy(logits, labels, reduction=reduction)
    check_numbers("softmax_cross_entropy", "[0, 1]", label_smoothing=label_smoothing)
    return ops.softmax_cross_entropy(logits, labels, reduction=reduction, label_smoothing=float(label_smoothing))


def negative_log_likelihood(log_probabilities: Any, labels: Array, *, reduction: str = "mean") -> Any:
    """Compute -sum(labels * log_probabilities) for each row of the last axis.

    Args:
        log_probabilities: (..., K), for example from a log_softmax. For logits use softmax_cross_entropy.
        labels: class indices, integers (...), or probabilities (..., K).
        reduction: over the rows.

    Raises:
        ShapeError: shapes or dtypes that do not fit.
        ValueError: a class index outside 0..K-1 (on a GPU the loss is NaN instead), or an unknown reduction.
    """
    if type(labels) not in array_types:
        labels = as_target("negative_log_likelihood", labels)
    weights = _rows("negative_log_likelihood", log_probabilities, labels)
    # A label of probability 0 contributes nothing, even where the logarithm is -inf.
    terms = ops.where(weights == 0, 0.0, ops.multiply(log_probabilities, weights))
    rows = _or_nan(ops.negative(ops.sum(terms, axis=-1)), log_probabilities, labels)
    return reduce("negative_log_likelihood", rows, reduction)


def _rows(name: str, scores: Any, labels: Array) -> Array:
    """Return the labels as one-hot rows or probabilities, (..., K), in the dtype of the scores."""
    labels, array = bare(labels), bare(scores)
    expect_real(name, prediction=array)
    xp = namespace(array)
    if check_labels(name, xp, array, labels):
        # In int64: K class indices need not fit the dtype of the labels, which may be uint8.
        classes = xp.arange(array.shape[-1], dtype=xp.int64, device=array.device)
        labels = xp.astype(labels, xp.int64, copy=False)[..., None] == classes
    return cast(Array, xp.astype(labels, float_dtype(array)))


def _or_nan(losses: Any, scores: Any, labels: Array) -> Any:
    """Return the losses (...), with NaN where a class index is outside 0..K-1 and could not be checked: on a GPU."""
    labels, array = bare(labels), bare(scores)
    xp = namespace(array)
    if not is_asynchronous(xp) or not xp.isdtype(labels.dtype, "integral"):
        return losses
    return ops.where((labels >= 0) & (labels < array.shape[-1]), losses, math.nan)


def _svm(name: str, scores: Any, labels: Array, margin: float, squared: bool, reduction: str) -> Any:
    """Sum max(0, s_j - s_y + margin), or its square, over every class j but the right one y, and reduce over the rows."""
    check_numbers(name, "[0, inf)", margin=margin)
    if type(labels) not in array_types:
        labels = as_target(name, labels)
    given = bare(labels)
    expect_real(name, prediction=bare(scores), target=given)
    rows = _rows(name, scores, labels)
    xp = namespace(rows)
    right = rows == 1
    valid = None
    if not xp.isdtype(given.dtype, "integral"):
        only_one = xp.sum(xp.astype(right, xp.int64), axis=-1) == 1
        valid = admitted(
            name,
            given,
            only_one & xp.all(right | (rows == 0), axis=-1),
            xp.any(xp.isnan(rows), axis=-1),
            "class indices, or one-hot rows with a single 1 among zeros; for probabilities use softmax_cross_entropy",
        )
    own = ops.sum(ops.where(right, scores, 0.0), axis=-1, keepdims=True)
    terms = ops.where(right, 0.0, ops.relu(ops.add(ops.subtract(scores, own), float(margin))))
    losses = ops.sum(ops.square(terms) if squared else terms, axis=-1)
    losses = _or_nan(losses, scores, labels) if valid is None else ops.where(valid, losses, math.nan)
    return reduce(name, losses, reduction)


def hinge(scores: Any, labels: Array, *, margin: float = 1.0, reduction: str = "mean") -> Any:
    """Compute the multi-class SVM loss, the sum over j != y of max(0, s_j - s_y + margin), for each row.

    Args:
        scores: (..., K).
        labels: class indices y, integers (...), or one-hot rows (..., K).
        margin: by how much the right score should exceed every other.
        reduction: over the rows.

    Raises:
        ShapeError: shapes or dtypes that do not fit.
        ValueError: a class index outside 0..K-1, or rows that are not one-hot (on a GPU the loss is NaN instead); an unknown
            reduction.

    Source: Weston and Watkins, 1999; CS231n, "Linear classification". (PyTorch's multi_margin_loss divides by K.)
    """
    return _svm("hinge", scores, labels, margin, False, reduction)


def squared_hinge(scores: Any, labels: Array, *, margin: float = 1.0, reduction: str = "mean") -> Any:
    """Compute the sum over j != y of max(0, s_j - s_y + margin)**2, for each row; arguments as in `hinge`.

    Source: CS231n, "Linear classification" (L2-SVM).
    """
    return _svm("squared_hinge", scores, labels, margin, True, reduction)


def sigmoid_cross_entropy(logits: Any, labels: Any, *, reduction: str = "mean") -> Any:
    """Compute -(labels * log sigmoid(logits) + (1 - labels) * log(1 - sigmoid(logits))) for each element.

    Also known as binary cross entropy or the logistic loss.

    Args:
        logits: any shape, before the sigmoid; large logits are computed without overflow.
        labels: the same shape: 0 or 1 of any dtype, or probabilities. The loss is linear in them, also outside 0..1.
        reduction: over the elements; `attribute_logistic` sums over the attributes of each example instead.

    Raises:
        ShapeError: shapes that differ.
        ValueError: an unknown reduction.
    """
    if reduction == "mean" and 0 in logits.shape:
        not_empty("sigmoid_cross_entropy", logits)
    return ops.sigmoid_cross_entropy(logits, matching("sigmoid_cross_entropy", logits, labels), reduction=reduction)


def attribute_logistic(logits: Any, labels: Any, *, reduction: str = "mean") -> Any:
    """Compute the loss of independent logistic classifiers: the sum of `sigmoid_cross_entropy` over the attributes.

    With n examples the mean is C = -1/n sum_x sum_j [y_j ln a_j + (1 - y_j) ln(1 - a_j)] for a = sigmoid(logits), the
    cross-entropy cost of networks with sigmoid outputs.

    Args:
        logits: (..., A), before the sigmoid.
        labels: (..., A): 0 or 1 of any dtype, or probabilities.
        reduction: over the examples.

    Source: CS231n, "Neural networks part 2", attribute classification; Nielsen, equation (63).
    """
    labels = matching("attribute_logistic", logits, labels)
    terms = sigmoid_cross_entropy(logits, labels, reduction="none")
    return reduce("attribute_logistic", ops.sum(terms, axis=-1), reduction)


def attribute_hinge(scores: Any, labels: Any, *, margin: float = 1.0, reduction: str = "mean") -> Any:
    """Compute the loss of independent binary SVMs, one for each attribute: the sum over j of max(0, margin - y_j * s_j).

    Args:
        scores: (..., A).
        labels: (..., A): the attribute is present (1) or absent (0 or -1); booleans or numbers.
        margin: how far from 0, on the right side, a score should be.
        reduction: over the examples.

    Raises:
        ShapeError: shapes that differ.
        ValueError: labels other than 1, 0 and -1 (on a GPU the loss is NaN instead), or an unknown reduction.

    Source: CS231n, "Neural networks part 2", attribute classification.
    """
    check_numbers("attribute_hinge", "[0, inf)", margin=margin)
    labels = bare(matching("attribute_hinge", scores, labels))
    xp = namespace(labels)
    y = xp.astype(labels, float_dtype(bare(scores)), copy=False)
    expected = "1 (present), 0 or -1 (absent)"
    valid = admitted("attribute_hinge", labels, (y == 1) | (y == 0) | (y == -1), xp.isnan(y), expected)
    sign = 2 * xp.astype(y > 0, y.dtype) - 1
    terms = ops.relu(ops.subtract(float(margin), ops.multiply(scores, sign)))
    if valid is not None:
        terms = ops.where(valid, terms, math.nan)
    return reduce("attribute_hinge", ops.sum(terms, axis=-1), reduction)
