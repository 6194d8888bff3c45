"""Callbacks: a user's code at fixed points of the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from xpnet.runtime.deprecation import adopt_renamed_methods, renamed_attribute
from xpnet.runtime.set_later import Settable

if TYPE_CHECKING:
    from xpnet.training.final_weights import FinalWeights
    from xpnet.training.trainer import Trainer


class Callback(Settable):
    """Base class; every method may be left out. ``trainer`` gives access to model, optimizer, history, epoch and step.

    Set ``trainer.stop = True`` to end the run after the current step. An exception ends it as well: before the optimizer's step
    it undoes the batch; later ones come when the batch is done, and the callbacks behind are called before it goes on.

    A callback belongs to one run: the calls of `fit` of one Trainer. When it is given to another one, `reset_state` is called.

    Attributes:
        adds: the names of the values that on_epoch_end adds, for callbacks that monitor one of them; None: it does not say.
        capturable: whether `on_before_optimizer_step` does nothing but change the gradients in place by operations on the
            device, from these and from attributes that are numbers. On a GPU it is then recorded with the step. A subclass
            that overrides it says so itself.
    """

    adds: tuple[str, ...] | None = None
    capturable = False
    _run: Any = None  # of which Trainer it holds the state

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        adopt_renamed_methods(cls, {"before_update": "on_before_optimizer_step", "save_point": "on_checkpoint"})

    def check_run(self, trainer: Trainer) -> None:
        """Raise a ValueError if the callback cannot work in this run; called before `on_fit_begin` of any callback."""

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Run before the first epoch."""

    def on_epoch_begin(self, trainer: Trainer) -> None:
        """Run before the first batch of an epoch; `trainer.epoch` counts from 0."""

    def on_before_optimizer_step(self, trainer: Trainer) -> None:
        """Run after backward and before the optimizer: gradients can be read and changed."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Run after a batch; `trainer.iteration` has been incremented, and `trainer.optimizer.iterations` if it ended in an
        update (with accumulate not every batch does)."""

    def on_epoch_end(self, trainer: Trainer, values: dict[str, float]) -> None:
        """Run after validation; `values` is what will be recorded for the epoch, and may be added to."""

    def on_checkpoint(self, trainer: Trainer, epoch_ended: bool) -> None:
        """Run after everything else of a step or an epoch, when the trainer's state is complete and can be saved."""

    def final_weights(self, trainer: Trainer) -> FinalWeights | None:
        """Return what the model should get at the end of the run instead of the weights of its last step; None for nothing.

        Asked before `on_fit_end` of any callback.
        """
        return None

    def on_fit_end(self, trainer: Trainer) -> None:
        """Run after the last epoch, also after Ctrl-C and after an exception, which is in `trainer.error` then.

        The model has the weights that it keeps.
        """

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs: a dict of numbers, strings, lists and NumPy arrays."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""

    def reset_state(self) -> None:
        """Forget what another run has left in the callback, such as its best value."""

    before_update = renamed_attribute("on_before_optimizer_step")
    save_point = renamed_attribute("on_checkpoint")


def watches_gradients(callback: Callback) -> bool:
    """Return whether a callback acts on the gradients of each step on the host."""
    hook = "on_before_optimizer_step"
    if getattr(getattr(callback, hook), "__func__", None) is getattr(Callback, hook):
        return False
    return not changes_gradients(callback)


def changes_gradients(callback: Callback) -> bool:
    """Return whether a callback changes the gradients of each step in a way that is recorded with the step."""
    if not callback.capturable or "on_before_optimizer_step" in vars(callback):
        return False
    kinds = type(callback).__mro__
    declares, overrides = (
        next(kind for kind in kinds if name in vars(kind)) for name in ("capturable", "on_before_optimizer_step")
    )
    return issubclass(declares, overrides)


def tell(trainer: Trainer, callbacks: Iterable[Callback], hook: str, *args: Any, **keywords: Any) -> None:
    """Call a hook of some callbacks; where one raises, those behind it are called before the exception goes on."""
    waiting = iter(callbacks)
    for callback in waiting:
        try:
            getattr(callback, hook)(trainer, *args, **keywords)
        except BaseException as error:
            try:
                tell(trainer, waiting, hook, *args, **keywords)
            except BaseException as later:
                if isinstance(error, Exception) and not isinstance(later, Exception):
                    raise  # a KeyboardInterrupt is not to wait
                error.add_note(f"then {hook} of another callback raised {type(later).__name__}: {later}")
            raise
