"""Ctrl-C during training."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer


@contextlib.contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Let the first Ctrl-C within the block stop the trainer after its batch, and the second one interrupt at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only, and only it may set handlers
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if trainer.history.interrupted:
            if trainer.committing:  # for microseconds: the trainer raises it when the weights are whole
                trainer.interrupt_waits = True
                return
            raise KeyboardInterrupt
        trainer.stop = trainer.history.interrupted = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
