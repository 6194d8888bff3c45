"""The workspace of each thread, and the elementwise helpers that operations apply to a chunk in cache.

Chunks are a few hundred kilobytes to a few megabytes. Allocating them each time would have the system map and clear their
pages again for every chunk, which costs as much as filling them; so each thread keeps one block and carves it up.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import numpy as np

Floats: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

WORKSPACE_LIMIT = 14 << 20
"""Workspace bytes an operation aims at in one thread (a single image row may need more)."""

ALIGNMENT = 64


class _ThreadWorkspace(threading.local):
    def __init__(self) -> None:
        self.slots: dict[str, Floats] = {}


_local = _ThreadWorkspace()


def workspace(dtype: np.dtype[Any], *shapes: Sequence[int], slot: str = "main") -> list[Floats]:
    """Return uninitialised arrays of this thread, valid until its next call of `workspace` with the same slot."""
    sizes = [-(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT for shape in shapes]
    total = sum(sizes)
    memory = _local.slots.get(slot)
    if memory is None or memory.size < total:
        # Free the smaller block before allocating the larger one, so that both never exist at once.
        del memory
        _local.slots.pop(slot, None)
        raw = np.empty(total + ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        memory = raw[start : start + total]
        # An unusually large block is not kept: nothing would ever free it.
        if total <= WORKSPACE_LIMIT + (2 << 20):
            _local.slots[slot] = memory
    arrays = []
    start = 0
    for shape, size in zip(shapes, sizes):
        arrays.append(np.ndarray(shape, dtype, memory, start))
        start += size
    return arrays


FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
"""The dtypes that the accelerated operations take."""


@lru_cache(maxsize=256)
def packed_dtype(length: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype whose items are `length` neighbours: NumPy copies short runs as single items in half of the time."""
    return np.dtype((np.void, length * dtype.itemsize))
