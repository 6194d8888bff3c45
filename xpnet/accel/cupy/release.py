"""Releasing the handles of deleted streams: it waits for the device, which would end a capture.

A stream is deleted wherever Python's garbage collector happens to run, also while a step is recorded. What belongs to it is
then kept until nothing is captured.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from xpnet.backend import imported

_lock = threading.RLock()  # garbage may be collected within `release` itself
_kept: list[Callable[[], object]] = []
_recordings = 0


def release(destroy: Callable[[], object]) -> None:
    """Call `destroy` now, or once nothing is captured any more."""
    _kept.append(destroy)
    _release_kept()


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Release nothing within the block, in any thread: a stream is captured there."""
    global _recordings
    with _lock:
        _recordings += 1
    try:
        yield
    finally:
        with _lock:
            _recordings -= 1
        _release_kept()


def _release_kept() -> None:
    with _lock:
        if not _recordings and not _is_capturing():
            while _kept:
                _kept.pop()()


def _is_capturing() -> bool:
    """Return whether the current stream is captured, perhaps by a program of the user's."""
    cupy: Any = imported("cupy")
    if cupy is None:
        return False
    try:
        return bool(cupy.cuda.get_current_stream().is_capturing())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return "StreamCapture" in str(error)  # the default stream must not be asked while another one is captured
