"""Plain values of attributes: numbers, NumPy's among them, names, None, dtypes, and tuples of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def same(a: Any, b: Any) -> bool:
    """Return whether two values of an attribute are interchangeable: one object, or plain values of one type and equal bits.

    Plain are numbers, NumPy's among them, names, None, dtypes, and tuples of them.
    """
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b):  # a float64 of NumPy widens what a float does not
        return False
    if kind is float:
        return bool(a.hex() == b.hex())  # NaN is NaN, and -0.0 is not 0.0
    if kind in (int, str, bytes, bool, complex):
        return bool(a == b)
    if kind is tuple:
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.generic):
        return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())
    return isinstance(a, np.dtype) and bool(a == b)


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, a name, None, a dtype or a tuple of them."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    return value is None or issubclass(type(value), (bool, int, float, complex, str, bytes, np.generic, np.dtype))
