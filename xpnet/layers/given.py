"""Checks of what the constructors of layers are given, in one place for all of them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from xpnet import initializers
from xpnet.autograd.parameter import check_constraint, check_regularizer
from xpnet.ops.shapes import ShapeError

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "regularizer": check_regularizer,
    "constraint": check_constraint,
    "initializer": lambda who, value: initializers.get(value, who),
}
_ENDINGS = tuple(_CHECKS)


def check_setting(module: Any, name: str, value: Any) -> None:
    """Raise an error for a regularizer, constraint or initializer of a layer of this package that is none."""
    if name.endswith(_ENDINGS) and value is not None and _is_setting(type(module), name):  # type: ignore[arg-type]
        _CHECKS[name.rpartition("_")[2]](f"{type(module).__name__}: {name}", value)


@cache
def _is_setting(kind: type, name: str) -> bool:
    """Return whether a class of this package, which `kind` is or is made from, takes this argument."""
    ours = (vars(c)["__init__"] for c in kind.__mro__ if c.__module__.startswith("xpnet.") and "__init__" in vars(c))
    return any(name in inspect.signature(function).parameters for function in ours)


@cache
def _accepted(kind: type) -> tuple[inspect.Signature, tuple[str, ...]]:
    """Return the signature of a class's constructor, and the names of all arguments, those that it passes on among them."""
    names: list[str] = []
    first = None
    for function in (vars(c)["__init__"] for c in kind.__mro__ if "__init__" in vars(c)):
        signature = inspect.signature(function)
        first = first or signature
        parameters = list(signature.parameters.values())[1:]
        names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in names]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    assert first is not None  # object has one
    return first, tuple(names)


def check_arguments(kind: type, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Raise a TypeError that names the class where its constructor does not take these arguments.

    Python's own would name the base class that the constructor is in.
    """
    if not kind.__init__.__module__.startswith("xpnet."):  # type: ignore[misc]
        return
    signature, names = _accepted(kind)
    listed = f"it takes {', '.join(names)}"
    unknown = [name for name in keywords if name not in names]
    if unknown:
        raise TypeError(f"{kind.__name__}: unknown argument {unknown[0]!r}; {listed}")
    try:
        signature.bind(None, *args, **keywords)
    except TypeError as error:
        raise TypeError(f"{kind.__name__}: {error}; {listed}") from None


@contextlib.contextmanager
def naming(layer: Any) -> Iterator[None]:
    """Put the layer's name in front of the ShapeErrors of its constructor."""
    try:
        yield
    except ShapeError as error:
        raise layer._located(error) from None
