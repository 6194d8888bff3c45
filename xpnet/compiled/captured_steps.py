"""The steps of a training loop as CUDA graphs: see xpnet.compiled.graph."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod, WeakSet

from xpnet.backend import Array
from xpnet.compiled.dependencies import Loop, StepDependencies, reached_in_step, update_is_declared
from xpnet.compiled.derived import HostNumberError
from xpnet.compiled.device_counter import DeviceCounters
from xpnet.compiled.graph import Captured, Graphs, RecordAgainError, called
from xpnet.compiled.owners import Owner, Place, StaleValueError, hidden
from xpnet.compiled.reach import Reached
from xpnet.compiled.trees import Branch, flatten, is_numeric, unflatten
from xpnet.layers.modes import thread_state
from xpnet.optim.loss_scale import LossScale

if TYPE_CHECKING:
    from xpnet.data.device_feed import DeviceFeed


# What changes on the host, of a Trainer: from step to step, and from epoch to epoch.
_OF_A_STEP = ("iteration", "batch", "pending", "last_loss")
_OF_AN_EPOCH = ("epoch", "history")


_active: WeakSet[CapturedSteps] = WeakSet()
"""Those whose block is entered."""


class CapturedSteps:
    """The steps of a training loop as graphs: forward, loss, backward, update and measurement, one replay for each batch.

    Steps are recorded again when something has changed that they depend on: see xpnet.compiled.dependencies.

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
        self.feed: DeviceFeed | None = None
        # Weakly: with a reference to itself the model, which the trainer holds, would wait for the garbage collector.
        work, attempt, watched = (called(WeakMethod(method)) for method in (self._work, self._attempt, self._recorded))
        self._captured = Captured(
            work,
            graphs,
            "the training step",
            trainer.model,
            kind="step",
            watched=watched,
            direct=attempt,
            reached=called(WeakMethod(self._reached)),
        )
        self._counters = DeviceCounters(graphs.xp)
        self._kept: StepDependencies | None = None
        self._optimizer = trainer.optimizer
        self._declared = update_is_declared(trainer.optimizer)
        self._iterations = 0  # of the optimizer, before the step
        self._warned = False
        self._by_epoch = False  # whether the user's code uses the number of the epoch
        self.updates = self._records_updates()

    def __enter__(self) -> CapturedSteps:
        with contextlib.ExitStack() as context:  # which ends the block again where the device has no memory for it
            context.enter_context(self.graphs.stream())
            for other in [other for other in _active if other._shares_with(self)]:  # a fit within a callback of another one
                other._suspend()
            _active.add(self)
            context.callback(self._leave)
            self._begin()
            self._context = context.pop_all()
        return self

    def _records_updates(self) -> bool:
        return self._declared and not self.trainer.watches_gradients

    def _reached(self) -> Reached:
        found = reached_in_step(self.trainer, self.updates)
        owners = [owner for owner in found.owners if type(owner.thing) is not LossScale]  # makes its arrays at first use
        return found._replace(owners=owners)

    def _hidden(self, places: Callable[[], list[Place]]) -> AbstractContextManager[None]:
        """Return a context in which code that uses one of these numbers of the host is not recorded."""
        return hidden(places(), "which changes on the host") if thread_state.recording else nullcontext()

    def _of_the_loop(self) -> list[Place]:
        """Return the numbers of the loop that change from step to step, and from epoch to epoch."""
        loop = Owner(self.trainer)
        found = [(loop, name) for name in (_OF_A_STEP if self._by_epoch else (*_OF_A_STEP, *_OF_AN_EPOCH))]
        return [*found, (Owner(self.trainer.sums), "count")]

    def _of_the_optimizer(self) -> list[Place]:
        """Return the numbers of the optimizer that do: its own update has them on the device."""
        optimizer = Owner(self.trainer.optimizer)
        return [(optimizer, name) for name in ("learning_rate", "factor", "_iterations", "_skipped")]

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        """Forget on the host what a recording has done that is refused: nothing of it was executed."""
        try:
            yield
        except StaleValueError as error:
            self._forget_work()
            if error.owner is self.trainer and error.name in _OF_AN_EPOCH:
                self._by_epoch = True
                raise RecordAgainError from error
            raise
        except BaseException:
            self._forget_work()
            raise

    def _forget_work(self) -> None:
        """Forget the gradients and the step of an optimizer that did not happen."""
        optimizer = self.trainer.optimizer
        self.trainer.model.zero_grad()
        optimizer._iterations = self._iterations
        optimizer.clock_ticked()

    def _follow(self) -> None:
        """Set the clock, and forget the recordings if a replay would not do what the step does now."""
        if self.updates and self.trainer.optimizer.clock is not None:
            self.trainer.optimizer.set_clock()  # a schedule may set other things, too
        if self._kept is not None and not self._captured.failed and not self._kept.holds_for(self.trainer):
            self._forget()
            self._counters.follow(self.trainer.model.modules())
            self._follow_optimizer()

    def _follow_optimizer(self) -> None:
        """Forget the recordings for another optimizer, or other callbacks."""
        if self._kept is None:
            self._declared = update_is_declared(self.trainer.optimizer)
        if self._optimizer is self.trainer.optimizer and self.updates is self._records_updates():
            return
        self._take_clock()
        self._declared = update_is_declared(self.trainer.optimizer)
        self._optimizer, self.updates = self.trainer.optimizer, self._records_updates()
        self._forget()
        if self.trainer.model._is_built():
            self._start_clock()

    def _begin(self) -> None:
        self._counters.follow(self.trainer.model.modules())
        if self.trainer.model._is_built():
            self._start_clock()

    def _start_clock(self) -> None:
        """Put the learning rate and the optimizer's step on the device; the parameters exist."""
        optimizer = self.trainer.optimizer
        values = optimizer.bind(self.trainer.model).values if self.updates else None
        if values is not None:  # otherwise nothing is trained, which the first step refuses
            optimizer.clock = self._make_clock(values)

    def __exit__(self, *exception: object) -> None:
        self._context.close()

    def _leave(self) -> None:
        _active.discard(self)
        self._suspend()

    def _suspend(self) -> None:
        """Give the counters and the clock back to the host; the next step takes them again."""
        self._counters.close()
        self._take_clock()
        self._forget()  # recordings use the clock and the counters of this block

    def _shares_with(self, other: CapturedSteps) -> bool:
        """Return whether two loops train the same layers, or with the same optimizer."""
        mine, theirs = ({id(m) for m in steps.trainer.model.modules()} for steps in (self, other))
        return self._optimizer is other._optimizer or not mine.isdisjoint(theirs)

    def _take_clock(self) -> None:
        self._optimizer.read_clock()
        self._optimizer.clock = self._optimizer._on_clock = None

    def _forget(self) -> None:
        self._captured.forget()
        self._kept = None

    def _run(self, *inputs: Array, **fixed: Any) -> tuple[Array, list[Any], int]:
        """Do the work of a step: by a replay, if nothing that it depends on has changed."""
        trainer = self.trainer
        done: tuple[Array, list[Any], int] = self._captured(*inputs, **fixed)
        if self._captured.replayed and self._captured.assigned and self._kept is not None:
            self._kept = self._dependencies()  # what the loss keeps is that of another recording
        if self._kept is None or not self._captured.replayed:  # what ran may have changed the model, as its first step does
            self._counters.follow(trainer.model.modules())  # layers may have been made, or moved, by their first call
            self._kept = None if self._captured.failed else self._dependencies()
        return done

    def _dependencies(self) -> StepDependencies:
        return StepDependencies(self.trainer, self.updates, self._by_epoch)

    def _batch(self, inputs: tuple[Any, ...], size: int | None = None, form: Branch | None = None) -> tuple[Any, Any]:
        """Return the batch (x, y) of the arguments of `_work`."""
        if form is not None:
            x, y = unflatten(form, iter(inputs))
        else:
            x, y = inputs if self.feed is None or size is None else self.feed.prepare(*inputs, size=size)
        return x, y

    def _work(self, *inputs: Any, **fixed: Any) -> tuple[Array, list[Any], int]:
        """Run what is recorded; return the loss, the parameters that got a gradient, and the number of examples."""
        with self._hidden(self._of_the_loop):
            return self._step(*self._batch(inputs, **fixed))

    def _step(self, x: Any, y: Any) -> tuple[Array, list[Any], int]:
        trainer, optimizer = self.trainer, self.trainer.optimizer
        with self._hidden(self._of_the_optimizer):
            loss, prediction = trainer.forward_backward(x, y)
            # A metric that raises does so before the weights are changed.
            count, terms = trainer.measured(x, y, loss, prediction)
        if thread_state.recording:
            self._require_device(loss, terms)
        reached = [p for p in trainer.model.flat_parameters.parameters if p.grad is not None]
        if self.updates:
            if optimizer.clock is None:
                self._start_clock()  # the first batch has created the parameters
            trainer.update()
        trainer.sums.add_terms(count, terms)
        return loss, reached, count

    def _require_device(self, loss: Array, terms: list[tuple[Any, Any]]) -> None:
        """Raise an error for a metric that is computed on the host."""
        on_host = [total for total, _ in terms if type(total) is not type(loss)]
        for name, total in self.trainer.sums.totals.items():
            if any(total is other for other in on_host):
                raise HostNumberError(f"the metric {name} returned an array on the host")

    def _attempt(self, *inputs: Any, **fixed: Any) -> tuple[Array, list[Any], int]:
        """Run the work launch by launch; the user's code, which is called here, may raise."""
        self._keep()
        try:
            return self._work(*inputs, **fixed)
        except BaseException:
            self._forget_work()
            raise

    def _keep(self) -> None:
        """Keep what an exception puts back."""
        trainer, state = self.trainer, self.trainer.step_state
        trainer.follow_model()
        state.keep()
        state.keep_arrays(list(trainer.sums.totals.values()))
        if trainer.optimizer.clock is not None:
            state.keep_arrays([trainer.optimizer.clock.steps])
        if state.careful and self.trainer.model._is_built():
            state.keep_weights(trainer.model, trainer.optimizer)

    def _arguments(self, x: Any, y: Any) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of `_work` for a batch. Trees of arrays are prepared by no feed within the recording."""
        leaves: list[Any] = []
        form = flatten((x, y), leaves)
        if len(leaves) > 2 or leaves[0] is not x or leaves[-1] is not y:
            return leaves, {"form": form}
        return (leaves, {}) if self.feed is None else (list(self.feed.inputs), {"size": len(x)})

    def _gradients_left(self) -> bool:
        """Return whether the user's code has left gradients, to which those of this step are added: no recording does that."""
        known = self.trainer.model.parameters().values() if self._kept is None else self._kept.trained
        return any(parameter.grad is not None for parameter in known)

    def _run_once(self, *inputs: Any, **fixed: Any) -> tuple[Array, list[Any], int]:
        """Do the work of a step launch by launch, with a warning where it holds something else than arrays."""
        part = next((part for part in inputs if not is_numeric(part)), None)
        if part is not None and not self._warned:
            self._warned = True
            kind = f"an array of {part.dtype}" if hasattr(part, "dtype") else type(part).__name__
            warnings.warn(
                f"the training step runs launch by launch for batches that hold other things than arrays of numbers: "
                f"got {kind}",
                RuntimeWarning,
                stacklevel=4,
            )
        with self.graphs.stream():
            return self._attempt(*inputs, **fixed)

    def step(self, x: Any, y: Any) -> Array:
        """Update and measure on one batch; return the loss, an array that the next step overwrites.

        x, y: arrays, or tuples and dicts of them; a tuple x is several inputs.
        """
        trainer, optimizer, state = self.trainer, self.trainer.optimizer, self.trainer.step_state
        if not trainer.model.training:
            trainer.model._train_again()
        self._follow_optimizer()
        version = trainer.model._tree_version
        if state.version is not version or state.changes != version.changes or state.optimizer is not optimizer:
            trainer.follow_model()
        inputs, fixed = self._arguments(x, y)
        if trainer.accumulate > 1 or trainer.pending:  # since the block began; not every step updates
            self._forget()
            with self.graphs.stream():
                self._keep()
                loss: Array = trainer._train(*self._batch(tuple(inputs), **fixed))
                return loss
        self._iterations, skipped, has_clock = optimizer._iterations, optimizer._skipped, optimizer.clock is not None
        totals = list(trainer.sums.totals)
        trainer.committing = True  # a Ctrl-C waits for the end of the step, which is a replay
        try:
            self._follow()
            self._iterations, skipped, has_clock = optimizer._iterations, optimizer._skipped, optimizer.clock is not None
            run = self._run if all(map(is_numeric, inputs)) and not self._gradients_left() else self._run_once
            if not self.updates and trainer.runs_user_code:  # between a replay of the gradients and the update
                self._keep()
            loss, reached, count = run(*inputs, **fixed)
            if self.updates:
                optimizer._iterations = self._iterations + 1
                optimizer.clock_ticked()
            else:
                for parameter in reached:  # a replay does not set them
                    parameter.grad = parameter.buffer
                state.backward = True
                trainer.update()
        except BaseException:
            trainer.sums.restart(totals)
            trainer.undo(self._iterations, skipped)
            if has_clock:
                optimizer.clock_ticked()
            else:
                optimizer.clock = optimizer._on_clock = None  # the step began it
            raise
        trainer.sums.count += count
        trainer.batch += 1
        trainer.iteration += 1
        state.clear()
        trainer.committed()
        return loss
