"""Update rules that compare the gradient with the last one: for full batches, whose gradients have no noise."""

from __future__ import annotations

from xpnet.backend import Array, Namespace
from xpnet.ops.updates.rule import Rule


@Rule
def rprop(
    xp: Namespace,
    w: Array,
    g: Array,
    previous: Array,
    size: Array,
    *,
    learning_rate: float,
    grow: float,
    shrink: float,
    smallest: float,
    largest: float,
) -> None:
    """Update w -= sign(g) * size; size grows while the sign stays the same, and shrinks where it changed.

    Where it changed, no step is made, and the next one is made whatever its sign. The learning rate is unused: the sizes began
    with it.
    """
    product = g * previous
    turned = product < 0
    size *= 1 + (grow - 1) * xp.astype(product > 0, w.dtype) + (shrink - 1) * xp.astype(turned, w.dtype)
    size[...] = xp.clip(size, smallest, largest)
    slope = xp.where(turned, xp.zeros_like(g), g)
    w -= xp.sign(slope) * size
    previous[...] = slope


@Rule
def quickprop(xp: Namespace, w: Array, g: Array, step: Array, slope: Array, *, learning_rate: float, growth: float) -> None:
    """Jump to the minimum of the parabola through this gradient and the last: step * g / (slope - g), then w += step.

    A jump is at most `growth` times the last step, also where the parabola opens downwards. Where the descent direction is
    still that of the last step, and where there was no step, -learning_rate * g is added.
    """
    way = xp.sign(step)
    bounded = way * g <= way * slope * (growth / (1 + growth))
    gap = slope - g
    safe = xp.where(bounded | (gap == 0), xp.ones_like(gap), gap)
    jump = xp.where(bounded | (gap == 0), growth * step, step * g / safe)
    linear = xp.where(way * g < 0, -learning_rate * g, xp.zeros_like(g))
    step[...] = xp.where(way == 0, -learning_rate * g, jump + linear)
    slope[...] = g
    w += step
