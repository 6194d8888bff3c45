"""Accelerations left out, so that those behind them run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from xpnet.ops.registry import registry


@contextlib.contextmanager
def skipping(xp: Any, library: str, count: int) -> Iterator[None]:
    """Skip the first `count` accelerations of operations that have more, for arrays of namespace `xp`, within the block."""
    changed = []
    try:
        for operation in registry.values():
            if count and len(found := operation.implementations(library)) > count:
                changed.append((operation, operation.implementation(xp)))
                operation._chosen[xp] = found[count]
        yield
    finally:
        for operation, before in changed:
            operation._chosen[xp] = before
