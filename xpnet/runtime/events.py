"""Who is listening: what is recorded while a Trainer fits, without knowing what records it (xpnet.inspect.Timeline)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_listener: Any = None


def listen(listener: Any) -> None:
    """Record from now on with `listener`, or with nobody for None."""
    global _listener
    _listener = listener


def active() -> Any:
    """What records now, or None."""
    return _listener


def watched(batches: Iterator[T], device: Any) -> Iterator[T]:
    """`batches` themselves; while something records, what is done between them is noted as a step on `device`."""
    return batches if _listener is None else _listener.watch(batches, device)
