"""What code of the user's in a recorded function can reach: its loss, metrics, layers, and what they hold, use and call.

A replay repeats what was computed at the recording, so whatever that depended on must be known. The walk begins at the objects
that the package calls and goes where their code can go: along attributes, lists, sets and dicts, default arguments, variables
that functions close over, global variables, bound methods, and classes. It follows a name only if code that may run mentions
it. What it finds is an Owner, whose values can be compared; a generator of random numbers, whose state can; or something that
changes without a trace, such as an iterator: with that nothing is recorded.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import logging
import pathlib
import random
import re
import threading
import types
import uuid
import weakref
from collections.abc import Callable, Container, Iterable
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    NoneType,
)
from typing import Any, NamedTuple

import numpy as np

from xpnet.autograd.tensor import Tensor
from xpnet.compiled.owners import CONTAINERS, Names, Owner, Place, installed, of_a_user
from xpnet.compiled.plain import is_plain
from xpnet.layers.module import Module

MOST_OWNERS = 4096
"""Where more are reached, what other libraries' objects hold is not looked at, and nothing is recorded with it."""
_NOTHING: frozenset[str] = frozenset()
_ARRAY_LIBRARIES = ("numpy", "cupy", "cupyx", "cupy_backends", "array_api_compat")
_GENERATORS = (random.Random, np.random.RandomState, np.random.Generator)
_HARMLESS = (
    types.MethodDescriptorType, types.WrapperDescriptorType, types.MemberDescriptorType, types.GetSetDescriptorType,
    types.GenericAlias, types.MappingProxyType, range, slice, re.Pattern, pathlib.PurePath, datetime.date, datetime.time,
    datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction, uuid.UUID, enum.Enum, logging.Logger,
    type(Ellipsis), type(NotImplemented), type(threading.Lock()), type(threading.RLock()), type, FunctionType, ModuleType,
)  # fmt: skip
"""What does not change, or changes nothing that is computed, or is looked at only where it is the user's."""
_WITH_STATE = ("training", "optim", "data", "report", "losses", "metrics", "regularizers")
"""The parts of this package whose objects have values that change."""
_WITH_CACHE = type(functools.lru_cache(lambda: None))
_IN_PYTHON = 1 << 9
"""The flag of classes that are made by a class statement (and of some written in C): Py_TPFLAGS_HEAPTYPE."""
_DYNAMIC = frozenset({"getattr", "vars", "__dict__", "attrgetter", "eval", "exec", "globals", "locals", "__getattribute__"})
"""What reads attributes whose names the code does not say."""
_CALLED = frozenset({"forward", "project", "args"})
"""What the package calls on objects of users' classes, beside what overrides its own; the arguments of a partial."""


class Reached(NamedTuple):
    """What code of the user's can reach.

    Attributes:
        owners: the objects whose values can be compared.
        generators: of random numbers on the host.
        unseen: what changes without a trace: the object that holds it, its name there, and the thing.
    """

    owners: list[Owner]
    generators: list[Any]
    unseen: list[tuple[Any, str, Any]]


def reached(
    roots: Iterable[Any], exempt: Callable[[Any], frozenset[str]] = lambda thing: _NOTHING, inside: Iterable[Module] = ()
) -> Reached:
    """Return what is reached from some objects.

    Args:
        roots: Modules, functions and other objects that the package calls.
        exempt: the names of an object's attributes that may change.
        inside: Modules that are watched elsewhere; what they hold is not.
    """
    return _Walk(exempt, inside).go(roots)


class _Found(NamedTuple):
    thing: Any
    is_root: bool
    place: Place | None  # the object of a user's that holds it, and the name there


class _Walk:
    """See :func:`reached`. What no code mentions yet waits under its name."""

    def __init__(self, exempt: Callable[[Any], frozenset[str]], inside: Iterable[Module]) -> None:
        self.exempt = exempt
        self.inside = {id(module): module for module in inside}
        self.names = Names(_CALLED)
        self.owners: dict[tuple[int, bool], Owner] = {}
        self.generators: dict[int, Any] = {}
        self.unseen: list[tuple[Any, str, Any]] = []
        self._variables: set[str] = set()  # of the code's functions, those of enclosing ones among them
        self._seen: set[int] = set()
        self._waiting: list[_Found] = []
        self._unmentioned: dict[str, list[_Found]] = {}

    def go(self, roots: Iterable[Any]) -> Reached:
        """Walk from the roots, and return what is reached."""
        self._waiting += [_Found(thing, True, None) for thing in (*self.inside.values(), *roots)]
        while self._waiting:
            found = self._waiting.pop()
            ways = _ways(*found)
            if ways is not None:
                self._waiting += ways
            elif id(found.thing) not in self._seen:
                self._visit(*found)
        unseen = []
        for owner, name, thing in self.unseen:
            first = re.split(r"\W", name)[0]
            if first in self.names or first in self._variables:
                unseen.append((owner, name, thing))
        return Reached(list(self.owners.values()), list(self.generators.values()), unseen)

    def _visit(self, thing: Any, is_root: bool, place: Place | None) -> None:
        """Sort in an object that is no mere way to others."""
        if isinstance(thing, _GENERATORS):
            self._seen.add(id(thing))
            self.generators[id(thing)] = thing
        elif isinstance(thing, CONTAINERS):
            if place is not None:
                self._own(thing, place, None)
        elif isinstance(thing, FunctionType):
            if is_root or of_a_user(thing):
                self._own(thing, None, None)
        elif isinstance(thing, type):
            if of_a_user(thing):
                self._own(thing, None, _WithOverrides(self.names, thing))
        elif isinstance(thing, ModuleType):
            if of_a_user(thing):
                self._own(thing, None, self.names)
        elif isinstance(thing, Tensor):
            if thing.node is None:  # the others belong to the tape
                self._own(thing, None, None)
        elif isinstance(thing, Module) or is_root or any(map(of_a_user, type(thing).__mro__)):
            # What code that is not looked at reads, that of the package and of installed libraries, need not be mentioned here.
            pure = all(kind is object or (of_a_user(kind) and not installed(kind)) for kind in type(thing).__mro__)
            self._own(thing, place, self.names if pure else None)
        elif place is not None and not _is_harmless(thing):  # an object of a library that code of the user's holds
            if _has_attributes(thing) and len(self.owners) < MOST_OWNERS:
                self._own(thing, place, None)
            else:
                self._seen.add(id(thing))
                self.unseen.append((*place, thing))

    def _own(self, thing: Any, place: Place | None, names: Container[str] | None) -> None:
        """Add an owner, and walk to what it holds.

        names: those that code has to mention; None: it may use all.
        """
        self._seen.add(id(thing))
        owner = Owner(thing, self.exempt(thing), place, names=None if isinstance(thing, type) else names)
        nothing = isinstance(thing, FunctionType) and not (owner.cells or owner.globals or owner.table)
        if id(thing) not in self.inside and not nothing:
            self.owners[id(thing), False] = owner
        users = place is not None or _is_users(thing)
        if isinstance(thing, FunctionType) and users:
            self._mention(thing.__code__)
        for name, value in {**owner.everything(), **_held(thing)}.items():
            found = _Found(value, False, owner.called(name) if users else None)
            if names is None or name in names or name[:2] == "__" == name[-2:]:
                self._waiting.append(found)
            else:
                self._unmentioned.setdefault(name, []).append(found)
        if owner.entries and getattr(thing, "__dict__", None):  # of a class of its own, with attributes
            self.owners[id(thing), True] = attributes = Owner(thing, place=place, entries=False)
            self._waiting += [_Found(value, False, attributes.called(n)) for n, value in attributes.everything().items()]

    def _mention(self, code: CodeType) -> None:
        """Add the names that some code mentions, those of attributes as strings, too."""
        words = {*code.co_names, *(c for c in code.co_consts if isinstance(c, str) and c.isidentifier())}
        if words & _DYNAMIC:
            self.names.all = True
        self.names.known |= words
        self._variables.update(code.co_freevars, code.co_varnames)
        for name in [name for name in self._unmentioned if name in self.names]:
            self._waiting += self._unmentioned.pop(name)
        for part in code.co_consts:
            if isinstance(part, CodeType):
                self._mention(part)


class _WithOverrides:
    """The names that are mentioned, and those of a class that override the package's, which the package calls."""

    def __init__(self, names: Names, kind: type) -> None:
        self.names = names
        self.overriding = {name for c in kind.__mro__ if c.__module__.startswith("xpnet.") for name in vars(c)}

    def __contains__(self, name: object) -> bool:
        return name in self.names or name in self.overriding


def _ways(thing: Any, is_root: bool, place: Place | None) -> list[_Found] | None:
    """Return where a bound method, a partial, a tuple and the like lead; None for what is looked at itself."""
    kind = type(thing)
    if is_plain(thing):
        return []
    if kind is MethodType:
        return [_Found(thing.__func__, False, place), _Found(thing.__self__, is_root, place)]
    if kind is tuple or kind is frozenset:
        return [_Found(part, False, place and (place[0], f"{place[1]}[{i}]")) for i, part in enumerate(thing)]
    if isinstance(thing, functools.partial):
        parts = (*thing.args, *thing.keywords.values())
        return [_Found(thing.func, is_root, place), *(_Found(part, False, (thing, "args")) for part in parts)]
    if kind in (BuiltinFunctionType, MethodWrapperType):  # of an object, such as rng.random
        return [] if isinstance(thing.__self__, (ModuleType, type, NoneType)) else [_Found(thing.__self__, False, place)]
    if kind in (classmethod, staticmethod, functools.cached_property, property, _WITH_CACHE):
        functions = [getattr(thing, name, None) for name in ("__func__", "func", "fget", "fset", "__wrapped__")]
        return [_Found(function, False, place) for function in functions if function is not None]
    if kind is weakref.ref:
        return [_Found(thing(), is_root, place)]
    return None


def _is_users(thing: Any) -> bool:
    """Return whether code of the user's defines a function, a class, or a part of an object."""
    if isinstance(thing, (type, FunctionType, ModuleType)):
        return of_a_user(thing)
    return any(map(of_a_user, type(thing).__mro__))


def _has_attributes(thing: Any) -> bool:
    """Return whether what an object knows is in attributes: unlike iterators and other classes that are written in C."""
    kind = type(thing)
    if kind.__flags__ & _IN_PYTHON:
        return bool(kind.__dictoffset__) or any(
            isinstance(v, MemberDescriptorType) for c in kind.__mro__ for v in vars(c).values()
        )
    return bool(kind.__dictoffset__) and not hasattr(kind, "__next__")  # a namespace, not a file


def _is_harmless(thing: Any) -> bool:
    kind = type(thing)
    if hasattr(kind, "__next__"):
        return False
    library, _, part = kind.__module__.partition(".")
    if library == "xpnet":
        return part.partition(".")[0] not in _WITH_STATE
    return isinstance(thing, _HARMLESS) or library in _ARRAY_LIBRARIES or hasattr(kind, "dtype")


def _held(thing: Any) -> dict[str, Any]:
    """Return what an object holds that is none of its attributes: classes, layers, hooks, default arguments."""
    if isinstance(thing, (type, ModuleType, *CONTAINERS)):
        return {}
    if isinstance(thing, FunctionType):
        names, defaults = thing.__code__.co_varnames[: thing.__code__.co_argcount], thing.__defaults__ or ()
        return {**dict(zip(names[len(names) - len(defaults) :], defaults)), **(thing.__kwdefaults__ or {})}
    held: dict[str, Any] = {"__class__": type(thing).__mro__}
    if isinstance(thing, Module):
        held |= {"_children": tuple(thing._children.values()), "_forward_hooks": thing._forward_hooks}
    return held
