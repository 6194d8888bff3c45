"""What to say when a GPU is out of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpnet.backend import DeviceMemoryError, describe


def raise_explained(error: MemoryError, doing: str, arrays: Sequence[Any]) -> None:
    """Raise a DeviceMemoryError for CuPy's `error`: what was asked for, what was free, and what would help.

    Args:
        error: what CuPy raised. For one that is explained already, or is about main memory, nothing is raised.
        doing: the operation that asked.
        arrays: what it worked on; None is passed over.
    """
    import cupy

    if isinstance(error, DeviceMemoryError) or type(error).__module__.partition(".")[0] == "numpy":
        return
    device = cupy.cuda.runtime.getDevice()
    free, total = cupy.cuda.runtime.memGetInfo()
    pool = cupy.get_default_memory_pool()
    asked = getattr(error, "_size", None)
    limit = getattr(error, "_limit", 0)
    inputs = ", ".join(describe(a) for a in arrays if hasattr(a, "shape"))
    raise DeviceMemoryError(
        f"{doing}: cuda:{device} is out of memory. Asked for: {'?' if asked is None else _size(asked)}"
        f"{f', working on {inputs}' if inputs else ''}. Free: {_size(free)} of {_size(total)}; arrays in use take "
        f"{_size(pool.used_bytes())}, CuPy keeps {_size(pool.free_bytes())} for reuse in pieces that are too small"
        f"{f' and is limited to {_size(limit)}' if limit else ''}. What helps: a smaller batch_size (with "
        f"Trainer(accumulate=k) for the same effective batch), no_grad() or predict() where no gradient is needed, deleting "
        f"arrays that are done with, a smaller dtype, or ending other programs that use this GPU."
    ) from error


def _size(count: int) -> str:
    """A number of bytes with a unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
