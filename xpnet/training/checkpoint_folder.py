"""The callback that saves checkpoints to a folder, and the newest one of a folder to resume from."""

from __future__ import annotations

import errno
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpnet.io import archive, lock
from xpnet.runtime.deprecation import renamed_arguments
from xpnet.runtime.settings import check_numbers
from xpnet.training.callback import Callback
from xpnet.training.checkpoint import checkpoint_epoch, load_checkpoint, save_checkpoint
from xpnet.training.monitors import Mode, is_better, mode_in_run

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer

CHECKPOINTS = "checkpoints"
"""The folder of checkpoints within that of a run."""
_NAME = re.compile(r"step-(\d{10,})\.ckpt")


class Checkpoint(Callback):
    """Save checkpoints to a folder: every given number of steps or minutes, and at the end of every epoch.

    Args:
        folder: made if it does not exist. Files are called step-0000001234.ckpt; the best one best.ckpt.
        every_steps, every_minutes: save within an epoch too; None does not.
        keep: how many of the newest files to keep.
        best: a name in the history, such as "val_accuracy": the epoch with its best value is kept as best.ckpt.
        mode: "min" or "max", which value is the best; None: as the metric says, see EarlyStopping.

    Where a loss of the epoch or a parameter is not finite, no checkpoint is written and the run ends with a NotFiniteError: it
    could not go on from there. One that cannot be written during the run (a full disk) is a warning, and the run continues:
    older ones are untouched. A folder that cannot be written at the start is an error, and so is one that another process
    trains into.

    Checkpoints in the folder that are ahead of the start of this run belong to another run, or to a part of this one that is
    repeated. They would be taken for the newest ones, so they are renamed to end in ".old", with a warning.
    """

    adds = ()
    mode = Mode("best")
    _given_mode: str | None

    @renamed_arguments(largest="mode")
    def __init__(
        self,
        folder: str | Path,
        *,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        keep: int = 3,
        best: str | None = None,
        mode: str | None = None,
    ) -> None:
        if keep < 1 or (every_steps is not None and every_steps < 1):
            raise ValueError(f"Checkpoint: keep and every_steps must be at least 1, got {keep} and {every_steps}")
        if every_minutes is not None:
            check_numbers("Checkpoint", "[0, inf)", every_minutes=every_minutes)
        self.folder = Path(folder)
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.best = best
        self.mode = mode
        self.best_value: float | None = None
        self._saved = time.monotonic()
        self._locked = False

    def _take(self, name: str, made: Any) -> None:
        """Take over a setting; the best value so far was that of what was watched before."""
        super()._take(name, made)
        if name == "best":
            self.reset_state()

    def check_run(self, trainer: Trainer) -> None:
        """Raise a ValueError if the value of the best epoch will not be recorded, or nothing says which way it is better."""
        if self.best is not None:
            self.__dict__["mode"] = mode_in_run(self, self.best, self._given_mode, trainer)

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Make the folder, lock it for this process, and check that it can be written to."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise type(error)(error.errno, "Checkpoint needs a folder, and a file is in its place", str(self.folder)) from None
        if not self._locked:
            lock.acquire(self.folder)
            self._locked = True
        try:
            archive.write_atomically(self.folder / ".writable", lambda file: file.write(b""))
            (self.folder / ".writable").unlink()
            for left in self.folder.glob(".*.tmp"):  # of a run that was killed while it wrote
                left.unlink()
            self._set_aside(trainer)
        except BaseException:
            self.on_fit_end(trainer)  # a callback that did not begin gets no end
            raise
        self._saved = time.monotonic()

    def on_fit_end(self, trainer: Trainer) -> None:
        """Unlock the folder."""
        if self._locked:
            lock.release(self.folder)
            self._locked = False

    def _set_aside(self, trainer: Trainer) -> None:
        ahead = [path for path in newest_first(self.folder) if _steps(path) > trainer.iteration]
        if trainer.iteration == 0 and (self.folder / "best.ckpt").exists():
            ahead.append(self.folder / "best.ckpt")
        for path in ahead:
            path.replace(path.with_name(path.name + ".old"))
        if ahead:
            names = ", ".join(path.name for path in ahead)
            warnings.warn(
                f"{self.folder} holds checkpoints that are ahead of this run, which begins at step {trainer.iteration}; "
                f'renamed to *.old: {names}. To go on from them, rename them back and use resume="auto"',
                RuntimeWarning,
                stacklevel=5,
            )

    def on_checkpoint(self, trainer: Trainer, epoch_ended: bool) -> None:
        """Save if a checkpoint is due."""
        minutes = (time.monotonic() - self._saved) / 60
        if (
            epoch_ended
            or (trainer.stop and trainer.history.interrupted)
            or (self.every_steps is not None and trainer.iteration % self.every_steps == 0)
            or (self.every_minutes is not None and minutes >= self.every_minutes)
        ):
            better = epoch_ended and self._is_best(trainer)
            self._save(trainer, self.folder / f"step-{trainer.iteration:010d}.ckpt")
            if better:
                self._save(trainer, self.folder / "best.ckpt")

    def _is_best(self, trainer: Trainer) -> bool:
        if self.best is None:
            return False
        if self.best not in trainer.history:
            raise ValueError(f"Checkpoint: best={self.best!r} is not in the history: {', '.join(trainer.history)}")
        value = trainer.history[self.best][-1]
        if is_better(value, self.best_value, self.mode or "min"):
            self.best_value = value
            return True
        return False

    def _save(self, trainer: Trainer, path: Path) -> None:
        try:
            save_checkpoint(trainer, path)
        except OSError as error:
            warnings.warn(
                f"the checkpoint {path.name} could not be written ({error}); the run goes on, older checkpoints are untouched",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._saved = time.monotonic()
        for old in newest_first(self.folder)[self.keep :]:
            old.unlink(missing_ok=True)

    def state(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {"best_value": self.best_value}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""
        self.best_value = state["best_value"]

    def reset_state(self) -> None:
        """Forget the best value."""
        self.best_value = None


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, newest first."""
    return sorted((path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)), key=_steps, reverse=True)


def _steps(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def resume_trainer(trainer: Trainer, resume: str | Path) -> None:
    """Restore a trainer from a checkpoint: a file, or the newest usable one in a folder, of checkpoints or of a run.

    "auto" is the folder of its Checkpoint callback; without any file there the trainer stays as it is. In a folder a damaged
    file is skipped with a warning that names it.

    Raises:
        ValueError: "auto" without a Checkpoint callback.
        FileNotFoundError: no such file, or a folder without checkpoints.
        ArchiveError: the checkpoints are all damaged.
    """
    if str(resume) != "auto":
        folder = Path(resume)
        if not folder.exists():
            what = 'no such checkpoint, and no such folder; resume="auto" begins anew where there is none'
            raise FileNotFoundError(errno.ENOENT, what, str(resume))
        if not folder.is_dir():
            load_checkpoint(trainer, resume)
            return
        found = newest_first(folder) or newest_first(folder / CHECKPOINTS)
        if not found:
            raise FileNotFoundError(errno.ENOENT, "no checkpoints step-*.ckpt in this folder", str(resume))
    else:
        folders = [callback.folder for callback in trainer.callbacks if isinstance(callback, Checkpoint)]
        if not folders:
            raise ValueError('resume="auto" needs a Checkpoint(folder) among the callbacks, or give the path of a checkpoint')
        folder = folders[0]
        found = newest_first(folder)
    damaged: list[str] = []
    for path in found:
        try:
            load_checkpoint(trainer, path)
        except archive.ArchiveError as error:
            damaged.append(str(error))
        else:
            for passed in damaged:
                warnings.warn(f"passed over a checkpoint: {passed}", RuntimeWarning, stacklevel=3)
            return
    if damaged:
        raise _all_damaged(folder, damaged)


def newest_epoch(folder: Path) -> int | None:
    """Return the epoch, from 1, in which a run resumes from a folder of checkpoints, or the last one where that has ended.

    Returns:
        None where there are no checkpoints.

    Raises:
        ArchiveError: the checkpoints are all damaged.
    """
    damaged: list[str] = []
    for path in newest_first(folder):
        try:
            return checkpoint_epoch(path)
        except archive.ArchiveError as error:
            damaged.append(str(error))
    if damaged:
        raise _all_damaged(folder, damaged)
    return None


def _all_damaged(folder: Path, damaged: list[str]) -> archive.ArchiveError:
    return archive.ArchiveError(
        f"no usable checkpoint in {folder}: all {len(damaged)} are damaged. Move them away to begin anew, or put back "
        f"copies. {'; '.join(damaged)}"
    )
