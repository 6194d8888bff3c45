"""The training loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from xpnet import losses
from xpnet.autograd.tape import no_grad
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array, Device, working_on
from xpnet.layers.execution import executor_of
from xpnet.layers.modes import eval_mode, states_of_its_own
from xpnet.layers.module import Module
from xpnet.optim.loss_scale import LossScale
from xpnet.optim.optimizer import Optimizer
from xpnet.runtime.events import watched
from xpnet.training.arguments import named_metrics, refuse_loss, require_parts
from xpnet.training.callback import Callback
from xpnet.training.checkpointed_segments import Recompute, recomputed, segments_of
from xpnet.training.data_adapter import as_batches, no_batches
from xpnet.training.history import History, Sums
from xpnet.training.interrupt import interruptible
from xpnet.training.not_finite import not_finite
from xpnet.training.progress import Progress

if TYPE_CHECKING:
    from xpnet.data import Batches
    from xpnet.data.device_feed import DeviceFeed

Data = Any


class Trainer:
    """The training loop: shuffled mini-batches, forward, loss, backward, update, and what is measured on the way.

    Args:
        model: a Module.
        loss: a name such as "softmax_cross_entropy", or a function (prediction, target) -> 0-d Tensor.
        optimizer: an Optimizer.
        metrics: names such as "accuracy", or functions (prediction, target) -> mean over the batch.
        callbacks: see xpnet.training.Callback.
        seed: of the order of the examples.
        accumulate: gradients of this many batches are averaged for one update.
        capture: on a GPU, capture the step of `fit` as a CUDA graph and replay it, where that is possible. The launches are the
            same either way. It is captured again after changes of the model, of this Trainer's loss, metrics, optimizer,
            accumulate, and of the attributes of these. Not seen are changes within lists, dicts and other objects that
            they hold, changes of global variables, and what they do on the host: see docs/gpu.md, "What is captured".
        loss_scale: of a float16 model, whose gradients would otherwise be too small for its numbers; None makes one with its
            own defaults. A loss that is not finite is then a skipped update, and an error at the end of the epoch.
        recompute: gradient checkpointing: which parts of the model recompute their activations in the backward pass instead of
            keeping them. True cuts a Sequential of n layers into about sqrt(n) segments; or a list of layers, each by its path
            ("3.body") or its index; or a function (path, layer) -> bool. The bits are the same; see :func:`xpnet.recompute`.

    Attributes:
        history: what `fit` has recorded so far.
        epoch: the current epoch, from 0.
        batch: the batches done in it.
        iteration: the batches done in all.
        stop: set it to True to end `fit` after the current batch.
        last_loss: of the last batch of `fit`: a 0-d array on the device, which the next batch may overwrite.
        batches, checks: the training and the validation data of the current or the last `fit`, as Batches or None.
    """

    def __init__(
        self,
        model: Module,
        *,
        loss: str | Callable[[Any, Any], Any],
        optimizer: Optimizer,
        metrics: Sequence[str | Callable[[Any, Any], Any]] = (),
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
        accumulate: int = 1,
        capture: bool = True,
        loss_scale: LossScale | None = None,
        recompute: Recompute = False,
    ) -> None:
        require_parts(model, optimizer, callbacks)
        if accumulate < 1:
            raise ValueError(f"Trainer: accumulate must be at least 1, got {accumulate}")
        self.model = model
        self.loss = losses.get(loss)
        self.optimizer = optimizer
        if loss_scale is not None or (model.context.dtype == "float16" and optimizer.loss_scale is None):
            optimizer.loss_scale = loss_scale or LossScale()
        self.metrics = named_metrics(metrics)
        self.callbacks = list(callbacks)
        self.seed = seed
        self.accumulate = accumulate
        self.capture = capture
        self.segments = segments_of(model, recompute)
        self.history = History()
        self.epoch = 0
        self.batch = 0
        self.iteration = 0
        self.first_epoch = 0  # of the current fit: a continued one counts its epochs from there
        self.stop = False
        self.last_loss: Any = math.nan
        self.batches: Batches | None = None
        self.checks: Batches | None = None
        self.sums = Sums()
        self._device: Device | None = None  # of the last fit

    def fit(
        self,
        data: Data,
        *,
        validation: Data | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        shuffle: bool = True,
        verbose: bool | None = None,
        resume: Any = None,
    ) -> History:
        """Train for some epochs.

        Args:
            data: (x, y), arrays of N examples each; a Batches; an ImageFolder; or an iterable of batches (x, y) that can be
                run through repeatedly (a list, a function that returns an iterator, a DataLoader of PyTorch). For a model of
                several inputs x is a tuple of arrays.
            validation: the like; measured after every epoch.
            epochs: how often to go through the data.
            batch_size: examples a batch; the last one may be smaller.
            shuffle: draw a new order for every epoch, a function of the seed and the epoch's number.
            verbose: None shows a progress bar on a terminal and one line an epoch elsewhere; False shows nothing.
            resume: "auto" goes on from the newest checkpoint of the Checkpoint callback, if there is one; a path goes on
                from that file. `epochs` then counts from where the interrupted `fit` began.

        Returns:
            The history: "loss", every metric, and both again with "val_" in front. Ctrl-C ends the run after the current
            batch and returns what was measured; press it twice to leave at once.

        Raises:
            NotFiniteError: the loss became NaN or infinite.
            ValueError: the data are of the wrong form, or gave no batch (a generator that is used up).
        """
        from xpnet.data.device_feed import device_feed  # importing xpnet does not import the data

        if not isinstance(epochs, Integral) or epochs < 0:
            raise ValueError(f"epochs must be an integer of at least 0, got {epochs!r}")
        self.batches = batches = as_batches(data, self.model, batch_size, shuffle, self.seed)
        count = None if batches.count is None else len(batches)
        self.checks = None if validation is None else as_batches(validation, self.model, batch_size, False, self.seed)
        self.stop = self.history.interrupted = False
        self.first_epoch = self.epoch
        device = self.model.context.device
        if device is not self._device:
            if self._device is not None:
                self.sums.load_state(self.sums.state())  # the model was moved: add up on its new device
            self._device = device
        if resume is not None:
            from xpnet.training.checkpoint import resume_trainer

            with device:
                resume_trainer(self, resume)
        last = self.first_epoch + epochs
        captured = captured_steps(self)
        train = self._train if captured is None else captured.step
        with (
            contextlib.nullcontext() if device.kind == "cpu" else working_on(device, "fit"),
            interruptible(self),
            Progress(last, count, verbose) as progress,
            captured or contextlib.nullcontext(),
            device_feed(batches, device, captured) as feed,
        ):
            for callback in self.callbacks:
                callback.on_fit_begin(self)
            while self.epoch < last and not self.stop:
                self._epoch(feed, progress, train)
            for callback in self.callbacks:
                callback.on_fit_end(self)
        return self.history

    def _epoch(self, feed: Batches | DeviceFeed, progress: Progress, train: Callable[[Any, Array], Array]) -> None:
        """Do what is left of one epoch: train on its batches, validate, and record both."""
        if self.batch == 0:
            self.sums.clear()
            for callback in self.callbacks:
                callback.on_epoch_begin(self)
        progress.begin(self.epoch, self.batch, self.sums)
        x = y = None
        for x, y in watched(feed.epoch(self.epoch, self.batch), self.model.context.device):
            self.last_loss = train(x, y)
            self.batch += 1
            progress.advance()
            for callback in self.callbacks:
                callback.on_step_end(self)
            for callback in self.callbacks:
                callback.on_checkpoint(self, epoch_ended=False)
            if self.stop:
                return  # an epoch that was cut short is not recorded; a checkpoint continues it
        if self.batch == 0:
            raise ValueError(no_batches(f"epoch {self.epoch + 1}"))
        values = self.sums.means()
        if x is not None and not math.isfinite(values["loss"]):
            raise not_finite(self, x, values["loss"], y)
        if self.checks is not None:
            values.update({f"val_{name}": value for name, value in self._evaluate(self.checks).items()})
        for callback in self.callbacks:
            callback.on_epoch_end(self, values)
        self.history.record(values)
        progress.end(self.epoch, values)
        self.epoch += 1
        self.batch = 0
        for callback in self.callbacks:
            callback.on_checkpoint(self, epoch_ended=True)

    def _train(self, x: Any, y: Array) -> Array:
        """Update on one batch and measure it; return the loss."""
        loss, prediction = self._step(x, y)
        self.add_measurements(x, y, loss, prediction)
        return loss

    def step(self, x: Any, y: Array) -> Array:
        """Update once on one batch. Returns the loss before the update: a 0-d native array on the device.

        x: an array, or a tuple of them for a model that takes several inputs, forward(self, x, z).
        """
        device = self.model.context.device
        if device.kind == "cpu":
            return self._step(x, y)[0]
        with working_on(device, "step"):
            return self._step(x, y)[0]

    def _step(self, x: Any, y: Array) -> tuple[Array, Array]:
        """Update on one batch; return the loss and the predictions, native arrays."""
        if not self.model.training:
            self.model.train()
        loss, prediction = self.forward_backward(x, y)
        self.iteration += 1
        if self.iteration % self.accumulate == 0:
            self.update()
        return loss, prediction

    def forward_backward(self, x: Any, y: Array) -> tuple[Array, Array]:
        """Leave the gradients of one batch in the parameters; return the loss and the predictions."""
        planned = self._planned(x, y)
        if planned is not None:
            return planned
        if self.segments:
            with recomputed(self.segments):
                prediction = _output(self.model, x)
        else:
            prediction = self.model(*x) if type(x) is tuple else self.model(x)
        loss = self.loss(prediction, y)
        if type(loss) is not Tensor or loss.array.ndim:
            refuse_loss(self.loss, loss)
        penalty = self._penalty()
        if penalty is not None:
            loss = loss + penalty
        scale = self.optimizer.loss_scale
        # On a GPU this would wait for the device in every step: the loss is checked once an epoch there.
        if scale is None and self.model.context.device.kind == "cpu" and not math.isfinite(loss.array):
            raise not_finite(self, x, float(loss.array), y)
        if scale is not None:
            scale.backward(loss, 1 / self.accumulate)
        elif self.accumulate == 1:
            loss.backward()
        else:
            (loss * (1 / self.accumulate)).backward()
        return loss.array, _native(prediction)

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
        step.backward()
        return loss, step.logits.copy()

    def _penalty(self) -> Tensor | None:
        """Return the sum of all weight penalties, or None where no parameter has one."""
        total = None
        for parameter in self.model.flat_parameters.regularized:
            term = parameter.regularizer(parameter)
            total = term if total is None else total + term
        return total

    def update(self) -> None:
        """Show the gradients to the callbacks and let the optimizer use them."""
        if self.optimizer.loss_scale is not None:
            self.optimizer.loss_scale.unscale(self.model.flat_parameters)
        for callback in self.callbacks:
            callback.on_before_optimizer_step(self)
        self.optimizer.step(self.model)

    @property
    def watches_gradients(self) -> bool:
        """Whether the host acts between backward and update: a callback on the gradients, or an `update` of a subclass."""
        own = Callback.on_before_optimizer_step
        found = [self.update, *[callback.on_before_optimizer_step for callback in self.callbacks]]
        return any(getattr(method, "__func__", None) not in (own, Trainer.update) for method in found)

    def add_measurements(self, x: Any, y: Array, loss: Array, prediction: Array) -> None:
        """Add the loss and the metrics of one batch to the sums of the epoch."""
        self.sums.add(x, {"loss": loss, **self.measure(prediction, y)})

    def measure(self, prediction: Array, y: Array) -> dict[str, Array]:
        """Return every metric of one batch."""
        values = {name: _native(metric(prediction, y)) for name, metric in self.metrics.items()}
        for name, value in values.items():
            if getattr(value, "ndim", 0):
                raise ValueError(
                    f"the metric {name} returned shape {tuple(value.shape)}, expected a single number: its mean over the batch"
                )
        return values

    def evaluate(self, data: Data, *, batch_size: int = 256) -> dict[str, float]:
        """Return the loss and the metrics over all of `data`, in evaluation mode: {"loss": ..., "accuracy": ...}."""
        return self._evaluate(as_batches(data, self.model, batch_size, False, self.seed))

    def _evaluate(self, batches: Batches) -> dict[str, float]:
        from xpnet.data.device_feed import device_feed

        sums = Sums()
        device = self.model.context.device
        place = contextlib.nullcontext() if device.kind == "cpu" else working_on(device, "evaluate")
        states = states_of_its_own(self.model)
        with place, no_grad(), eval_mode(self.model), states, device_feed(batches, device) as feed:
            for x, y in feed.epoch(0):
                prediction = _output(self.model, x)
                sums.add(x, {"loss": _native(self.loss(prediction, y)), **self.measure(_native(prediction), y)})
        if not sums.count:
            raise ValueError(no_batches("the evaluation"))
        return sums.means()


def captured_steps(trainer: Trainer) -> Any:
    """Return the steps of a Trainer as CUDA graphs (a context), or None where they run launch by launch."""
    if trainer.accumulate > 1 or not trainer.capture:
        return None
    own = (getattr(getattr(trainer, name), "__func__", None) is not getattr(Trainer, name) for name in ("_train", "_step"))
    if any(own):  # a loop of a subclass
        return None
    executor = trainer.model._model_executor or executor_of(trainer.model)
    return executor.capture(trainer)


def _output(model: Module, x: Any) -> Any:
    return model(*x) if type(x) is tuple else model(x)  # a tuple is several inputs


def _native(output: Any) -> Any:
    """Return the native array of a Tensor, or of each in a tuple of outputs."""
    if isinstance(output, (tuple, list)):
        return tuple(_native(part) for part in output)
    return output.array if isinstance(output, Tensor) else output
