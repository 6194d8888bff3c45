"""Dropout, with masks from a counter-based generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from xpnet import random
from xpnet.backend import Array, Namespace
from xpnet.ops.registry import op
from xpnet.ops.shapes import ShapeError


def dropout_key(key: random.Key | int) -> random.Key:
    """Return a seed or a key as a key."""
    return random.key(key, "dropout") if isinstance(key, int) else key


@op
def dropout(
    xp: Namespace,
    x: Array,
    rate: float = 0.5,
    *,
    key: random.Key | int = 0,
    step: Any = 0,
    shape: Sequence[int] | None = None,
    inverted: bool = True,
) -> Any:
    """Set each element to 0 with probability `rate` and divide the others by 1 - rate, which keeps the expectation.

    Args:
        x: any shape.
        rate: in [0, 1], rounded to steps of 2**-16.
        key: a seed, or a key from xpnet.random.key. The same key and step drop the same elements on every backend.
        step: a counter; another step drops other elements. A number, or a 0-d uint64 array on the device of x.
        shape: the mask's shape, broadcast to x: (N, 1, 1, C) drops whole channels. None means the shape of x.
        inverted: False leaves the kept elements as they are (the vanilla form: multiply by 1 - rate at test time).

    Raises:
        ValueError: a rate outside [0, 1], or a mask shape that does not broadcast to x.

    Source: Srivastava et al., 2014; CS231n, "Neural networks part 2" (inverted dropout).
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"dropout: rate must be in [0, 1], got {rate}")
    size = tuple(x.shape) if shape is None else tuple(shape)
    if len(size) != x.ndim or any(m not in (1, n) for m, n in zip(size, x.shape)):
        raise ShapeError(f"dropout: a mask of shape {size} does not broadcast to x {tuple(x.shape)}")
    mask = random.keep_mask(xp, dropout_key(key), int(step), size, rate, device=x.device)
    return _drop(xp, x, mask, rate, inverted), mask


def _drop(xp: Namespace, x: Array, mask: Array, rate: float, inverted: bool) -> Array:
    scale = 1 / (1 - rate) if inverted and rate < 1 else 1.0
    return cast(Array, xp.where(mask, x * scale, xp.zeros_like(x)))


@dropout.backward
def _(xp: Namespace, dy: Array, mask: Array, *, rate: float, key: Any, step: Any, shape: Any, inverted: bool) -> Any:
    return _drop(xp, dy, mask, rate, inverted)
