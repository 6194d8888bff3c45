"""What subclasses override: whether an object does what this package wrote, and methods that nothing would call.

A step that selects its own batch, or data that are read ahead of time, do what methods of the package would do, without
calling them. That is right as long as nobody has replaced them: in a subclass, on the object, or in the class itself.
"""

from __future__ import annotations

from types import CodeType, FunctionType
from typing import Any
from weakref import WeakSet

from xpnet.runtime.peers import METHODS

_NEUTRAL = ("builtins", "abc", "typing")
_HARMLESS = frozenset(
    {
        "__init__", "__repr__", "__str__", "__doc__", "__module__", "__annotations__", "__dict__", "__weakref__", "__slots__",
        "__init_subclass__", "__abstractmethods__", "_abc_impl", "__firstlineno__", "__static_attributes__",
        "__annotate_func__", "__annotations_cache__", "__orig_bases__", "__parameters__", "__final__", "__match_args__",
    }
)  # fmt: skip
"""What a subclass may define without a change to what the package's methods do."""


def is_own(thing: object, *names: str) -> bool:
    """Return whether an object behaves as its class in this package: nothing that the class defines is replaced.

    A subclass may add methods under new names, and have a constructor of its own.

    names: the methods that matter; none: all.
    """
    table, classes = getattr(thing, "__dict__", {}), type(thing).__mro__
    ours = [c for c in classes if _is_package(c)]
    if not names:
        known = {name for c in classes if not _is_users(c) for name in vars(c)} - _HARMLESS
        if any(name in known for c in classes if _is_users(c) for name in vars(c)):
            return False
        names = tuple({name for c in ours for name, value in vars(c).items() if _function(value) is not None} - _HARMLESS)
    for name in names:
        owner = next((c for c in classes if name in vars(c)), None)
        if name in table or owner is None or _is_users(owner) or _is_patched(vars(owner)[name]):
            return False
    return True


def _is_package(kind: type) -> bool:
    return kind.__module__.startswith("xpnet.")


def _is_users(kind: type) -> bool:
    return not _is_package(kind) and kind.__module__ not in _NEUTRAL


def _is_patched(value: Any) -> bool:
    """Return whether what a class of the package holds under a name is a function from elsewhere."""
    function = _function(value)
    return function is None or not (function.__module__ or "").startswith("xpnet.")


def _function(value: Any) -> FunctionType | None:
    """Return the function of a method or a property of a class, None for anything else."""
    found = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
    return found if isinstance(found, FunctionType) else None


_checked: WeakSet[type] = WeakSet()


def refuse_uncalled(kind: type) -> None:
    """Raise a TypeError for a class with a method that is called in other libraries, and here by nothing.

    What the classes of users call themselves is theirs, whatever its name; so is a method beside an own `forward`.
    """
    if kind in _checked:
        return
    users = [c for c in kind.__mro__ if _is_users(c)]
    ours = [c for c in kind.__mro__ if _is_package(c)]
    defined = {name for c in users for name in vars(c)}
    called = {name for c in users for value in vars(c).values() if (f := _function(value)) for name in _names(f.__code__)}
    known = {name for c in ours for name in vars(c)}
    for c in ours:
        for name, instead in METHODS.get(c.__name__, {}).items():
            if name in defined - called - known and instead not in defined:
                hint = instead if " " in instead else f"it is called {instead} here"
                raise TypeError(f"{kind.__name__}.{name} would never be called; {hint}")
    _checked.add(kind)


def _names(code: CodeType) -> set[str]:
    """Return the names of the attributes and globals that a function uses, and those within it."""
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))
