"""Base class of all optimizers: flat parameters, state, weight decay and the learning rate's schedule."""

from __future__ import annotations

import dis
import math
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from xpnet.autograd.flat_parameters import FlatParameters, Layout
from xpnet.autograd.parameter import Parameter
from xpnet.backend import Array, Device, device_of, namespace, to_device, to_numpy
from xpnet.layers.module import Module
from xpnet.ops.updates.rule import Rule
from xpnet.optim.loss_scale import LossScale
from xpnet.runtime.messages import quoted
from xpnet.runtime.peers import missing_attribute
from xpnet.runtime.set_later import Settable, made_with
from xpnet.runtime.settings import Converted, check_numbers, check_whole

Schedule = Callable[[int], float]
Target = Module | dict[str, Parameter] | Iterable[Parameter]


class _LearningRate:
    """The attribute `learning_rate`: one that is set counts as it is, whatever callbacks have multiplied the one before by."""

    def __set__(self, optimizer: Optimizer, value: Any) -> None:
        if not callable(value):
            check_numbers(type(optimizer).__name__, "[0, inf)", learning_rate=value)
        optimizer.__dict__.update(learning_rate=value, factor=1.0)

    if TYPE_CHECKING:  # without it Python reads the instance's __dict__

        def __get__(self, optimizer: Any, owner: Any = None) -> Any: ...


def _loss_scale(value: Any) -> LossScale | None:
    if value is not None and not isinstance(value, LossScale):
        raise TypeError(
            f"loss_scale must be an xn.optim.LossScale or None, got {quoted(value)}; LossScale(initial=...) makes one"
        )
    return value


class Optimizer(Settable):
    """Base class: :meth:`step` updates a model from the gradients that `backward` left, and clears them.

    Subclasses name their state arrays in `slot_names` and write :meth:`update`.

    Args:
        learning_rate: a number, or a schedule: a function of the step's number (0, 1, ...).
        weight_decay: this multiple of the weights is added to their gradient (L2); biases and scales are exempt.

    Attributes:
        learning_rate: as given. Setting it ends what ReduceOnPlateau has reduced, too.
        current_learning_rate: of the next step, a number.
        iterations: the updates so far.
        skipped: the updates that were skipped because float16 gradients overflowed. A schedule counts them, too.
        loss_scale: None, or the LossScale that the gradients were multiplied by.
        clock: None, or the learning rate and the step's number as arrays on the device, which the update reads instead.
    """

    slot_names: tuple[str, ...] = ()
    decoupled = False  # whether weight decay shrinks the weights directly instead of adding to the gradient
    learning_rate = _LearningRate()
    loss_scale = Converted(_loss_scale)
    capturable = False  # whether `update` takes a clock instead of the learning rate

    if not TYPE_CHECKING:  # mypy would know every attribute
        __getattr__ = missing_attribute

    def __init__(self, learning_rate: float | Schedule, *, weight_decay: float = 0.0) -> None:
        self.learning_rate = learning_rate
        check_numbers(type(self).__name__, "[0, inf)", weight_decay=weight_decay)
        self.weight_decay = weight_decay
        self._iterations = 0
        self._skipped = 0
        self._skips = False  # whether the device may have skipped updates that the host has counted
        self.loss_scale = None
        self.factor = 1.0  # what callbacks have multiplied the learning rate by
        self.slots: dict[str, Array] = {}
        self._flat: FlatParameters | None = None
        self._layout: Layout | None = None  # of the slots, where they are from a file
        self.clock: Any = None
        self._on_clock: tuple[float, int, bool] | None = None  # its learning rate and step, and whether for the step to come
        self.fused_decay: dict[str, Any] = {}  # settings for a rule that applies weight decay in its own pass

    @property
    def iterations(self) -> int:
        """The updates so far. Where the device decides which are skipped, reading it waits for the device."""
        if self.clock is not None:
            self.read_clock()
        return self._iterations

    @iterations.setter
    def iterations(self, value: int) -> None:
        check_whole(type(self).__name__, 0, iterations=value)
        if self.clock is not None:
            self.read_clock()  # what was skipped until now stays skipped
        self._iterations = value

    @property
    def skipped(self) -> int:
        """The skipped updates so far, as `iterations`."""
        if self.clock is not None:
            self.read_clock()
        return self._skipped

    @skipped.setter
    def skipped(self, value: int) -> None:
        if self.clock is not None:
            self.read_clock()
        self._skipped = value

    def _take(self, name: str, made: Any) -> None:
        """Take over a setting, and what follows from it: which state arrays there are (a momentum where there was none)."""
        users = type(made) is not type(self)
        before = made_with(type(made), vars(self), name, vars(self)[name]) if users else None
        super()._take(name, made)
        if before is not None:  # a class of the user's may have state of its own
            made.slot_names += tuple(slot for slot in self.slot_names if slot not in before.slot_names)
        for derived in ("slot_names",) if users else ("slot_names", "capturable"):
            if derived in vars(made):
                vars(self)[derived] = vars(made)[derived]
            else:
                vars(self).pop(derived, None)
        self.slots = {slot: array for slot, array in self.slots.items() if slot in self.slot_names}

    @property
    def current_learning_rate(self) -> float:
        """The learning rate of the next step.

        Raises:
            ValueError: a schedule returns, or callbacks have made it, something that is negative or not finite.
            TypeError: something that is no number.
        """
        rate: Any = self.learning_rate
        if callable(rate):
            rate = rate(self._iterations + self._skipped)
        try:
            found: float = self.factor * float(rate)
        except (TypeError, ValueError):
            found = math.nan
        if not 0 <= found < math.inf:
            check_numbers(type(self).__name__, "[0, inf)", **{f"the learning rate of step {self._iterations}": rate})
            check_numbers(type(self).__name__, "[0, inf)", **{f"the learning rate of step {self._iterations}": found})
        return found

    def bind(self, target: Target) -> FlatParameters:
        """Return the flat parameters of a model, or of Parameters, and fit the optimizer's state to them.

        After parameters were frozen or unfrozen (`parameter.requires_grad`), those that stay trainable keep their state;
        unfrozen ones start with a new one.

        Raises:
            ValueError: the state belongs to another model.
        """
        flat = _flat_parameters(target, self._flat)
        if flat is not self._flat or len(self.slots) < len(self.slot_names):
            self.require_own(target)
            before = self._flat
            if flat.values is not None:
                frozen = before is not None and _changed(before, flat, target)
                replaced = list(self.slots.values()) if frozen else []
                if before is not None and not self.used:
                    self.slots = {}
                self._lay_out(flat, before if frozen else self._layout)
                place = device_of(flat.values)
                if replaced and isinstance(place, Device):
                    place.synchronize()  # the current stream may not be the one whose memory is freed here
            self._flat = flat
        return flat

    @property
    def used(self) -> bool:
        """Whether a second model would inherit anything: steps, or a learning rate that callbacks have reduced."""
        return bool(self._iterations or self._skipped or self.factor != 1.0)

    def require_own(self, target: Target) -> None:
        """Raise a ValueError if the optimizer has the state of another model: its moments, step number and schedule.

        A model is the same as long as it has one of the Parameters that were trained.
        """
        before = self._flat
        if before is None or not before.parameters or not self.used:
            return
        if isinstance(target, Module):
            own = {id(p) for p in target.parameters().values()}
        else:
            own = {id(p) for p in (target.values() if isinstance(target, dict) else target)}
        if not any(id(p) in own for p in before.parameters):
            raise ValueError(
                f"this {type(self).__name__} has made {self.iterations} steps with another model, whose state it holds "
                f"(moments, the step of its schedule); make a new optimizer for a new model"
            )

    def _lay_out(self, flat: FlatParameters, before: FlatParameters | Layout | None) -> None:
        """Give the state the order of flat parameters.

        before: the order that it has, of parameters of which some may be frozen now; None: the same.
        """
        xp = namespace(flat.values)
        if before == flat.layout():
            before = None
        for name in self.slot_names:
            slot = self.slots.get(name)
            if slot is None:
                self.slots[name] = self.initial_slot(name, xp, flat)
            elif before is not None:
                self.slots[name] = flat.carry_over(slot, before, self.initial_slot(name, xp, flat))
            elif slot.shape != flat.values.shape:
                raise ValueError(
                    f"this {type(self).__name__} holds state for {slot.shape[0]} values, the model has {flat.values.shape[0]}; "
                    f"make a new optimizer for a new model, or freeze the parameters that were frozen when the state was saved"
                )
            else:
                self.slots[name] = to_device(slot, device_of(flat.values))
        self._layout = None

    def initial_slot(self, name: str, xp: Any, flat: FlatParameters) -> Array:
        """Return a state array before the first step: zeros."""
        return cast(Array, xp.zeros_like(flat.values))

    def step(self, target: Target) -> None:
        """Update the parameters of a Module (or a dict or list of Parameters), in place, and clear their gradients.

        Parameters that the last backward did not reach are treated as having a gradient of 0.
        """
        scale = self.loss_scale
        learning_rate: Any = self.current_learning_rate if self.clock is None else self._clock_of_step()
        flat = self.bind(target)
        if flat.values is None:
            return
        flat.collect()
        if scale is not None:
            scale.unscale(flat)
            if self.clock is not None:
                learning_rate = self.clock.skipping(scale.overflow)
                self._skips = True
            elif bool(scale.overflow):
                self._skipped += 1
                scale.adjust()
                flat.zero_grad()
                return
        self._iterations += 1
        self.fused_decay = {}
        if self.weight_decay:
            rule = self.rule
            if rule is not None and rule.decays(flat.values):
                self.fused_decay = {
                    "weight_decay": self.weight_decay,
                    "decayed": flat.decayed,
                    "decoupled": self.decoupled,
                }
            else:
                self.decay(flat, learning_rate)
        w, g, before = flat.values, flat.gradients, None
        if self._iterations == 1 and self.clock is None and learning_rate and _assigns_weights(type(self).update):
            before = w.copy() if bool((g != 0).any()) else None
        returned: Any = self.update(w, g, learning_rate)  # type: ignore[func-returns-value]
        if returned is not None or before is not None:
            self._refuse_lost(returned, w, before)
        for parameter in flat.constrained:
            w = parameter.array
            before = None if scale is None or self.clock is None else namespace(w).asarray(w, copy=True)
            parameter.constraint.project(w)
            if before is not None and scale is not None:
                w[...] = namespace(w).where(scale.overflow != 0, before, w)
        if scale is not None:
            scale.adjust()
            self.clock_ticked()
        flat.zero_grad()

    def _refuse_lost(self, returned: Any, w: Array, before: Array | None) -> None:
        """Raise a TypeError where `update` has made new weights instead of changing those that it was given."""
        if returned is not None or (before is not None and not bool((cast(Any, w) != before).any())):
            raise TypeError(
                f"{type(self).__name__}.update returned or assigned new weights, which are lost; write into those that it is "
                f"given: w -= ..., or w[...] = ..."
            )

    @property
    def rule(self) -> Rule | None:
        """The rule that `update` calls with `fused_decay`: it may apply weight decay in the same pass."""
        return None

    def decay(self, flat: FlatParameters, learning_rate: Any) -> None:
        """Add weight_decay * w to the gradients of the weights."""
        weights = slice(0, flat.decayed)
        flat.gradients[weights] += self.weight_decay * flat.values[weights]

    def update(self, w: Array, g: Array, learning_rate: Any) -> None:
        """Update the flat weights `w` in place, given the flat gradients `g`; `iterations` counts from 1 here."""
        raise TypeError(f"{type(self).__name__} does not say how it updates")

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs: the step's number and the state arrays, as NumPy arrays."""
        self.read_clock()
        slots = {name: to_numpy(a).copy() for name, a in self.slots.items()}
        state = {"iterations": self.iterations, "factor": self.factor, "slots": slots}
        layout = self._layout if self._flat is None else self._flat.layout()
        if layout is not None:
            state["parameters"] = layout
        if self.loss_scale is not None:
            state |= {"skipped": self.skipped, "loss_scale": self.loss_scale.state()}
        return state

    def read_clock(self) -> None:
        """Read from the device how many steps were skipped (waits for it)."""
        # Within a step, and where the host's number is not on the clock yet, there is nothing to read.
        if self._skips and self.clock is not None and self._on_clock is not None and self._on_clock[1] == self._iterations:
            done = int(self.clock.steps)
            self._skipped += self._iterations - done
            self._iterations = done
            self._on_clock = self._on_clock[0], done, self._on_clock[2]

    def set_clock(self) -> None:
        """Write to the clock, before a step, what the host says and the clock does not: a learning rate or a step's number."""
        rate, steps, _ = self._on_clock or (None, None, False)
        if self._iterations != steps:  # set by load_state or by a callback
            self.clock.steps[...] = self._iterations
        current = self.current_learning_rate
        if current != rate:
            self.clock.rate[...] = current
        self._on_clock = current, self._iterations, True

    def clock_ticked(self) -> None:
        """Note that the clock is at `iterations`, which it counts itself in every step."""
        if self._on_clock is not None:
            self._on_clock = self._on_clock[0], self._iterations, False

    def _clock_of_step(self) -> Any:
        """Return the clock for a step; within a recording it has been set before."""
        if self._on_clock is None or not self._on_clock[2]:
            self.set_clock()
        rate, steps, _ = self._on_clock or (0.0, 0, False)
        self._on_clock = rate, steps, False
        return self.clock

    def __getstate__(self) -> dict[str, Any]:
        """Return what copy.deepcopy copies; a copy has its learning rate and steps on the host."""
        self.read_clock()
        return {**self.__dict__, "clock": None, "_on_clock": None}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`.

        An optimizer that has been used goes on belonging to its model.

        Raises:
            ValueError: the state of another kind of optimizer, or of another model; or no state of an optimizer.
        """
        if not isinstance(state, dict) or not {"iterations", "slots", "factor"} <= state.keys():
            raise ValueError(f"{type(self).__name__}: what `state` returned was expected, got {quoted(state)}")
        if set(state["slots"]) - set(self.slot_names):
            raise ValueError(
                f"{type(self).__name__} keeps {', '.join(self.slot_names) or 'nothing'}; "
                f"the state holds {', '.join(sorted(state['slots']))}: it is another optimizer's"
            )
        self._iterations = int(state["iterations"])
        self._skipped = int(state.get("skipped", 0))
        missing = [name for name in self.slot_names if name not in state["slots"]]
        if missing and self._iterations:
            warnings.warn(
                f"the state is of an optimizer that does not keep {', '.join(missing)}: {type(self).__name__} begins afresh, "
                f"with its steps and its schedule, too",
                RuntimeWarning,
                stacklevel=2,
            )
            self._iterations = self._skipped = 0
        if self.loss_scale is not None and "loss_scale" in state:
            self.loss_scale.load_state(state["loss_scale"])
        self._on_clock = None
        self.factor = float(state["factor"])
        self.slots = dict(state["slots"])
        self._layout = state.get("parameters")
        if self._flat is not None and self._flat.values is not None:
            self._lay_out(self._flat, self._layout)


def _changed(before: FlatParameters, flat: FlatParameters, target: Target) -> bool:
    """Return whether other parameters of the same model are trained now, not those of a copy of it."""
    own = target.parameters().values() if isinstance(target, Module) else flat.parameters
    known = {id(p) for p in own}
    return [*map(id, before.parameters)] != [*map(id, flat.parameters)] and any(id(p) in known for p in before.parameters)


def _flat_parameters(target: Any, current: FlatParameters | None) -> FlatParameters:
    """Return the flat parameters of a Module; of Parameters the current ones if they hold exactly these, or new ones."""
    if isinstance(target, Module):
        return target.flat_parameters
    given = target.values() if isinstance(target, dict) else target if isinstance(target, Iterable) else [None]
    parameters: list[Any] = list(given)
    if current is not None and current.holds(parameters):
        return current
    if not all(isinstance(parameter, Parameter) for parameter in parameters):
        raise TypeError(f"an optimizer's step takes the model, or a dict or list of its Parameters, got {quoted(target)}")
    return FlatParameters(parameters)


def _assigns_weights(update: Any) -> bool:
    """Return whether a user's `update` assigns to its first argument, in place (``w -= g``) or not (``w = w - g``)."""
    code = getattr(update, "__code__", None)
    if code is None or update.__module__.startswith("xpnet.") or code.co_argcount < 2:
        return False
    stored = [i.argval for i in dis.get_instructions(code) if i.opname.startswith("STORE_FAST")]
    return any(code.co_varnames[1] in (names if isinstance(names, tuple) else (names,)) for names in stored)
