"""Rows of a table by index, and sums of rows by index: ``kernels/cuda/embedding.cu``."""

from __future__ import annotations

import math
from typing import Any

from xpnet.accel.cupy.launch import grid_size, launch, vector_width
from xpnet.accel.cupy.source import FLOATS, Kernel, dtype_of
from xpnet.accel.cupy.support import VECTORS, c_name, contiguous, out_buffer, supported, valid_vector
from xpnet.ops.embedding import embedding
from xpnet.ops.shaping import scatter_rows

Array = Any

_INDICES = ("int", "i64")
_BLOCK = (32, 4, 1)
_ROWS = 16 * _BLOCK[1]  # of the sums, in a block
_MAX_BLOCKS = 65535  # along the second axis of a grid


def _gathers(kind: str, width: int, index: str) -> bool:
    return valid_vector(kind, width)


def _sums(kind: str, index: str, out: str) -> bool:
    return out == kind or (out == "float" and kind in ("float16", "bfloat16"))


_gather = Kernel("embedding", "gather_rows", FLOATS, VECTORS, _INDICES, only=_gathers)
_scatter = Kernel("embedding", "scatter_rows", FLOATS, _INDICES, FLOATS, only=_sums)


def _index(xp: Any, index: Array) -> Any:
    """Return an index as int32 or int64 and C-contiguous; None if it is not of integers."""
    if dtype_of(index) not in ("int32", "int64"):
        if not xp.isdtype(index.dtype, "integral"):
            return None
        index = index.astype(xp.int64)
    return contiguous(xp, index)


def _add_rows(xp: Any, rows: Array, index: Array, out: Array) -> Array:
    """Add rows (M, D) by index (M,) into out (size, D), which is overwritten, and return it."""
    size, width = out.shape
    blocks = (-(-size // _ROWS), min(-(-width // 32), _MAX_BLOCKS), 1)
    launch(
        _scatter[c_name(rows), c_name(index), c_name(out)], blocks, _BLOCK, contiguous(xp, rows), index, out,
        rows.shape[0], size, width,
    )  # fmt: skip
    return out


@scatter_rows.accelerate("cupy")
def _scatter_rows(xp: Any, rows: Array, index: Array, *, size: int) -> Any:
    if not supported(rows) or rows.ndim != 2 or tuple(index.shape) != tuple(rows.shape[:1]):
        return NotImplemented  # the reference raises
    chosen = _index(xp, index)
    if chosen is None:
        return NotImplemented
    return _add_rows(xp, rows, chosen, xp.empty((size, rows.shape[1]), dtype=rows.dtype)), index


@embedding.accelerate("cupy")
def _embedding(xp: Any, indices: Array, table: Array) -> Any:
    """Look up rows. An index outside the table gives NaN instead of an error: checking would synchronise with the device."""
    if not supported(table) or table.ndim != 2 or table.shape[0] == 0:
        return NotImplemented  # the reference raises
    index = _index(xp, indices)
    if index is None:
        return NotImplemented
    rows, width = table.shape
    count = math.prod(index.shape)
    table = contiguous(xp, table)
    y = xp.empty((*index.shape, width), dtype=table.dtype)
    V = vector_width(width, table, y)
    kernel = _gather[c_name(table), V, c_name(index)]
    launch(kernel, grid_size(count, _BLOCK[1]), _BLOCK, table, index, y, count, rows, width)
    return y, (index, rows)


@_embedding.backward
def _(xp: Any, dy: Array, saved: Any, *, needs: tuple[bool, ...], into: Any = (None,) * 2) -> Any:
    index, rows = saved
    if not needs[1]:
        return None, None
    width = dy.shape[-1]
    count = math.prod(index.shape)
    out = out_buffer(xp, (rows, width), dy, into[1])
    return None, _add_rows(xp, xp.reshape(dy, (count, width)), xp.reshape(index, (count,)), out)
