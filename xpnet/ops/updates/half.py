"""Rules for parameters with 16-bit copies: rounding, and loss scaling.

No rule reads a value on the host, so that a GPU can capture and replay them.
"""

from __future__ import annotations

from xpnet.backend import Array, Namespace, quiet
from xpnet.ops.updates.rule import Rule


@Rule
def rounded(xp: Namespace, copy: Array, values: Array) -> None:
    """Set copy = values, rounded to the dtype of `copy`."""
    with quiet(xp):
        copy[...] = values


@Rule
def unscale(xp: Namespace, g: Array, scale: Array, overflow: Array) -> None:
    """Divide g by the loss scale; set `overflow` to 1 if any of g is not finite."""
    with quiet(xp):
        g *= 1 / scale
        overflow[...] = xp.where(xp.all(xp.isfinite(g)), overflow, xp.ones_like(overflow))


@Rule
def adjust(xp: Namespace, scale: Array, good: Array, overflow: Array, *, factor: float, interval: int, smallest: float) -> None:
    """Adjust the loss scale after a step, and both counters.

    After a step whose gradients overflowed it becomes scale / factor, at least `smallest`; after every `interval` consecutive
    steps without overflow it becomes scale * factor.
    """
    bad = overflow != 0
    count = xp.where(bad, xp.zeros_like(good), good + 1)
    with quiet(xp):  # a scale near the largest float32
        grown = xp.where(count >= interval, scale * factor, scale)
    grown = xp.where(xp.isfinite(grown), grown, scale)
    least = xp.full_like(scale, smallest)
    scale[...] = xp.where(bad, xp.maximum(scale / factor, xp.minimum(scale, least)), grown)
    good[...] = xp.where(count >= interval, xp.zeros_like(good), count)
    overflow[...] = xp.zeros_like(overflow)
