"""Products, elementwise operations, softmax, batch normalisation and update rules for NumPy, on fake arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.elementwise import _CHUNK as _SMALL_RELU
from xpnet.accel.numpy.epilogue import ACTIVATIONS
from xpnet.accel.numpy.normalization import _SMALL as _SMALL_NORM
from xpnet.accel.numpy.normalization import _Rows
from xpnet.accel.numpy.softmax import SMALL as _SMALL_SOFTMAX
from xpnet.accel.numpy.softmax import _chunks
from xpnet.accel.numpy.workspace import FLOATS
from xpnet.inspect.footprint.fake_array import FakeArray
from xpnet.inspect.footprint.numpy_workspace import activation_gradient, moment, workspace
from xpnet.ops.activations import relu
from xpnet.ops.dropout import dropout
from xpnet.ops.linear import dense
from xpnet.ops.normalization import batch_norm_with_statistics
from xpnet.ops.softmax import softmax, softmax_cross_entropy
from xpnet.ops.updates import rule as rules


@dense.accelerate("fake_numpy")
def _dense(xp: Any, x: FakeArray, kernel: FakeArray, bias: Any, *, activation: str | None, save: bool) -> Any:
    if x.dtype not in FLOATS or kernel.dtype != x.dtype or activation not in ACTIVATIONS or not x.size:
        return NotImplemented
    if x.shape[-1:] != kernel.shape[:1]:
        return NotImplemented
    y = xp.empty((*x.shape[:-1], kernel.shape[1]), dtype=x.dtype)
    return y, (x, kernel, y if activation else None) if save else None


@_dense.backward
def _(xp: Any, dy: FakeArray, saved: Any, *, activation: str | None, needs: tuple[bool, ...], into: Any = (None,) * 3) -> Any:
    x, kernel, y = saved
    if activation is not None:
        dy = xp.empty_like(dy)
        activation_gradient(y, activation, dy.shape)
    return (
        xp.empty_like(x) if needs[0] else None,
        (xp.empty_like(kernel) if into[1] is None else into[1]) if needs[1] else None,
        (xp.empty(kernel.shape[1:], dtype=x.dtype) if into[2] is None else into[2]) if needs[2] else None,
    )


@relu.accelerate("fake_numpy")
def _relu(xp: Any, x: FakeArray) -> Any:
    if x.dtype not in FLOATS or not x.flags.c_contiguous:
        return NotImplemented
    y = xp.empty_like(x)
    return y, y


@_relu.backward
def _(xp: Any, dy: FakeArray, y: FakeArray) -> Any:
    dx = xp.empty_like(dy)
    moment(np.bool, (min(dy.size, _SMALL_RELU),))
    return dx


@dropout.accelerate("fake_numpy")
def _dropout(xp: Any, x: FakeArray, *, rate: float, key: Any, step: int, shape: Any, inverted: bool) -> Any:
    if x.dtype not in FLOATS or shape is not None or not 0 <= rate <= 1:
        return NotImplemented
    mask = xp.empty(x.shape, dtype=np.bool)
    moment(np.uint16, x.shape)  # the random numbers
    return xp.empty_like(x), mask


@_dropout.backward
def _(xp: Any, dy: FakeArray, mask: FakeArray, *, rate: float, key: Any, step: int, shape: Any, inverted: bool) -> Any:
    return xp.empty_like(dy)


@softmax.accelerate("fake_numpy")
def _softmax(xp: Any, x: FakeArray, *, axis: int) -> Any:
    if x.dtype not in FLOATS or x.ndim == 0 or axis not in (-1, x.ndim - 1) or not x.size:
        return NotImplemented
    y = xp.empty_like(x)
    return y, y


@_softmax.backward
def _(xp: Any, dy: FakeArray, y: FakeArray, *, axis: int) -> Any:
    return xp.empty_like(y)


@softmax_cross_entropy.accelerate("fake_numpy")
def _cross_entropy(xp: Any, logits: FakeArray, labels: FakeArray, *, reduction: str, save: bool) -> Any:
    if logits.dtype not in FLOATS or not logits.size or labels.shape != logits.shape[:-1]:
        return NotImplemented
    K, count = logits.shape[-1], labels.size
    losses = xp.empty((count,), dtype=logits.dtype)
    saved: Any
    if logits.size <= _SMALL_SOFTMAX:
        saved = xp.empty_like(logits), xp.empty((count,), dtype=np.int64), None
    else:
        saved = logits, labels, xp.empty((2, count, 1), dtype=logits.dtype)
        parts = _chunks(count, K)
        workspace(logits.dtype, len(parts), (parts[0].stop, K))
    loss = losses.reshape(labels.shape) if reduction == "none" else xp.empty((), dtype=logits.dtype)
    return loss, saved if save else None


@_cross_entropy.backward
def _(xp: Any, dloss: FakeArray, saved: Any, *, reduction: str) -> Any:
    return xp.empty_like(saved[0]), None


@batch_norm_with_statistics.accelerate("fake_numpy")
def _batch_norm(xp: Any, x: FakeArray, scale: Any, offset: Any, *, epsilon: float) -> Any:
    if x.dtype not in FLOATS or x.ndim < 2 or x.size < _SMALL_NORM:
        return NotImplemented
    C = x.shape[-1]
    mean, variance, inverse = (xp.empty((C,), dtype=x.dtype) for _ in range(3))
    y = xp.empty_like(x)
    return (y, mean, variance), (x, mean, inverse, scale)


@_batch_norm.backward
def _(xp: Any, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, ...]) -> Any:
    x, mean, _, _ = saved
    dy = xp.ascontiguousarray(dys[0])
    dx = None
    if needs[0]:
        dx = xp.empty_like(x)
        rows = _Rows(x.shape, x.shape[-1], x.size // x.shape[-1])
        workspace(x.dtype, rows.chunks, (min(rows.height, rows.shape[0]), rows.shape[1]))
    del dy
    return dx, xp.empty_like(mean) if needs[1] else None, xp.empty_like(mean) if needs[2] else None


@rules.sgd.accelerate("fake_numpy")
def _sgd(xp: Any, w: FakeArray, g: FakeArray, *, learning_rate: float) -> None:
    return


@rules.momentum.accelerate("fake_numpy")
def _momentum(xp: Any, w: FakeArray, g: FakeArray, v: FakeArray, **settings: Any) -> None:
    return


@rules.adam.accelerate("fake_numpy")
def _adam(xp: Any, w: FakeArray, g: FakeArray, m: FakeArray, v: FakeArray, **settings: Any) -> None:
    moment(w.dtype, (min(w.size, 1 << 15),))
