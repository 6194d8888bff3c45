"""Rules for parameters that take part as 16-bit copies: rounding them, and the scale of their gradients.

All is done with arrays, never by looking at one: so it can be recorded and replayed on a GPU.
"""

from __future__ import annotations

from xpnet.backend import Array, Namespace, quiet
from xpnet.ops.updates.rule import Rule


@Rule
def rounded(xp: Namespace, copy: Array, values: Array) -> None:
    """copy = values, rounded to the dtype of `copy`."""
    with quiet(xp):
        copy[...] = values


@Rule
def unscale(xp: Namespace, g: Array, scale: Array, overflow: Array) -> None:
    """g /= scale; `overflow` becomes 1 where g holds anything that is not finite."""
    with quiet(xp):
        g *= 1 / scale
        overflow[...] = xp.where(xp.all(xp.isfinite(g)), overflow, xp.ones_like(overflow))


@Rule
def adjust(xp: Namespace, scale: Array, good: Array, overflow: Array, *, factor: float, interval: int, smallest: float) -> None:
    """What the scale becomes after a step: scale / factor, at least `smallest`, after one whose gradients overflowed, else
    scale * factor after every `interval` steps in a row that did not. Both counters are brought up to date."""
    bad = overflow != 0
    count = xp.where(bad, xp.zeros_like(good), good + 1)
    with quiet(xp):  # a scale near the largest float32
        grown = xp.where(count >= interval, scale * factor, scale)
    grown = xp.where(xp.isfinite(grown), grown, scale)
    least = xp.full_like(scale, smallest)
    scale[...] = xp.where(bad, xp.maximum(scale / factor, xp.minimum(scale, least)), grown)
    good[...] = xp.where(count >= interval, xp.zeros_like(good), count)
    overflow[...] = xp.zeros_like(overflow)
