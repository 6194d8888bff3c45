"""The workspace of each thread, and the elementwise helpers that operations apply to a chunk in cache.

Chunks are a few hundred kilobytes to a few megabytes. Allocating them each time would have the system map and clear their
pages again for every chunk, which costs as much as filling them; so each thread keeps one block and carves it up.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import numpy as np

Floats: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

WORKSPACE_LIMIT = 14 << 20
"""Workspace bytes an operation aims at in one thread (a single image row may need more)."""

_ALIGNMENT = 64


class _ThreadWorkspace(threading.local):
    def __init__(self) -> None:
        self.slots: dict[str, Floats] = {}


_local = _ThreadWorkspace()


def workspace(dtype: np.dtype[Any], *shapes: Sequence[int], slot: str = "main") -> list[Floats]:
    """Return uninitialised arrays of this thread, valid until its next call of `workspace` with the same slot."""
    sizes = [-(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for shape in shapes]
    total = sum(sizes)
    memory = _local.slots.get(slot)
    if memory is None or memory.size < total:
        # Free the smaller block before allocating the larger one, so that both never exist at once.
        del memory
        _local.slots.pop(slot, None)
        raw = np.empty(total + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        memory = raw[start : start + total]
        # An unusually large block is not kept: nothing would ever free it.
        if total <= WORKSPACE_LIMIT + (2 << 20):
            _local.slots[slot] = memory
    arrays = []
    start = 0
    for shape, size in zip(shapes, sizes):
        arrays.append(np.ndarray(shape, dtype, memory, start))
        start += size
    return arrays


FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
"""The dtypes that the accelerated operations take."""


def strided_view(array: Floats, shape: Sequence[int], strides: Sequence[int], dtype: np.dtype[Any] | None = None) -> Floats:
    """Return a view of a contiguous array with other strides and, if given, another dtype.

    It takes a tenth of the time of numpy's as_strided, which counts in many small calls.
    """
    return np.ndarray(shape, dtype or array.dtype, array, 0, strides)


@lru_cache(maxsize=256)
def packed_dtype(length: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype whose items are `length` neighbours: NumPy copies short runs as single items in half of the time."""
    return np.dtype((np.void, length * dtype.itemsize))


ACTIVATIONS = (None, "relu", "sigmoid", "tanh")

_ROW = 2048
_zeros = {np.dtype(kind): np.zeros(_ROW, kind) for kind in (np.float32, np.float64)}


def relu_to(x: Floats, out: Floats) -> None:
    """Compute out = max(x, 0). NumPy's maximum against a scalar takes three times as long as against a row of zeros."""
    zeros = _zeros[x.dtype]
    if x.size <= 512:
        np.maximum(x, 0, out=out)
    elif x.flags.c_contiguous and out.flags.c_contiguous:
        flat, target = x.reshape(-1), out.reshape(-1)
        cut = flat.size - flat.size % _ROW
        np.maximum(flat[:cut].reshape(-1, _ROW), zeros, out=target[:cut].reshape(-1, _ROW))
        np.maximum(flat[cut:], zeros[: flat.size - cut], out=target[cut:])
    elif x.shape[-1] <= _ROW:
        np.maximum(x, zeros[: x.shape[-1]], out=out)
    else:
        np.maximum(x, 0, out=out)


def activate(y: Floats, activation: str | None) -> None:
    """Apply one of ACTIVATIONS in place."""
    if activation is None or not y.size:
        return
    if activation == "relu":
        relu_to(y, y)
    elif activation == "tanh":
        np.tanh(y, out=y)
    else:
        # Computed with tanh the logistic function cannot overflow: 1 / (1 + exp(-y)) = (1 + tanh(y / 2)) / 2.
        y *= 0.5
        np.tanh(y, out=y)
        y += 1
        y *= 0.5


_INTEGERS: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float32): np.dtype(np.int32),
    np.dtype(np.float64): np.dtype(np.int64),
}


def integer_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the integer dtype of the same size."""
    return _INTEGERS[dtype]


def apply_mask(values: Floats, mask: Floats, out: Floats) -> None:
    """Compute out = values where the bool array `mask` is True, else 0, even where the value is infinite or NaN.

    Multiplies the bits, as integers, by the mask's 0 or 1: a fifth of the time of np.where.
    """
    whole = _INTEGERS[values.dtype]
    np.multiply(values.view(whole), mask.view(np.int8), out=out.view(whole))


def activation_gradient(dy: Floats, y: Floats | None, activation: str | None, out: Floats) -> None:
    """Compute out = dy times the derivative of the activation, from the activation's output `y`."""
    if activation is None or y is None:
        np.copyto(out, dy)
    elif activation == "relu":
        apply_mask(dy, np.greater(y, 0), out)
    else:
        square = y * y
        np.subtract(1 if activation == "tanh" else y, square, out=square)
        np.multiply(dy, square, out=out)


def fill_padded(
    P: Floats,
    x: Floats,
    y: Floats | None,
    activation: str | None,
    images: tuple[int, int],
    top: int,
    left: int,
    value: float = 0.0,
) -> None:
    """Fill P (n, rows, columns, C) with the `images` of x from row `top` and column `left` on, and `value` outside.

    With an activation, x is a gradient and `y` the activation's output: P receives the gradient of its input.
    """
    n0, n1 = images
    H, W = x.shape[1:3]
    lo, hi = max(top, 0), min(top + P.shape[1], H)
    w0, w1 = max(left, 0), min(left + P.shape[2], W)
    if hi <= lo or w1 <= w0:
        P[...] = value
        return
    P[:, : lo - top] = value
    P[:, hi - top :] = value
    inside = P[:, lo - top : hi - top]
    inside[:, :, : w0 - left] = value
    inside[:, :, w1 - left :] = value
    inside = inside[:, :, w0 - left : w1 - left]
    part = (slice(n0, n1), slice(lo, hi), slice(w0, w1))
    activation_gradient(x[part], None if y is None else y[part], activation, inside)
