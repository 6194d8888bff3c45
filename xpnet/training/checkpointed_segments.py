"""Gradient checkpointing in a Trainer: which parts of a model are recomputed in the backward pass."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from xpnet.layers.hooks import recomputing
from xpnet.layers.module import Module
from xpnet.layers.sequential import Sequential
from xpnet.runtime.messages import quoted

Recompute: TypeAlias = bool | Sequence[str | int] | Callable[[str, Module], bool]
Segments: TypeAlias = dict[Module, tuple[range, ...]]
"""For each Module the ranges of layers (of a Sequential) that are segments; none for the whole Module."""


def segments_of(model: Module, recompute: Recompute) -> Segments:
    """Return the segments for the argument `recompute` of a Trainer.

    Raises:
        ValueError: an unknown layer, or nothing in the model that True could cut.
    """
    if getattr(recompute, "dtype", None) == "bool" or (isinstance(recompute, int) and recompute in (0, 1)):
        recompute = bool(recompute)
    if recompute is False or recompute is None:
        return {}
    places = dict(model.named_modules())
    if recompute is True:
        found = _cut(model)
        if not found:
            raise ValueError(
                f"Trainer: recompute=True found nothing to cut in this {type(model).__name__}: it looks for a Sequential of "
                f"three layers or more, in the model or in an attribute of it; name the layers (recompute=[...]) or use "
                f"xn.recompute(...) in forward; there are {_listed(places)}"
            )
        return found
    if callable(recompute):
        chosen = [path for path, module in places.items() if path and recompute(path, module)]
    else:
        if isinstance(recompute, str) or not hasattr(recompute, "__iter__"):
            raise ValueError(f"Trainer: recompute must be True, a list of layers or a function, got {quoted(recompute)}")
        chosen = [str(name) for name in recompute]
    unknown = [path for path in chosen if not path or path not in places]
    if unknown:
        raise ValueError(f"Trainer: recompute names the layer {unknown[0]!r}; there are {_listed(places)}")
    # A layer within a recomputed part is not checkpointed again.
    return {places[path]: () for path in chosen if not any(path.startswith(f"{other}.") for other in chosen)}


def _listed(places: dict[str, Module]) -> str:
    names = [path for path in places if path]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "no layers"


def _cut(module: Module) -> Segments:
    """Cut a Sequential into about sqrt(n) segments; of another Module cut the Sequentials in it, and take blocks whole."""
    if isinstance(module, Sequential) and type(module).forward is Sequential.forward:
        ranges = _ranges(module)
        return {module: ranges} if ranges else {}
    found: Segments = {}
    for child in module._children.values():
        if isinstance(child, Sequential):
            found.update(_cut(child))
        elif child._children:
            found[child] = ()
    return found


def _ranges(model: Sequential) -> tuple[range, ...]:
    """Return equal runs of layers, without the last one: its backward pass follows at once, so nothing would be saved."""
    n = len(model.layers)
    if n < 3:
        return ()
    count = max(2, round(math.sqrt(n)))
    bounds = [round(i * n / count) for i in range(count + 1)]
    # Some layers and the one behind are one operation.
    bounds = [b + 1 if b - 1 in model.__dict__["_fused"] else b for b in bounds]
    return tuple(range(a, b) for a, b in itertools.pairwise(bounds[:-1]) if b > a)


@contextlib.contextmanager
def recomputed(segments: Segments) -> Iterator[None]:
    """Recompute these parts when the backward pass comes to what is recorded within the block."""
    for module, ranges in segments.items():
        if ranges:
            module.__dict__["_segments"] = ranges
        else:
            module._forward_hooks = (*module._forward_hooks, recomputing)
    try:
        yield
    finally:
        for module, ranges in segments.items():
            if ranges:
                del module.__dict__["_segments"]
            else:
                module._forward_hooks = tuple(hook for hook in module._forward_hooks if hook is not recomputing)
