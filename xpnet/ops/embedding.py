"""Embedding: a lookup in a table of vectors."""

from __future__ import annotations

import math
from typing import Any

from xpnet.backend import Array, Namespace
from xpnet.ops.registry import as_is, op
from xpnet.ops.shapes import ShapeError
from xpnet.ops.shaping import scatter_rows


@op(half=as_is)  # the first input is never floating, and rows are only moved
def embedding(xp: Namespace, indices: Array, table: Array) -> Any:
    """Look up table[indices]: integers (...) and a table (V, D) -> (..., D). A row's gradient is summed over its uses.

    Raises:
        ShapeError: the table is not a matrix, or the indices are not integers.
        ValueError: an index outside 0..V-1.
    """
    if table.ndim != 2 or not xp.isdtype(indices.dtype, "integral"):
        raise ShapeError(
            f"embedding: indices {tuple(indices.shape)} {indices.dtype} and table {tuple(table.shape)}; "
            f"expected integers (...) and a table (V, D)"
        )
    flat = xp.reshape(indices, (math.prod(indices.shape),))
    if flat.shape[0]:
        low, high = int(xp.min(flat)), int(xp.max(flat))
        if low < 0 or high >= table.shape[0]:
            raise ValueError(f"embedding: indices run from {low} to {high}, but the table has rows 0..{table.shape[0] - 1}")
    y = xp.reshape(xp.take(table, flat, axis=0), (*indices.shape, table.shape[1]))
    return y, (flat, table.shape[0])


@embedding.backward
def _(xp: Namespace, dy: Array, saved: Any) -> Any:
    flat, rows = saved
    dy = xp.reshape(dy, (flat.shape[0], dy.shape[-1]))
    return None, scatter_rows.run(xp, (dy, flat), {"size": rows}, False)[0]
