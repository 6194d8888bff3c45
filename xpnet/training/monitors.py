"""Callbacks that look for the best value of the history: which way it is better, and what is done when it gets no better."""

from __future__ import annotations

import difflib
import math
from functools import partial
from typing import TYPE_CHECKING, Any

from xpnet import losses, metrics
from xpnet.runtime.deprecation import renamed_arguments
from xpnet.runtime.messages import quoted
from xpnet.runtime.settings import check_kind, check_numbers
from xpnet.training.callback import Callback
from xpnet.training.final_weights import FinalWeights, copied_state

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer


def given_mode(owner: Callback, mode: Any) -> str | None:
    """Return the argument `mode` of a callback.

    Raises:
        ValueError: neither "min" nor "max" nor None.
    """
    mode = {True: "max", False: "min"}.get(mode, mode)  # of the old argument `largest`
    if mode not in ("min", "max", None):
        raise ValueError(f'{type(owner).__name__}: mode must be "min", "max" or None, got {quoted(mode)}')
    return mode  # type: ignore[no-any-return]


class Mode:
    """The attribute `mode` of a callback: "min", "max", or None for what the monitored value itself says.

    Args:
        monitored: the name of the attribute with the value's name.
    """

    def __init__(self, monitored: str) -> None:
        self.monitored = monitored

    def __set__(self, owner: Any, value: Any) -> None:
        if "mode" in owner.__dict__:
            check_kind(type(owner).__name__, "mode", value, "str | None")
        given, name = given_mode(owner, value), owner.__dict__[self.monitored]
        found = given or (None if name is None else known_mode(name))
        if owner.__dict__.get("_given_mode", given) != given:
            owner.reset_state()  # the best value so far was one in the other direction
        owner.__dict__.update(_given_mode=given, mode=found)

    if TYPE_CHECKING:  # without it Python reads the instance's __dict__

        def __get__(self, owner: Any, kind: Any = None) -> str | None: ...


def known_mode(name: str, trainer: Trainer | None = None) -> str | None:
    """Return whether "min" or "max" of a value of the history is better, None if nothing says so.

    Args:
        name: in the history; "val_loss" is better where "loss" is.
        trainer: the run, whose metrics say it; None knows the names of losses and metrics of this package only.
    """
    name = name.removeprefix("val_")
    if name == "loss":
        return "min"
    metric = metrics.NAMES.get(name) if trainer is None else trainer.metrics.get(name)
    mode = metrics.mode_of(metric)
    if mode is None and (name in losses.NAMES if trainer is None else any(metric is loss for loss in losses.NAMES.values())):
        return "min"
    return mode


def recorded_names(trainer: Trainer, owner: Callback) -> tuple[list[str], bool]:
    """Return the names that an epoch's values have when a callback sees them, and whether one of the user's may add others.

    `Checkpoint` sees what all callbacks have added, a `Monitor` what those before it have.
    """
    names = ["loss", *trainer.metrics]
    if trainer.checks is not None:
        names += [f"val_{name}" for name in names]
    others = False
    for callback in trainer.callbacks:
        if callback is owner and isinstance(owner, Monitor):
            break
        adds = _added_by(callback)
        if adds is None:
            others = True
        else:
            names += [name for name in adds if name not in names]
    return names, others


def _added_by(callback: Callback) -> tuple[str, ...] | None:
    """Return the values that a callback adds to those of an epoch, None if it does not say."""
    for kind in type(callback).__mro__:
        if "adds" in vars(kind) and kind is not Callback:
            return callback.adds
        if "on_epoch_end" in vars(kind):  # overrides that of the class which says what it adds
            return () if kind is Callback else None
    return None


def mode_in_run(owner: Callback, name: str, mode: str | None, trainer: Trainer) -> str:
    """Return which of a monitored value's directions is better in a run: `mode` if that was given.

    Raises:
        ValueError: the run will not record the value, or nothing says which way it is better.
    """
    names, others = recorded_names(trainer, owner)
    kind = type(owner).__name__
    if name not in names and not others:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}?" if close else "watch one of these"
        if name.startswith("val_") and name.removeprefix("val_") in names:
            hint = "give `fit` validation data, or watch one of these"
        later = [type(c).__name__ for c in trainer.callbacks if name in (_added_by(c) or ())]
        if later:
            hint = f"{later[0]} adds it: put that callback before {kind}"
        raise ValueError(f"{kind} watches {name!r}, but an epoch of this run has {', '.join(names)}; {hint}")
    found = mode or known_mode(name, trainer)
    if found is None and name not in names:
        found = known_mode(name)  # a callback adds it
    if found is None:
        known = [n for n in names if known_mode(n, trainer)]
        raise ValueError(
            f'{kind} watches {name!r}, and nothing says which way it is better: give mode="min" or mode="max", or declare it '
            f'on the metric with @xn.metrics.better("min"); known are {", ".join(known)}'
        )
    return found


def is_better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Return whether a value is better than the best one so far by more than `min_delta`; NaN is worse than all others."""
    if math.isnan(value):
        return False
    if best is None or math.isnan(best):
        return True
    return value > best + min_delta if mode == "max" else value < best - min_delta


class Monitor(Callback):
    """Base class of the callbacks that monitor one value of the history for an improvement.

    Args:
        monitor: a name in the history, such as "val_loss".
        patience: how many epochs without an improvement to wait through: the next one acts. (In Keras and PyTorch Lightning
            the last of them does.)
        min_delta: how much better a value must be to count.
        mode: "min" or "max", which is better. None: as the metric says ("min" for losses); one that does not say it needs a
            mode, and `fit` raises a ValueError before the first epoch.
    """

    adds: tuple[str, ...] | None = ()
    mode = Mode("monitor")
    _given_mode: str | None

    def __init__(self, monitor: str, patience: int, min_delta: float, mode: str | None) -> None:
        if not (patience >= 0 and 0 <= min_delta < math.inf):
            raise ValueError(
                f"{type(self).__name__}: patience and min_delta must be at least 0, got {patience} and {min_delta}"
            )
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.best: float | None = None
        self.waited = 0

    def _take(self, name: str, made: Any) -> None:
        """Take over a setting; the best value so far was that of what was watched before."""
        super()._take(name, made)
        if name == "monitor":
            self.reset_state()

    def check_run(self, trainer: Trainer) -> None:
        """Find out which way the value is better; raise a ValueError if it will not be recorded, or nothing says so."""
        self.__dict__["mode"] = mode_in_run(self, self.monitor, self._given_mode, trainer)

    def improved(self, values: dict[str, float]) -> bool:
        """Compare the epoch's value with the best one, and count the epochs since."""
        if self.monitor not in values:
            raise ValueError(
                f"{type(self).__name__} watches {self.monitor!r}, but the epoch has {', '.join(values)}; "
                f"give `fit` validation data, or watch one of these"
            )
        value = values[self.monitor]
        if is_better(value, self.best, self.mode or "min", self.min_delta):
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

    def reset_state(self) -> None:
        """Forget the best value."""
        self.best, self.waited = None, 0


class EarlyStopping(Monitor):
    """Early stopping: end the run when a value has not improved for more than `patience` epochs; restore the best weights.

    Where the best weights come back, ``trainer.history.restored`` is their epoch. They also come back when the loss became NaN
    or infinite, and go before the average of an ExponentialMovingAverage. Watch a value of the validation: the loss and the
    metrics of training are measured before each update, those of the last batches with almost the weights that are kept.

    Args:
        monitor, patience, min_delta, mode: as in Monitor.
        restore_best: whether the weights of the best epoch are restored at the end of the run.
    """

    adds = ()

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
                self.best_state = copied_state(trainer.model)
        elif self.waited > self.patience:
            trainer.stop = True

    def final_weights(self, trainer: Trainer) -> FinalWeights | None:
        """Return the best weights."""
        if not self.restore_best or self.best_state is None:
            return None
        return FinalWeights(partial(trainer.model.load_state, self.best_state), self.best_epoch)

    def state(self) -> dict[str, Any]:
        """Return also the best weights."""
        return {**super().state(), "best_epoch": self.best_epoch, "best_state": self.best_state}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""
        super().load_state(state)
        self.best_epoch, self.best_state = state["best_epoch"], state["best_state"]
        self._stopped = self.waited > self.patience

    def reset_state(self) -> None:
        """Forget the best value and the best weights."""
        super().reset_state()
        self.best_epoch = self.best_state = None
        self._stopped = False


class ReduceOnPlateau(Monitor):
    """Multiply the learning rate by `factor` when a value has not improved for more than `patience` epochs.

    Args:
        monitor, patience, min_delta, mode: as in Monitor.
        factor: in (0, 1).
        lowest: the lower limit of the learning rate, which the last reduction ends at.
    """

    adds = ("learning_rate",)

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
        check_numbers("ReduceOnPlateau", "[0, inf)", lowest=lowest)
        self.factor = factor
        self.lowest = lowest

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Reduce the learning rate when patience runs out."""
        optimizer = trainer.optimizer
        values.setdefault("learning_rate", optimizer.current_learning_rate)
        if not self.improved(values) and self.waited > self.patience:
            self.waited = 0
            rate = optimizer.current_learning_rate
            if rate > self.lowest:
                optimizer.factor *= max(self.factor, self.lowest / rate)
