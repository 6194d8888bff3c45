"""Old public names: they work for one release, each with a DeprecationWarning.

A name that is renamed in 0.1.0 is gone in 0.2.0. Grep for `deprecation` to find what is to be removed then.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from xpnet.runtime.peers import attribute_hint

SINCE, REMOVED_IN = "0.1.0", "0.2.0"

_PASSED_OVER = ("xpnet", "abc", "importlib")

F = TypeVar("F", bound=Callable[..., Any])


def warn_renamed(old: str, new: str) -> None:
    """Warn the code outside this package that used `old`, such as "xpnet.data.Bytes", that it is called `new` now."""
    frame = sys._getframe(1)
    # A class statement or an import reaches us through frames of abc.py and the import system.
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER:
        frame = frame.f_back
    warnings.warn_explicit(
        f"{old} is deprecated since xpnet {SINCE} and will be removed in {REMOVED_IN}: use {new}",
        DeprecationWarning,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__", "<string>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def renamed_names(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module whose old names are found under new ones.

    ``__getattr__ = renamed_names(__name__, {"Bytes": "ByteImages"})``. A new name may be in another module, as
    "xpnet.training.search:find_learning_rate".
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        place, _, new = names[name].rpartition(":")
        place = place or module
        warn_renamed(f"{module}.{name}", f"{place}.{new}")
        return getattr(importlib.import_module(place), new)

    return find


class _MovedModule(types.ModuleType):
    """An old module name: what is taken out of it, or assigned to it, is the new module's."""

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":  # `from xpnet.tape import *`
            found = vars(self._moved_to())
            return [public for public, value in found.items() if getattr(value, "__module__", None) == self.__dict__["_new"]]
        if name.startswith("__"):  # what the import system and other tools ask of every module
            raise AttributeError(name)
        value = getattr(self._moved_to(), name)
        self._moved_to(name)
        return value

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        hint = attribute_hint("xpnet", self.__name__.rpartition(".")[2])
        raise TypeError(f"{self.__name__} is the old name of the module {self.__dict__['_new']}{hint}")

    def __dir__(self) -> list[str]:
        return dir(self._moved_to())

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self._moved_to(name), name, value)

    def _moved_to(self, asked: str = "") -> types.ModuleType:
        new = self.__dict__["_new"]
        if asked:
            warn_renamed(f"{self.__name__}.{asked}", f"{new}.{asked}")
        return importlib.import_module(new)


def moved_modules(names: dict[str, str]) -> None:
    """Let old names of modules be imported: ``moved_modules({"xpnet.tape": "xpnet.autograd.tape"})``."""
    for old, new in names.items():
        module = sys.modules[old] = _MovedModule(old, f"Moved to {new}.")
        module.__dict__["_new"] = new
        module.__spec__ = importlib.machinery.ModuleSpec(old, None)


def renamed_arguments(**names: str) -> Callable[[F], F]:
    """Decorate a function whose keyword arguments were renamed: ``@renamed_arguments(samples="samples_per_epoch")``.

    Raises:
        TypeError: in the call, when both names are given.
    """

    def decorate(function: F) -> F:
        where = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def renamed(*arguments: Any, **keywords: Any) -> Any:
            for old in names.keys() & keywords.keys():
                new = names[old]
                if new in keywords:
                    raise TypeError(f"{where}: give {new} alone, {old} is its old name")
                warn_renamed(f"{where}({old}=)", f"{where}({new}=)")
                keywords[new] = keywords.pop(old)
            return function(*arguments, **keywords)

        renamed.old_arguments = names  # type: ignore[attr-defined]
        return renamed  # type: ignore[return-value]

    return decorate


class renamed_attribute:  # noqa: N801 - used like `property`
    """An old name of a method or attribute: ``specs = renamed_attribute("parameter_specs")`` in the class's body."""

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.old, self.owner = name, owner

    def _warn(self) -> None:
        warn_renamed(f"{self.owner.__name__}.{self.old}", f"{self.owner.__name__}.{self.new}")

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if self.old in getattr(instance, "__dict__", ()):
            return instance.__dict__[self.old]  # somebody else's attribute of that name
        self._warn()
        if instance is None:
            return getattr(owner, self.new)
        if next(c for c in type(instance).__mro__ if self.old in c.__dict__) is not self.owner:
            # `super().old()` of a subclass that overrides the old name: the instance's own method would call itself.
            return getattr(self.owner, self.new).__get__(instance)
        return getattr(instance, self.new)

    def __delete__(self, instance: Any) -> None:
        if instance.__dict__.pop(self.old, self) is self:
            raise AttributeError(self.old)

    def __set__(self, instance: Any, value: Any) -> None:
        self._warn()
        setattr(instance, self.new, value)


def adopt_renamed_methods(cls: type, names: dict[str, str]) -> None:
    """Let methods that a subclass defines under old names override the new ones, and `super()` find both names.

    To be called by ``__init_subclass__`` of a class whose methods are meant to be overridden. The old names in that class are
    `renamed_attribute`.
    """
    for old, new in names.items():
        first = next(c for c in cls.__mro__ if old in vars(c) or new in vars(c))  # cls, or a mixin that knows neither base
        if new not in vars(first) and not isinstance(vars(first)[old], renamed_attribute):
            warn_renamed(f"{first.__name__}.{old}", f"{first.__name__}.{new}")
            setattr(cls, new, vars(first)[old])
        elif new in cls.__dict__ and old not in cls.__dict__:
            alias = renamed_attribute(new)
            alias.__set_name__(cls, old)
            setattr(cls, old, alias)
