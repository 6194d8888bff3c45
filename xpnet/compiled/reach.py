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
import gc
import io
import logging
import operator
import pathlib
import random
import re
import struct
import sys
import threading
import types
import uuid
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Container, Iterable
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    NoneType,
)
from typing import Any, NamedTuple

import numpy as np

from xpnet.autograd.tensor import Tensor
from xpnet.compiled.mentions import PRINTED, mentions_of
from xpnet.compiled.owners import CONTAINERS, Names, Owner, Place, installed, of_a_user
from xpnet.compiled.plain import is_plain
from xpnet.layers.module import Module

MOST_OWNERS = 4096
"""Where more are reached, what other libraries' objects hold is not looked at, and nothing is recorded with it."""
_NOTHING: frozenset[str] = frozenset()
_ARRAY_LIBRARIES = ("numpy", "cupy", "cupyx", "cupy_backends", "array_api_compat")
_GENERATORS = (random.Random, np.random.RandomState, np.random.Generator)
_HARMLESS = (
    types.MethodDescriptorType, types.WrapperDescriptorType, MemberDescriptorType, types.GetSetDescriptorType, CodeType,
    types.GenericAlias, types.UnionType, range, slice, re.Pattern, pathlib.PurePath, datetime.date, datetime.time,
    datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction, uuid.UUID, enum.Enum, logging.Logger, io.IOBase,
    struct.Struct, type(Ellipsis), type(NotImplemented), type(threading.Lock()), type(threading.RLock()), type, FunctionType,
    ModuleType, type(namedtuple("_", "a").a),  # type: ignore[attr-defined]
)  # fmt: skip
"""What does not change, or changes nothing that is computed, or is looked at only where it is the user's."""
_OPEN = (
    object, list, deque, set, frozenset, dict, defaultdict, OrderedDict, tuple, int, float, complex, str, bytes, bool, type,
    property, types.SimpleNamespace, threading.Thread,
)  # fmt: skip
"""Classes that are written in C and hide nothing."""
_WITH_STATE = ("training", "optim", "data", "report", "losses", "metrics", "regularizers")
"""The parts of this package whose objects have values that change."""
_WITH_CACHE = type(functools.lru_cache(lambda: None))
_CALLED = frozenset({"forward", "project", "args", "keywords"})
"""What the package calls on objects of users' classes, beside what overrides its own; the arguments of a partial."""
_CONSTRUCTING = ("__init__", "__new__", "__post_init__")


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
        kind = type(thing)  # an object may lie about its class, or raise
        if issubclass(kind, _GENERATORS):
            self._seen.add(id(thing))
            if not issubclass(kind, random.SystemRandom):
                self.generators[id(thing)] = thing
            elif place is not None:  # it has no state
                self.unseen.append((*place, thing))
        elif issubclass(kind, CONTAINERS):
            if place is not None:
                self._own(thing, place, None)
        elif issubclass(kind, FunctionType):
            if is_root or of_a_user(thing):
                self._own(thing, None, None)
        elif issubclass(kind, type):
            self._class(thing)
            for c in thing.__mro__:  # code may make objects of it
                if of_a_user(c):
                    self._waiting += [_Found(vars(c)[name], False, (thing, name)) for name in _CONSTRUCTING if name in vars(c)]
        elif kind is operator.attrgetter:
            self.names.known.update(word for path in thing.__reduce__()[1] for word in path.split("."))
            self._release()
        elif issubclass(kind, ModuleType):
            if of_a_user(thing):
                self._own(thing, None, self.names)
        elif issubclass(kind, Tensor):
            if thing.node is None:  # the others belong to the tape
                self._own(thing, None, None)
        elif issubclass(kind, Module) or is_root or any(map(of_a_user, kind.__mro__)):
            if _hides(kind) and place is not None:
                self._seen.add(id(thing))
                self.unseen.append((*place, thing))
            # What code that is not looked at reads, that of the package and of installed libraries, need not be mentioned here.
            pure = all(c in _OPEN or (of_a_user(c) and not installed(c)) for c in kind.__mro__)
            self._own(thing, place, self.names if pure or _is_loop(kind) else None)
        elif place is not None and not _is_harmless(thing):  # an object of a library that code of the user's holds
            if _has_attributes(kind) and not _hides(kind) and len(self.owners) < MOST_OWNERS:
                self._own(thing, place, self.names if _is_loop(kind) else None)
            else:
                self._seen.add(id(thing))
                self.unseen.append((*place, thing))

    def _class(self, kind: type) -> None:
        """Look at a class of the user's, which an object has or code uses."""
        for c in (*kind.__mro__, type(kind)):
            if of_a_user(c) and id(c) not in self._seen:
                self._own(c, None, _WithOverrides(self.names, c))
                self.names.known.update(getattr(c, "__match_args__", ()))

    def _own(self, thing: Any, place: Place | None, names: Container[str] | None) -> None:
        """Add an owner, and walk to what it holds.

        names: those that code has to mention; None: it may use all.
        """
        self._seen.add(id(thing))
        owner = Owner(thing, self.exempt(thing), place, names=None if issubclass(type(thing), type) else names)
        if id(thing) not in self.inside and (owner.is_code or type(thing) is not FunctionType):
            self.owners[id(thing), False] = owner
        kind = type(thing)
        if not issubclass(kind, (type, FunctionType, ModuleType)):
            self._class(kind)
        users = place is not None or _is_users(thing)
        if issubclass(kind, FunctionType) and users:
            self._mention(thing)
        values = {**owner.everything(), **_held(thing)}
        if owner.entries:  # whose members and keys are objects, too
            self._waiting += [
                _Found(member, False, owner.called(member)) for member in thing if not issubclass(kind, (list, deque))
            ]
            if issubclass(kind, defaultdict):
                self._waiting.append(_Found(thing.default_factory, False, place))
        for name, value in values.items():
            found = _Found(value, False, owner.called(name) if users else None)
            if names is None or name in names or _needs_no_mention(name):
                self._waiting.append(found)
            else:
                self._unmentioned.setdefault(name, []).append(found)
            if issubclass(kind, Module) and not users:  # what a hook, say, of the user's may use
                self._unmentioned.setdefault(name, []).append(found._replace(place=(thing, name)))
        if owner.entries and kind.__dictoffset__:  # of a class of its own, with attributes
            self.owners[id(thing), True] = attributes = Owner(thing, place=place, entries=False)
            self._waiting += [_Found(value, False, attributes.called(n)) for n, value in attributes.everything().items()]
        self._release()

    def _mention(self, function: FunctionType) -> None:
        """Add the names that a function mentions."""
        mentions = mentions_of(function, of_a_user)
        self.names.all |= mentions.dynamic
        self.names.known |= mentions.names | mentions.globals
        self._variables.update(function.__code__.co_freevars, function.__code__.co_varnames, mentions.globals)
        modules = [sys.modules.get(name) for name in mentions.imported]
        self._waiting += [_Found(module, False, (function, "import")) for module in modules if module is not None]
        self._release()

    def _release(self) -> None:
        """Walk to what is mentioned by now."""
        for name in [name for name in self._unmentioned if name in self.names]:
            self._waiting += self._unmentioned.pop(name)


class _WithOverrides:
    """The names that are mentioned, and those of a class that override the package's, which the package calls."""

    def __init__(self, names: Names, kind: type) -> None:
        self.names = names
        self.overriding = {name for c in kind.__mro__ if str(c.__module__).startswith("xpnet.") for name in vars(c)}

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
        return _parts(thing, place)
    if issubclass(kind, functools.partial):
        held = [*_parts(thing.args, (thing, "args")), _Found(thing.keywords, False, (thing, "keywords"))]
        return [_Found(thing.func, is_root, place), *held]
    if kind in (BuiltinFunctionType, MethodWrapperType):  # of an object, such as rng.random
        return [] if isinstance(thing.__self__, (ModuleType, type, NoneType)) else [_Found(thing.__self__, False, place)]
    if issubclass(kind, (classmethod, staticmethod, functools.cached_property, property, _WITH_CACHE)):
        functions = [getattr(thing, name, None) for name in ("__func__", "func", "fget", "fset", "__wrapped__")]
        return [_Found(function, False, place) for function in functions if function is not None]
    if issubclass(kind, weakref.ref):
        return [_Found(thing(), is_root, place)]
    if kind is MappingProxyType:
        return [_Found(gc.get_referents(thing)[0], False, place)]
    return None


def _needs_no_mention(name: str) -> bool:
    """Return whether something is reached without its name: special methods, the parts of a tuple."""
    return name[0] == "[" or (name[:2] == "__" == name[-2:] and name not in PRINTED)


def _parts(things: Iterable[Any], place: Place | None) -> list[_Found]:
    return [_Found(part, False, place and (place[0], f"{place[1]}[{i}]")) for i, part in enumerate(things)]


def _is_loop(kind: type) -> bool:
    """Return whether objects of a class are training loops, which change in every step."""
    return any(c.__module__ == "xpnet.training.steps" for c in kind.__mro__)


def _hides(kind: type) -> bool:
    """Return whether objects of a class may know what is in no attribute and no entry: its base is written in C."""
    known = (*_OPEN, *_GENERATORS, BaseException, Tensor, Module)
    return any(_is_in_c(c) and c not in known and not issubclass(c, BaseException) for c in kind.__mro__)


@functools.lru_cache(maxsize=4096)
def _is_in_c(kind: type) -> bool:
    methods = (types.MethodDescriptorType, types.WrapperDescriptorType)
    return any(type(v) in methods and v.__objclass__ is kind for v in vars(kind).values())


def _is_users(thing: Any) -> bool:
    """Return whether code of the user's defines a function, a class, or a part of an object."""
    if issubclass(type(thing), (type, FunctionType, ModuleType)):
        return of_a_user(thing)
    return any(map(of_a_user, type(thing).__mro__))


def _has_attributes(kind: type) -> bool:
    slots = any(isinstance(member, MemberDescriptorType) for c in kind.__mro__ for member in vars(c).values())
    return slots or bool(kind.__dictoffset__)


def _is_harmless(thing: Any) -> bool:
    kind = type(thing)
    if (
        kind is object
        or issubclass(kind, _HARMLESS)
        or kind.__module__ == "typing"
        or kind.__name__ in ("cython_function_or_method", "_abc_data")
    ):
        return True
    if hasattr(kind, "__next__"):
        return False
    library, _, part = str(kind.__module__).partition(".")
    if library == "xpnet":
        return part.partition(".")[0] not in _WITH_STATE
    if issubclass(kind, np.ndarray):
        return not thing.dtype.hasobject
    return library in _ARRAY_LIBRARIES or hasattr(kind, "dtype")


def _held(thing: Any) -> dict[str, Any]:
    """Return what an object holds that is none of its attributes: classes, layers, hooks, default arguments."""
    kind = type(thing)
    if issubclass(kind, (type, ModuleType, *CONTAINERS)):
        return {}
    if issubclass(kind, FunctionType):
        names, defaults = thing.__code__.co_varnames[: thing.__code__.co_argcount], thing.__defaults__ or ()
        return {**dict(zip(names[len(names) - len(defaults) :], defaults)), **(thing.__kwdefaults__ or {})}
    if issubclass(kind, Module):
        return {"_children": tuple(thing._children.values()), "_forward_hooks": thing._forward_hooks}
    return {f"[{i}]": part for i, part in enumerate(thing)} if issubclass(kind, (tuple, frozenset)) else {}
