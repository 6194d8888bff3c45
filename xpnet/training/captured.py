"""A trainer's steps as CUDA graphs: see xpnet.compiled.graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xpnet.backend import Array
from xpnet.compiled.graph import Captured, Graphs
from xpnet.training.callback import Callback
from xpnet.training.data_adapter import examples_in

if TYPE_CHECKING:
    from xpnet.data.device_feed import DeviceFeed
    from xpnet.training.trainer import Trainer


class Ticks:
    """The counter of a random layer on the device."""

    def __init__(self, xp: Any, value: int) -> None:
        self.array = xp.asarray(value, dtype=xp.uint64)

    def take(self) -> Array:
        """The counter's present value, a 0-d uint64 array of its own; the counter is then one more."""
        step = self.array.copy()
        self.array += 1
        return step

    @property
    def value(self) -> int:
        """The counter on the host (waits for the device)."""
        return int(self.array)

    @value.setter
    def value(self, value: int) -> None:
        self.array[...] = value


class CapturedSteps:
    """A trainer's steps as graphs: forward, loss, backward, update and what is measured, one replay a batch.

    It is a context: within the block the counters of random layers, the learning rate and the optimizer's step
    are on the device. On the host remain the iteration's number and the schedule of the learning rate.

    Args:
        trainer: whose model is on a GPU.
        graphs: what records and replays.
        clock: makes the optimizer's clock: a function of the flat values.
    """

    def __init__(self, trainer: Trainer, graphs: Graphs, clock: Callable[[Array], Any]) -> None:
        self.trainer = trainer
        self.graphs = graphs
        self._make_clock = clock
        self._rate: float | None = None
        self.feed: DeviceFeed | None = None
        self._captured = Captured(self._work, graphs, "the training step")
        # A callback that looks at or changes the gradients runs between backward and update, on the host.
        changed = any(type(c).on_before_optimizer_step is not Callback.on_before_optimizer_step for c in trainer.callbacks)
        self.updates = trainer.optimizer.capturable and not changed

    def __enter__(self) -> CapturedSteps:
        self._context = contextlib.ExitStack()
        self._context.enter_context(self.graphs.stream())
        trainer, xp = self.trainer, self.graphs.xp
        for module in trainer.model.modules():
            module.ticks = Ticks(xp, module.counter)
        if self.updates:
            flat = trainer.optimizer.bind(trainer.model)
            clock = self._make_clock(flat.values)
            clock.steps[...] = trainer.optimizer.iterations
            trainer.optimizer.clock = clock
        self._rate = None
        return self

    def __exit__(self, *exception: object) -> None:
        for module in self.trainer.model.modules():
            if module.ticks is not None:
                module.counter = module.ticks.value
                module.ticks = None
        self.trainer.optimizer.read_clock()
        self.trainer.optimizer.clock = None
        self._captured.forget()  # it used the clock and the counters of this block
        self._context.close()

    def _work(self, *inputs: Array, size: int | None = None, several: bool = False) -> tuple[Array, list[Any]]:
        """What is recorded. Returns the loss, and the parameters that got a gradient."""
        trainer = self.trainer
        x: Any
        if several:
            *parts, y = inputs
            x = tuple(parts)
        else:
            x, y = inputs if self.feed is None or size is None else self.feed.prepare(*inputs, size=size)
        loss, prediction = trainer.forward_backward(x, y)
        reached = [p for p in trainer.model.flat_parameters.parameters if p.grad is not None]
        if self.updates:
            trainer.optimizer.step(trainer.model)
        trainer.sums.add(examples_in(x), {"loss": loss, **trainer.measure(prediction, y)})
        return loss, reached

    def step(self, x: Any, y: Array) -> Array:
        """One batch: update and measurement. Returns the loss, an array that the next step overwrites.

        x: an array, or a tuple of them for a model of several inputs, which no feed prepares within the recording.
        """
        trainer, optimizer = self.trainer, self.trainer.optimizer
        if not trainer.model.training:
            trainer.model.train()
        iterations, count = optimizer.iterations, trainer.sums.count
        if self.updates:
            rate = optimizer.current_learning_rate
            if rate != self._rate:
                optimizer.clock.rate[...] = self._rate = rate
        if isinstance(x, tuple):
            loss, reached = self._captured(*x, y, several=True)
        elif self.feed is not None:
            loss, reached = self._captured(*self.feed.inputs, size=len(x))
        else:
            loss, reached = self._captured(x, y)
        trainer.sums.count = count + examples_in(x)
        trainer.iteration += 1
        if self.updates:
            optimizer.iterations = iterations + 1
        else:
            for parameter in reached:  # where it was replayed, nobody has said so
                parameter.grad = parameter.buffer
            trainer.update()
        return loss


def captured_steps(trainer: Trainer) -> CapturedSteps | None:
    """Captured steps for a trainer, or None where its steps run launch by launch: on a CPU, with accumulated gradients, or
    with a Module that says it is not `capturable`."""
    model = trainer.model
    if model.context.device.kind != "cuda" or trainer.accumulate > 1 or not trainer.capture:
        return None
    if not all(module.capturable for module in model.modules()):
        return None
    import cupy

    from xpnet.accel.cupy.optimizers import DeviceSchedule
    from xpnet.compiled.cuda_graph import CudaGraphs

    return CapturedSteps(trainer, CudaGraphs(model.context.device), lambda values: DeviceSchedule.new(cupy, values))
