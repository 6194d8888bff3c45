"""Kinds of dtypes: what operations compute in, what they convert, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np

HALF_NAMES = ("float16", "bfloat16")
"""The names of the 16-bit floats: for storage and products; sums and intermediate results are float32."""

half_dtypes: set[Any] = {np.dtype("float16")}
"""The dtypes of NumPy and CuPy arrays of 16-bit floats; bfloat16 is added when it is first met or requested."""

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
"""What operations compute in as it is. Arrays of NumPy and CuPy have these very objects: the hot path compares identities."""

_kinds: dict[tuple[type, Any], str] = {}


def kind_of(dtype: Any) -> str:
    """Return "float", "half", "integer", "boolean", "complex" or "other" (text, objects, dates) for a dtype of any library.

    Only NumPy's and CuPy's 16-bit floats are "half": other libraries compute with theirs as with any float.
    """
    key = type(dtype), dtype  # dtypes of two libraries with equal hashes must not be compared
    kind = _kinds.get(key)
    if kind is None:
        kind = _kinds[key] = _numpy_kind(dtype) if isinstance(dtype, np.dtype) else _named_kind(dtype)
    return kind


def _numpy_kind(dtype: np.dtype[Any]) -> str:
    if dtype.name == "bfloat16":
        half_dtypes.add(dtype)
    if dtype in half_dtypes or (dtype.kind == "f" and dtype.itemsize == 2):
        return "half"
    return {"f": "float", "i": "integer", "u": "integer", "b": "boolean", "c": "complex"}.get(dtype.kind, "other")


def _named_kind(dtype: Any) -> str:
    name = str(dtype).rsplit(".", 1)[-1].strip("'>")
    for start, kind in (
        ("float", "float"), ("bfloat", "float"), ("int", "integer"), ("uint", "integer"), ("bool", "boolean"),
        ("complex", "complex"),
    ):  # fmt: skip
        if name.startswith(start):
            return kind
    return "other"


def native(dtype: Any) -> bool:
    """Return whether the bytes of a dtype are in this machine's order."""
    return getattr(dtype, "isnative", True) is not False
