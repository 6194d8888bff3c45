"""Batches of several arrays as the arguments of a recorded function: the arrays, and the form of the tree that held them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple


class Branch(NamedTuple):
    """A tuple, list or dict of a tree, without its leaves."""

    kind: type
    names: tuple[Hashable, ...]
    parts: tuple[Branch | None, ...]


def flatten(tree: Any, leaves: list[Any]) -> Branch | None:
    """Append the leaves of a tree of tuples, lists and dicts to `leaves`; return its form, None for a leaf."""
    kind = type(tree)
    if kind is dict:
        return Branch(kind, tuple(tree), tuple([flatten(part, leaves) for part in tree.values()]))
    if kind in (tuple, list) or (isinstance(tree, tuple) and hasattr(kind, "_fields")):
        return Branch(kind, (), tuple([flatten(part, leaves) for part in tree]))
    leaves.append(tree)
    return None


def unflatten(form: Branch | None, leaves: Iterator[Any]) -> Any:
    """Return the tree of a form, with these leaves."""
    if form is None:
        return next(leaves)
    parts = [unflatten(part, leaves) for part in form.parts]
    if form.kind is dict:
        return dict(zip(form.names, parts))
    return form.kind(*parts) if hasattr(form.kind, "_fields") else form.kind(parts)


def is_numeric(leaf: Any) -> bool:
    """Return whether a leaf is an array of numbers or booleans, which can be on a device."""
    return getattr(getattr(leaf, "dtype", None), "kind", "O") not in "OSUMm"
