"""Malloc thresholds: keep the memory that one training step frees for the next step.

glibc returns large blocks to the system as soon as they are freed, and the system clears each page of a new block when it
is first written to. A training step allocates and frees the same tens of megabytes every time, and clearing them cost as
much as the arithmetic (16 MB through relu and back: 7 ms instead of 13). So blocks up to 32 MB, the most that glibc allows,
come from its heap, and up to :data:`KEPT` bytes at the heap's end stay with the process. Larger blocks are still returned.

This affects the whole process. ``XPNET_KEEP_MEMORY=0`` leaves the C library as it is; others than glibc have no such setting.
"""

from __future__ import annotations

import ctypes
import os

from xpnet.runtime.environment import setting

KEPT = 512 << 20
"""Bytes of freed memory to keep."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 32 << 20


def keep_freed_memory() -> bool:
    """Set the thresholds, and return whether that was possible and wanted."""
    if not setting("XPNET_KEEP_MEMORY"):
        return False
    # The user's own malloc settings take precedence.
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, KEPT))
