"""The steps of a training loop: forward, loss, backward, update and measurement of one batch, wholly or not at all."""

from __future__ import annotations

import math
from typing import Any

from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array, working_on
from xpnet.layers.execution import executor_of
from xpnet.layers.module import Module
from xpnet.optim.optimizer import Optimizer
from xpnet.runtime.settings import Checked
from xpnet.training.arguments import refuse_loss, refuse_metric
from xpnet.training.callback import changes_gradients, watches_gradients
from xpnet.training.checkpointed_segments import Segments, recomputed
from xpnet.training.first_look import first_loss
from xpnet.training.history import Sums
from xpnet.training.not_finite import not_finite
from xpnet.training.step_state import StepState, counter_of, of_a_user


class Steps(Checked):
    """The part of a Trainer that does one step; see there for its attributes."""

    model: Module
    loss: Any
    optimizer: Optimizer
    metrics: dict[str, Any]
    callbacks: list[Any]
    accumulate: int
    shared_by: int  # of how many batches the pending gradients are shares
    segments: Segments
    sums: Sums
    epoch: int
    batch: int
    iteration: int
    pending: int
    committing: bool
    interrupt_waits: BaseException | None
    step_state: StepState
    _batches_of_epoch: int | None

    def _train(self, x: Any, y: Array) -> Array:
        """Update on one batch of an epoch and measure it; return the loss, a 0-d native array."""
        return self._step(x, y, within_epoch=True)[0]

    def step(self, x: Any, y: Array) -> Array:
        """Update once on one batch. Returns the loss before the update: a 0-d native array on the device.

        x: an array, or a tuple of them for a model that takes several inputs, forward(self, x, z).
        """
        device = self.model.context.device
        if device.kind == "cpu":
            return self._step(x, y)[0]
        with working_on(device, "step"):
            return self._step(x, y)[0]

    def _step(self, x: Any, y: Array, within_epoch: bool = False) -> tuple[Array, Array]:
        """Update on one batch, and within an epoch measure it, wholly or not at all; return the loss and the predictions."""
        model, optimizer, state = self.model, self.optimizer, self.step_state
        if not model.training:
            model._train_again()
        if self.shared_by != self.accumulate:
            self._share_again()
        version = model._tree_version
        if state.version is not version or state.changes != version.changes or state.optimizer is not optimizer:
            self.follow_model()
        iterations, skipped = optimizer._iterations, optimizer._skipped
        state.counters, state.guards = None, True
        try:
            loss, prediction = self.forward_backward(x, y)
            count, terms = self.measured(x, y, loss, prediction) if within_epoch else (0, ())
            pending = self.pending + 1
            if pending >= self.accumulate or (within_epoch and self.batch + 1 == self._batches_of_epoch):
                self._update(pending)
                pending = 0
            self.committing = True
            if within_epoch:
                self.sums.add_terms(count, terms)
                self.sums.count += count
                self.batch += 1
            self.iteration += 1
            self.pending = pending
        except BaseException:
            self.undo(iterations, skipped)
            raise
        state.guards = state.backward = False
        if state.holds:
            state.clear()
        self.committing = False
        if self.interrupt_waits is not None:
            self.committed()
        return loss, prediction

    def _share_again(self) -> None:
        """Make the gradients of pending batches shares of another `accumulate`: those batches count in the next update."""
        flat = self.model.flat_parameters
        flat.collect()
        if self.pending and flat.values is not None:
            flat.gradients *= self.shared_by / self.accumulate
        self.shared_by = self.accumulate

    def undo(self, iterations: int, skipped: int) -> None:
        """Put back what a step has changed that raised."""
        self.committing = True
        try:
            self.step_state.restore(self.model, self.optimizer)
            self.optimizer._iterations, self.optimizer._skipped = iterations, skipped
        finally:
            self.step_state.clear()
            self.committing, self.interrupt_waits = False, None

    def committed(self) -> None:
        """Let an interrupt through that came while the weights were being changed."""
        self.committing = False
        waits, self.interrupt_waits = self.interrupt_waits, None
        if waits is not None:
            raise waits

    def _update_pending(self) -> None:
        """Update from the last batches of an epoch, fewer than `accumulate`: of a stream, whose end is not known before."""
        optimizer, state = self.optimizer, self.step_state
        if self.shared_by != self.accumulate:
            self._share_again()
        iterations, skipped = optimizer._iterations, optimizer._skipped
        state.counters, state.backward, state.guards = None, True, True
        state.keep_gradients(self.model.flat_parameters)
        try:
            self._update(self.pending)
            self.pending = 0
        except BaseException:
            self.undo(iterations, skipped)
            raise
        state.clear()
        self.committed()

    def forward_backward(self, x: Any, y: Array) -> tuple[Array, Array]:
        """Leave the gradients of one batch in the parameters; return the loss and the predictions."""
        planned = self._planned(x, y)
        if planned is not None:
            return planned
        state = self.step_state
        if state.guards:
            state.counters = list(map(counter_of, state.tables))
            if state.keeps:
                state.keep(counters=False)
        if self.segments:
            with recomputed(self.segments):
                prediction = output_of(self.model, x)
        else:
            prediction = self.model(*x) if type(x) is tuple else self.model(x)
        loss = first_loss(self, prediction, y) if state.unseen else self.loss(prediction, y)
        if type(loss) is not Tensor or loss.array.ndim:
            refuse_loss(self.loss, loss)
        penalty = self.model.flat_parameters.penalty()
        if penalty is not None:
            loss = loss + penalty
        scale = self.optimizer.loss_scale
        # On a GPU this would wait for the device in every step: the loss is checked once an epoch there.
        if scale is None and self.model.context.device.kind == "cpu" and not math.isfinite(loss.array):
            raise not_finite(self, x, float(loss.array), y)
        if state.guards:
            state.backward = True
            for parameter in state.parameters:
                if parameter.grad is not None:
                    state.keep_gradients(self.model.flat_parameters)
                    break
        if scale is not None:
            scale.backward(loss, 1 / self.accumulate)
        elif self.accumulate == 1:
            loss.backward()
        else:
            (loss * (1 / self.accumulate)).backward()
        return loss.array, native(prediction)

    def _planned(self, x: Any, y: Array) -> tuple[Array, Array] | None:
        """Do `forward_backward` with the executor's step for such batches, or return None."""
        if self.segments or self.accumulate > 1 or self.optimizer.loss_scale is not None:
            return None
        executor = self.model._model_executor or executor_of(self.model)
        step = executor.step(self.model, self.loss, x, y)
        loss = None if step is None else step.forward(x, y)
        if step is None or loss is None:
            return None
        if not math.isfinite(loss):
            raise not_finite(self, x, float(loss), y)
        self.step_state.backward = True
        step.backward()
        return loss, step.logits.copy()

    def _update(self, batches: int) -> None:
        """Update from the gradients of `batches` batches: fewer than `accumulate`, or more where that was changed."""
        model, state = self.model, self.step_state
        if batches != self.accumulate:
            flat = model.flat_parameters
            flat.collect()
            if flat.values is not None:
                flat.gradients *= self.accumulate / batches  # each batch has added a share of 1 / accumulate
        if state.careful:
            state.keep_weights(model, self.optimizer)
        self.update()

    def update(self) -> None:
        """Show the gradients to the callbacks and let the optimizer use them."""
        model, optimizer = self.model, self.optimizer
        if optimizer.loss_scale is not None:
            optimizer.loss_scale.unscale(model.flat_parameters)
        for callback in self.callbacks:
            callback.on_before_optimizer_step(self)
        if self.step_state.guards and not self.step_state.careful:
            self.committing = True  # what is half done could not be undone
        optimizer.step(model)

    def follow_model(self) -> None:
        """Look at a model that has changed, or at another optimizer, to know what a step changes."""
        self.step_state.follow(self.model, self.optimizer, careful=self._has_own_update())

    @property
    def runs_user_code(self) -> bool:
        """Whether code outside this package runs between the backward pass and the end of the update, and may raise."""
        rate = self.optimizer.learning_rate
        schedule = callable(rate) and not getattr(rate, "__module__", "").startswith("xpnet.")
        watching = [c for c in self.callbacks if watches_gradients(c)]
        return schedule or self.step_state.careful or any(of_a_user(c, "on_before_optimizer_step") for c in watching)

    @property
    def watches_gradients(self) -> bool:
        """Whether the host acts between backward and update: a callback on the gradients, or an `update` of a subclass."""
        return self._has_own_update() or any(map(watches_gradients, self.callbacks))

    @property
    def recorded_callbacks(self) -> list[Any]:
        """The callbacks whose work on the gradients is a part of a recorded step."""
        return [callback for callback in self.callbacks if changes_gradients(callback)]

    def _has_own_update(self) -> bool:
        return getattr(self.update, "__func__", None) is not Steps.update

    def measured(self, x: Any, y: Array, loss: Array, prediction: Array) -> tuple[int, list[tuple[Any, Any]]]:
        """Return what the loss and the metrics of one batch add to the sums of the epoch: see `Sums.terms`."""
        return self.sums.terms(x, {"loss": loss, **self.measure(prediction, y)})

    def measure(self, prediction: Array, y: Array) -> dict[str, Array]:
        """Return every metric of one batch."""
        values = {name: native(metric(prediction, y)) for name, metric in self.metrics.items()}
        for name, value in values.items():
            if getattr(value, "ndim", 0) or (not hasattr(value, "dtype") and type(value) not in (float, int, bool)):
                refuse_metric(name, value)
        return values


def output_of(model: Module, x: Any) -> Any:
    """Run the forward pass."""
    return model(*x) if type(x) is tuple else model(x)  # a tuple is several inputs


def native(output: Any) -> Any:
    """Return the native array of a Tensor, or of each in a tuple or dict of outputs."""
    if isinstance(output, dict):
        return {name: native(part) for name, part in output.items()}
    if isinstance(output, (tuple, list)):
        return tuple(native(part) for part in output)
    return output.array if isinstance(output, Tensor) else output
