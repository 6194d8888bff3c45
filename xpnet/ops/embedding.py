"""Embedding: a lookup in a table of vectors."""

from __future__ import annotations

import math
from typing import Any

from xpnet.backend import Array, Namespace, is_asynchronous
from xpnet.ops.registry import as_is, op
from xpnet.ops.shapes import ShapeError
from xpnet.ops.shaping import scatter_rows
from xpnet.ops.softmax import nan_outside


@op(
    half=as_is, integers="keep", linear=True, indices=("indices",)
)  # the first input is never floating, and rows are only moved
def embedding(xp: Namespace, indices: Array, table: Array) -> Any:
    """Look up table[indices]: integers (...) and a table (V, D) -> (..., D). A row's gradient is summed over its uses.

    Raises:
        ShapeError: the table is not a matrix, or the indices are not integers.
        ValueError: an index outside 0..V-1; on a GPU its row is NaN instead, and has no gradient.
    """
    if table.ndim != 2 or not xp.isdtype(indices.dtype, "integral"):
        raise ShapeError(
            f"embedding: indices {tuple(indices.shape)} {indices.dtype} and table {tuple(table.shape)}; "
            f"expected integers (...) and a table (V, D)"
        )
    flat = xp.reshape(indices, (math.prod(indices.shape),))
    count = table.shape[0]
    if flat.shape[0] and (count == 0 or not is_asynchronous(xp)):
        low, high = int(xp.min(flat)), int(xp.max(flat))
        if low < 0 or high >= count:
            raise ValueError(f"embedding: indices run from {low} to {high}, but the table has rows 0..{count - 1}")
    y = nan_outside(xp, xp.take(table, flat, axis=0), flat[:, None], count)
    return xp.reshape(y, (*indices.shape, table.shape[1])), (flat, count)


@embedding.backward
def _(xp: Namespace, dy: Array, saved: Any) -> Any:
    flat, rows = saved
    dy = xp.reshape(dy, (flat.shape[0], dy.shape[-1]))
    return None, scatter_rows.run(xp, (dy, flat), {"size": rows}, False)[0]
