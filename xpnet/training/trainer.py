"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

from xpnet import losses
from xpnet.autograd.tape import no_grad
from xpnet.backend import Array, Device, working_on
from xpnet.layers.execution import executor_of
from xpnet.layers.modes import eval_mode, states_of_its_own
from xpnet.layers.module import Module
from xpnet.optim.loss_scale import LossScale
from xpnet.optim.optimizer import Optimizer
from xpnet.runtime.events import watched
from xpnet.runtime.given import as_pair
from xpnet.runtime.messages import quoted
from xpnet.runtime.overrides import is_own
from xpnet.runtime.peers import ON_TRAINER, missing_attribute
from xpnet.runtime.refused import refused_attribute
from xpnet.runtime.settings import Converted, checked
from xpnet.training.arguments import (
    check_methods,
    named_metrics,
    refuse_loss,
    required_callbacks,
    required_count,
    required_model,
    required_optimizer,
    required_seed,
    required_switch,
)
from xpnet.training.callback import Callback, tell
from xpnet.training.checkpointed_segments import Recompute, segments_of
from xpnet.training.data_adapter import as_batches, build, no_batches, refuse_unused
from xpnet.training.final_weights import SetAside, leave_weights
from xpnet.training.history import History, Sums
from xpnet.training.interrupt import interruptible
from xpnet.training.not_finite import NotFiniteError, lost_epoch
from xpnet.training.progress import Progress
from xpnet.training.run import begin_callbacks, continue_epoch, end_callbacks, take_callbacks
from xpnet.training.step_state import StepState
from xpnet.training.steps import Steps, native, output_of

if TYPE_CHECKING:
    from xpnet.data import Batches
    from xpnet.data.device_feed import DeviceFeed

Data = Any


class Trainer(Steps):
    """The training loop: shuffled mini-batches, forward, loss, backward, update, and what is measured on the way.

    Args:
        model: a Module.
        loss: a name such as "softmax_cross_entropy", or a function (prediction, target) -> 0-d Tensor.
        optimizer: an Optimizer.
        metrics: names such as "accuracy", or functions (prediction, target) -> mean over the batch.
        callbacks: see xpnet.training.Callback.
        seed: of the order of the examples.
        accumulate: gradients of this many batches are averaged for one update; of fewer at the end of an epoch, where they are
            what is left.
        capture: on a GPU, capture the step of `fit` as a CUDA graph and replay it, where that is possible. The launches are the
            same either way. It is captured again after changes of the model, of this Trainer's loss, metrics, optimizer,
            accumulate, and of what these hold and mention. Not seen is what such code does on the host beside: see
            docs/gpu.md, "What is captured".
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
        pending: the batches whose gradients wait for an update, with `accumulate`.
        stop: set it to True to end `fit` after the current batch.
        error: in `on_fit_end`, the exception that ends the run; None: there was none.
        last_loss: of the last batch of `fit`: a 0-d array on the device, which the next batch may overwrite.
        batches, checks: the training and the validation data of the current or the last `fit`, as Batches or None.
    """

    # Also what is set later is converted, or refused.
    model = Converted(required_model)
    loss = Converted(losses.get)
    optimizer = Converted(required_optimizer)
    metrics = Converted(named_metrics)
    callbacks = Converted(required_callbacks)
    seed = Converted(required_seed)
    accumulate = Converted(required_count)
    capture = Converted(required_switch)
    if not TYPE_CHECKING:  # mypy would know every attribute
        __getattr__ = missing_attribute

    def __init__(
        self,
        model: Module,
        *,
        loss: str | Callable[[Any, Any], Any],
        optimizer: Optimizer,
        metrics: str | Sequence[str | Callable[[Any, Any], Any]] = (),
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
        accumulate: int = 1,
        capture: bool = True,
        loss_scale: LossScale | None = None,
        recompute: Recompute = False,
    ) -> None:
        self.accumulate = self.shared_by = accumulate
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        if loss_scale is not None or (model.context.dtype == "float16" and optimizer.loss_scale is None):
            optimizer.loss_scale = loss_scale or LossScale()
            optimizer.loss_scale.belong_to(optimizer)
        self.metrics = metrics
        self.callbacks = callbacks
        self.seed = seed
        self.capture = capture
        self.recompute = recompute
        self.history = History()
        self.epoch = 0
        self.batch = 0
        self.iteration = 0
        self.pending = 0
        self.first_epoch = 0  # of the current fit: a continued one counts its epochs from there
        self.stop = False
        self.error: BaseException | None = None
        self.last_loss: Any = math.nan
        self.batches: Batches | None = None
        self.checks: Batches | None = None
        self.sums = Sums()
        self.epoch_data: Any = None  # the Batches of the epoch that is going on, or how a checkpoint describes them
        self.run_id: Any = object()  # what callbacks note, to tell another run
        self.committing = False  # whether the weights are being changed: an interrupt waits
        self.interrupt_waits: BaseException | None = None  # the interrupt
        self._batches_of_epoch: int | None = None
        self._device: Device | None = None  # of the last fit
        self.step_state = StepState()
        self.set_aside: SetAside | None = None  # the weights with which a run that was cut short goes on
        self._trained: Module | None = None  # by the last fit
        check_methods(self)

    @checked
    def fit(
        self,
        data: Data,
        *,
        validation: Data | None = None,
        epochs: int = 1,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        verbose: bool | None = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for some epochs.

        Args:
            data: (x, y), arrays of N examples each, or tables and series of pandas and the like, by position; a Batches; an
                ImageFolder; or an iterable of batches (x, y) that can be run through repeatedly (a list, a function that
                returns an iterator and may take `epoch`, a DataLoader of PyTorch). For a model of several inputs x is a tuple
                of arrays.
            validation: the like; measured after every epoch.
            epochs: how often to go through the data.
            batch_size: examples a batch, 32 if not given; the last one may be smaller. Data in batches have their own.
            shuffle: draw a new order for every epoch, a function of the seed and the epoch's number: yes if not given. Data
                that come in batches have their own.
            verbose: None shows a progress bar on a terminal and one line an epoch elsewhere; False shows nothing.
            resume: "auto" goes on from the newest checkpoint of the Checkpoint callback, if there is one; a path goes on
                from that file, or from the newest one in that folder (of checkpoints, or of a
                run). `epochs` then counts from where the interrupted `fit` began.

        An epoch that was cut short (by `stop`, Ctrl-C or an exception) is continued by the next `fit` on the same data with the
        same batch size; on others a new epoch begins. An exception leaves weights, optimizer, gradients, random counters and
        position as before the batch, or as after it, and `on_fit_end` of the callbacks is called.

        Returns:
            The history: "loss", every metric, and both again with "val_" in front. Ctrl-C ends the run after the current
            batch and returns what was measured; press it twice to leave at once.

        Raises:
            NotFiniteError: the loss became NaN or infinite.
            ValueError: the data are of the wrong form, or gave no batch (a generator that is used up), or come in batches of
                their own where `batch_size` or `shuffle` is given; the optimizer holds the state of another model; a callback
                watches a value that this run does not record.
        """
        from xpnet.data.device_feed import device_feed  # importing xpnet does not import the data

        if not isinstance(epochs, Integral) or epochs < 0:
            raise ValueError(f"epochs must be an integer of at least 0, got {quoted(epochs)}")
        batches = as_batches(data, self.model, batch_size, shuffle, self.seed)
        count = None if batches.count is None else len(batches)
        self.checks = None
        if validation is not None:
            self.checks = as_batches(validation, self.model, batch_size, False, self.seed, "validation")
        if batches is data or batches.batch_size is None:
            checked_too = self.checks is not None and self.checks is not validation and self.checks.batch_size is not None
            refuse_unused("fit", data, batches, batch_size, shuffle, checked_too)
        self.batches = batches
        self.stop = self.history.interrupted = self.history.averaged = False
        self.history.restored = None
        self.history.measured = True
        self.first_epoch = self.epoch
        device = self.model.context.device
        if device is not self._device:
            if self._device is not None:
                self.sums.load_state(self.sums.state())  # the model was moved: add up on its new device
            self._device = device
        if self._trained is not self.model:
            self.optimizer.require_own(self.model)
            if self._trained is not None:
                self.run_id = object()
            self._trained = self.model
        if self.callbacks:
            take_callbacks(self)
        if resume is not None:
            from xpnet.training.checkpoint_folder import resume_trainer

            with device:
                build(self.model, batches)
                resume_trainer(self, resume)
        if self.batch or self.set_aside:
            continue_epoch(self, batches, resumed=resume is not None)
            self.set_aside = None
        for callback in self.callbacks:
            callback.check_run(self)
        last = self.first_epoch + epochs
        captured = captured_steps(self)
        train = self._train if captured is None else captured.step
        self._batches_of_epoch = count
        with (
            contextlib.nullcontext() if device.kind == "cpu" else working_on(device, "fit"),
            interruptible(self),
            captured or contextlib.nullcontext(),
            device_feed(batches, device, captured) as feed,
            Progress(last, count, verbose) as progress,
        ):
            began: list[Callback] = []
            try:
                if self.callbacks:
                    begin_callbacks(self, began)
                while self.epoch < last and not self.stop:
                    self._epoch(feed, progress, train)
                if began:
                    leave_weights(self, began)
            except BaseException as error:
                end_callbacks(self, began, error)
                raise
            if began:
                tell(self, began, "on_fit_end")
        return self.history

    def _epoch(self, feed: Batches | DeviceFeed, progress: Progress, train: Callable[[Any, Array], Array]) -> None:
        """Do what is left of one epoch: train on its batches, validate, and record both."""
        if self.batch == 0:
            self.sums.clear()
            self.epoch_data = self.batches
            for callback in self.callbacks:
                callback.on_epoch_begin(self)
        progress.begin(self.epoch, self.batch, self.sums)
        x = y = None
        cut = False
        for batch in watched(feed.epoch(self.epoch, self.batch), self.model.context.device):
            x, y = batch if type(batch) is tuple and len(batch) == 2 else as_pair(batch)
            self.last_loss = train(x, y)
            progress.advance()
            if self.callbacks:
                tell(self, self.callbacks, "on_step_end")
                tell(self, self.callbacks, "on_checkpoint", epoch_ended=False)
            if self.stop:
                cut = True
                break
        if self.batch == 0:
            raise ValueError(no_batches(f"epoch {self.epoch + 1}"))
        if self.pending and not cut:
            self._update_pending()
        values = self.sums.means()
        if not math.isfinite(values["loss"]):
            raise lost_epoch(self, values["loss"], x, y)
        if cut:
            return  # such an epoch is not recorded; the next fit or a checkpoint continues it
        if self.checks is not None:
            values.update({f"val_{name}": value for name, value in self._evaluate(self.checks).items()})
        try:
            if self.callbacks:
                tell(self, self.callbacks, "on_epoch_end", values)
        finally:  # the epoch is over, whatever a callback says, and whether or not it can be printed
            self.history.record(values)
            self.epoch += 1
            self.batch = 0
            progress.end(self.epoch - 1, values)
        if self.callbacks:
            tell(self, self.callbacks, "on_checkpoint", epoch_ended=True)

    @property
    def recompute(self) -> Recompute:
        """The parts of the model that recompute their activations; others count from the next step on."""
        return self._recompute

    @recompute.setter
    def recompute(self, value: Recompute) -> None:
        self.segments = segments_of(self.model, value)
        self._recompute = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raise a TypeError: a Trainer holds its data, functions and what was compiled for this process."""
        raise TypeError(
            "a Trainer cannot be pickled: save its model with model.save(path), and a run that is to go on with the callback "
            "xn.training.Checkpoint(folder) and trainer.fit(..., resume=folder)"
        )

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = twin = object.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @property
    def diverged(self) -> bool:
        """Whether the run ends because its loss became NaN or infinite: in `on_fit_end`."""
        return isinstance(self.error, NotFiniteError)

    @checked
    def evaluate(self, data: Data, *, batch_size: int | None = None) -> dict[str, float]:
        """Return the loss and the metrics over all of `data`, in evaluation mode: {"loss": ..., "accuracy": ...}.

        batch_size: examples a batch, 256 if not given. Data that come in batches have their own.
        """
        batches = as_batches(data, self.model, batch_size or 256, False, self.seed, "evaluate")
        if batches is data or batches.batch_size is None:
            refuse_unused("evaluate", data, batches, batch_size, None, False)
        return self._evaluate(batches)

    def _evaluate(self, batches: Batches) -> dict[str, float]:
        from xpnet.data.device_feed import device_feed

        sums = Sums()
        device = self.model.context.device
        place = contextlib.nullcontext() if device.kind == "cpu" else working_on(device, "evaluate")
        states = states_of_its_own(self.model)
        with place, no_grad(), eval_mode(self.model), states, device_feed(batches, device) as feed:
            for batch in feed.epoch(0):
                x, y = as_pair(batch)
                prediction = output_of(self.model, x)
                loss = self.loss(prediction, y)
                if getattr(native(loss), "ndim", 1):
                    refuse_loss(self.loss, loss)
                sums.add(x, {"loss": native(loss), **self.measure(native(prediction), y)})
        if not sums.count:
            raise ValueError(no_batches("the evaluation"))
        return sums.means()


for _name, _remedy in ON_TRAINER.items():
    setattr(Trainer, _name, refused_attribute(_remedy, _name))


def captured_steps(trainer: Trainer) -> Any:
    """Return the steps of a Trainer as CUDA graphs (a context), or None where they run launch by launch."""
    if trainer.accumulate > 1 or not trainer.capture or trainer.model.context.device.kind == "cpu":
        return None
    if not is_own(trainer, "_train", "_step", "_update"):  # a loop of a subclass
        return None
    executor = trainer.model._model_executor or executor_of(trainer.model)
    return executor.capture(trainer)
