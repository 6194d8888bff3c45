"""What is done to all gradients or weights of a model beside the update: clipping, and the moving average."""

from __future__ import annotations

from typing import Any

from xpnet.backend import Array, Namespace
from xpnet.ops.function import Function


@Function
def clip_norm(xp: Namespace, g: Array, *, norm: float) -> None:
    """Scale g, flat, in place so that its norm is at most `norm`, a number of its dtype; all NaN where that is not finite."""
    # Computed on the device: reading the number would wait for it. Squares of large gradients would be infinite.
    limit = xp.asarray(norm, dtype=g.dtype, device=g.device)
    unit = xp.maximum(xp.maximum(xp.max(g), -xp.min(g)), limit)
    scaled = g / unit
    length = xp.sqrt(xp.sum(scaled * scaled, dtype=g.dtype))
    g *= (limit / unit) / xp.maximum(length, limit / unit)


@Function
def clip_value(xp: Namespace, g: Array, *, value: float) -> None:
    """Clip each element of g, flat, to [-value, value] in place; NaN stays NaN."""
    bound = xp.asarray(value, dtype=g.dtype, device=g.device)
    g[...] = xp.minimum(xp.maximum(g, -bound), bound)


@Function
def moving_average(
    xp: Namespace, average: Array, values: Array, *, decay: float, steps: Array | None, before: Array | None
) -> Any:
    """Return decay * average + (1 - decay) * values, flat.

    Args:
        xp: the namespace.
        average, values: of one shape; neither is changed.
        decay: in [0, 1).
        steps: (), the number of updates, counted on the device; None where every call follows an update.
        before: what it was at the call before, or None: the average stays as it is where no update was made since.

    Returns:
        The new average, and a copy of `steps` or None.
    """
    moved = (1 - decay) * values
    moved += decay * average
    if steps is None:
        return moved, None
    if before is not None:
        moved = xp.where(steps == before, average, moved)
    return moved, xp.asarray(steps, copy=True)
