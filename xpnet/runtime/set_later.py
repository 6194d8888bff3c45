"""Settings that are set again on a finished object: what its constructor refuses is refused, and what it takes counts.

The constructor alone says which values are right, each by itself and together. A value that is set later goes through the
constructor of a second object with the settings of the first, which is thrown away.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

from xpnet.runtime.peers import ATTRIBUTES, KEYWORDS, setting_hint
from xpnet.runtime.refused import refused_attribute
from xpnet.runtime.settings import Checked

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@cache
def own_kind(kind: Any) -> Any:
    """Return the class of this package that a class is, or is made from."""
    return next(c for c in kind.__mro__ if c.__module__.startswith("xpnet."))


@cache
def settings_of(kind: Any) -> Mapping[str, inspect.Parameter]:
    """Return the arguments by name that the constructor of a class takes, those that it passes on as well."""
    found: dict[str, inspect.Parameter] = {}
    for function in (vars(c)["__init__"] for c in kind.__mro__ if c is not object and "__init__" in vars(c)):
        parameters = inspect.signature(function).parameters.values()
        found = {**{p.name: p for p in parameters if p.kind in _NAMED and p.name != "self"}, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def made_with(kind: Any, now: Mapping[str, Any], name: str, value: Any) -> Any:
    """Return an object made with the present settings and a new value of one of them; None where they are not all known.

    Raises:
        TypeError, ValueError: the constructor refuses the value.
    """
    known = settings_of(kind)
    given = {**{n: now[n] for n in known if n in now}, name: value}
    if any(p.default is p.empty and n not in given for n, p in known.items()):
        return None
    return kind(**given)


class Setting:
    """An attribute that the constructor of a `Settable` takes under the same name. Reading it costs nothing more."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __set__(self, instance: Any, value: Any) -> None:
        table = instance.__dict__
        if self.name in table:
            kind: Any = type(instance)
            made = made_with(own_kind(kind), table, self.name, value)
            if made is not None:
                instance._take(self.name, made)
                return
        table[self.name] = value


class Settable(Checked):
    """Base of classes whose settings may be set later: they are the arguments of the constructor, which only checks and keeps.

    A setting for which a class has a descriptor of its own is left to that. What other libraries call one of them is refused.
    """

    __slots__ = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" in vars(cls) and cls.__module__.startswith("xpnet."):
            kind: Any = cls
            for name in settings_of(kind):
                if not hasattr(cls, name):
                    setattr(cls, name, Setting(name))
            for name in (*KEYWORDS, *ATTRIBUTES.get(cls.__name__, ())):
                hint = setting_hint(name, settings_of(kind), of_layer=False, owner=cls.__name__)
                if hint and not hasattr(cls, name):
                    setattr(cls, name, refused_attribute(hint, name))

    def _take(self, name: str, made: Any) -> None:
        """Take over a setting from an object that was made with it."""
        vars(self)[name] = vars(made)[name]
