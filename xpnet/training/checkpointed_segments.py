"""Which parts of a model a Trainer recomputes in the backward pass."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from xpnet.layers.module import Module
from xpnet.layers.sequential import Sequential

Recompute: TypeAlias = bool | Sequence[str | int] | Callable[[str, Module], bool]
Segments: TypeAlias = dict[Module, tuple[range, ...]]
"""For each Module which of its layers (of a Sequential) make segments; no range at all is the whole Module."""


def segments_of(model: Module, recompute: Recompute) -> Segments:
    """The segments that `recompute` of a Trainer asks for.

    Raises:
        ValueError: a layer that is not there, or nothing in the model that True could cut.
    """
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
            raise ValueError(f"Trainer: recompute must be True, a list of layers or a function, got {recompute!r}")
        chosen = [str(name) for name in recompute]
    unknown = [path for path in chosen if not path or path not in places]
    if unknown:
        raise ValueError(f"Trainer: recompute names the layer {unknown[0]!r}; there are {_listed(places)}")
    # What lies within a part that is recomputed anyway is not cut once more.
    return {places[path]: () for path in chosen if not any(path.startswith(f"{other}.") for other in chosen)}


def _listed(places: dict[str, Module]) -> str:
    names = [path for path in places if path]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "no layers"


def _cut(module: Module) -> Segments:
    """About sqrt(n) segments of a Sequential; in another Module of its attributes, and whole blocks that are no Sequential."""
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
    """Equal runs of layers. The last one is left alone: its backward pass comes at once, and would compute it for nothing."""
    n = len(model.layers)
    if n < 3:
        return ()
    count = max(2, round(math.sqrt(n)))
    bounds = [round(i * n / count) for i in range(count + 1)]
    # A convolution and the pooling behind it are one operation.
    bounds = [b + 1 if b - 1 in model.__dict__["_pooled"] else b for b in bounds]
    return tuple(range(a, b) for a, b in itertools.pairwise(bounds[:-1]) if b > a)


@contextlib.contextmanager
def recomputed(segments: Segments) -> Iterator[None]:
    """Within the block these parts are recomputed when the backward pass comes to what was recorded."""
    for module, ranges in segments.items():
        module.__dict__["_segments"] = ranges
    try:
        yield
    finally:
        for module in segments:
            module.__dict__["_segments"] = None
