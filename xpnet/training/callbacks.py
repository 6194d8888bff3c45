"""Callbacks for early stopping, learning rates, gradient clipping, averaging and logs."""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpnet.backend import Array, device_of, namespace, to_device, to_numpy
from xpnet.runtime.deprecation import renamed_arguments
from xpnet.training.callback import Callback

if TYPE_CHECKING:
    from xpnet.autograd.flat_parameters import FlatParameters
    from xpnet.training.trainer import Trainer


def monitor_mode(owner: Callback, name: str, mode: str | None) -> str:
    """Return whether "min" or "max" of a value is best: as given, or by its name (losses and errors: "min").

    Raises:
        ValueError: another mode.
    """
    if mode is None:
        return "min" if name.endswith(("loss", "error")) else "max"
    mode = {True: "max", False: "min"}.get(mode, mode)  # type: ignore[call-overload] # of the old argument `largest`
    if mode not in ("min", "max"):
        raise ValueError(f'{type(owner).__name__}: mode must be "min", "max" or None, got {mode!r}')
    return mode


def is_better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Return whether a value is better than the best one so far by more than `min_delta`."""
    return best is None or (value > best + min_delta if mode == "max" else value < best - min_delta)


class Monitor(Callback):
    """Base class of the callbacks that monitor one value of the history for an improvement.

    Args:
        monitor: a name in the history, such as "val_loss".
        patience: how many epochs without an improvement to wait.
        min_delta: how much better a value must be to count.
        mode: "min" or "max", which is better; None decides by the name (losses and errors: "min").
    """

    def __init__(self, monitor: str, patience: int, min_delta: float, mode: str | None) -> None:
        if patience < 0 or min_delta < 0:
            raise ValueError(
                f"{type(self).__name__}: patience and min_delta must be at least 0, got {patience} and {min_delta}"
            )
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.mode = monitor_mode(self, monitor, mode)
        self.best: float | None = None
        self.waited = 0

    def improved(self, values: dict[str, float]) -> bool:
        """Compare the epoch's value with the best one, and count the epochs since."""
        if self.monitor not in values:
            raise ValueError(
                f"{type(self).__name__} watches {self.monitor!r}, but the epoch has {', '.join(values)}; "
                f"give `fit` validation data, or watch one of these"
            )
        value = values[self.monitor]
        if is_better(value, self.best, self.mode, self.min_delta):
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    def state(self) -> dict[str, Any]:
        """Return the best value and the epochs since."""
        return {"best": self.best, "waited": self.waited}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""
        self.best, self.waited = state["best"], state["waited"]


class EarlyStopping(Monitor):
    """Early stopping: end the run when a value has not improved for `patience` epochs, and restore the best weights.

    Args:
        monitor, patience, min_delta, mode: as in Monitor.
        restore_best: whether the weights of the best epoch are restored at the end of the run.
    """

    @renamed_arguments(least="min_delta", largest="mode")
    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        *,
        min_delta: float = 0.0,
        mode: str | None = None,
        restore_best: bool = True,
    ) -> None:
        super().__init__(monitor, patience, min_delta, mode)
        self.restore_best = restore_best
        self.best_state: dict[str, Any] | None = None
        self.best_epoch: int | None = None
        self._stopped = False  # a run that had been stopped is not continued by loading its last checkpoint

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Stop at once if the resumed run had been stopped."""
        trainer.stop = trainer.stop or self._stopped
        self._stopped = False

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Keep the best weights; stop when patience runs out."""
        if self.improved(values):
            self.best_epoch = trainer.epoch
            if self.restore_best:
                self.best_state = {name: to_numpy(array).copy() for name, array in trainer.model.state().items()}
        elif self.waited > self.patience:
            trainer.stop = True

    def on_fit_end(self, trainer: Trainer) -> None:
        """Restore the best weights."""
        if self.restore_best and self.best_state is not None and self.waited:
            trainer.model.load_state(self.best_state)

    def state(self) -> dict[str, Any]:
        """Return also the best weights."""
        return {**super().state(), "best_epoch": self.best_epoch, "best_state": self.best_state}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""
        super().load_state(state)
        self.best_epoch, self.best_state = state["best_epoch"], state["best_state"]
        self._stopped = self.waited > self.patience


class ReduceOnPlateau(Monitor):
    """Multiply the learning rate by `factor` when a value has not improved for `patience` epochs.

    Args:
        monitor, patience, min_delta, mode: as in Monitor.
        factor: in (0, 1).
        lowest: the lower limit of the learning rate.
    """

    @renamed_arguments(least="min_delta", largest="mode")
    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 3,
        *,
        factor: float = 0.1,
        lowest: float = 0.0,
        min_delta: float = 0.0,
        mode: str | None = None,
    ) -> None:
        super().__init__(monitor, patience, min_delta, mode)
        if not 0 < factor < 1:
            raise ValueError(f"ReduceOnPlateau: factor must be between 0 and 1, got {factor}")
        self.factor = factor
        self.lowest = lowest

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Reduce the learning rate when patience runs out."""
        optimizer = trainer.optimizer
        values.setdefault("learning_rate", optimizer.current_learning_rate)
        if not self.improved(values) and self.waited > self.patience:
            self.waited = 0
            if optimizer.current_learning_rate * self.factor >= self.lowest:
                optimizer.factor *= self.factor


class ClipGradients(Callback):
    """Gradient clipping before each update.

    Args:
        norm: scale all gradients together so that their global norm is at most this.
        value: clip each element to [-value, value].

    Source: Pascanu et al., "On the difficulty of training recurrent neural networks", 2013.
    """

    def __init__(self, *, norm: float | None = None, value: float | None = None) -> None:
        if (norm is None) == (value is None) or (norm or value or 0) <= 0:
            raise ValueError(f"ClipGradients takes norm or value, one of them and above 0; got norm={norm}, value={value}")
        self.norm = norm
        self.value = value

    def on_before_optimizer_step(self, trainer: Trainer) -> None:
        """Clip the gradients in place."""
        flat = trainer.model.flat_parameters
        flat.collect()
        g = flat.gradients
        xp = namespace(g)
        if self.norm is not None:
            length = xp.sqrt(xp.sum(g * g, dtype=g.dtype))
            # Computed on the device: reading the number would wait for it.
            limit = xp.asarray(self.norm, dtype=g.dtype, device=g.device)
            g *= limit / xp.maximum(length, limit)
        else:
            bound = xp.asarray(self.value, dtype=g.dtype, device=g.device)
            g[...] = xp.minimum(xp.maximum(g, -bound), bound)


class ExponentialMovingAverage(Callback):
    """An exponential moving average of the weights: after each update average = decay * average + (1 - decay) * weights.

    Args:
        decay: in [0, 1).
        keep: whether the model gets the average weights when the run ends.
    """

    def __init__(self, decay: float = 0.999, *, keep: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ExponentialMovingAverage: decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.keep = keep
        self.average: Array | None = None
        self._flat: FlatParameters | None = None

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Start with the present weights, or with the average so far unless parameters were frozen or unfrozen since."""
        flat = trainer.model.flat_parameters
        values = flat.values
        xp = namespace(values)
        known = self._flat is None or [*map(id, self._flat.parameters)] == [*map(id, flat.parameters)]
        self._flat = flat
        if self.average is None or not known:
            self.average = xp.asarray(values, copy=True)
        else:
            self.average = to_device(self.average, device_of(values))

    def on_step_end(self, trainer: Trainer) -> None:
        """Update the average."""
        average: Any = self.average
        average *= self.decay
        average += (1 - self.decay) * trainer.model.flat_parameters.values

    @contextlib.contextmanager
    def averaged(self, trainer: Trainer) -> Iterator[None]:
        """Give the model the average weights within the block."""
        values = trainer.model.flat_parameters.values
        before = namespace(values).asarray(values, copy=True)
        values[...] = self.average
        try:
            yield
        finally:
            values[...] = before

    def on_fit_end(self, trainer: Trainer) -> None:
        """Give the model the average weights."""
        if self.keep and self.average is not None:
            trainer.model.flat_parameters.values[...] = self.average

    def state(self) -> dict[str, Any]:
        """Return the average."""
        return {"average": None if self.average is None else to_numpy(self.average).copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""
        self.average = state["average"]


class Timing(Callback):
    """Add the seconds of each epoch to the history, as "seconds"."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Stop the clock."""
        trainer.model.context.device.synchronize()
        values["seconds"] = time.perf_counter() - getattr(self, "_started", time.perf_counter())


class JSONLog(Callback):
    """Append one line of JSON for each epoch to a file: {"epoch": 1, "iteration": 47, "loss": ...}."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Start a new file; in a resumed run drop only the lines of epochs that are repeated."""
        lines = self.path.read_text().splitlines(keepends=True) if trainer.epoch and self.path.exists() else []
        self.path.write_text("".join(line for line in lines if _epoch_of(line) <= trainer.epoch))

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Append a line."""
        # JSON has no nan and no infinity.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with _warn_unless_written(self.path), self.path.open("a") as file:
            file.write(json.dumps({"epoch": trainer.epoch + 1, "iteration": trainer.iteration, **finite}) + "\n")


@contextlib.contextmanager
def _warn_unless_written(path: Path) -> Iterator[None]:
    """Turn an OSError within the block, as from a full disk, into a warning: a run must not fail because of its log."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}); the run goes on", RuntimeWarning, stacklevel=3)


def _epoch_of(line: str) -> float:
    """Return the epoch of a line of a JSONLog; infinity for a line cut short by a crash."""
    try:
        return float(json.loads(line)["epoch"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


class CSVLog(Callback):
    """Keep the history in a CSV file with a row for each epoch, written atomically."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_checkpoint(self, trainer: Trainer, epoch_ended: bool) -> None:
        """Write the history so far."""
        if epoch_ended:
            from xpnet.io.archive import write_atomically

            text = trainer.history.to_csv().encode()
            with _warn_unless_written(self.path):
                write_atomically(self.path, lambda file: file.write(text))


class TensorBoard(Callback):
    """Write the values of each epoch as TensorBoard event files (needs `pip install tensorboardX`)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer: Any = None

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Open the event file."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError("the TensorBoard callback needs tensorboardX: pip install tensorboardX") from None
        # A resumed run repeats what came after its checkpoint: readers drop those steps of earlier files.
        self._writer = SummaryWriter(str(self.folder), purge_step=trainer.epoch + 1 if trainer.epoch else None)

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Write every value as a scalar."""
        for name, value in {**values, "learning_rate": trainer.optimizer.current_learning_rate}.items():
            self._writer.add_scalar(name, value, trainer.epoch + 1)
        self._writer.flush()

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the event file."""
        self._writer.close()


class LambdaCallback(Callback):
    """Call the given functions, each with the trainer.

    Args:
        step_end: after every batch.
        epoch_end: after every epoch; also takes the epoch's values and may add to them.
    """

    def __init__(
        self,
        *,
        step_end: Callable[[Trainer], object] | None = None,
        epoch_end: Callable[[Trainer, dict[str, float]], object] | None = None,
    ) -> None:
        self._step_end = step_end
        self._epoch_end = epoch_end

    def on_step_end(self, trainer: Trainer) -> None:
        """Call the function for steps."""
        if self._step_end is not None:
            self._step_end(trainer)

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Call the function for epochs."""
        if self._epoch_end is not None:
            self._epoch_end(trainer, values)
