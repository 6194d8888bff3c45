"""Deterministic mode: :func:`set_deterministic`, or ``XPNET_DETERMINISTIC=1``.

Random numbers, orders and sums are reproducible without it (see docs/training.md). It also fixes what depends on the state of
the machine or on timing: the number of chunks that work is split into (the threads), the threads of BLAS, which thread pool
runs a product, which convolution algorithm autotune found fastest on a GPU, and the workspace of cuBLAS.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from xpnet.runtime import threads
from xpnet.runtime.environment import setting

_lock = threading.Lock()
_on = False


def set_deterministic(on: bool) -> None:
    """Make results independent of the number of threads, of timing, and of what else the process does, or stop doing so.

    On the CPU work is split into a fixed number of chunks, whatever the number of threads, and BLAS is limited to one thread:
    every number of threads gives the same bits, also while other threads of the process compute. On a GPU convolutions run as
    matrix products (or as $XPNET_CONVOLUTION says) instead of by autotune, and $CUBLAS_WORKSPACE_CONFIG is set to ":4096:8"
    unless it is set already, which takes effect on CuPy's own products only before the first of them. xpnet's own products have
    a fixed workspace anyway.

    This affects the whole process; set it before the first step. ``XPNET_DETERMINISTIC=1`` in the environment sets it at
    import. Its cost is in docs/training.md.

    Args:
        on: True or False.

    Raises:
        ValueError: `on` is neither True nor False.
    """
    global _on
    if not isinstance(on, bool):
        raise ValueError(f"set_deterministic takes True or False, got {on!r}")
    with _lock:
        if on != _on:
            threads.fix_chunking(on)
            _on = on
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def get_deterministic() -> bool:
    """Return whether :func:`set_deterministic` is on."""
    return _on


@contextlib.contextmanager
def deterministic(on: bool = True) -> Iterator[None]:
    """Set deterministic mode within the block and restore it afterwards, for the whole process, not for one thread."""
    before = _on
    set_deterministic(on)
    try:
        yield
    finally:
        set_deterministic(before)


if setting("XPNET_DETERMINISTIC"):
    set_deterministic(True)
