"""Metrics: functions of a prediction and a target. Each is the mean over a batch, a 0-d array on its device.

As in the losses, a target never broadcasts against a prediction, a NaN in either is one in the result, and the mean of an
empty batch is an error.

A metric says itself which of its values are better: ``accuracy.better`` is "max". Callbacks that look for the best
epoch ask it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from xpnet import ops
from xpnet.backend import Array, array_types, as_array, is_asynchronous, is_floating, kind_of, namespace
from xpnet.losses.base import as_target, not_empty, same_shape
from xpnet.ops import measures
from xpnet.ops.shapes import ShapeError, expect_real
from xpnet.runtime.foreign import refuse_foreign, refuse_lazy, refuse_truth_first
from xpnet.runtime.messages import quoted

Metric = Callable[[Any, Any], Any]
M = TypeVar("M", bound=Callable[..., Any])


def better(mode: str) -> Callable[[M], M]:
    """Declare which values of a metric are better (a decorator): "max" the larger ones, "min" the smaller ones.

        @xn.metrics.better("min")
        def rmse(prediction, target): ...

    A metric that is an object says it with an attribute: ``better = "min"``.

    Raises:
        ValueError: another mode.
    """
    if mode not in ("min", "max"):
        raise ValueError(f'better: mode must be "min" or "max", got {mode!r}')

    def declare(metric: M) -> M:
        metric.better = mode  # type: ignore[attr-defined]
        return metric

    return declare


def mode_of(metric: Any) -> str | None:
    """Return whether "min" or "max" of a metric is better, None where it does not say."""
    while isinstance(metric, partial) and not hasattr(metric, "better"):
        metric = metric.func
    mode = getattr(metric, "better", None)
    return mode if mode in ("min", "max") else None


def _numbers(name: str, prediction: Array, target: Array) -> tuple[Any, Array, Array]:
    """Return the namespace of both, and both as arrays; a TypeError unless they hold real numbers, which have an order."""
    if type(prediction) not in array_types:
        prediction = as_target(name, prediction, "prediction")
    if type(target) not in array_types:
        target = as_target(name, target)
    expect_real(name, prediction=prediction, target=target)
    return namespace(prediction, target), prediction, target


@better("max")
def accuracy(prediction: Array, target: Array) -> Array:
    """Compute the share of rows whose largest prediction is at the right class; NaN where prediction or target hold NaN.

    Args:
        prediction: (..., K), logits or probabilities.
        target: class indices (...) or probabilities (..., K).

    Raises:
        ShapeError: shapes that do not fit, or K = 1 (for that see binary_accuracy).
        ValueError: there are no rows.
    """
    _, prediction, target = _numbers("accuracy", prediction, target)
    if prediction.ndim < 2 or prediction.shape[-1] == 1:
        raise ShapeError(
            f"accuracy: the prediction has shape {tuple(prediction.shape)}, expected (N, K) with K >= 2 classes; for one "
            f'output unit and targets 0 and 1 use "binary_accuracy", for targets that are quantities "mean_absolute_error"'
        )
    rows = tuple(prediction.shape[:-1])
    if tuple(target.shape) not in (rows, tuple(prediction.shape)):
        raise ShapeError(
            f"accuracy: prediction {tuple(prediction.shape)} and target {tuple(target.shape)} do not fit: expected class "
            f"indices {rows}, or probabilities {tuple(prediction.shape)}"
        )
    if 0 in rows:
        not_empty("accuracy", prediction[..., 0])
    return cast(Array, measures.accuracy(prediction, target))


@better("max")
def binary_accuracy(prediction: Array, target: Array) -> Array:
    """Compute the share of elements where prediction > 0 (a logit) agrees with the target; NaN where either holds NaN.

    Args:
        prediction: logits, any shape.
        target: 0 or 1 of any dtype, in the same shape.

    Raises:
        ShapeError: shapes that differ.
        ValueError: there are no elements; a target other than 0 and 1 (on a GPU, where that would wait for the device, what is
            above 0.5 counts as 1).
    """
    xp, prediction, target = _numbers("binary_accuracy", prediction, target)
    same_shape("binary_accuracy", prediction, target)
    if 0 in prediction.shape:
        not_empty("binary_accuracy", prediction)
    known = is_asynchronous(xp) or kind_of(target.dtype) == "boolean" or bool(xp.all(target == (target > 0.5)))
    if not known and not bool(xp.all((target == (target > 0.5)) | (target != target))):  # the latter is NaN
        raise ValueError(
            f"binary_accuracy: the target runs from {xp.min(target)} to {xp.max(target)}, expected 0 and 1; give target > 0.5 "
            f'for probabilities, and use "mean_absolute_error" for quantities'
        )
    return cast(Array, measures.binary_accuracy(prediction, target))


@better("min")
def mean_absolute_error(prediction: Array, target: Array) -> Array:
    """Compute the mean of |prediction - target|.

    Raises:
        ShapeError: shapes that differ.
        ValueError: there are no elements.
    """
    xp, prediction, target = _numbers("mean_absolute_error", prediction, target)
    same_shape("mean_absolute_error", prediction, target)
    if 0 in prediction.shape:
        not_empty("mean_absolute_error", prediction)
    return as_array(xp, ops.absolute_error(prediction, target))


def confusion_matrix(prediction: Array, target: Array, classes: int | None = None) -> Array:
    """Count how often class i (row) was predicted as class j (column): int64 (K, K).

    Args:
        prediction: (N, K) scores, or (N,) class indices.
        target: (N,) class indices.
        classes: K; by default the number of scores, or one more than the largest class index, which waits for a GPU.

    Raises:
        ShapeError: shapes that do not fit.
        ValueError: a class index outside 0..K-1, or scores that are NaN. On a GPU, where that would wait for the device, such
            an example is not counted.
    """
    xp, prediction, target = _numbers("confusion_matrix", prediction, target)
    N = int(prediction.shape[0]) if prediction.ndim else 0
    if prediction.ndim not in (1, 2) or tuple(target.shape) != (N,):
        raise ShapeError(
            f"confusion_matrix: prediction {tuple(prediction.shape)} and target {tuple(target.shape)} do not fit: expected "
            f"scores (N, K) or class indices (N,), and a target of class indices (N,)"
        )
    predicted = prediction
    if prediction.ndim == 2:
        predicted = xp.argmax(prediction, axis=-1)
        if N and is_floating(prediction):
            missing = xp.isnan(xp.max(prediction, axis=-1))
            if is_asynchronous(xp):
                predicted = xp.where(missing, -1, predicted)
            elif bool(xp.any(missing)):
                count = int(xp.sum(xp.astype(missing, xp.int64)))
                raise ValueError(f"confusion_matrix: the scores of {count} of {N} examples are NaN, which is no class")
    if classes is None and prediction.ndim == 2:
        classes = int(prediction.shape[1])
    elif classes is None:
        classes = 1 + max(int(xp.max(predicted)), int(xp.max(target))) if N else 0
    numbers = xp.arange(classes, device=prediction.device)
    for what, indices in (("prediction", predicted), ("target", target)):
        if N and not is_asynchronous(xp) and not bool(xp.all(xp.any(indices[:, None] == numbers, axis=1))):
            raise ValueError(
                f"confusion_matrix: the {what} runs from {xp.min(indices)} to {xp.max(indices)}, expected class indices "
                f"0..{classes - 1}: whole numbers"
            )
    rows = xp.astype(target[:, None] == numbers, xp.float64)
    columns = xp.astype(predicted[:, None] == numbers, xp.float64)
    return cast(Array, xp.astype(xp.matmul(xp.matrix_transpose(rows), columns), xp.int64))


NAMES: dict[str, Metric] = {
    "accuracy": accuracy,
    "binary_accuracy": binary_accuracy,
    "mean_absolute_error": mean_absolute_error,
    "mae": mean_absolute_error,
}


def get(metric: str | Metric) -> tuple[str, Metric]:
    """Return a metric's name and function, from either.

    Raises:
        ValueError: no such name.
        TypeError: neither a name nor a function; a function of another library, or one that takes the target first.
    """
    if not isinstance(metric, str) and (not callable(metric) or isinstance(metric, type)):
        raise TypeError(f"a metric is a name or a function (prediction, target) -> mean over the batch, got {quoted(metric)}")
    if callable(metric):
        refuse_foreign("a metric", metric, f"give one of {', '.join(NAMES)}, or a function of native arrays")
        refuse_truth_first("a metric", metric)
        refuse_lazy("a metric", metric)
        return getattr(metric, "__name__", type(metric).__name__), metric
    if not isinstance(metric, str) or metric not in NAMES:
        raise ValueError(f"unknown metric {quoted(metric)}: expected a function or one of {', '.join(NAMES)}")
    return metric, NAMES[metric]
