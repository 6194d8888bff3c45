"""Attributes that other libraries give a meaning and that would do nothing here: setting one is an error with the remedy."""

from __future__ import annotations

import sys
from typing import Any

from xpnet.runtime.overrides import own_attributes


def refuse(thing: Any, name: str, remedy: str, where: str, above: int) -> None:
    """Raise an AttributeError for setting such a name, unless a class of the user's gives it a meaning of its own.

    It does where it defines the name, or uses it in a method.

    Args:
        thing: whose attribute is set.
        name: the attribute's.
        remedy: what to use here.
        where: what the thing is called in the error.
        above: how many frames the assignment is above the caller of this function.
    """
    kind = type(thing)
    own = not kind.__module__.startswith("xpnet.")
    if own and (name in thing.__dict__ or _defined_by_user(kind, name) or name in own_attributes(kind)):
        return
    if own and _within_method_of(thing, above + 2):  # by setattr
        return
    raise AttributeError(f"{where}: setting {name!r} would do nothing; {remedy}")


def _defined_by_user(kind: type, name: str) -> bool:
    found = next((vars(c)[name] for c in kind.__mro__ if name in vars(c)), None)
    return found is not None and not isinstance(found, refused_attribute)


def _within_method_of(thing: Any, above: int) -> bool:
    """Return whether the attribute is being set by a function whose first argument is the thing."""
    frame = sys._getframe(above)
    names = frame.f_code.co_varnames
    return bool(frame.f_code.co_argcount) and frame.f_locals.get(names[0]) is thing


class refused_attribute:  # noqa: N801 - used like `property`
    """A name that is refused: ``lr = refused_attribute("use optimizer.learning_rate")`` in the class's body."""

    def __init__(self, remedy: str, name: str = "") -> None:
        self.remedy, self.name = remedy, name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if self.name in instance.__dict__:
            return instance.__dict__[self.name]  # of a class of the user's
        raise AttributeError(f"{type(instance).__name__} has no attribute {self.name!r}; {self.remedy}")

    def __set__(self, instance: Any, value: Any) -> None:
        refuse(instance, self.name, self.remedy, type(instance).__name__, 1)
        instance.__dict__[self.name] = value
