"""The callback that records a run and writes its report."""

from __future__ import annotations

import datetime
import platform
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import xpnet
from xpnet.backend import Array, imported, namespace, to_numpy
from xpnet.inspect.diagnose import diagnose
from xpnet.inspect.outcome import outcome
from xpnet.report import measure
from xpnet.report.page import write_page
from xpnet.report.record import NAME, Record, write_record
from xpnet.runtime.determinism import get_deterministic
from xpnet.runtime.threads import get_num_threads
from xpnet.training.callback import Callback
from xpnet.training.data_adapter import as_batches
from xpnet.training.history import History
from xpnet.training.monitors import known_mode

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer

PAGE = "report.html"
MOST_STEPS = 2000  # points of the loss curve by step; when there are more, every other one is dropped


class RunReport(Callback):
    """Write ``run.json`` and ``report.html`` to a folder: curves while training, and at the end also measurements of the model.

    A page that cannot be written (a full disk), or a model
    that cannot be measured, causes a warning: the run is worth more than its report.

    Args:
        folder: made if it does not exist.
        name: the title; None takes the folder's name.
        configuration: settings to show beside those of the trainer.
        class_names: names of the classes, in the order of their indices.
        data: the data to predict, as for `fit`; None takes the validation data, or else the training data.
        batch_size: examples in the batch whose activations, gradients, times and memory are shown.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        configuration: dict[str, Any] | None = None,
        class_names: Sequence[str] = (),
        data: Any = None,
        batch_size: int = 64,
    ) -> None:
        self.folder = Path(folder)
        self.name = name or self.folder.resolve().name
        self.configuration = dict(configuration or {})
        self.class_names = list(class_names)
        self.data = data
        self.batch_size = batch_size
        self.steps: list[tuple[int, float]] = []
        self.every = 1
        self.rates: list[float] = []
        self.seconds: list[float] = []
        self.spent = 0.0
        self.examples = 0
        self._waiting: list[tuple[int, Array]] = []
        self._clock = self._epoch_began = self._written = self._cost = 0.0
        self._began = ""
        self._measured: dict[str, Any] = {}

    adds = ()

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Make the folder; start the clock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._began = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._clock = self._epoch_began = self._written = time.perf_counter()
        self._measured = {}

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Start the epoch's clock."""
        self._epoch_began = time.perf_counter()

    def on_step_end(self, trainer: Trainer) -> None:
        """Keep the loss on the device; it is read at the end of the epoch only."""
        if trainer.iteration % self.every == 0:
            self._waiting.append((trainer.iteration, namespace(trainer.last_loss).asarray(trainer.last_loss, copy=True)))

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Record the learning rate and the time."""
        self._collect()
        now = time.perf_counter()
        self.rates.append(trainer.optimizer.current_learning_rate)
        self.seconds.append(now - self._epoch_began)

    def on_checkpoint(self, trainer: Trainer, epoch_ended: bool) -> None:
        """Write the report after an epoch, but not so often that it takes more than 2 % of the time."""
        now = time.perf_counter()
        if epoch_ended and now - self._written >= max(1.0, 50 * self._cost):
            self._write(trainer, "running")
            self._written = time.perf_counter()
            self._cost = self._written - now

    def on_fit_end(self, trainer: Trainer) -> None:
        """Measure the model, and write the whole report; after an exception only the curves."""
        self._collect()
        self.spent, self._clock = self._elapsed(), 0.0  # measuring is not training
        if trainer.error is not None:
            self._write(trainer, "interrupted" if isinstance(trainer.error, (KeyboardInterrupt, SystemExit)) else "failed")
            return
        if trainer.history.interrupted:
            self._write(trainer, "interrupted")  # whoever stopped the process may not wait until the model is measured
        try:
            self._measured = self._measure(trainer)
        except Exception as error:  # hours of training must not end in an error because of their report
            warnings.warn(
                f"the model could not be measured ({type(error).__name__}: {error}); the report shows the curves only",
                RuntimeWarning,
                stacklevel=2,
            )
        self._write(trainer, "interrupted" if trainer.history.interrupted else "finished")

    def state(self) -> dict[str, Any]:
        """Return the curves and the time so far."""
        self._collect()
        return {
            "steps": [list(point) for point in self.steps],
            "every": self.every,
            "rates": list(self.rates),
            "seconds": list(self.seconds),
            "spent": self._elapsed(),
        }

    def _elapsed(self) -> float:
        return self.spent + (time.perf_counter() - self._clock if self._clock else 0.0)

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""
        self.steps = [(int(i), float(loss)) for i, loss in state["steps"]]
        self.every = int(state["every"])
        self.rates, self.seconds = list(state["rates"]), list(state["seconds"])
        self.spent = float(state["spent"])
        self._waiting = []

    def reset_state(self) -> None:
        """Forget the curves and the time."""
        self.steps, self.rates, self.seconds, self._waiting = [], [], [], []
        self.every, self.spent = 1, 0.0

    def _collect(self) -> None:
        if not self._waiting:
            return
        numbers, losses = zip(*self._waiting)
        values = to_numpy(namespace(losses[0]).stack(losses))
        self.steps += [(int(i), float(loss)) for i, loss in zip(numbers, values)]
        self._waiting = []
        while len(self.steps) > MOST_STEPS:
            self.every *= 2
            self.steps = [point for point in self.steps if point[0] % self.every == 0]

    def _measure(self, trainer: Trainer) -> dict[str, Any]:
        """Measure predictions, filters, layers and memory, and diagnose the model."""
        model = trainer.model
        found: dict[str, Any] = {}
        batches = trainer.checks if self.data is None else as_batches(self.data, model, 256, False, trainer.seed)
        on = "validation" if batches is not None or self.data is not None else "training"
        batches = batches or trainer.batches
        if batches is None:
            return found
        loss_name = getattr(trainer.loss, "__name__", "")
        logits = True if loss_name == "sigmoid_cross_entropy" else None
        found["predictions"] = {**measure.summarize_predictions(model, batches, logits=logits), "on": on}
        found["filters"] = measure.filters(model)
        first = next(iter(batches.epoch(0)), None)
        if first is not None:
            x, y = first[0][: self.batch_size], first[1][: self.batch_size]
            found["layers"] = measure.layers(model, trainer.loss, x, y)
            found["batch"] = len(x)
            # A loss far from that of guessing is a finding only before training.
            found["findings"] = [str(f) for f in diagnose(model, x, y, trainer.loss) if f.kind != "start"]
        if found["predictions"]["kind"] == "classes" and "confusion" in found["predictions"]:
            found["findings"] = found.get("findings", []) + self._outcome(trainer, found["predictions"]["confusion"], loss_name)
        found["memory"] = self._memory(trainer, found.get("layers", []))
        return found

    def _outcome(self, trainer: Trainer, confusion: list[list[int]], loss_name: str) -> list[str]:
        """Return what a trained classifier did not learn."""
        losses = trainer.history.get("loss", [])
        known = loss_name == "softmax_cross_entropy" and losses and not trainer.history.interrupted
        counts = measure.class_counts(trainer.batches, len(confusion))
        loss = losses[-1] if known else None
        return [str(f) for f in outcome(confusion, class_names=self.class_names, counts=counts, loss=loss)]

    def _memory(self, trainer: Trainer, layers: list[dict[str, Any]]) -> dict[str, int | None]:
        weights = trainer.model.flat_parameters.values
        size = 0 if weights is None else int(weights.size) * int(weights.dtype.itemsize)
        memory: dict[str, int | None] = {
            "parameters": size,
            "gradients": size,
            "optimizer": sum(int(a.size) * int(a.dtype.itemsize) for a in trainer.optimizer.slots.values()),
            "kept": sum(int(layer["kept"]) for layer in layers),
            "peak": measure.peak_memory(),
        }
        if trainer.model.context.device.kind == "cuda":
            import cupy

            memory["device"] = int(cupy.get_default_memory_pool().total_bytes())
        return memory

    def _write(self, trainer: Trainer, state: str) -> None:
        record = self.record(trainer, state)
        try:
            write_record(record, self.folder / NAME)
            write_page(record, self.folder / PAGE)
        except OSError as error:
            warnings.warn(f"the report could not be written ({error}); the run goes on", RuntimeWarning, stacklevel=2)

    def record(self, trainer: Trainer, state: str) -> Record:
        """Return everything that the page shows."""
        model = trainer.model
        batches = trainer.batches
        return {
            "name": self.name,
            "state": state,
            "began": self._began,
            "seconds": self._elapsed(),
            "configuration": {**trainer_settings(trainer), **self.configuration},
            "environment": environment(model),
            "parameters": model.count_parameters(),
            "classes": self.class_names,
            "iteration": trainer.iteration,
            "examples": batches.count if batches is not None else None,
            "history": dict(trainer.history),
            "weights": weights_of(trainer.history),
            "better": {name: known_mode(name, trainer) for name in ("loss", *trainer.metrics)},
            "learning_rate": self.rates,
            "epoch_seconds": self.seconds,
            "steps": self.steps,
            **self._measured,
        }


def weights_of(history: History) -> dict[str, Any]:
    """Return the epoch (from 1) whose weights the model has after a run, and whether these are an average over the run."""
    epoch = history.epoch_of_the_model
    return {
        "epoch": None if epoch is None else epoch + 1,
        "restored": history.restored is not None,
        "averaged": history.averaged,
    }


def trainer_settings(trainer: Trainer) -> dict[str, Any]:
    """Return the settings of a trainer and its optimizer."""
    optimizer = trainer.optimizer
    settings: dict[str, Any] = {
        "model": type(trainer.model).__name__,
        "loss": getattr(trainer.loss, "__name__", type(trainer.loss).__name__),
        "optimizer": type(optimizer).__name__,
    }
    for name, value in vars(optimizer).items():
        if name.startswith("_") or name in ("iterations", "factor", "slots"):
            continue
        if isinstance(value, (bool, int, float, str)):
            settings[f"optimizer.{name}"] = value
        elif callable(value):
            settings[f"optimizer.{name}"] = getattr(value, "__name__", type(value).__name__)
    if trainer.metrics:
        settings["metrics"] = ", ".join(trainer.metrics)
    if trainer.batches is not None and trainer.batches.batch_size is not None:
        settings["batch_size"] = trainer.batches.batch_size
    if trainer.accumulate > 1:
        settings["accumulate"] = trainer.accumulate
    settings["seed"] = trainer.seed
    callbacks = [type(callback).__name__ for callback in trainer.callbacks if not isinstance(callback, RunReport)]
    if callbacks:
        settings["callbacks"] = ", ".join(callbacks)
    return settings


def environment(model: Any) -> dict[str, str]:
    """Return the device and the versions that a run used."""
    found = {
        "device": str(model.context.device),
        "xpnet": xpnet.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(get_num_threads()),
        "deterministic": "yes" if get_deterministic() else "no",
    }
    if model.context.device.kind == "cuda" and (cupy := imported("cupy")) is not None:
        found["CuPy"] = str(cupy.__version__)
        found["device"] += " " + cupy.cuda.runtime.getDeviceProperties(model.context.device.index)["name"].decode()
    return found
