"""Column reductions (``column_reduction.cuh``): how rows are partitioned over blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

from xpnet.accel.cupy.launch import runtime

Array = Any

_BLOCK = 256


class Partition(NamedTuple):
    """Grid and block of a kernel on ``column_reduction.cuh``, and the partition of the rows."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    part_rows: int
    parts: int


def partition(rows: int, vectors: int, waves: int = 8, widest: int = 32) -> Partition:
    """Partition a matrix of `rows` rows and `vectors` vectors of columns over blocks of 256 threads.

    A block takes at most `widest` vectors of a row. There are enough parts to fill the device `waves` times, of at least four
    rows a thread.
    """
    wide = min(widest, 1 << max(vectors - 1, 0).bit_length())
    deep = _BLOCK // wide
    tiles = max(-(-vectors // wide), 1)
    wanted = max(runtime().multiprocessors * waves // tiles, 1)
    part_rows = max(-(-rows // wanted), 4 * deep)
    part_rows = max(-(-part_rows // deep) * deep, -(-rows // 65535))  # a grid is at most 65535 high
    count = -(-rows // part_rows)
    return Partition((tiles, count, 1), (wide, deep, 1), part_rows, count)
