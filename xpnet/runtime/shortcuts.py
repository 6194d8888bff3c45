"""Shorter ways of NumPy to what the Array API offers: its functions cost more than the work itself on small arrays."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from xpnet.runtime.array import Array

_add_reduce: Any = np.add.reduce


def plain_sum(xp: Any, x: Array, axes: int | tuple[int, ...], dtype: Any, keepdims: bool = False) -> Array:
    """Return the library's own sum; np.sum takes as long to reach the ufunc as that to add a thousand numbers."""
    if xp is np:
        return cast(Array, _add_reduce(x, axis=axes, dtype=dtype, keepdims=keepdims))
    return cast(Array, xp.sum(x, axis=axes, keepdims=keepdims, dtype=dtype))


def reshaped(xp: Any, x: Array, shape: tuple[int, ...]) -> Array:
    """Return x in another shape; for NumPy with the method, in a quarter of the time of the function."""
    return cast(Array, cast(Any, x).reshape(shape) if xp is np else xp.reshape(x, shape))


def is_any(xp: Any, x: Array) -> bool:
    """Return whether any element is true; NumPy counts in half the time of any()."""
    return bool(np.count_nonzero(cast(Any, x)) if xp is np else xp.any(x))
