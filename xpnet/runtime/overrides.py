"""What subclasses override: whether an object does what this package wrote, and methods that nothing would call.

A step that selects its own batch, or data that are read ahead of time, do what methods of the package would do, without
calling them. That is right as long as nobody has replaced them: in a subclass, on the object, or in the class itself.
"""

from __future__ import annotations

import dis
import warnings
from collections.abc import Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

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
    """Raise a TypeError for a class with a method that is called in other libraries, and here by nothing; warn of one of a
    Trainer, which a script may call.

    What the classes of users call themselves is theirs, whatever its name; so is a method beside an own `forward`.
    """
    if kind in _checked:
        return
    users = [c for c in kind.__mro__ if _is_users(c)]
    ours = [c for c in kind.__mro__ if _is_package(c)]
    defined = {name for c in users for name in vars(c)}
    called = names_used(kind)
    known = {name for c in ours for name in vars(c)}
    for c in ours:
        for name, instead in METHODS.get(c.__name__, {}).items():
            if name in defined - called - known and instead not in defined:
                hint = instead if " " in instead else f"it is called {instead} here"
                if c.__name__ == "Trainer" and not name.startswith("on_"):  # a script may call it
                    text = f"{c.__name__} does not call {kind.__name__}.{name}; unless code of yours does: {hint}"
                    warnings.warn(text, RuntimeWarning, stacklevel=3)
                else:
                    raise TypeError(f"{kind.__name__}.{name} would never be called; {hint}")
    _checked.add(kind)


_own_attributes: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def own_attributes(kind: type) -> frozenset[str]:
    """Return the attributes of `self` that the methods of a user's class read or set."""
    found = _own_attributes.get(kind)
    if found is None:
        methods = [f.__code__ for c in kind.__mro__ if _is_users(c) for value in vars(c).values() if (f := _function(value))]
        found = frozenset(name for code in methods if code.co_argcount for name in _of(code.co_varnames[0], code))
        _own_attributes[kind] = found
    return found


def _of(owner: str, code: CodeType) -> Iterator[str]:
    """Yield the names of the attributes of a variable that code uses, and functions within it."""
    before: Any = None
    for step in dis.get_instructions(code):
        if step.opname.endswith("_ATTR") or step.opname == "LOAD_METHOD":
            last = before.argval[-1] if before is not None and isinstance(before.argval, tuple) else before and before.argval
            if last == owner and before.opname.startswith("LOAD_"):
                yield step.argval
        before = step
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _of(owner, inner)


def names_used(thing: Any) -> set[str]:
    """Return the names of the attributes and globals that the methods of a user's class use, or a function of the user's.

    thing: the class, an instance of it, or a function; that a method is given counts as its use.
    """
    while isinstance(thing, partial):
        thing = thing.func
    if isinstance(thing, MethodType):
        return {thing.__name__, *_names(thing.__func__.__code__)} if isinstance(thing.__func__, FunctionType) else set()
    if isinstance(thing, FunctionType):
        return {thing.__name__, *_names(thing.__code__)}
    classes = thing.__mro__ if isinstance(thing, type) else type(thing).__mro__
    functions = [f for c in classes if _is_users(c) for value in vars(c).values() if (f := _function(value)) is not None]
    return {name for function in functions for name in _names(function.__code__)}


def _names(code: CodeType) -> set[str]:
    """Return the names of the attributes and globals that a function uses, and those within it; strings may be such names."""
    found = set(code.co_names)
    for constant in code.co_consts:
        found |= _names(constant) if isinstance(constant, CodeType) else {constant} if isinstance(constant, str) else set()
    return found
