"""The weights that a run leaves in the model: those of its last step, or what a callback has instead.

The callbacks only say what they have (`Callback.final_weights`); one of them is chosen here, and the weights of the last step
are set aside, so that a run that was cut short goes on with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnet.backend import to_numpy

if TYPE_CHECKING:
    from xpnet.layers.module import Module
    from xpnet.training.callback import Callback
    from xpnet.training.trainer import Trainer


@dataclass(frozen=True)
class FinalWeights:
    """What a callback has for the model at the end of a run.

    Attributes:
        put: writes it to the model.
        epoch: the epoch (from 0) whose weights these are; None for an average, which no epoch has measured.
    """

    put: Callable[[], object]
    epoch: int | None = None


@dataclass(frozen=True)
class SetAside:
    """The state of the model after the last step of a run that was cut short, and the one that it got instead."""

    raw: dict[str, Any]
    given: dict[str, Any]

    def of(self, model: Module) -> dict[str, Any] | None:
        """Return the state after the last step, if the model still has what it got instead."""
        now = model.state()
        same = now.keys() == self.given.keys() and all(
            np.array_equal(to_numpy(now[name]), values, equal_nan=values.dtype.kind == "f")
            for name, values in self.given.items()
        )
        return self.raw if same else None


def leave_weights(trainer: Trainer, callbacks: Iterable[Callback]) -> None:
    """Give the model the final weights of a callback: those of an epoch before an average, then those of the later one.

    Where the loss became NaN or infinite, an average is not given: it holds what has diverged.
    """
    trainer.history.measured = not trainer.batch
    found = [weights for callback in callbacks if (weights := callback.final_weights(trainer)) is not None]
    measured = [weights for weights in found if weights.epoch is not None]
    if measured or trainer.diverged:
        found = measured
    if not found:
        return
    chosen, history, model = found[-1], trainer.history, trainer.model
    if chosen.epoch == trainer.epoch - 1 and not (trainer.batch or trainer.diverged):
        return  # the model has them
    cut_short = bool(trainer.batch or trainer.error or history.interrupted) and not trainer.diverged
    raw = copied_state(model) if cut_short else {}
    chosen.put()
    history.restored, history.averaged = chosen.epoch, chosen.epoch is None
    trainer.set_aside = SetAside(raw, copied_state(model)) if cut_short else None


def take_back(trainer: Trainer) -> None:
    """Give the model the weights after its last step, where it still has what it got instead: the run goes on."""
    raw = None if trainer.set_aside is None else trainer.set_aside.of(trainer.model)
    if raw is not None:
        trainer.model.load_state(raw)


def raw_state(trainer: Trainer) -> dict[str, Any]:
    """Return the state of the model with which the run goes on."""
    raw = None if trainer.set_aside is None else trainer.set_aside.of(trainer.model)
    return trainer.model.state() if raw is None else raw


def copied_state(model: Module) -> dict[str, Any]:
    """Return copies of a model's state, as NumPy arrays."""
    return {name: to_numpy(array).copy() for name, array in model.state().items()}
