"""The steps of a training loop as CUDA graphs: see xpnet.compiled.graph."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xpnet.backend import Array
from xpnet.compiled.dependencies import Loop, StepDependencies, not_counting, owners_in_step, update_is_declared
from xpnet.compiled.device_counter import DeviceCounters
from xpnet.compiled.graph import Captured, Graphs
from xpnet.compiled.trees import Branch, flatten, is_numeric, unflatten
from xpnet.layers.modes import thread_state

if TYPE_CHECKING:
    from xpnet.data.device_feed import DeviceFeed


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
        self._captured = Captured(
            self._work, graphs, "the training step", trainer.model, kind="step", watched=self._not_counting
        )
        self._counters = DeviceCounters(graphs.xp)
        self._kept: StepDependencies | None = None
        self._optimizer = trainer.optimizer
        self._declared = update_is_declared(trainer.optimizer)
        self._iterations = 0  # of the optimizer, before the step
        self._warned = False
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
        return self._declared and not self.trainer.watches_gradients

    def _not_counting(self) -> contextlib.AbstractContextManager[None]:
        return not_counting(owners_in_step(self.trainer, self.updates))

    def _follow(self) -> None:
        """Forget the recordings if a replay would not do what the step does now."""
        if self._kept is not None and not self._captured.failed and not self._kept.holds_for(self.trainer):
            self._forget()
            self._counters.follow(self.trainer.model.modules())
        if self._kept is None:
            self._declared = update_is_declared(self.trainer.optimizer)
        if self._optimizer is self.trainer.optimizer and self.updates is self._records_updates():
            return
        # Another optimizer, or other callbacks.
        self._take_clock()
        self._declared = update_is_declared(self.trainer.optimizer)
        self._optimizer, self.updates = self.trainer.optimizer, self._records_updates()
        self._forget()
        if self._is_built():
            self._start_clock()

    def _begin(self) -> None:
        self._counters.follow(self.trainer.model.modules())
        if self._is_built():
            self._start_clock()

    def _is_built(self) -> bool:
        return all(module.built or not module._waits() for module in self.trainer.model.modules())

    def _start_clock(self) -> None:
        """Put the learning rate and the optimizer's step on the device; the parameters exist."""
        optimizer = self.trainer.optimizer
        if self.updates:
            optimizer.clock = self._make_clock(optimizer.bind(self.trainer.model).values)

    def __exit__(self, *exception: object) -> None:
        self._context.close()

    def _leave(self) -> None:
        self._counters.close()
        self._take_clock()
        self._forget()  # recordings use the clock and the counters of this block

    def _take_clock(self) -> None:
        self._optimizer.read_clock()
        self._optimizer.clock = self._optimizer._on_clock = None

    def _forget(self) -> None:
        self._captured.forget()
        self._kept = None

    def _run(self, *inputs: Array, **fixed: Any) -> tuple[Array, list[Any]]:
        """Do the work of a step: by a replay, if nothing that it depends on has changed."""
        trainer = self.trainer
        if trainer.accumulate > 1:  # since the block began; not every step updates
            self._forget()
            with self.graphs.stream():
                return self._work(*inputs, **fixed)
        done: tuple[Array, list[Any]] = self._captured(*inputs, **fixed)
        if self._kept is None or not self._captured.replayed:  # what ran may have changed the model, as its first step does
            self._counters.follow(trainer.model.modules())  # layers may have been made, or moved, by their first call
            self._kept = None if self._captured.failed else StepDependencies(trainer, self.updates)
        return done

    def _work(self, *inputs: Any, size: int | None = None, form: Branch | None = None) -> tuple[Array, list[Any]]:
        """Run what is recorded; return the loss, and the parameters that got a gradient."""
        trainer, optimizer = self.trainer, self.trainer.optimizer
        if self.updates and optimizer.iterations != self._iterations:  # a recording that was refused counted the step
            optimizer.iterations = self._iterations
            optimizer.clock_ticked()
        x: Any
        if form is not None:
            x, y = unflatten(form, iter(inputs))
        else:
            x, y = inputs if self.feed is None or size is None else self.feed.prepare(*inputs, size=size)
        try:
            loss, prediction = trainer.forward_backward(x, y)
            reached = [p for p in trainer.model.flat_parameters.parameters if p.grad is not None]
            if self.updates and optimizer.clock is None:
                self._start_clock()  # the first batch has created the parameters
            if self.updates and (trainer.iteration + 1) % trainer.accumulate == 0:
                optimizer.step(trainer.model)
            trainer.add_measurements(x, y, loss, prediction)
        except BaseException:
            if thread_state.recording:  # of which nothing was executed
                optimizer.iterations = self._iterations
                optimizer.clock_ticked()
            raise
        return loss, reached

    def _arguments(self, x: Any, y: Any) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of `_work` for a batch. Trees of arrays are prepared by no feed within the recording."""
        leaves: list[Any] = []
        form = flatten((x, y), leaves)
        if len(leaves) > 2 or leaves[0] is not x or leaves[-1] is not y:
            return leaves, {"form": form}
        return (leaves, {}) if self.feed is None else (list(self.feed.inputs), {"size": len(x)})

    def _run_once(self, *inputs: Any, **fixed: Any) -> tuple[Array, list[Any]]:
        """Do the work of a step launch by launch, for a batch that holds something else than arrays."""
        if not self._warned:
            self._warned = True
            part = next(part for part in inputs if not is_numeric(part))
            kind = f"an array of {part.dtype}" if hasattr(part, "dtype") else type(part).__name__
            warnings.warn(
                f"the training step runs launch by launch for batches that hold other things than arrays of numbers: "
                f"got {kind}",
                RuntimeWarning,
                stacklevel=4,
            )
        with self.graphs.stream():
            return self._work(*inputs, **fixed)

    def step(self, x: Any, y: Any) -> Array:
        """Update and measure on one batch; return the loss, an array that the next step overwrites.

        x, y: arrays, or tuples and dicts of them; a tuple x is several inputs.
        """
        trainer, optimizer = self.trainer, self.trainer.optimizer
        if not trainer.model.training:
            trainer.model.train()
        self._follow()
        self._iterations, count = optimizer.iterations, trainer.sums.count
        if self.updates and optimizer.clock is not None:
            optimizer.set_clock()
        inputs, fixed = self._arguments(x, y)
        run = self._run if all(map(is_numeric, inputs)) else self._run_once
        loss, reached = run(*inputs, **fixed)
        trainer.sums.count = count + (fixed.get("size") or len(inputs[0]))
        trainer.iteration += 1
        if trainer.iteration % trainer.accumulate:
            return loss
        if self.updates:
            optimizer.iterations = self._iterations + 1
            optimizer.clock_ticked()
        else:
            for parameter in reached:  # a replay does not set them
                parameter.grad = parameter.buffer
            trainer.update()
        return loss
