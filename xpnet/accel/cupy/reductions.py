"""How kernels over matrices (rows, columns) are launched, and the second stage of their sums over rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from xpnet.accel.cupy.launch import launch, runtime
from xpnet.accel.cupy.source import Kernel

Array = Any

_BLOCK = 256
_sum_slabs = Kernel("reduce", "sum_slabs", ("float", "double"))
_merge_slabs = Kernel("reduce", "merge_slabs", ("float", "double"))


class Slabs(NamedTuple):
    """A launch of a kernel of ``columns.cuh``: grid, block, and how the rows are cut into slabs."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    slab_rows: int
    slabs: int


def cut(rows: int, vectors: int, waves: int = 8) -> Slabs:
    """Cut a matrix of `rows` rows and `vectors` vectors of columns into blocks of 256 threads.

    Slabs are many enough to fill the device `waves` times, and at least four rows deep for every thread.
    """
    wide = min(32, 1 << max(vectors - 1, 0).bit_length())
    deep = _BLOCK // wide
    tiles = max(-(-vectors // wide), 1)
    wanted = max(runtime().multiprocessors * waves // tiles, 1)
    slab_rows = max(-(-rows // wanted), 4 * deep)
    slab_rows = max(-(-slab_rows // deep) * deep, -(-rows // 65535))  # a grid is at most 65535 high
    count = -(-rows // slab_rows)
    return Slabs((tiles, count, 1), (wide, deep, 1), slab_rows, count)


def _c_name(array: Array) -> str:
    return "double" if array.dtype.itemsize == 8 else "float"


def sum_slabs(xp: Any, partial: Array) -> Array:
    """The sum of partial (slabs, columns), float32 or float64, over the slabs, always in the same order: (columns,)."""
    slabs, columns = partial.shape
    sums = xp.empty((columns,), dtype=partial.dtype)
    launch(_sum_slabs[(_c_name(partial),)], (-(-columns // 32), 1, 1), (32, 8, 1), partial, sums, slabs, columns)
    return sums


def merge_slabs(xp: Any, partial: Array, rows: int, slab_rows: int) -> tuple[Array, Array]:
    """Mean and variance (columns,) from the mean and squared deviations (slabs, 2, columns) of the slabs of `rows` rows."""
    slabs, _, columns = partial.shape
    mean = xp.empty((columns,), dtype=partial.dtype)
    variance = xp.empty((columns,), dtype=partial.dtype)
    launch(
        _merge_slabs[(_c_name(partial),)], (-(-columns // 32), 1, 1), (32, 8, 1), partial, mean, variance, slabs, columns,
        rows, slab_rows,
    )  # fmt: skip
    return mean, variance
