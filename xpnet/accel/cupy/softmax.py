"""Softmax, log softmax and cross entropy: ``kernels/cuda/softmax.cu``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpnet.accel.cupy.launch import grid_size, launch
from xpnet.accel.cupy.losses import GridSum, empty_loss, exact_in, grid_sum, times_gradient_of_loss
from xpnet.accel.cupy.source import FLOATS, Kernel, dtype_of
from xpnet.accel.cupy.support import accumulator, c_name, contiguous, supported
from xpnet.backend import is_floating, kind_of
from xpnet.ops import measures
from xpnet.ops.softmax import check_reduction, log_softmax, softmax, softmax_cross_entropy

Array = Any

# (lanes a row, elements in the registers of each); 0: rows of any length, read again in each pass.
_LAYOUTS = ((8, 2), (32, 1), (32, 4), (32, 16), (256, 0))
_LANES, _ITEMS = (8, 32, 256), (0, 1, 2, 4, 16)


def _layouts(kind: str) -> Sequence[tuple[int, int]]:
    """Return the layouts for a C type: sixteen doubles would spill registers."""
    return [layout for layout in _LAYOUTS if kind != "double" or layout[1] < 16]


def _row(kind: str, log: bool, lanes: int, items: int) -> bool:
    return (lanes, items) in _layouts(kind)


def _labelled(kind: str, label: str, lanes: int, items: int) -> bool:
    return (lanes, items) in _layouts(kind) and label in ("int", "i64", kind)


_forward = Kernel("softmax", "softmax", FLOATS, (False, True), _LANES, _ITEMS, only=_row)
_backward = Kernel("softmax", "softmax_backward", FLOATS, (False, True), _LANES, _ITEMS, only=_row)
_cross_entropy = Kernel("softmax", "cross_entropy", FLOATS, ("int", "i64", *FLOATS), _LANES, _ITEMS, only=_labelled)
_accuracy = Kernel("softmax", "accuracy", FLOATS, ("int", "i64", *FLOATS), _LANES, _ITEMS, only=_labelled)


def _layout(K: int, kind: str) -> tuple[int, int]:
    """Return the smallest layout that holds a row of K elements."""
    return next((lanes, items) for lanes, items in _layouts(kind) if items == 0 or lanes * items >= K)


def _blocks(rows: int, lanes: int) -> int:
    return grid_size(rows, 256 // lanes)


def _register(operation: Any, log: bool) -> None:
    @operation.accelerate("cupy")  # type: ignore[untyped-decorator]
    def forward(xp: Any, x: Array, *, axis: int) -> Any:
        if not supported(x) or x.ndim == 0 or axis not in (-1, x.ndim - 1) or x.shape[-1] == 0:
            return NotImplemented
        x = contiguous(xp, x)
        K = x.shape[-1]
        rows, layout = math.prod(x.shape[:-1]), _layout(K, c_name(x))
        y = xp.empty(x.shape, dtype=x.dtype)
        launch(_forward[(c_name(x), log, *layout)], _blocks(rows, layout[0]), 256, x, y, rows, K)
        return y, y

    @forward.backward  # type: ignore[untyped-decorator]
    def backward(xp: Any, dy: Array, y: Array, *, axis: int) -> Any:
        dy = contiguous(xp, dy)
        K = y.shape[-1]
        rows, layout = math.prod(y.shape[:-1]), _layout(K, c_name(y))
        dx = xp.empty(y.shape, dtype=y.dtype)
        launch(_backward[(c_name(y), log, *layout)], _blocks(rows, layout[0]), 256, dy, y, dx, rows, K)
        return dx


_register(softmax, False)
_register(log_softmax, True)


@softmax_cross_entropy.accelerate("cupy")
def _softmax_cross_entropy(xp: Any, logits: Array, labels: Array, *, reduction: str, label_smoothing: float, save: bool) -> Any:
    """Compute the losses and their gradient in one pass over the logits.

    A class index outside 0..K-1 gives NaN instead of an error: checking the labels would synchronise with the device.
    """
    check_reduction("softmax_cross_entropy", reduction)
    if not supported(logits) or logits.ndim == 0 or logits.shape[-1] < 2:
        return NotImplemented  # of one class the reference raises
    K = logits.shape[-1]
    if not is_floating(labels) and xp.isdtype(labels.dtype, "integral"):
        if tuple(labels.shape) != tuple(logits.shape[:-1]):
            return NotImplemented  # the reference raises
        if dtype_of(labels) not in ("int32", "int64"):
            labels = labels.astype(xp.int64)
    elif tuple(labels.shape) != tuple(logits.shape) or kind_of(labels.dtype) in ("complex", "other"):
        return NotImplemented
    else:
        labels = labels.astype(logits.dtype, copy=False)
    logits, labels = contiguous(xp, logits), contiguous(xp, labels)
    rows, layout = math.prod(logits.shape[:-1]), _layout(K, c_name(logits))
    if not rows:
        return empty_loss(xp, logits, logits.shape[:-1], reduction), xp.empty(logits.shape, dtype=logits.dtype)
    gradient = xp.empty(logits.shape, dtype=logits.dtype) if save else None
    divisor, blocks = rows if reduction == "mean" else 1, _blocks(rows, layout[0])
    losses, loss, sums = None, None, GridSum()
    if reduction == "none":
        losses = xp.empty(logits.shape[:-1], dtype=logits.dtype)
    else:
        loss, sums = xp.empty((), dtype=logits.dtype), grid_sum(xp, blocks, accumulator(xp, logits))
    launch(
        _cross_entropy[(c_name(logits), c_name(labels), *layout)], blocks, 256, logits, labels, losses, gradient, loss, *sums,
        rows, K, label_smoothing, 1 / divisor, divisor,
    )  # fmt: skip
    return losses if loss is None else loss, gradient


@_softmax_cross_entropy.backward
def _(xp: Any, dloss: Array, gradient: Array, *, reduction: str, label_smoothing: float) -> Any:
    return times_gradient_of_loss(gradient, dloss[..., None] if reduction == "none" else dloss), None


@measures.accuracy.accelerate("cupy")
def _accuracy_of(xp: Any, prediction: Array, target: Array) -> Any:
    if not supported(prediction) or prediction.size == 0:
        return NotImplemented
    if target.ndim == prediction.ndim and exact_in(target, prediction):
        target = target.astype(prediction.dtype, copy=False)
    elif target.ndim < prediction.ndim and xp.isdtype(target.dtype, "integral"):
        target = target if dtype_of(target) in ("int32", "int64") else target.astype(xp.int64)
    else:
        return NotImplemented
    prediction, target = contiguous(xp, prediction), contiguous(xp, target)
    K = prediction.shape[-1]
    rows, layout = prediction.size // K, _layout(K, c_name(prediction))
    blocks, share = _blocks(rows, layout[0]), xp.empty((), dtype=xp.float64)
    launch(
        _accuracy[(c_name(prediction), c_name(target), *layout)], blocks, 256, prediction, target, share,
        *grid_sum(xp, blocks, xp.float64), rows, K,
    )  # fmt: skip
    return share
