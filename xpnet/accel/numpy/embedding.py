"""Rows added by index for NumPy: counted, not multiplied. With it the gradients of embedding and of indexing with arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.workspace import Floats
from xpnet.ops.shaping import scatter_rows

_CHUNK = 1 << 20
"""Elements that are added in one call."""


def _covers(rows: Any, index: Any) -> bool:
    return rows.dtype == np.float32 and rows.ndim == 2 and index.shape == rows.shape[:1] and index.dtype.kind in "iu"


@scatter_rows.accelerate("numpy")
def forward(xp: Any, rows: Floats, index: Any, *, size: int) -> Any:
    """Add the rows in float64, some columns at a time, for the indices that occur."""
    if not _covers(rows, index):
        return NotImplemented
    M, D = rows.shape
    out = np.zeros((size, D), rows.dtype)
    index = index.astype(np.int64, copy=False)  # the number of rows need not fit a smaller dtype
    inside = (index >= 0) & (index < size)
    used, source = index, rows
    if not inside.all():
        used, source = index[inside], rows[inside]
    found, place = np.unique(used, return_inverse=True)
    width = max(1, _CHUNK // max(M, 1))
    for first in range(0, D, width):
        part = source[:, first : first + width]
        n = part.shape[1]
        cells = (place[:, None] * n + np.arange(n)).reshape(-1)
        sums = np.bincount(cells, part.reshape(-1), len(found) * n)
        with np.errstate(over="ignore"):
            out[found, first : first + n] = sums.reshape(len(found), n)
    return out, index


# -- what it allocates, on fake arrays --


@forward.footprint
def _footprint(xp: Any, rows: Any, index: Any, *, size: int) -> Any:
    if not _covers(rows, index):
        return NotImplemented
    M, D = rows.shape
    out = xp.empty((size, D), dtype=rows.dtype)
    kept = index if index.dtype == np.int64 else xp.empty((M,), dtype=np.dtype(np.int64))
    width = min(D, max(1, _CHUNK // max(M, 1)))
    xp.temporary(np.dtype(np.int64), (2 * M,))  # the indices that occur, and the place of each
    xp.temporary(np.dtype(np.float64), (2 * M * width + min(M, size) * width,))
    return out, kept
