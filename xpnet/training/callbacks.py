"""Callbacks for gradient clipping, averaging and logs; those that monitor a value are in xpnet.training.monitors."""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpnet.backend import device_of, namespace, to_device, to_numpy
from xpnet.ops.updates.flat import clip_norm, clip_value, moving_average
from xpnet.training.callback import Callback
from xpnet.training.data_adapter import build
from xpnet.training.final_weights import FinalWeights
from xpnet.training.history import as_numbers
from xpnet.training.monitors import EarlyStopping as EarlyStopping
from xpnet.training.monitors import Monitor as Monitor
from xpnet.training.monitors import ReduceOnPlateau as ReduceOnPlateau

if TYPE_CHECKING:
    from xpnet.autograd.flat_parameters import FlatParameters, Layout
    from xpnet.training.trainer import Trainer


class ClipGradients(Callback):
    """Gradient clipping before each update.

    Args:
        norm: scale all gradients together so that their global norm is at most this.
        value: clip each element to [-value, value].

    Source: Pascanu et al., "On the difficulty of training recurrent neural networks", 2013.
    """

    capturable = True

    def __init__(self, *, norm: float | None = None, value: float | None = None) -> None:
        if (norm is None) == (value is None) or not (norm or value or 0) > 0:
            raise ValueError(f"ClipGradients takes norm or value, one of them and above 0; got norm={norm}, value={value}")
        self.norm = norm
        self.value = value

    def on_before_optimizer_step(self, trainer: Trainer) -> None:
        """Clip the gradients in place."""
        flat = trainer.model.flat_parameters
        flat.collect()
        g = flat.gradients
        if self.norm is None:
            clip_value(g, value=self.value)
        elif self.norm <= float(namespace(g).finfo(g.dtype).max):  # else no norm is larger
            clip_norm(g, norm=self.norm)


class ExponentialMovingAverage(Callback):
    """An exponential moving average of the weights: after each update average = decay * average + (1 - decay) * weights.

    An update that a loss scale skips does not move it. Parameters that are frozen keep their weights; the average of those that
    are unfrozen within a run starts with their weights after the next update.

    Args:
        decay: in [0, 1). The average starts with the first weights; where a stream's first batch makes them, with those after
            the first update.
        keep: whether the model gets the average weights when the run ends. One that was cut short within an epoch goes on with
            the weights that it had.
    """

    def __init__(self, decay: float = 0.999, *, keep: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ExponentialMovingAverage: decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.keep = keep
        self.average: Any = None  # an array
        self._flat: FlatParameters | None = None  # whose elements the average has
        self._layout: Layout | None = None  # their order, of an average from a file
        self._updates = 0, 0  # of the optimizer: made and skipped
        self._done: Any = None  # the updates that were not skipped, counted on the device

    def _follow(self, trainer: Trainer) -> Any:
        """Return the model's weights, with the average in their order: parameters may have been frozen or unfrozen."""
        if not trainer.model._is_built():
            return None
        flat = trainer.model.flat_parameters
        if flat is self._flat or flat.values is None:
            return flat.values
        before, self._flat = self._flat, flat
        copy = partial(namespace(flat.values).asarray, flat.values, copy=True)
        if self.average is None:
            self.average = copy()
        elif before is not None or self._layout is not None:
            self.average = flat.carry_over(self.average, before or self._layout or [], copy())
        elif self.average.shape == flat.values.shape:
            self.average = to_device(self.average, device_of(flat.values))
        else:
            raise ValueError(
                f"this ExponentialMovingAverage has an average of {self.average.shape[0]} values, the model has "
                f"{flat.values.shape[0]}: freeze the parameters that were frozen when the average was saved"
            )
        return flat.values

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Start with the present weights, or with the average so far."""
        if trainer.batches is not None:
            build(trainer.model, trainer.batches)
        self._follow(trainer)
        self._updates = trainer.optimizer._iterations, trainer.optimizer._skipped
        self._done = None

    def on_step_end(self, trainer: Trainer) -> None:
        """Update the average, if the batch ended in an update of the weights."""
        optimizer = trainer.optimizer
        before, now = self._updates, (optimizer._iterations, optimizer._skipped)
        # A clock on the device knows what was skipped; when it is read, the host counts those updates as skipped.
        if (now[0] == before[0]) if optimizer.clock is None else (sum(now) == sum(before)):
            self._updates = now
            return
        values = self._follow(trainer)
        # Computed first: an exception must not leave the average half-way, nor an update uncounted. With a loss scale the host
        # does not know what was skipped.
        clock = None if optimizer.loss_scale is None else optimizer.clock
        steps = None if clock is None else clock.steps
        moved, done = moving_average(self.average, values, decay=self.decay, steps=steps, before=self._done)
        self.average, self._updates, self._done = moved, now, done if steps is not None else self._done

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Update the average after the last batches of an epoch, fewer than `accumulate`, of a stream."""
        self.on_step_end(trainer)

    @contextlib.contextmanager
    def averaged(self, trainer: Trainer) -> Iterator[None]:
        """Give the model the average weights within the block."""
        values = self._follow(trainer)
        if self.average is None:
            raise ValueError("ExponentialMovingAverage: there is no average before the first update")
        before = namespace(values).asarray(values, copy=True)
        values[...] = self.average
        try:
            yield
        finally:
            values[...] = before

    def final_weights(self, trainer: Trainer) -> FinalWeights | None:
        """Return the average weights."""
        self.on_step_end(trainer)  # an exception may have come between an update and its end
        if not self.keep or self.average is None:
            return None
        values = self._follow(trainer)
        return FinalWeights(partial(values.__setitem__, ..., self.average))

    def state(self) -> dict[str, Any]:
        """Return the average, and whose values it holds."""
        if self.average is None:
            return {"average": None}
        layout = self._layout if self._flat is None else self._flat.layout()
        return {"average": {"values": to_numpy(self.average).copy(), "parameters": layout}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""
        found = state["average"]
        if not isinstance(found, dict):  # of an earlier version
            found = {"values": found, "parameters": None}
        self.average, self._layout, self._flat = found["values"], found["parameters"], None

    def reset_state(self) -> None:
        """Forget the average."""
        self.average = self._flat = self._layout = None


class Timing(Callback):
    """Add the seconds of each epoch to the history, as "seconds"."""

    adds = ("seconds",)

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Stop the clock."""
        trainer.model.context.device.synchronize()
        values["seconds"] = time.perf_counter() - getattr(self, "_started", time.perf_counter())


class JSONLog(Callback):
    """Append one line of JSON for each epoch to a file: {"epoch": 1, "iteration": 47, "loss": ...}."""

    adds = ()

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Start a new file; in a resumed run drop only the lines of epochs that are repeated."""
        lines = self.path.read_text().splitlines(keepends=True) if trainer.epoch and self.path.exists() else []
        with _warn_unless_written(self.path):
            self.path.write_text("".join(line for line in lines if _epoch_of(line) <= trainer.epoch))

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Append a line."""
        # JSON has no nan and no infinity.
        finite = {name: value if math.isfinite(value) else None for name, value in as_numbers(values).items()}
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

    adds = ()

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
        # The name of the file holds the second: two runs that begin in the same one, here or elsewhere, must not share it.
        # Readers take files in the order of their names.
        self._writer = SummaryWriter(
            str(self.folder),
            purge_step=trainer.epoch + 1 if trainer.epoch else None,
            filename_suffix=f".{time.time_ns()}.{secrets.token_hex(4)}",
        )

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
        self.step_end = step_end
        self.epoch_end = epoch_end

    @property
    def adds(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """See Callback: a function for epochs may add anything."""
        return () if self.epoch_end is None else None

    def on_step_end(self, trainer: Trainer) -> None:
        """Call the function for steps."""
        if self.step_end is not None:
            self.step_end(trainer)

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Call the function for epochs."""
        if self.epoch_end is not None:
            self.epoch_end(trainer, values)
