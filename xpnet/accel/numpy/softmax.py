"""Softmax and softmax cross entropy for NumPy: few calls for small batches, chunks on all threads for large ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import ELEMENTWISE_CHUNK, PASS_SECONDS, balanced_chunk_size
from xpnet.accel.numpy.workspace import FLOATS, Floats, workspace
from xpnet.ops.softmax import softmax, softmax_cross_entropy
from xpnet.runtime.threads import parallel

SMALL = 1 << 15
"""Elements up to which an array is not split."""


@lru_cache(maxsize=64)
def row_offsets(rows: int, K: int) -> Floats:
    """Return the offset of each row in a flat (rows, K) array. The result is cached: read-only."""
    starts = np.arange(0, rows * K, K)
    starts.flags.writeable = False
    return starts


def _chunks(rows: int, K: int) -> list[slice]:
    height = balanced_chunk_size(rows, max(1, ELEMENTWISE_CHUNK // K), 8 * PASS_SECONDS * rows * K)
    return [slice(i, min(i + height, rows)) for i in range(0, rows, height)]


@softmax.accelerate("numpy")
def forward(xp: Any, x: Floats, *, axis: int) -> Any:
    """Compute the softmax along the last axis, in chunks of rows."""
    if x.dtype not in FLOATS or x.ndim == 0 or axis not in (-1, x.ndim - 1) or not x.size:
        return NotImplemented
    K = x.shape[-1]
    rows = x.reshape(-1, K)
    y = np.empty(rows.shape, x.dtype)

    def chunk(part: slice) -> None:
        e = y[part]
        np.subtract(rows[part], np.maximum.reduce(rows[part], axis=1, keepdims=True), out=e)
        np.exp(e, out=e)
        np.divide(e, np.add.reduce(e, axis=1, keepdims=True), out=e)

    if x.size <= SMALL:
        chunk(slice(None))
    else:
        parts = _chunks(*rows.shape)
        parallel(lambda i: chunk(parts[i]), len(parts), 10 * PASS_SECONDS * x.size, 5)
    y = y.reshape(x.shape)
    return y, y


@forward.backward
def backward(xp: Any, dy: Floats, y: Floats, *, axis: int) -> Any:
    """Compute y * (dy - sum(dy * y)), in chunks of rows."""
    K = y.shape[-1]
    ys, dys = y.reshape(-1, K), dy.reshape(-1, K)
    dx = np.empty(ys.shape, y.dtype)

    def chunk(part: slice) -> None:
        out = dx[part]
        np.multiply(dys[part], ys[part], out=out)
        np.subtract(dys[part], np.add.reduce(out, axis=1, keepdims=True), out=out)
        np.multiply(out, ys[part], out=out)

    if y.size <= SMALL:
        chunk(slice(None))
    else:
        parts = _chunks(*ys.shape)
        parallel(lambda i: chunk(parts[i]), len(parts), 6 * PASS_SECONDS * y.size, 4)
    return dx.reshape(y.shape)


_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


def valid_class_indices(logits: Floats, labels: Any) -> bool:
    """Return whether `labels` are class indices that fit the logits; for others the reference raises the error."""
    kind, K = labels.dtype.kind, logits.shape[-1]
    if kind not in "iu" or K == 1 or labels.shape != logits.shape[:-1] or not labels.dtype.isnative:
        return False
    if kind == "i":
        # As unsigned integers negative ones are larger than any class: one comparison finds both mistakes.
        labels = labels.view(_UNSIGNED[labels.itemsize])
    return bool(np.maximum.reduce(labels, axis=None) < K)


@softmax_cross_entropy.accelerate("numpy")
def loss_forward(xp: Any, logits: Floats, labels: Any, *, reduction: str, label_smoothing: float, save: bool) -> Any:
    """Compute log(sum(exp(x))) - x[label] for class indices, in chunks of rows.

    For large logits the backward pass recomputes the exponentials: cheaper than writing them to memory and reading them back.
    """
    if (
        logits.dtype not in FLOATS
        or logits.ndim == 0
        or not logits.size
        or label_smoothing
        or reduction not in ("mean", "sum", "none")
        or not isinstance(labels, np.ndarray)
        or not valid_class_indices(logits, labels)
    ):
        return NotImplemented
    if labels.dtype.kind == "u" and labels.itemsize == 8:
        labels = labels.astype(np.int64)  # uint64 + int64 is a float64 in NumPy, not an index
    K = logits.shape[-1]
    rows = logits if logits.ndim == 2 else logits.reshape(-1, K)
    count = rows.shape[0]
    if logits.size <= SMALL:
        # C order, whatever the order of the logits: reshape(-1) must return views below.
        e = np.subtract(rows, np.maximum.reduce(rows, axis=1, keepdims=True), order="C")
        places = row_offsets(count, K) + labels.reshape(-1)
        picked = e.reshape(-1).take(places)
        np.exp(e, out=e)
        total = np.add.reduce(e, axis=1, keepdims=True)
        losses = np.log(total[:, 0])
        losses -= picked
        if save:
            e /= total
        saved: Any = (e, places, None)
    else:
        flat = labels.reshape(-1)
        losses = np.empty(count, logits.dtype)
        peaks, totals = np.empty((2, count, 1), logits.dtype)
        parts = _chunks(count, K)

        def chunk(number: int) -> None:
            part = parts[number]
            x = rows[part]
            (e,) = workspace(x.dtype, x.shape)
            np.maximum.reduce(x, axis=1, keepdims=True, out=peaks[part])
            np.subtract(x, peaks[part], out=e)
            picked = e.reshape(-1).take(row_offsets(*x.shape) + flat[part])
            np.exp(e, out=e)
            np.add.reduce(e, axis=1, keepdims=True, out=totals[part])
            np.subtract(np.log(totals[part][:, 0]), picked, out=losses[part])

        parallel(chunk, len(parts), 10 * PASS_SECONDS * rows.size, 7)
        saved = (rows, flat, (peaks, totals))
    if not save:
        saved = None
    if reduction == "none":
        return losses.reshape(labels.shape), saved and (*saved, logits.shape)
    loss = np.add.reduce(losses)
    return np.asarray(loss / count if reduction == "mean" else loss), saved and (*saved, logits.shape)


@loss_forward.backward
def loss_backward(xp: Any, dloss: Floats, saved: Any, *, reduction: str, label_smoothing: float) -> Any:
    """Compute (softmax(x) - one-hot(label)) times the gradient of the loss."""
    first, places, exact, shape = saved
    count, K = first.shape
    weight: Any = dloss / count if reduction == "mean" else dloss
    if reduction == "none":
        weight = dloss.reshape(-1, 1)
    if exact is None:
        gradient = first * weight
        flat = gradient.reshape(-1)
        flat[places] -= weight if reduction != "none" else weight[:, 0]
        return gradient.reshape(shape), None
    peaks, totals = exact
    gradient = np.empty((count, K), first.dtype)
    parts = _chunks(count, K)
    # exp(x - peak) / total * weight, with one division a row instead of an element
    scale = weight / totals

    def chunk(number: int) -> None:
        part = parts[number]
        out = gradient[part]
        np.subtract(first[part], peaks[part], out=out)
        np.exp(out, out=out)
        np.multiply(out, scale[part], out=out)
        flat = out.reshape(-1)
        flat[row_offsets(*out.shape) + places[part]] -= weight[part][:, 0] if reduction == "none" else weight

    parallel(chunk, len(parts), 10 * PASS_SECONDS * gradient.size, 5)
    return gradient.reshape(shape), None


# -- what it allocates, on fake arrays --


@forward.footprint
def _footprint(xp: Any, x: Any, *, axis: int) -> Any:
    if x.dtype not in FLOATS or x.ndim == 0 or axis not in (-1, x.ndim - 1) or not x.size:
        return NotImplemented
    y = xp.empty_like(x)
    return y, y


@_footprint.backward
def _(xp: Any, dy: Any, y: Any, *, axis: int) -> Any:
    return xp.empty_like(y)


@loss_forward.footprint
def _loss_footprint(xp: Any, logits: Any, labels: Any, *, reduction: str, label_smoothing: float, save: bool) -> Any:
    if logits.dtype not in FLOATS or not logits.size or label_smoothing or labels.shape != logits.shape[:-1]:
        return NotImplemented
    K, count = logits.shape[-1], labels.size
    losses = xp.empty((count,), dtype=logits.dtype)
    saved: Any
    if logits.size <= SMALL:
        saved = xp.empty_like(logits), xp.empty((count,), dtype=np.int64), None
    else:
        saved = logits, labels, xp.empty((2, count, 1), dtype=logits.dtype)
        parts = _chunks(count, K)
        xp.workspace(logits.dtype, len(parts), (parts[0].stop, K))
    loss = losses.reshape(labels.shape) if reduction == "none" else xp.empty((), dtype=logits.dtype)
    return loss, saved if save else None


@_loss_footprint.backward
def _(xp: Any, dloss: Any, saved: Any, *, reduction: str, label_smoothing: float) -> Any:
    return xp.empty_like(saved[0]), None
