"""The one setting for bits that can be repeated: :func:`set_deterministic`, or ``XPNET_DETERMINISTIC=1``.

Random numbers, orders and sums are repeatable without it (see docs/training.md). What it fixes in addition is what depends on
the machine's state or on time: into how many pieces work is cut (the number of threads), how many threads BLAS has at the
moment, whose threads a product runs on, which way of computing a convolution was measured as the fastest on a GPU, and which
workspace cuBLAS finds.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from xpnet.runtime import threads

_lock = threading.Lock()
_on = False


def set_deterministic(on: bool) -> None:
    """Make results independent of the number of threads, of time, and of what else the process does; or no longer.

    On the CPU work is cut into a fixed number of pieces, whatever the number of threads, and BLAS is held to one thread: every
    number of threads gives the same bits, also while other threads of the process compute. On a GPU convolutions are computed
    as products of matrices (or as $XPNET_CONVOLUTION says) instead of in the way that was measured as the fastest, and
    $CUBLAS_WORKSPACE_CONFIG is set to ":4096:8" unless it is set already: that holds for CuPy's own products if it comes before
    the first of them. xpnet's own have a fixed workspace anyway.

    It is a setting of the whole process; set it before the first step. ``XPNET_DETERMINISTIC=1`` in the environment sets it at
    the import. What it costs is in docs/training.md.

    Args:
        on: whether.

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
    """Whether :func:`set_deterministic` is on."""
    return _on


@contextlib.contextmanager
def deterministic(on: bool = True) -> Iterator[None]:
    """Within the block :func:`set_deterministic` is `on`; afterwards as before. For the whole process, not for one thread."""
    before = _on
    set_deterministic(on)
    try:
        yield
    finally:
        set_deterministic(before)


if os.environ.get("XPNET_DETERMINISTIC", "") not in ("", "0"):
    set_deterministic(True)
