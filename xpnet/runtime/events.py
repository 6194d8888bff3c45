"""The listener for timeline events: lets a Trainer be recorded without importing the recorder (xpnet.inspect.Timeline)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_listener: Any = None


def listen(listener: Any) -> None:
    """Set the listener that records from now on, or None."""
    global _listener
    _listener = listener


def active() -> Any:
    """Return the current listener, or None."""
    return _listener


def watched(batches: Iterator[T], device: Any) -> Iterator[T]:
    """Return `batches`; with a listener, the time between them is recorded as steps on `device`."""
    return batches if _listener is None else _listener.watch(batches, device)
