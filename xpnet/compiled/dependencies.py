"""What a recording depends on, in one place: it is compared before every replay, and where it changed the step runs as usual.

The model's own part (attributes of layers, hooks, arrays, implementations) is xpnet.compiled.derived. Here are the objects
around it, a loss, metrics, penalties, the optimizer, the loop: their attributes, those of their users' classes, and the
settings of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, Protocol

from xpnet.compiled.derived import Derived, package_settings, patched
from xpnet.compiled.owners import MISSING, Owner
from xpnet.compiled.plain import same
from xpnet.compiled.reach import Reached, reached
from xpnet.layers.execution import keeps_computation
from xpnet.layers.modes import thread_state
from xpnet.layers.module import Module
from xpnet.optim.loss_scale import LossScale
from xpnet.optim.optimizer import Optimizer

_NOTHING: frozenset[str] = frozenset()


class Attributes:
    """The attributes of an owner as they are now: plain values by value, all others by identity, entries in their order."""

    __slots__ = ("beside", "kind", "names", "owner", "values")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.kind = type(owner.thing)
        self.names = tuple(owner.table)
        self.values = [(name, value) for name, value in owner.table.items() if owner.counts(name)]
        self.beside = owner.beside()

    def hold(self) -> bool:
        """Return whether the attributes are the same."""
        owner = self.owner
        table = owner.table
        if type(owner.thing) is not self.kind:
            return False
        if (names := tuple(table)) != self.names:
            if owner.entries or [name for name in names if owner.counts(name)] != [name for name, _ in self.values]:
                return False
            self.names = names
        for name, value in self.values:
            now = table.get(name, MISSING)
            if now is not value and not same(now, value):
                return False
        if not owner.slots and not owner.is_code:
            return True
        found = owner.beside()
        return found.keys() == self.beside.keys() and all(same(found[name], value) for name, value in self.beside.items())


class Surroundings:
    """The objects besides the model that a recorded function reads, as they are now.

    Args:
        owners: see xpnet.compiled.reach; a Module is watched with all below it.
        model: the model itself, which is watched elsewhere.
    """

    def __init__(self, owners: Iterable[Owner], model: Module) -> None:
        owners = list(owners)
        self.settings = package_settings()
        self.attributes = [Attributes(owner) for owner in owners if not issubclass(type(owner.thing), (Module, type))]
        inside = set(map(id, model.modules()))
        known = {kind for module in model.modules() for kind in type(module).__mro__}
        classes = [owner.thing for owner in owners if issubclass(type(owner.thing), type) and owner.thing not in known]
        self.classes = [(kind, dict(vars(kind)), kind.__bases__) for kind in classes]
        others = {id(o.thing): o.thing for o in owners if issubclass(type(o.thing), Module) and id(o.thing) not in inside}
        below = {id(part) for other in others.values() for part in other._children.values()}
        self.models = [OtherModel(module) for key, module in others.items() if key not in below]

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


# -- training steps --

# Attributes of an optimizer that change in every step, or are arrays on the device; those of its loss scale.
_OF_THE_STEP = frozenset(
    {"learning_rate", "factor", "_iterations", "_skipped", "_skips", "slots", "clock", "fused_decay", "_flat", "_on_clock"}
)
_ARRAYS = frozenset({"slots", "clock", "fused_decay", "_flat", "_on_clock"})  # of an optimizer that is not the loop's
_GIVEN = frozenset({"callbacks", "metrics", "loss", "seed"})  # to the loop, by users
_OF_THE_SCALE = frozenset({"_start", "_unscaled"})

RECORDED_METHODS = ("forward_backward", "measured", "measure")
"""The methods of a loop that run within a recorded step."""


class Loop(Protocol):
    """The part of a Trainer that capturing its steps needs: see there."""

    model: Module
    optimizer: Optimizer
    epoch: int
    iteration: int
    sums: Any
    watches_gradients: bool
    recorded_callbacks: list[Any]
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


def _may_change(trainer: Loop) -> Callable[[Any], frozenset[str]]:
    """Return a function from an owner in a step to the names of its attributes that may change.

    Of the loop they are those that belong to it: the package's constructor sets them; but not what users give it.
    """
    loop = next(c for c in type(trainer).__mro__ if c.__module__.startswith("xpnet."))
    constructor: Any = vars(loop)["__init__"]
    of_the_loop = frozenset(constructor.__code__.co_names) - _GIVEN

    def exempt(thing: Any) -> frozenset[str]:
        if issubclass(type(thing), Optimizer):
            return _OF_THE_STEP if thing is trainer.optimizer else _ARRAYS
        if issubclass(type(thing), LossScale):
            return _OF_THE_SCALE
        return of_the_loop if thing is trainer else _NOTHING

    return exempt


def reached_in_step(trainer: Loop, updates: bool) -> Reached:
    """Return what code in a recorded step can reach."""
    roots = [trainer.loss, *trainer.metrics.values()]
    for parameter in trainer.model.parameters().values():
        roots += [part for part in (parameter.regularizer, parameter.constraint) if part is not None]
    if updates:
        roots += [trainer.optimizer, *trainer.recorded_callbacks]
    if trainer.optimizer.loss_scale is not None:
        roots.append(trainer.optimizer.loss_scale)
    if _own_loop(trainer):
        roots += [trainer, *(vars(trainer)[name] for name in RECORDED_METHODS if name in vars(trainer))]
    return reached(roots, _may_change(trainer), trainer.model.modules())


class StepDependencies(Derived):
    """What recordings of a training step depend on, as of one step.

    Args:
        trainer: the loop.
        updates: whether the update is recorded, too.
        by_epoch: whether they depend on the number of the epoch.
    """

    def __init__(self, trainer: Loop, updates: bool, by_epoch: bool) -> None:
        self.flat = trainer.model.flat_parameters
        self.remember(trainer.model)
        self.updates = updates
        self.by_epoch = by_epoch
        self.modules = trainer.model.modules()
        self.own_modes = [module.__dict__ for module in self.modules]
        self.trained = [parameter for parameter, _ in self.parameters]
        self.objects = self._objects(trainer)
        self.surroundings = Surroundings(reached_in_step(trainer, updates).owners, trainer.model)
        self.key = self._key(trainer)

    def _objects(self, trainer: Loop) -> list[Any]:
        """Return what is compared by identity; it is kept, so that no other object can take its place in memory."""
        optimizer, table = trainer.optimizer, trainer.__dict__
        found = [optimizer, optimizer.loss_scale, trainer.loss, trainer.segments, *trainer.metrics.values()]
        found += [table.get(name) for name in RECORDED_METHODS]
        if self.updates:
            found += [*optimizer.slots.values(), *trainer.recorded_callbacks]
        found += [p.regularizer for p in self.trained]
        found += [p.constraint for p in self.trained]
        return found

    def _key(self, trainer: Loop) -> Any:
        """Return what is compared by value."""
        return (
            # A block of eval_mode has precedence, in this thread.
            [m.training for m in self.modules] if thread_state.modes else [table["training"] for table in self.own_modes],
            [parameter.requires_grad for parameter in self.trained],
            trainer.epoch if self.by_epoch else None,
        )

    def holds_for(self, trainer: Loop) -> bool:
        """Return whether a replay still does what the step would do."""
        if not self.flat.in_order or not self.holds() or not self.surroundings.hold():
            return False
        objects = self._objects(trainer)
        if len(objects) != len(self.objects) or not all(map(is_, objects, self.objects)):
            return False
        return bool(self._key(trainer) == self.key)
