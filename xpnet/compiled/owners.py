"""The objects that code of the user's in a recorded function keeps things in: one list, whatever is asked about them.

They are found by xpnet.compiled.reach. Before a recording their values are noted; after it what has changed is known, and put
back where the recording is refused.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType, GeneratorType, MemberDescriptorType, ModuleType
from typing import Any, NoReturn
from weakref import ref

from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tensor import Tensor
from xpnet.compiled.mentions import BY_NAME, mentions_of
from xpnet.compiled.plain import is_plain, same
from xpnet.layers.module import Module
from xpnet.layers.tree import OWN_ATTRIBUTES

MISSING = object()
MOST_ENTRIES = 64
"""Of a list, set or dict with more it is known how many they are, and no more: it is taken for data."""
CONTAINERS = (list, deque, set, dict)
Place = tuple[Any, Any]  # an object, or an Owner, and a name
_NOTHING: frozenset[str] = frozenset()
_OF_NO_CALL = frozenset(
    {"__init__", "__new__", "__post_init__", "__init_subclass__", "__class_getitem__", "__del__", "__getstate__",
     "__setstate__", "__reduce__", "__doc__", "__dict__", "__weakref__", "__module__", "__annotations__"}
)  # fmt: skip
"""What a class defines that no use of its objects calls."""
_LIBRARIES = sys.stdlib_module_names | {"builtins", "xpnet", "numpy", "cupy", "cupyx", "array_api_compat"}


def of_a_user(thing: Any) -> bool:
    """Return whether a class, function or module is from outside this package, Python's library and the array libraries."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return str(name or "builtins").partition(".")[0] not in _LIBRARIES


def installed(thing: Any) -> bool:
    """Return whether a class or function is from an installed package, whose code is not followed to its global variables."""
    file = getattr(sys.modules.get(thing.__module__), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


class Names:
    """The names that some code mentions.

    Attributes:
        known: the names.
        all: whether it may use others as well.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self.known = set(known)
        self.all = False

    def __contains__(self, name: object) -> bool:
        return self.all or name in self.known


class Owner:
    """An object, a class, a Module, a Tensor or a function, and how its attributes are read and written past its own code.

    Those of a function are also the variables that it closes over and the global ones that it mentions, those of a list, set
    or dict its entries.

    Args:
        thing: the object.
        exempt: names of attributes that may change.
        place: of a list, set or dict, the object that holds it, and the name.
        entries: whether the entries of a list, set or dict are meant, or its attributes.
        names: the attributes that count; None: all.
    """

    __slots__ = ("cells", "entries", "exempt", "globals", "is_code", "names", "place", "slots", "thing")

    def __init__(
        self,
        thing: Any,
        exempt: frozenset[str] = _NOTHING,
        place: Place | None = None,
        *,
        entries: bool = True,
        names: Container[str] | None = None,
    ) -> None:
        self.thing = thing
        self.entries = entries and issubclass(type(thing), CONTAINERS)
        self.place = place if self.entries else None
        self.exempt = exempt | OWN_ATTRIBUTES if issubclass(type(thing), Module) else exempt
        self.names = names
        self.is_code = False  # whether it is a function of the user's
        self.cells: dict[str, Any] = {}
        self.globals: dict[str, Any] = {}
        self.slots: dict[str, Any] = {}
        if issubclass(type(thing), FunctionType):
            self.is_code = of_a_user(thing)
            if self.is_code:
                cells = zip(thing.__code__.co_freevars, thing.__closure__ or ())
                self.cells = {name: cell for name, cell in cells if name != "__class__"}  # that of super()
                if not installed(thing):
                    table, names = thing.__globals__, mentions_of(thing, of_a_user).globals
                    if names & BY_NAME:  # numbers and names; to follow all else would lead everywhere
                        names = names.union(name for name, value in table.items() if is_plain(value))
                    self.globals = dict.fromkeys(names, table)
        elif issubclass(type(thing), Tensor):  # the rest of it belongs to the tape
            self.slots = {name: vars(Tensor)[name] for name in ("array", "requires_grad")}
        elif not self.entries and not issubclass(type(thing), (type, Module, ModuleType)):
            self.slots = {
                name: member
                for kind in reversed(type(thing).__mro__)
                if kind.__module__ != "builtins"
                for name, member in vars(kind).items()
                if isinstance(member, MemberDescriptorType)
            }

    @property
    def table(self) -> Any:
        """The attributes that are in a dict; a view of it where this is a class, and a copy where it is a list or set."""
        thing = self.thing
        if not self.entries:
            return thing.__dict__ if type(thing).__dictoffset__ else {}
        if len(thing) > MOST_ENTRIES:
            return {"len()": len(thing)}
        if issubclass(type(thing), dict):
            return thing
        return dict.fromkeys(thing, True) if issubclass(type(thing), set) else dict(enumerate(thing))

    def called(self, name: Any) -> tuple[Any, str]:
        """Return the object that an attribute belongs to as a user sees it, and the attribute's name."""
        if self.place is None:
            return self.thing, name
        return self.place[0], f"{self.place[1]}[{repr(name) if is_plain(name) else type(name).__name__}]"

    def counts(self, name: Any) -> bool:
        """Return whether an attribute counts."""
        return name not in self.exempt and (self.names is None or name in self.names)

    def beside(self) -> dict[str, Any]:
        """Return the values that are in slots, closed over or global."""
        found = {}
        for name, member in self.slots.items():
            try:
                found[name] = member.__get__(self.thing)
            except AttributeError:  # it is empty
                continue
        for name, cell in self.cells.items():
            try:
                found[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        for name, table in self.globals.items():
            if name in table:
                found[name] = table[name]
        if self.is_code:
            found["__defaults__"], found["__code__"] = self.thing.__defaults__, self.thing.__code__
        return found

    def everything(self) -> dict[Any, Any]:
        """Return the attributes as they are now, those that do not count as well."""
        found = {name: value for name, value in self.table.items() if name not in self.exempt}
        if issubclass(type(self.thing), type):
            found = {name: value for name, value in found.items() if name not in _OF_NO_CALL}
        elif issubclass(type(self.thing), Module):  # what is registered in the tree is none of its values
            found = {name: value for name, value in found.items() if not issubclass(type(value), (Module, Parameter))}
        return {**found, **self.beside()}

    def read(self) -> dict[Any, Any]:
        """Return the attributes as they are now."""
        found = self.everything()
        if issubclass(type(self.thing), type):
            return {name: value for name, value in found.items() if not (name[:2] == "__" == name[-2:])}
        return found if self.names is None else {name: value for name, value in found.items() if name in self.names}

    def get(self, name: Any) -> Any:
        """Return one attribute, or MISSING."""
        beside = name in self.slots or name in self.cells or name in self.globals
        return (self.beside() if beside else self.table).get(name, MISSING)

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
        elif issubclass(type(thing), type):
            delattr(thing, name) if value is MISSING else setattr(thing, name, value)
        elif self.entries and not issubclass(type(thing), dict):
            thing[name] = value
        else:
            table = self.globals.get(name, self.table)
            if value is MISSING:
                table.pop(name, None)
            else:
                table[name] = value
            if issubclass(type(thing), Module) and name in thing._buffers:
                thing._buffers[name] = value

    def restore(self, before: dict[Any, Any]) -> None:
        """Give all attributes the values that `read` has returned."""
        thing = self.thing
        if self.entries:
            if len(thing) <= MOST_ENTRIES >= len(before):
                thing.clear()
                thing.extend(before.values()) if isinstance(thing, (list, deque)) else thing.update(before)
            return
        for name in {**before, **self.read()}:
            if self.get(name) is not before.get(name, MISSING):
                self.write(name, before.get(name, MISSING))


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

    def changed(self) -> Iterator[tuple[Owner, Any, Any, Any]]:
        """Yield each attribute that has another value now: owner, name, and the values before and now."""
        for owner, before in self.values:
            now = owner.read()
            for name in {**before, **now}:
                was, found = before.get(name, MISSING), now.get(name, MISSING)
                if was is not found and not same(was, found):
                    yield owner, name, was, found

    def restore(self) -> None:
        """Give all attributes their values back."""
        for owner in list({id(owner): owner for owner, *_ in self.changed()}.values()):
            owner.restore(next(before for known, before in self.values if known is owner))


def is_kept(value: Any) -> bool:
    """Return whether a value that a recorded function assigns may be assigned by its replays: they compute what it holds."""
    return value is not MISSING and not is_plain(value)
