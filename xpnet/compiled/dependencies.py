"""What a recording depends on, in one place: it is compared before every replay, and where it changed the step runs as usual.

The model's own part (attributes of layers, hooks, arrays, implementations) is xpnet.compiled.derived. Here are the objects
around it, a loss, metrics, penalties, the optimizer, the loop: their attributes, those of their users' classes, and the
settings of the package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import is_
from types import MethodType
from typing import Any, Protocol

from xpnet.compiled.derived import Derived, ModelChangedError, classes_of, package_settings, patched
from xpnet.compiled.plain import is_plain, same
from xpnet.layers.execution import keeps_computation
from xpnet.layers.modes import thread_state
from xpnet.layers.module import Module
from xpnet.optim.optimizer import Optimizer

_MISSING = object()
_NOTHING: frozenset[str] = frozenset()


def owner_of(function: Any) -> Any:
    """Return the object whose attributes a function reads: that of a bound method, also in a partial; else itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return function.__self__ if isinstance(function, MethodType) else function


def slot_names(owner: Any) -> tuple[str, ...]:
    """Return the names of an object's attributes that have a slot in its class."""
    found = (vars(c).get("__slots__", ()) for c in type(owner).__mro__)
    names = [name for slots in found for name in ((slots,) if isinstance(slots, str) else slots)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


class Attributes:
    """The attributes of an object as they are now: plain values by value, all others by identity.

    Args:
        owner: any object.
        exempt: the names of attributes that may change.
    """

    __slots__ = ("count", "exempt", "owner", "slots", "values")

    def __init__(self, owner: Any, exempt: frozenset[str] = _NOTHING) -> None:
        table = getattr(owner, "__dict__", {})
        self.owner = owner
        self.exempt = exempt
        self.count = len(table)
        self.values = [item for item in table.items() if item[0] not in exempt]
        self.slots = [(name, getattr(owner, name, _MISSING)) for name in slot_names(owner)]

    def hold(self) -> bool:
        """Return whether the attributes are the same."""
        if self.count or self.values:
            table = self.owner.__dict__
            if len(table) != self.count:
                return False
            for name, value in self.values:
                now = table.get(name, _MISSING)
                if now is not value and not same(now, value):
                    return False
        elif getattr(self.owner, "__dict__", None):
            return False
        return all(same(getattr(self.owner, name, _MISSING), value) for name, value in self.slots)

    def modules(self) -> list[Module]:
        """Return the Modules among the values."""
        return [value for _, value in (*self.values, *self.slots) if isinstance(value, Module)]

    def restore(self) -> str | None:
        """Give plain attributes their values back; return the name of one that had another, or None."""
        found = None
        for name, value in [*self.values, *self.slots]:
            now = getattr(self.owner, name, _MISSING)
            if is_plain(value) and is_plain(now) and not same(now, value):
                found = name
                setattr(self.owner, name, value)
        return found


class Surroundings:
    """The objects besides the model that a recorded function reads, as they are now.

    Args:
        owners: each with the names of its attributes that may change. A Module is watched as a whole.
        model: the model itself, which is watched elsewhere.
    """

    def __init__(self, owners: Iterable[tuple[Any, frozenset[str]]], model: Module) -> None:
        owners = list(owners)
        self.settings = package_settings()
        self.attributes = [Attributes(owner, exempt) for owner, exempt in owners if not isinstance(owner, Module)]
        self.classes = classes_of([a.owner for a in self.attributes])
        inside = set(map(id, model.modules()))
        found = [owner for owner, _ in owners if isinstance(owner, Module)]
        found += [module for attributes in self.attributes for module in attributes.modules()]
        others = {id(module): module for module in found if id(module) not in inside}
        self.models = [OtherModel(module) for module in others.values()]

    def hold(self) -> bool:
        """Return whether they are unchanged."""
        if package_settings() != self.settings:
            return False
        for attributes in self.attributes:
            if not attributes.hold():
                return False
        if self.classes and patched(self.classes):
            return False
        return all(model.holds() for model in self.models)


class OtherModel(Derived):
    """A model beside the one that is trained, such as the teacher that a loss compares with."""

    def __init__(self, model: Module) -> None:
        self.remember(model)
        self.modules = model.modules()
        self.modes = [module.training for module in self.modules]

    def holds(self) -> bool:
        """Return whether it is unchanged, its modes as well."""
        return super().holds() and [module.training for module in self.modules] == self.modes


@contextmanager
def not_counting(owners: Iterable[tuple[Any, frozenset[str]]]) -> Iterator[None]:
    """Raise a ModelChangedError after a block that gave a plain attribute of an object another value: no replay would.

    Such attributes get their values back.
    """
    before = [Attributes(owner, exempt) for owner, exempt in owners if not isinstance(owner, Module)]
    try:
        yield
    except BaseException:
        for attributes in before:
            attributes.restore()
        raise
    changed = [(attributes.owner, name) for attributes in before if (name := attributes.restore()) is not None]
    if changed:
        raise ModelChangedError(*changed[0])


# -- training steps --

# Attributes of an optimizer that change in every step, or are arrays on the device; those of its loss scale.
_OF_THE_STEP = frozenset(
    {"learning_rate", "factor", "_iterations", "_skipped", "_skips", "slots", "clock", "fused_decay", "_flat", "_on_clock"}
)
_OF_THE_SCALE = frozenset({"_start", "_unscaled"})

RECORDED_METHODS = ("forward_backward", "measured", "measure", "_penalty")
"""The methods of a loop that run within a recorded step."""


class Loop(Protocol):
    """The part of a Trainer that capturing its steps needs: see there."""

    model: Module
    optimizer: Optimizer
    iteration: int
    sums: Any
    watches_gradients: bool
    accumulate: int
    batch: int
    pending: int
    committing: bool
    loss: Any
    metrics: dict[str, Any]
    segments: Any
    step_state: Any
    runs_user_code: bool
    forward_backward: Callable[[Any, Any], tuple[Any, Any]]
    measured: Callable[[Any, Any, Any, Any], tuple[int, list[tuple[Any, Any]]]]
    update: Callable[[], None]
    _train: Callable[[Any, Any], Any]
    follow_model: Callable[[], None]
    undo: Callable[[int, int], None]
    committed: Callable[[], None]


def update_is_declared(optimizer: Optimizer) -> bool:
    """Return whether an optimizer's step may be recorded: it is capturable, and so says the class that defines its step.

    A subclass inherits that as long as it overrides nothing; otherwise it has to say so itself. Methods that were set on the
    instance are never recorded.
    """
    kind = type(optimizer)
    if not optimizer.capturable:
        return False
    if any(callable(value) and hasattr(kind, name) for name, value in vars(optimizer).items() if name != "learning_rate"):
        return False
    if "capturable" in vars(optimizer):
        return True
    declared = next(c for c in kind.__mro__ if "capturable" in vars(c) or c.__module__.startswith("xpnet."))
    return keeps_computation(kind, declared)


def _own_loop(trainer: Any) -> bool:
    """Return whether a subclass of Trainer, or an attribute of the instance, replaces a method that is recorded."""
    methods = (getattr(trainer, name, None) for name in RECORDED_METHODS)
    return any(m is not None and not (getattr(m, "__module__", None) or "").startswith("xpnet.") for m in methods)


def _of_the_loop(trainer: Any) -> frozenset[str]:
    """Return the names of the attributes that belong to the loop itself: those that the package's constructor sets."""
    base = next(c for c in type(trainer).__mro__ if c.__module__.startswith("xpnet."))
    constructor: Any = vars(base)["__init__"]
    return frozenset(constructor.__code__.co_names)


def owners_in_step(trainer: Loop, updates: bool) -> list[tuple[Any, frozenset[str]]]:
    """Return the objects that a recorded step reads, and the names of their attributes that may change."""
    optimizer = trainer.optimizer
    found = [(owner_of(function), _NOTHING) for function in (trainer.loss, *trainer.metrics.values())]
    for parameter in trainer.model.parameters().values():
        found += [(part, _NOTHING) for part in (parameter.regularizer, parameter.constraint) if part is not None]
    if updates:
        found.append((optimizer, _OF_THE_STEP))
    if optimizer.loss_scale is not None:
        found.append((optimizer.loss_scale, _OF_THE_SCALE))
    if _own_loop(trainer):
        found.append((trainer, _of_the_loop(trainer)))
    changing = {id(trainer): _of_the_loop(trainer), id(optimizer): _OF_THE_STEP}  # also where the loss is a method of theirs
    return list({id(owner): (owner, changing.get(id(owner), exempt)) for owner, exempt in found}.values())


class StepDependencies(Derived):
    """What recordings of a training step depend on, as of one step.

    Args:
        trainer: the loop.
        updates: whether the update is recorded, too.
    """

    def __init__(self, trainer: Loop, updates: bool) -> None:
        self.remember(trainer.model)
        self.updates = updates
        self.modules = trainer.model.modules()
        self.own_modes = [module.__dict__ for module in self.modules]
        self.trained = [parameter for parameter, _ in self.parameters]
        self.objects = self._objects(trainer)
        self.surroundings = Surroundings(owners_in_step(trainer, updates), trainer.model)
        self.key = self._key()

    def _objects(self, trainer: Loop) -> list[Any]:
        """Return what is compared by identity; it is kept, so that no other object can take its place in memory."""
        optimizer, table = trainer.optimizer, trainer.__dict__
        found = [optimizer, optimizer.loss_scale, trainer.loss, trainer.segments, *trainer.metrics.values()]
        found += [table.get(name) for name in RECORDED_METHODS]
        if self.updates:
            found += optimizer.slots.values()
        found += [p.regularizer for p in self.trained]
        found += [p.constraint for p in self.trained]
        return found

    def _key(self) -> Any:
        """Return what is compared by value."""
        return (
            # A block of eval_mode has precedence, in this thread.
            [m.training for m in self.modules] if thread_state.modes else [table["training"] for table in self.own_modes],
            [parameter.requires_grad for parameter in self.trained],
        )

    def holds_for(self, trainer: Loop) -> bool:
        """Return whether a replay still does what the step would do."""
        if not self.holds() or not self.surroundings.hold():
            return False
        objects = self._objects(trainer)
        if len(objects) != len(self.objects) or not all(map(is_, objects, self.objects)):
            return False
        return bool(self._key() == self.key)
