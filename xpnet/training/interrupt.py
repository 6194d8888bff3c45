"""Ctrl-C during training."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer


class Interruptible:
    """A block in which the first Ctrl-C stops the trainer after its batch and the second one interrupts at once."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.before: Any = None
        # Signals reach the main thread only, and only it may set handlers.
        self.active = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self.active:
            self.before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.trainer.history.interrupted:
            raise KeyboardInterrupt
        self.trainer.stop = self.trainer.history.interrupted = True

    def __exit__(self, *exception: object) -> None:
        if self.active:
            signal.signal(signal.SIGINT, self.before)
