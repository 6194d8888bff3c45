"""Metrics: functions of a prediction and a target. Each is the mean over a batch, a 0-d array on its device.

A metric says itself which of its values are better: ``accuracy.better`` is "max". Callbacks that look for the best
epoch ask it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from xpnet import ops
from xpnet.backend import Array, as_array, namespace
from xpnet.ops.shapes import ShapeError, expect_real

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


@better("max")
def accuracy(prediction: Array, target: Array) -> Array:
    """Compute the share of rows whose largest prediction is at the right class.

    Args:
        prediction: (..., K), logits or probabilities.
        target: class indices (...) or probabilities (..., K).

    Raises:
        ShapeError: shapes that do not fit, or K = 1 (for that see binary_accuracy).
    """
    expect_real("accuracy", prediction=prediction, target=target)
    xp = namespace(prediction, target)
    if prediction.ndim < 2 or prediction.shape[-1] == 1:
        raise ShapeError(
            f"accuracy: the prediction has shape {tuple(prediction.shape)}, expected (N, K) with K >= 2 classes; "
            f'for one output unit use "binary_accuracy"'
        )
    if target.ndim == prediction.ndim:
        target = xp.argmax(target, axis=-1)
    if tuple(target.shape) != tuple(prediction.shape[:-1]):
        raise ShapeError(f"accuracy: prediction {tuple(prediction.shape)} and target {tuple(target.shape)} do not fit")
    hits = xp.argmax(prediction, axis=-1) == target
    return as_array(xp, xp.mean(xp.astype(hits, xp.float64)))


@better("max")
def binary_accuracy(prediction: Array, target: Array) -> Array:
    """Compute the share of elements where prediction > 0 (a logit) agrees with target > 0.5. Shapes are equal."""
    expect_real("binary_accuracy", prediction=prediction, target=target)
    xp = namespace(prediction, target)
    if tuple(prediction.shape) != tuple(target.shape):
        raise ShapeError(
            f"binary_accuracy: prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have one shape"
        )
    return as_array(xp, xp.mean(xp.astype((prediction > 0) == (target > 0.5), xp.float64)))


@better("min")
def mean_absolute_error(prediction: Array, target: Array) -> Array:
    """Compute the mean of |prediction - target|."""
    expect_real("mean_absolute_error", prediction=prediction, target=target)
    xp = namespace(prediction, target)
    return as_array(xp, ops.mean(ops.abs(ops.subtract(prediction, target))))


def confusion_matrix(prediction: Array, target: Array, classes: int | None = None) -> Array:
    """Count how often class i (row) was predicted as class j (column): int64 (K, K).

    Args:
        prediction: (N, K) scores, or (N,) class indices.
        target: (N,) class indices.
        classes: K; by default the number of scores, or one more than the largest class index, which waits for a GPU.
    """
    expect_real("confusion_matrix", prediction=prediction, target=target)
    xp = namespace(prediction, target)
    predicted = xp.argmax(prediction, axis=-1) if prediction.ndim == 2 else prediction
    if classes is None and prediction.ndim == 2:
        classes = int(prediction.shape[1])
    elif classes is None:
        classes = 1 + max(int(xp.max(predicted)), int(xp.max(target))) if predicted.shape[0] else 0
    numbers = xp.arange(classes, device=prediction.device)
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
    """
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    if metric not in NAMES:
        raise ValueError(f"unknown metric {metric!r}: expected a function or one of {', '.join(NAMES)}")
    return metric, NAMES[metric]
