"""One-hot encoding of labels, and its inverse."""

from __future__ import annotations

import math
from typing import cast

import array_api_compat

from xpnet.backend import Array, describe, name_of, namespace
from xpnet.runtime.settings import checked

from ..arrays import adopted_tree


@checked
def one_hot(y: Array, classes: int, *, dtype: str = "float32") -> Array:
    """Convert integer labels (N, ...) to probabilities (N, ..., classes): 1 at the label, 0 elsewhere.

    Raises:
        ValueError: y is not integer, or a label is not in 0 to classes - 1 (not checked on a GPU, where that would
            synchronise).
    """
    y = adopted_tree(y, "one_hot")
    xp = namespace(y)
    if not xp.isdtype(y.dtype, "integral"):
        raise ValueError(f"one_hot expects integer labels, got {describe(y)}")
    if name_of(xp) != "cupy" and math.prod(y.shape) > 0 and (int(xp.min(y)) < 0 or int(xp.max(y)) >= classes):
        raise ValueError(f"labels run from {int(xp.min(y))} to {int(xp.max(y))}, expected 0 to {classes - 1}")
    numbers = xp.arange(classes, dtype=y.dtype, device=array_api_compat.device(y))  # made there: a graph may record it
    return cast(Array, xp.astype(y[..., None] == numbers, getattr(xp, dtype)))


def from_one_hot(p: Array) -> Array:
    """Return the most probable class: probabilities (N, ..., K) become integer labels (N, ...)."""
    return cast(Array, namespace(p).argmax(p, axis=-1))
