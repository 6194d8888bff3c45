"""The objects that code of the user's in a recorded function keeps things in: one list, whatever is asked about them.

A loss, a metric, a penalty, a constraint, a subclass of Trainer, a layer; the objects of bound methods; what any of these hold
in attributes, lists, dicts, default arguments and the variables that a function closes over; and their classes. Before a
recording their values are noted; after it what has changed is known, and put back where the recording is refused.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType, GeneratorType, MemberDescriptorType, MethodType
from typing import Any, NoReturn
from weakref import ref

from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tensor import Tensor
from xpnet.compiled.plain import is_plain, same
from xpnet.layers.module import Module
from xpnet.layers.tree import OWN_ATTRIBUTES

MISSING = object()
MOST_ENTRIES = 64
"""A list or dict with more is taken for data."""
_CONTAINERS = (list, deque, dict)
_NOTHING: frozenset[str] = frozenset()
_LIBRARIES = sys.stdlib_module_names | {"builtins", "xpnet", "numpy", "cupy", "cupyx", "array_api_compat"}


def of_a_user(thing: Any) -> bool:
    """Return whether a class or a function is defined outside this package, Python's library and the array libraries."""
    return str(getattr(thing, "__module__", None) or "builtins").partition(".")[0] not in _LIBRARIES


class Owner:
    """An object, a class, a Module, a Tensor or a function, and how its attributes are read and written past its own code.

    Those of a function are also the variables that it closes over, those of a list or dict its entries. What is added to a list
    or dict is taken for a log that others read, and not looked at.

    Args:
        thing: the object.
        exempt: names of attributes that may change.
        place: of a list or dict, the object that holds it, and the name.
    """

    __slots__ = ("cells", "entries", "exempt", "place", "slots", "thing")

    def __init__(self, thing: Any, exempt: frozenset[str] = _NOTHING, place: tuple[Any, str] | None = None) -> None:
        self.thing = thing
        self.place = place if isinstance(thing, _CONTAINERS) else None
        self.entries = isinstance(thing, _CONTAINERS)
        self.exempt = exempt | OWN_ATTRIBUTES if isinstance(thing, Module) else exempt
        self.cells: dict[str, Any] = {}
        self.slots: dict[str, Any] = {}
        if isinstance(thing, FunctionType):
            if thing.__closure__ and of_a_user(thing):
                cells = zip(thing.__code__.co_freevars, thing.__closure__)
                self.cells = {name: cell for name, cell in cells if name != "__class__"}  # that of super()
        elif isinstance(thing, Tensor):  # the rest of it belongs to the tape
            self.slots = {name: vars(Tensor)[name] for name in ("array", "requires_grad")}
        elif not self.entries and not isinstance(thing, (type, Module)):
            self.slots = {
                name: member
                for kind in reversed(type(thing).__mro__)
                if kind.__module__ != "builtins"
                for name, member in vars(kind).items()
                if isinstance(member, MemberDescriptorType)
            }

    @property
    def table(self) -> Any:
        """The attributes that are in a dict; a view of it where this is a class, and a copy where it is a list."""
        if self.entries:
            return self.thing if isinstance(self.thing, dict) else dict(enumerate(self.thing))
        return getattr(self.thing, "__dict__", {})

    def called(self, name: Any) -> tuple[Any, str]:
        """Return the object that an attribute belongs to as a user sees it, and the attribute's name."""
        return (self.thing, name) if self.place is None else (self.place[0], f"{self.place[1]}[{name!r}]")

    def beside(self) -> dict[str, Any]:
        """Return the values that are in slots and closed over."""
        found = {name: member.__get__(self.thing) for name, member in self.slots.items() if hasattr(self.thing, name)}
        for name, cell in self.cells.items():
            try:
                found[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        return found

    def read(self) -> dict[str, Any]:
        """Return the attributes as they are now."""
        found = {name: value for name, value in self.table.items() if name not in self.exempt}
        if isinstance(self.thing, type):
            found = {name: value for name, value in found.items() if not (name[:2] == "__" == name[-2:])}
        elif isinstance(self.thing, Module):  # what is registered in the tree is none of its values
            found = {name: value for name, value in found.items() if not isinstance(value, (Module, Parameter))}
        return {**found, **self.beside()} if self.slots or self.cells else found

    def get(self, name: Any) -> Any:
        """Return one attribute, or MISSING."""
        return self.read().get(name, MISSING) if name in self.slots or name in self.cells else self.table.get(name, MISSING)

    def write(self, name: Any, value: Any) -> None:
        """Assign an attribute; MISSING deletes it."""
        thing = self.thing
        if name in self.cells:
            if value is MISSING:
                del self.cells[name].cell_contents
            else:
                self.cells[name].cell_contents = value
        elif name in self.slots:
            member = self.slots[name]
            member.__delete__(thing) if value is MISSING else member.__set__(thing, value)
        elif self.entries and not isinstance(thing, dict):
            if name < len(thing):
                thing[name] = value
            else:  # it was taken out
                thing.append(value)
        elif isinstance(thing, type):
            delattr(thing, name) if value is MISSING else setattr(thing, name, value)
        elif value is MISSING:
            self.table.pop(name, None)
        else:
            self.table[name] = value
            if isinstance(thing, Module) and name in thing._buffers:
                thing._buffers[name] = value


def reached(
    roots: Iterable[Any], exempt: Callable[[Any], frozenset[str]] = lambda thing: _NOTHING, inside: Iterable[Module] = ()
) -> list[Owner]:
    """Return the owners among some objects, those that they hold, and their classes.

    Args:
        roots: Modules, functions and other objects.
        exempt: the names of an object's attributes that may change.
        inside: Modules that are watched elsewhere; what they hold is not.
    """
    known = {id(module) for module in inside}
    found: dict[int, Owner] = {}
    waiting: list[tuple[Any, bool, Any]] = [(thing, True, None) for thing in (*inside, *roots)]
    seen: set[int] = set()
    while waiting:
        thing, is_root, place = waiting.pop()
        if isinstance(thing, MethodType):
            waiting += [(thing.__func__, False, None), (thing.__self__, is_root, None)]
            continue
        if isinstance(thing, functools.partial):
            waiting.append((thing.func, is_root, None))
            waiting += [(part, False, (thing, "args")) for part in (*thing.args, *thing.keywords.values())]
            continue
        if id(thing) in seen or not _keeps(thing, is_root, place):
            continue
        seen.add(id(thing))
        own = Owner(thing, exempt(thing), place)
        if id(thing) not in known and (is_root or not isinstance(thing, FunctionType) or own.cells or own.table):
            found[id(thing)] = own  # not the methods of a class, which have nothing
        users = own.entries or _is_users(thing)
        for name, value in {**own.read(), **_held(thing)}.items():
            waiting += [(part, False, None) for part in _parts(value)]
            waiting.append((value, False, own.called(name) if users else None))
    return list(found.values())


def _is_users(thing: Any) -> bool:
    """Return whether code of the user's defines a function, a class, or a part of an object."""
    return of_a_user(thing) if isinstance(thing, (type, FunctionType)) else any(map(of_a_user, type(thing).__mro__))


def _keeps(thing: Any, is_root: bool, place: Any) -> bool:
    """Return whether something is an object that code of the user's may keep things in.

    place: where a list or dict is, if it belongs to the user.
    """
    if isinstance(thing, _CONTAINERS):
        return place is not None and len(thing) <= MOST_ENTRIES
    if isinstance(thing, Module):
        return True
    if isinstance(thing, Tensor):
        return thing.node is None
    if hasattr(type(thing), "dtype"):
        return False
    return is_root or _is_users(thing)


def _held(thing: Any) -> dict[str, Any]:
    """Return what an object holds that is none of its attributes: classes, layers, hooks, default arguments."""
    if isinstance(thing, type):
        return {}
    if isinstance(thing, FunctionType):
        names, defaults = thing.__code__.co_varnames[: thing.__code__.co_argcount], thing.__defaults__ or ()
        return {**dict(zip(names[len(names) - len(defaults) :], defaults)), **(thing.__kwdefaults__ or {})}
    held: dict[str, Any] = {"__class__": type(thing).__mro__}
    if isinstance(thing, Module):
        held |= {"_children": tuple(thing._children.values()), "_forward_hooks": thing._forward_hooks}
    return held


def _parts(value: Any) -> Iterable[Any]:
    """Return what a value holds that is no object with attributes: the members of a list, tuple, set or dict."""
    if isinstance(value, (classmethod, staticmethod)):
        return (value.__func__,)
    if isinstance(value, property):
        return (value.fget, value.fset)
    if isinstance(value, dict):
        return tuple(value.values())
    return tuple(value) if isinstance(value, (list, deque, tuple, set, frozenset)) else ()


# -- what stands for a value while a function is recorded --


class StaleValueError(Exception):
    """A recorded function used a value that its replays would not have.

    Attributes:
        owner: the object that holds it.
        name: of the attribute.
        why: what the value is.
    """

    def __init__(self, owner: Any, name: str, why: str) -> None:
        super().__init__(f"{name} was used, {why}")
        self.owner = owner
        self.name = name
        self.why = why


class Stale:
    """Stands for a value that a replay would not have: every use of it raises a StaleValueError."""

    __slots__ = ("__weakref__", "_used")

    def __init__(self, used: Callable[[], NoReturn]) -> None:
        object.__setattr__(self, "_used", used)

    def __getattribute__(self, name: str) -> Any:
        object.__getattribute__(self, "_used")()


def _use(self: Any, *args: Any, **keywords: Any) -> NoReturn:
    object.__getattribute__(self, "_used")()
    raise AssertionError("unreachable")


# Operators and the like are looked up in the class: all that numbers, sequences, tables, Tensors, functions and iterators have.
_KEPT = {"__new__", "__init__", "__del__", "__class__", "__getattribute__", "__init_subclass__", "__subclasshook__"}
for _kind in (int, float, complex, str, bytes, list, dict, set, Tensor, FunctionType, GeneratorType, AbstractContextManager):
    for _name in dir(_kind):
        if _name[:2] == "__" == _name[-2:] and _name not in _KEPT and callable(getattr(_kind, _name, None)):
            setattr(Stale, _name, _use)


@contextmanager
def hidden(places: Iterable[tuple[Owner, str]], why: str) -> Iterator[None]:
    """Let nobody use some attributes within the block; those that it does not assign get their values back.

    Args:
        places: objects and names.
        why: what their values are, for the error.

    Raises:
        StaleValueError: at the use, and again at the end of the block where the use was caught, or where one of these values
            was put elsewhere.
    """
    used: list[tuple[Owner, str]] = []

    def stale(owner: Owner, name: str) -> Stale:
        def use() -> NoReturn:
            used.append((owner, name))
            raise StaleValueError(*owner.called(name), why)

        return Stale(use)

    # Weakly: a stand-in that is alive after the block was put elsewhere.
    held = []
    for owner, name in places:
        held.append((owner, name, owner.get(name), ref(stands := stale(owner, name))))
        owner.write(name, stands)
        del stands
    try:
        yield
    except Exception as error:
        _put_back(held)
        if used and not isinstance(error, StaleValueError):
            raise StaleValueError(*used[0][0].called(used[0][1]), why) from error
        raise
    except BaseException:
        _put_back(held)
        raise
    _put_back(held)
    used += [(owner, name) for owner, name, _, stands in held if stands() is not None]
    if used:
        raise StaleValueError(*used[0][0].called(used[0][1]), why)


def _put_back(held: Iterable[tuple[Owner, str, Any, ref[Stale]]]) -> None:
    """Give the attributes that hold their stand-ins their values back."""
    for owner, name, value, stands in held:
        now = stands()
        if now is not None and owner.get(name) is now:
            owner.write(name, value)


# -- what has changed --


class Before:
    """The values of owners as they are now, to be compared with those after a function."""

    def __init__(self, owners: Iterable[Owner]) -> None:
        self.values = [(owner, owner.read()) for owner in owners]

    def changed(self) -> Iterator[tuple[Owner, str, Any, Any]]:
        """Yield each attribute that has another value now: owner, name, and the values before and now."""
        for owner, before in self.values:
            now = owner.read()
            for name in before if owner.entries else {**before, **now}:
                was, found = before.get(name, MISSING), now.get(name, MISSING)
                if was is not found and not same(was, found):
                    yield owner, name, was, found

    def restore(self) -> None:
        """Give all attributes their values back."""
        for owner, name, was, _ in list(self.changed()):
            owner.write(name, was)


def is_kept(value: Any) -> bool:
    """Return whether a value that a recorded function assigns may be assigned by its replays: they compute what it holds."""
    return value is not MISSING and not is_plain(value)
