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
from xpnet.runtime.set_later import made_with, own_kind, settings_of

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


def set_again(module: Any, name: str, value: Any) -> Any:
    """Return what the layer keeps of a new value of a setting: what its constructor makes of it (a window of 3 is (3, 3)).

    Layers that hold others are left alone: a second one cannot be made of these.

    Raises:
        TypeError, ValueError: the constructor refuses the value.
    """
    table = module.__dict__
    if name not in table or table[name] is value or module._children or name in module._parameters:
        return value
    kind: Any = type(module)
    kind = own_kind(kind)
    known = settings_of(kind)
    if name not in known:
        return value
    now = {n: getattr(module, n) for n in known if n in table or isinstance(getattr(type(module), n, None), property)}
    made = made_with(kind, now, name, value)
    return value if made is None else vars(made).get(name, value)


@cache
def _is_setting(kind: type, name: str) -> bool:
    """Return whether a class of this package, which `kind` is or is made from, takes this argument."""
    ours = (vars(c)["__init__"] for c in kind.__mro__ if c.__module__.startswith("xpnet.") and "__init__" in vars(c))
    return any(name in inspect.signature(function).parameters for function in ours)


@contextlib.contextmanager
def naming(layer: Any) -> Iterator[None]:
    """Put the layer's name in front of the ShapeErrors of its constructor."""
    try:
        yield
    except ShapeError as error:
        raise layer._located(error) from None
