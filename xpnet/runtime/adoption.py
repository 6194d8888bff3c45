"""What comes from NumPy and is no plain array: scalars, masked arrays, matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from xpnet.runtime.array import Array

SCALARS = (bool, int, float, complex)
"""The types of Python's numbers, which take part in operations beside arrays."""

NUMPY_SCALARS = frozenset(kind for kind in np.sctypeDict.values() if kind is not np.object_)
"""The types of NumPy's scalars."""

UNUSUAL_NUMBERS = frozenset({*NUMPY_SCALARS, np.ndarray, complex})
"""The types of a number among an operation's settings that is to be looked at."""


def refuse_subclass(array: Any) -> None:
    """Raise a TypeError for a NumPy array that would lose its mask, or whose `*` is a matrix product."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"got a masked array {array.shape}, whose mask would be lost: fill it first, for example with x.filled(0), and "
            f"leave the masked examples out, or pass the mask where one is taken (in recurrent layers)"
        )
    if isinstance(array, np.matrix):
        raise TypeError(f"got a numpy.matrix {array.shape}, whose * is a matrix product; use numpy.asarray(x)")


def _refuse_within(value: Any) -> None:
    """Do what `refuse_subclass` does for the arrays in lists, however deep."""
    if isinstance(value, (list, tuple)):
        for part in value:
            if isinstance(part, (list, tuple)):
                _refuse_within(part)
            elif isinstance(part, np.ma.MaskedArray):
                refuse_subclass(part)


def adopted(value: Any) -> Array:
    """Return an array of any library as it is, and anything else, such as a number or a list, as a NumPy array.

    Raises:
        TypeError: it has a mask, or is a matrix.
    """
    if isinstance(value, np.generic) or not hasattr(value, "dtype"):
        _refuse_within(value)
        return cast(Array, np.asarray(value))
    if isinstance(value, np.ndarray):
        refuse_subclass(value)
    return cast(Array, value)


def without_scalars(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the inputs of an operation with NumPy's scalars as Python numbers, which do not widen the arrays beside them.

    Where there is no array beside them they are arrays without axes themselves.
    """
    if not any(isinstance(value, np.generic) for value in values):
        return tuple(values)
    alone = all(isinstance(value, np.generic) or value is None or type(value) in SCALARS for value in values)
    return tuple((np.asarray(v) if alone else v.item()) if isinstance(v, np.generic) else v for v in values)


def plain_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with NumPy's scalars and arrays without axes as Python numbers; the same dict if there are none."""
    numbers = {
        name: value.item()
        for name, value in settings.items()
        if isinstance(value, np.generic) or (type(value) is np.ndarray and not value.ndim)
    }
    return {**settings, **numbers} if numbers else settings
