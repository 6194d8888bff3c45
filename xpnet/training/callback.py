"""Callbacks: a user's code at fixed points of the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpnet.runtime.deprecation import adopt_renamed_methods, renamed_attribute

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer


class Callback:
    """Base class; every method may be left out. ``trainer`` gives access to model, optimizer, history, epoch and step.

    Set ``trainer.stop = True`` to end the run after the current step.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        adopt_renamed_methods(cls, {"before_update": "on_before_optimizer_step", "save_point": "on_checkpoint"})

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Run before the first epoch."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Run before the first batch of an epoch; `trainer.epoch` counts from 0."""

    def on_before_optimizer_step(self, trainer: Trainer) -> None:
        """Run after backward and before the optimizer: gradients can be read and changed."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Run after an update; `trainer.iteration` has been incremented."""

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Run after validation; `values` is what will be recorded for the epoch, and may be added to."""

    def on_checkpoint(self, trainer: Trainer, epoch_ended: bool) -> None:
        """Run after everything else of a step or an epoch, when the trainer's state is complete and can be saved."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Run after the last epoch, also after Ctrl-C."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs: a dict of numbers, strings, lists and NumPy arrays."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""

    before_update = renamed_attribute("on_before_optimizer_step")
    save_point = renamed_attribute("on_checkpoint")
