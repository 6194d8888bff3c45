"""Data as they are given: pairs, and what is no plain array: tables and labelled arrays, which index by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xpnet.runtime.dtypes import kind_of

_SHOWN = 8  # names of columns in a message


def plain(value: Any, who: str = "") -> Any:
    """Return a table or a labelled array (of pandas, polars, xarray, pyarrow, ...) as a NumPy array, by position.

    Anything else is returned as it is: arrays of any library, data sets in files, lists.

    Args:
        value: anything.
        who: for messages, such as "split: x".

    Raises:
        TypeError: a table with columns that hold no numbers, which are named; a sparse matrix.
    """
    if type(value) is np.ndarray:
        return value
    convert = getattr(value, "to_numpy", None)
    if convert is not None:
        columns = getattr(value, "columns", None)
        return np.asarray(convert()) if columns is None else _table(value, list(columns), who)
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(f"{_front(who)}got a sparse matrix {tuple(value.shape)}, expected an array; use x.toarray()")
    if hasattr(value, "__array__") and not hasattr(value, "dtype"):
        return np.asarray(value)
    return value


def _front(who: str) -> str:
    return f"{who}: " if who else ""


def _table(frame: Any, names: list[Any], who: str) -> Any:
    """Return the columns of a table side by side, (N, columns)."""
    whole = np.asarray(frame.to_numpy())
    if kind_of(whole.dtype) != "other":
        return whole
    wrong, parts = [], []
    for i, name in enumerate(names):  # booleans beside numbers make a table of objects, but each column has its own dtype
        column = frame.iloc[:, i] if hasattr(frame, "iloc") else frame[name]
        part = np.asarray(column.to_numpy())
        parts.append(part)
        if kind_of(part.dtype) == "other":
            wrong.append(f"{name!r} ({column.dtype})")
    if wrong:
        shown = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise TypeError(
            f"{_front(who)}got a {type(frame).__name__} {tuple(frame.shape)} with columns that hold no numbers: {shown}; leave "
            f"them out, turn text into numbers (pandas.get_dummies), and fill in what is missing"
        )
    return np.stack(parts, axis=1)


def as_pair(batch: Any) -> tuple[Any, Any]:
    """Return a batch for training, which is a tuple or list of two, as a tuple (x, y).

    Raises:
        ValueError: it is something else, such as an array of two examples.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        what = f"a {type(batch).__name__} of {listed(batch)}" if isinstance(batch, (tuple, list)) else listed([batch])
        if isinstance(batch, Mapping):
            what += f" with {', '.join(map(str, batch))}"
        raise ValueError(f"each batch of the data must be a pair (x, y), got {what}")
    return batch[0], batch[1]


def listed(parts: Sequence[Any]) -> str:
    """Return the types and shapes of some values, for a message."""
    shown = [f"{type(p).__name__}{f' {tuple(p.shape)}' if hasattr(p, 'shape') else ''}" for p in parts[:4]]
    return ", ".join(shown) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
