"""Beginning, continuing and ending a run: what belongs to it, callbacks and the epoch that is going on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from xpnet.training.arguments import check_callback
from xpnet.training.callback import Callback, tell
from xpnet.training.final_weights import leave_weights, take_back

if TYPE_CHECKING:
    from xpnet.data import Batches
    from xpnet.training.trainer import Trainer


def take_callbacks(trainer: Trainer) -> None:
    """Let callbacks that hold the state of another run begin afresh."""
    for callback in trainer.callbacks:
        check_callback(callback)  # it may have been put into the list since
        if callback._run is not trainer.run_id:
            if callback._run is not None:
                callback.reset_state()
            claim(trainer, callback)


def claim(trainer: Trainer, callback: Callback) -> None:
    """Note that a callback holds the state of this run."""
    object.__setattr__(callback, "_run", trainer.run_id)  # it may be a frozen dataclass


def begin_callbacks(trainer: Trainer, began: list[Callback]) -> None:
    """Call `on_fit_begin`; `began` gets the callbacks that need an end."""
    for callback in trainer.callbacks:
        callback.on_fit_begin(trainer)
        began.append(callback)


def end_callbacks(trainer: Trainer, began: list[Callback], error: BaseException) -> None:
    """Leave the model its final weights and call `on_fit_end` after an exception, which `trainer.error` is meanwhile."""
    trainer.error = error
    try:
        try:
            leave_weights(trainer, began)
        except Exception as later:
            error.add_note(f"then final_weights of a callback raised {type(later).__name__}: {later}")
        tell(trainer, began, "on_fit_end")
    except Exception as later:
        error.add_note(f"then on_fit_end of a callback raised {type(later).__name__}: {later}")
    finally:
        trainer.error = None  # its traceback holds the trainer


def continue_epoch(trainer: Trainer, batches: Batches, resumed: bool) -> None:
    """Keep the place in an epoch that was cut short, and its weights, if the data are the same; begin a new epoch otherwise.

    resumed: the place is from a checkpoint; a warning says that it does not fit.
    """
    from xpnet.data.identity import difference

    what = None if trainer.epoch_data is None else difference(trainer.epoch_data, batches)
    if what is None:
        take_back(trainer)
        return
    if resumed:
        warnings.warn(
            f"the run was saved within epoch {trainer.epoch + 1}, on other data or in other batches ({what}); that epoch "
            f"begins anew",
            RuntimeWarning,
            stacklevel=4,
        )
    trainer.batch = 0
    if trainer.pending:  # gradients of the old data
        trainer.pending = 0
        trainer.model.zero_grad()
