"""The training loop."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from xpnet import backend, losses, metrics, random
from xpnet.backend import Array
from xpnet.layers.module import Evaluation, Module
from xpnet.optim.optimizer import Optimizer
from xpnet.tensor import Tensor, no_grad
from xpnet.training.callback import Callback
from xpnet.training.history import History
from xpnet.training.progress import Progress

Data = Any


class NotFiniteError(ArithmeticError):
    """The loss became NaN or infinite; the message names the epoch, the batch and the first layer that is not finite."""


class Trainer:
    """Trains a model: shuffled mini-batches, forward, loss, backward, update, and what was measured.

    Args:
        model: a Module.
        loss: a name such as "softmax_cross_entropy", or a function (prediction, target) -> 0-d Tensor.
        optimizer: an Optimizer.
        metrics: names such as "accuracy", or functions (prediction, target) -> mean over the batch.
        callbacks: see xpnet.training.Callback.
        seed: of the order of the examples.

    Attributes:
        history: what `fit` has recorded so far.
        epoch: the current epoch, from 0.
        iteration: how many updates were made.
        stop: set it to True to end `fit` after the current step.
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
    ) -> None:
        self.model = model
        self.loss = losses.get(loss)
        self.optimizer = optimizer
        self.metrics = dict(_metric(m) for m in ([metrics] if isinstance(metrics, str) else metrics))
        self.callbacks = list(callbacks)
        self.seed = seed
        self.history = History()
        self.epoch = 0
        self.iteration = 0
        self.stop = False

    def step(self, x: Array, y: Array) -> Array:
        """One update on one batch. Returns the loss before the update: a 0-d native array on the device."""
        return self._step(x, y)[0]

    def _step(self, x: Array, y: Array) -> tuple[Array, Array]:
        """One update; returns the loss and the predictions, native arrays."""
        model = self.model
        if not model.training:
            model.train()
        prediction = model(x)
        loss = self.loss(prediction, y)
        penalty = self.penalty()
        total = loss if penalty is None else loss + penalty
        # On a GPU this would wait for the device in every step; there the loss is looked at once an epoch.
        if model.context.device.kind == "cpu" and not math.isfinite(total.array):
            raise self._not_finite(x, total)
        total.backward()
        for callback in self.callbacks:
            callback.before_update(self)
        self.optimizer.step(model)
        self.iteration += 1
        return total.array, prediction.array

    def penalty(self) -> Tensor | None:
        """The sum of all weight penalties, or None where no parameter has one."""
        total = None
        for parameter in self.model.arena.parameters:
            if parameter.regularizer is not None:
                term = parameter.regularizer(parameter)
                total = term if total is None else total + term
        return total

    def fit(
        self,
        data: Data,
        *,
        validation: Data | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        shuffle: bool = True,
        verbose: bool | None = None,
    ) -> History:
        """Train for some epochs.

        Args:
            data: (x, y), arrays of N examples each, or an iterable of batches (x, y) that can be run through repeatedly.
            validation: the like; measured after every epoch.
            epochs: how often to go through the data.
            batch_size: examples a batch; the last one may be smaller.
            shuffle: draw a new order for every epoch, a function of the seed and the epoch's number.
            verbose: None shows a progress bar on a terminal and one line an epoch elsewhere; False shows nothing.

        Returns:
            The history: "loss", every metric, and both again with "val_" in front. Ctrl-C ends the run after the current
            batch and returns what was measured; press it twice to leave at once.

        Raises:
            NotFiniteError: the loss became NaN or infinite.
        """
        check_data(data, batch_size)
        if validation is not None:
            check_data(validation, batch_size)
        self.stop = False
        self.history.interrupted = False
        batches = math.ceil(len(data[0]) / batch_size) if isinstance(data, tuple) else _length(data)
        last = self.epoch + epochs
        with _interruptible(self), Progress(last, batches, verbose) as progress:
            self._call("on_fit_begin")
            while self.epoch < last and not self.stop:
                self._call("on_epoch_begin")
                progress.begin(self.epoch)
                order = random.permutation(self.seed, self.epoch, len(data[0])) if shuffle and isinstance(data, tuple) else None
                sums = Sums()
                for x, y in self._batches(data, batch_size, order):
                    loss, prediction = self._step(x, y)
                    sums.add(len(x), {"loss": loss, **self._measure(prediction, y)})
                    progress.advance(len(x), loss)
                    self._call("on_step_end")
                    if self.stop:
                        break
                values = sums.means()
                if not math.isfinite(values.get("loss", 0.0)):
                    raise self._not_finite(x, loss)
                if self.history.interrupted:
                    break  # an epoch that was cut short is not recorded
                if validation is not None:
                    values.update({f"val_{k}": v for k, v in self.evaluate(validation, batch_size=batch_size).items()})
                for callback in self.callbacks:
                    callback.on_epoch_end(self, values)
                self.history.record(values)
                progress.end(self.epoch, values)
                self.epoch += 1
            self._call("on_fit_end")
        return self.history

    def evaluate(self, data: Data, *, batch_size: int = 256) -> dict[str, float]:
        """The loss and the metrics over all of `data`, in evaluation mode: {"loss": ..., "accuracy": ...}."""
        check_data(data, batch_size)
        sums = Sums()
        with no_grad(), Evaluation(self.model):
            for x, y in self._batches(data, batch_size, None):
                prediction = self.model(x)
                sums.add(len(x), {"loss": self.loss(prediction, y).array, **self._measure(prediction.array, y)})
        return sums.means()

    def _measure(self, prediction: Array, y: Array) -> dict[str, Array]:
        return {name: metric(prediction, y) for name, metric in self.metrics.items()}

    def _batches(self, data: Data, batch_size: int, order: Any) -> Iterator[tuple[Array, Array]]:
        """(x, y) after (x, y), on the model's device."""
        device = self.model.context.device
        if not isinstance(data, tuple):
            for x, y in data:
                yield backend.to_device(x, device), backend.to_device(y, device)
            return
        x, y = data
        for start in range(0, len(x), batch_size):
            where = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
            yield backend.to_device(_taken(x, where), device), backend.to_device(_taken(y, where), device)

    def _call(self, name: str) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(self)

    def _not_finite(self, x: Array, loss: Any) -> NotFiniteError:
        from xpnet.inspect.finite import first_not_finite

        value = float(loss.array if isinstance(loss, Tensor) else loss)
        place = first_not_finite(self.model, x)
        return NotFiniteError(
            f"the loss became {value} in epoch {self.epoch + 1}, batch {self.iteration + 1} of the run; {place}; "
            f"try a smaller learning rate, scaled inputs or gradient clipping"
        )


class Sums:
    """Means over examples of values that are means over batches, added up on the device."""

    def __init__(self) -> None:
        self.count = 0
        self.totals: dict[str, Any] = {}

    def add(self, examples: int, values: dict[str, Array]) -> None:
        """A batch's means."""
        self.count += examples
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value * examples

    def means(self) -> dict[str, float]:
        """The means over all examples as Python floats (waits for the device)."""
        return {name: float(total) / max(self.count, 1) for name, total in self.totals.items()}


def _metric(metric: str | Callable[[Any, Any], Any]) -> tuple[str, Callable[[Any, Any], Any]]:
    return metrics.get(metric)


def _taken(array: Array, where: Any) -> Array:
    """The rows `where` (a slice or an array of numbers) of an array on any device."""
    if isinstance(where, slice):
        return array[where]
    xp = backend.namespace(array)
    return xp.take(array, xp.asarray(where), axis=0)


def _length(data: Any) -> int | None:
    return len(data) if hasattr(data, "__len__") else None


def check_data(data: Data, batch_size: int) -> None:
    """Raise a ValueError unless `data` is a pair (x, y) of equal, positive length, or an iterable of batches."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not isinstance(data, tuple):
        if not hasattr(data, "__iter__") or hasattr(data, "shape"):
            raise ValueError(f"data must be a tuple (x, y) or an iterable of batches (x, y), got {type(data).__name__}")
        return
    if len(data) != 2 or not all(hasattr(part, "shape") and len(part.shape) for part in data):
        raise ValueError("data must be a tuple (x, y) of two arrays with an axis of examples first")
    n, m = len(data[0]), len(data[1])
    if n != m or n == 0:
        raise ValueError(f"x holds {n} examples and y {m}; they must be equal and at least 1")


class _interruptible:  # noqa: N801 - used as a statement, not as a type
    """Within the block the first Ctrl-C asks the trainer to stop after its batch; the second one interrupts at once."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.before: Any = None
        self.active = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self.active:
            self.before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.trainer.history.interrupted:
            raise KeyboardInterrupt
        self.trainer.stop = self.trainer.history.interrupted = True

    def __exit__(self, *exception: object) -> None:
        if self.active:
            signal.signal(signal.SIGINT, self.before)
