"""The steps of a training loop as CUDA graphs: see xpnet.compiled.graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakMethod

from xpnet.autograd.tape import no_grad
from xpnet.backend import Array
from xpnet.compiled.derived import Derived
from xpnet.compiled.graph import Captured, Graphs, called
from xpnet.layers.modes import eval_mode, thread_state
from xpnet.layers.module import Module
from xpnet.optim.optimizer import Optimizer
from xpnet.runtime.determinism import get_deterministic

if TYPE_CHECKING:
    from xpnet.data.device_feed import DeviceFeed


class Loop(Protocol):
    """The part of a Trainer that capturing its steps needs: see there."""

    model: Module
    optimizer: Optimizer
    iteration: int
    sums: Any
    watches_gradients: bool
    accumulate: int
    batch: int
    committing: bool
    loss: Any
    metrics: dict[str, Any]
    segments: Any
    step_state: Any
    runs_user_code: bool
    forward_backward: Callable[[Any, Any], tuple[Array, Array]]
    measured: Callable[[Any, Any, Array, Array], tuple[int, list[tuple[Any, Any]]]]
    update: Callable[[], None]
    _train: Callable[[Any, Any], Array]
    undo: Callable[[int, int], None]
    committed: Callable[[], None]


class DeviceCounter:
    """The counter of a random layer on the device."""

    def __init__(self, xp: Any, value: int) -> None:
        self.array = xp.asarray(value, dtype=xp.uint64)

    def take(self) -> Array:
        """Return the current value as a new 0-d uint64 array, and increment the counter."""
        step: Array = self.array.copy()
        self.array += 1
        return step

    @property
    def value(self) -> int:
        """The counter on the host (waits for the device)."""
        return int(self.array)

    @value.setter
    def value(self, value: int) -> None:
        self.array[...] = value


_PLAIN = (bool, int, float, str, tuple, type(None))


# Attributes of an optimizer that change in every step, or are arrays on the device.
_OF_THE_STEP = frozenset({"learning_rate", "factor", "iterations", "skipped", "slots", "clock", "fused_decay"})


def _settings(owner: Any) -> list[tuple[str, Any]]:
    """Return the plain attributes of a loss, a metric or a penalty."""
    return [item for item in getattr(owner, "__dict__", {}).items() if type(item[1]) in _PLAIN]


def _public_settings(owner: Any) -> list[tuple[str, Any]]:
    """Return those of an optimizer or a LossScale that stay the same from step to step."""
    return [item for item in _settings(owner) if item[0] not in _OF_THE_STEP and item[0][0] != "_"]


class _Kept(Derived):
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
        penalties = [part for p in self.trained for part in (p.regularizer, p.constraint) if part is not None]
        self.owners = [trainer.loss, *trainer.metrics.values(), *penalties]
        self.key = self._key(trainer)

    def _objects(self, trainer: Loop) -> list[Any]:
        """Return what is compared by identity; it is kept, so that no other object can take its place in memory."""
        optimizer, scale = trainer.optimizer, trainer.optimizer.loss_scale
        found = [optimizer, scale, trainer.loss, trainer.segments, *trainer.metrics.values()]
        if scale is not None:
            found += scale.scale, scale.good, scale.overflow
        if self.updates:
            found += optimizer.slots.values()
        found += [p.regularizer for p in self.trained]
        found += [p.constraint for p in self.trained]
        return found

    def _key(self, trainer: Loop) -> Any:
        """Return what is compared by value."""
        optimizer = trainer.optimizer
        return (
            # A block of eval_mode has precedence, in this thread.
            [m.training for m in self.modules] if thread_state.modes else [table["training"] for table in self.own_modes],
            [parameter.requires_grad for parameter in self.trained],
            [_settings(owner) for owner in self.owners],
            _public_settings(optimizer) if self.updates else None,
            _public_settings(optimizer.loss_scale) if optimizer.loss_scale is not None else None,
            list(trainer.metrics),
            get_deterministic(),
        )

    def holds_for(self, trainer: Loop) -> bool:
        """Return whether a replay still does what the step would do."""
        if not self.holds():
            return False
        objects = self._objects(trainer)
        if len(objects) != len(self.objects) or not all(map(is_, objects, self.objects)):
            return False
        return bool(self._key(trainer) == self.key)


class CapturedSteps:
    """The steps of a training loop as graphs: forward, loss, backward, update and measurement, one replay for each batch.

    Steps are recorded again when something has changed that they depend on: the model's attributes, modes, hooks and arrays,
    which parameters are trained, the settings of the optimizer, and those of the loss, the metrics and the penalties.

    A context: within the block the counters of random layers, the learning rate and the optimizer's step are on the
    device. The number of the iteration and the learning-rate schedule stay on the host.

    Args:
        trainer: the loop, whose model is on a GPU.
        graphs: what records and replays.
        clock: makes the optimizer's clock: a function of the flat values.
    """

    def __init__(self, trainer: Loop, graphs: Graphs, clock: Callable[[Array], Any]) -> None:
        self.trainer = trainer
        self.graphs = graphs
        self._make_clock = clock
        self._rate: float | None = None
        self.feed: DeviceFeed | None = None
        # Weakly: with a reference to itself the model, which the trainer holds, would wait for the garbage collector.
        work, attempt = WeakMethod(self._work), WeakMethod(self._attempt)
        self._captured = Captured(called(work), graphs, "the training step", trainer.model, direct=called(attempt))
        self._kept: _Kept | None = None
        self._optimizer = trainer.optimizer
        self.updates = self._records_updates()

    def __enter__(self) -> CapturedSteps:
        if self._is_built():
            # On the stream that made the parameters: their first arrays are freed here, and another thread may use that
            # memory on the same stream while the graphs' stream still reads it.
            self.trainer.optimizer.bind(self.trainer.model)
        with contextlib.ExitStack() as context:  # which ends the block again where the device has no memory for it
            context.enter_context(self.graphs.stream())
            context.callback(self._leave)
            self._begin()
            self._context = context.pop_all()
        return self

    def _records_updates(self) -> bool:
        return self.trainer.optimizer.capturable and not self.trainer.watches_gradients

    def _follow(self) -> None:
        """Begin again with the trainer's optimizer and callbacks, if they are others now."""
        if self._optimizer is self.trainer.optimizer and self.updates is self._records_updates():
            return
        self._take_clock()
        self._optimizer, self.updates = self.trainer.optimizer, self._records_updates()
        self._forget()
        if self._is_built():
            self._start_clock()

    def _begin(self) -> None:
        trainer, xp = self.trainer, self.graphs.xp
        for module in trainer.model.modules():
            module.device_counter = DeviceCounter(xp, module.counter)
        if self._is_built():
            self._start_clock()

    def _is_built(self) -> bool:
        return all(module.built or not module._waits() for module in self.trainer.model.modules())

    def _start_clock(self) -> None:
        """Put the learning rate and the optimizer's step on the device; the parameters exist."""
        optimizer = self.trainer.optimizer
        if self.updates:
            optimizer.clock = clock = self._make_clock(optimizer.bind(self.trainer.model).values)
            clock.steps[...] = optimizer.iterations
        self._rate = None

    def _build(self, x: Any) -> None:
        """Create the parameters of a model that learns the shape of its input from the first batch."""
        model = self.trainer.model
        with no_grad(), eval_mode(model):
            model(*(part[:1] for part in (x if isinstance(x, tuple) else (x,))))
        self._start_clock()

    def __exit__(self, *exception: object) -> None:
        self._context.close()

    def _leave(self) -> None:
        for module in self.trainer.model.modules():
            if module.device_counter is not None:
                module.counter = module.device_counter.value
                module.device_counter = None
        self._take_clock()
        self._forget()  # recordings use the clock and the counters of this block

    def _take_clock(self) -> None:
        self._optimizer.read_clock()
        self._optimizer.clock = None

    def _forget(self) -> None:
        self._captured.forget()
        self._kept = None

    def _run(self, *inputs: Array, **fixed: Any) -> tuple[Array, list[Any]]:
        """Do the work of a step: by a replay, if nothing that it depends on has changed."""
        trainer = self.trainer
        if self._kept is not None and not self._captured.failed and not self._kept.holds_for(trainer):
            self._forget()
        done: tuple[Array, list[Any]] = self._captured(*inputs, **fixed)
        if self._kept is None or not self._captured.replayed:  # what ran may have changed the model, as its first step does
            self._kept = None if self._captured.failed else _Kept(trainer, self.updates)
        return done

    def _batch(self, inputs: tuple[Array, ...], size: int | None, several: bool) -> tuple[Any, Array]:
        """Return the batch (x, y) of a step's arguments."""
        if several:
            *parts, y = inputs
            return tuple(parts), y
        x, y = inputs if self.feed is None or size is None else self.feed.prepare(*inputs, size=size)
        return x, y

    def _work(self, *inputs: Array, size: int | None = None, several: bool = False) -> tuple[Array, list[Any]]:
        """Run what is recorded; return the loss, and the parameters that got a gradient."""
        trainer, optimizer = self.trainer, self.trainer.optimizer
        x, y = self._batch(inputs, size, several)
        iterations = optimizer.iterations
        try:
            loss, prediction = trainer.forward_backward(x, y)
            # A metric that raises does so before the weights are changed.
            count, terms = trainer.measured(x, y, loss, prediction)
            reached = [p for p in trainer.model.flat_parameters.parameters if p.grad is not None]
            if self.updates:
                optimizer.step(trainer.model)
        except BaseException:
            # Of a recording nothing was executed: only the host has to forget it.
            trainer.model.zero_grad()
            optimizer.iterations = iterations
            raise
        for total, term in terms:
            total += term
        trainer.sums.count += count
        return loss, reached

    def _attempt(self, *inputs: Array, **fixed: Any) -> tuple[Array, list[Any]]:
        """Run the work launch by launch; the user's code, which is called here, may raise."""
        self._keep()
        return self._work(*inputs, **fixed)

    def _keep(self) -> None:
        """Keep what an exception puts back."""
        trainer, state = self.trainer, self.trainer.step_state
        state.follow(trainer.model, trainer.optimizer)
        state.keep()
        state.keep_arrays(list(trainer.sums.totals.values()))
        if state.careful and self._is_built():
            state.keep_weights(trainer.model, trainer.optimizer)

    def step(self, x: Any, y: Array) -> Array:
        """Update and measure on one batch; return the loss, an array that the next step overwrites.

        x: an array, or a tuple of them for a model of several inputs, which no feed prepares within the recording.
        """
        self._follow()
        trainer, optimizer, state = self.trainer, self.trainer.optimizer, self.trainer.step_state
        if not trainer.model.training:
            trainer.model.train()
        version = trainer.model._tree_version
        if state.version is not version or state.changes != version.changes or state.optimizer is not optimizer:
            state.follow(trainer.model, optimizer)
        if self.updates and optimizer.clock is None:
            self._build(x)
        if self.updates:
            rate = optimizer.current_learning_rate
            if rate != self._rate:
                optimizer.clock.rate[...] = self._rate = rate
        inputs, fixed = self._arguments(x, y)
        if trainer.accumulate > 1:  # since the block began; not every step updates
            self._forget()
            with self.graphs.stream():
                return trainer._train(*self._batch(inputs, **{"size": None, "several": False, **fixed}))
        iterations, skipped, count = optimizer.iterations, optimizer.skipped, trainer.sums.count
        totals = list(trainer.sums.totals)
        trainer.committing = True  # a Ctrl-C waits for the end of the step, which is a replay
        try:
            if not self.updates and trainer.runs_user_code:  # between a replay of the gradients and the update
                self._keep()
            loss, reached = self._run(*inputs, **fixed)
            if self.updates:
                optimizer.iterations = iterations + 1
            else:
                for parameter in reached:  # a replay does not set them
                    parameter.grad = parameter.buffer
                state.backward = True
                trainer.update()
        except BaseException:
            trainer.sums.count = count
            trainer.sums.restart(totals)
            trainer.undo(iterations, skipped)
            raise
        trainer.sums.count = count + len(x[0] if isinstance(x, tuple) else x)
        trainer.batch += 1
        trainer.iteration += 1
        state.clear()
        trainer.committed()
        return loss

    def _arguments(self, x: Any, y: Array) -> tuple[tuple[Array, ...], dict[str, Any]]:
        """Return the arguments of the work for a batch."""
        if isinstance(x, tuple):
            return (*x, y), {"several": True}
        if self.feed is not None:
            return self.feed.inputs, {"size": len(x)}
        return (x, y), {}
