"""A training step happens wholly or not at all: what an exception within a step puts back."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from xpnet.autograd.flat_parameters import FlatParameters
from xpnet.autograd.parameter import Parameter
from xpnet.backend import Array, namespace
from xpnet.layers.module import Module
from xpnet.layers.version import Version
from xpnet.optim.optimizer import Optimizer

counter_of = itemgetter("counter")


def of_a_user(thing: Any, *methods: str) -> bool:
    """Return whether a class outside this package takes part in an object, or one of its methods was replaced."""
    if any(not kind.__module__.startswith(("xpnet.", "builtins")) for kind in type(thing).__mro__):
        return True
    return any(name in getattr(thing, "__dict__", ()) for name in methods)


class StepState:
    """What a training step changes before it is complete, as it was before the step.

    The forward pass changes the counters of random layers, buffers (running statistics) and the states of recurrent layers; the
    backward pass the gradients. The weights and the optimizer's arrays come last, when nothing is left that could raise; where
    an optimizer or a constraint of the user's own runs, they are copied as well.

    Attributes:
        version, changes, optimizer: the version of the model and the optimizer that the lists below are for.
        tables: the attributes of every Module.
        parameters: of the model.
        stateful: the Modules with buffers or a state that is carried from call to call.
        unseen: whether the tape of the next step is to be looked at (see xpnet.training.first_look).
        unbuilt: the Modules that create parameters and buffers when they see the first batch.
        keeps: whether there is any of them.
        careful: whether the user's own code updates the weights.
        guards: whether a step is going on that will be undone if it raises.
        counters: of the random layers, in the order of `tables`, once the forward pass has begun.
        backward: whether the backward pass has begun.
        holds: whether anything but `counters` is kept.
    """

    def __deepcopy__(self, memo: Any) -> StepState:
        """Return a new one: it is about the model of one Trainer, and a copy has another."""
        return StepState()

    def __init__(self) -> None:
        self.version: Version | None = None
        self.changes = -1
        self.optimizer: Optimizer | None = None
        self.unseen = True
        self._seen: tuple[Version | None, int] = None, -1
        self.tables: list[dict[str, Any]] = []
        self.parameters: list[Parameter] = []
        self.stateful: list[Module] = []
        self.unbuilt: list[Module] = []
        self.keeps = False
        self.careful = self.guards = self.backward = self.holds = False
        self.counters: list[int] | None = None
        self._kept: list[tuple[Module, str, Any, Any]] = []
        self._on_device: list[tuple[Array, Array]] = []
        self._empty: list[tuple[Module, dict[str, Any]]] = []
        self._held: list[tuple[Parameter, Any]] = []
        self._gradients: Any = None
        self._weights: list[tuple[Array, Array]] = []
        self._slots: tuple[dict[str, Array], Any] | None = None

    def follow(self, model: Module, optimizer: Optimizer, careful: bool = False) -> None:
        """Look at a model that has changed, or at another optimizer.

        careful: whether the user's own code updates the weights, whatever the optimizer and the constraints are.
        """
        modules = model.modules()
        self.version, self.changes, self.optimizer = model._tree_version, model._tree_version.changes, optimizer
        self.unseen = self._seen != (self.version, self.version.structure)
        self.tables = [module.__dict__ for module in modules]
        self.stateful = [module for module in modules if module._buffers or "carried" in module.__dict__]
        self.unbuilt = [module for module in modules if not module.built and module._waits()]
        self.keeps = bool(self.stateful or self.unbuilt)
        self.parameters = list(model.parameters().values())
        constraints = [p.constraint for p in self.parameters if p.constraint is not None]
        careful = careful or any(of_a_user(c, "project") for c in constraints)
        self.careful = careful or of_a_user(optimizer, "step", "update", "decay")

    def seen(self, model: Module) -> None:
        """Note that the tape of a step of this model, as it is now, was looked at."""
        self.unseen, self._seen = False, (model._tree_version, model._tree_version.structure)

    def keep(self, counters: bool = True) -> None:
        """Keep the buffers, the carried states, and the counters that are on the device, before the forward pass."""
        if counters:
            self.counters = list(map(counter_of, self.tables))
        self.holds = True
        self._kept, self._on_device = [], []
        for module in self.stateful:
            for name, array in module._buffers.items():
                self._kept.append((module, name, array, None if array is None else _copy(array)))
            if "carried" in module.__dict__:
                self._kept.append((module, "carried", module.__dict__["carried"], None))
        self._empty = [(module, _attributes(module)) for module in self.unbuilt]
        for table in self.tables:
            if table["device_counter"] is not None:
                self.keep_arrays([table["device_counter"].array])

    def keep_arrays(self, arrays: list[Array]) -> None:
        """Keep the values of further arrays."""
        self._on_device += [(array, _copy(array)) for array in arrays]

    def keep_gradients(self, flat: FlatParameters) -> None:
        """Keep the gradients that the backward pass will add to."""
        self.holds = True
        self._held = [(p, p.grad) for p in flat.parameters if p.grad is not None]
        self._gradients = _copy(flat.gradients)

    def keep_weights(self, model: Module, optimizer: Optimizer) -> None:
        """Keep the weights and the optimizer's arrays."""
        self.holds = True
        flat = model.flat_parameters
        arrays = [] if flat.values is None else [flat.values, *optimizer.slots.values()]
        self._weights = [(array, _copy(array)) for array in arrays]
        self._slots = dict(optimizer.slots), optimizer._flat

    def restore(self, model: Module, optimizer: Optimizer) -> None:
        """Put back everything that was kept since the step began."""
        for array, values in self._weights:
            array[...] = values
        if self._slots is not None:
            optimizer.slots, optimizer._flat = self._slots
        if self.backward:
            flat = model.flat_parameters
            flat.zero_grad()
            if self._gradients is not None:
                flat.gradients[...] = self._gradients
            for parameter, gradient in self._held:
                parameter.grad = gradient
        if self.counters is not None:
            for table, counter in zip(self.tables, self.counters):
                table["counter"] = counter
        for array, values in self._on_device:
            array[...] = values
        for module, name, before, copied in self._kept:
            if module.__dict__.get(name) is not before:
                setattr(module, name, before)
            if copied is not None:
                before[...] = copied
        for module, attributes in self._empty:  # built again by the next batch, with the same values
            place = {name: module.__dict__[name] for name in ("path", "context", "_half")}  # which the root has decided since
            module.__dict__.clear()
            module.__dict__.update(attributes | place)
            module._tree_version.changed(structure=True)
        scale = optimizer.loss_scale
        if scale is not None:
            scale.forget_step()

    def clear(self) -> None:
        """Let go of what was kept: the step is complete, or undone."""
        self.guards = self.backward = self.holds = False
        self.counters = self._gradients = self._slots = None
        self._kept, self._held, self._weights, self._on_device, self._empty = [], [], [], [], []


def _copy(array: Any) -> Any:
    return namespace(array).asarray(array, copy=True)


def _attributes(module: Module) -> dict[str, Any]:
    """Return a copy of a Module's attributes, and of its tables of parameters, buffers and Modules."""
    return {name: dict(value) if type(value) is dict else value for name, value in module.__dict__.items()}
