"""Sums over the rows of a chunk in the cache: as exact as pairwise ones, at the speed of a product with a row of ones.

BLAS and `einsum` add row after row. Here they add blocks of a few rows, and then the blocks' sums in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.workspace import FLOATS, Floats

_BLOCK = 16
"""Rows that are added one after the other."""

_WIDE = 1024
"""Rows of fewer elements are merged: adding a block of short rows takes as long as one of long rows."""

_SMALL = 1 << 12
"""Elements of a chunk that take longer to arrange than to add."""

_ones = {dtype: np.ones(2 * _BLOCK, dtype) for dtype in FLOATS}


def sum_rows(x: Floats) -> Floats:
    """Return the sum of each column of a contiguous x (rows, columns), in float64."""
    if x.size <= _SMALL:
        sums: Floats = np.add.reduce(x, axis=0, dtype=np.float64)
        return sums
    return _in_blocks(x, None)


def sum_products(x: Floats, y: Floats) -> Floats:
    """Return the sum of x * y of each column, both contiguous (rows, columns), in float64."""
    return _in_blocks(x, y)


def _in_blocks(x: Floats, y: Floats | None) -> Floats:
    rows, columns = x.shape
    merged = max(1, min(rows // _BLOCK, _WIDE // max(columns, 1)))
    wide, height = merged * columns, merged * _BLOCK
    count = rows // height
    whole = count * height
    found: Any = np.float64(0)
    if count:
        blocks = count, _BLOCK, wide
        sums = _added(x[:whole].reshape(blocks), None if y is None else y[:whole].reshape(blocks))
        while len(sums) > 2 * _BLOCK:
            rest = len(sums) % _BLOCK
            folded = _added(sums[: len(sums) - rest].reshape(-1, _BLOCK, wide), None)
            sums = np.concatenate([folded, sums[len(sums) - rest :]]) if rest else folded
        found = _added(sums[None], None).reshape(merged, columns)
        found = np.add.reduce(found, axis=0, dtype=np.float64) if merged > 1 else found[0].astype(np.float64)
    if whole == rows and count:
        return found  # type: ignore[no-any-return]
    x, y = x[whole:], None if y is None else y[whole:]
    return found + (_in_blocks(x, y) if len(x) > _BLOCK else _added(x[None], None if y is None else y[None])[0])  # type: ignore[no-any-return]


def _added(x: Floats, y: Floats | None) -> Floats:
    """Return the sums (count, columns) of blocks (count, rows, columns), or of their products."""
    sums: Floats
    if y is not None:
        sums = np.einsum("gij,gij->gj", x, y)
    elif x.shape[1] == 1:
        sums = x[:, 0]
    else:
        sums = np.matmul(_ones[x.dtype][: x.shape[1]], x)
    return sums
