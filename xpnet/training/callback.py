"""Callbacks: a user's code at fixed points of the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer


class Callback:
    """Base class; every method may be left out. ``trainer`` gives access to model, optimizer, history, epoch and step.

    Set ``trainer.stop = True`` to end the run after the current step.
    """

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Before the first batch of an epoch; `trainer.epoch` counts from 0."""

    def before_update(self, trainer: Trainer) -> None:
        """After backward, before the optimizer: gradients can be read and changed."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After an update; `trainer.iteration` has been counted up."""

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """After validation; `values` is what will be recorded for the epoch, and may be added to."""

    def save_point(self, trainer: Trainer, epoch_ended: bool) -> None:
        """After everything else of a step or an epoch: the trainer's state is complete here and can be saved."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, also after Ctrl-C."""

    def state(self) -> dict[str, Any]:
        """What a continued run needs: a dict of numbers, strings, lists and NumPy arrays."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state from :meth:`state`."""
