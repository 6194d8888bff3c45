"""Signals during training: Ctrl-C, and those by which a scheduler asks for an end (SIGTERM, SIGUSR1)."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer

ENDING = ("SIGTERM", "SIGUSR1")
"""Sent by Slurm, Kubernetes, systemd and docker stop before they kill a process."""


_AT_ONCE = 1.0
"""Seconds in which a signal that comes again is the same request: schedulers send it to a process and to its group."""


class Terminated(SystemExit):
    """The process was asked to end: `fit` raises it after its last step and checkpoint.

    As a SystemExit it ends the process, with the exit code of the signal: 128 + its number, 143 for SIGTERM.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number


class _Ask:
    """The handler of a signal during `fit`."""

    def __init__(self, trainer: Trainer, usual: Any) -> None:
        self.trainer = trainer
        self.history = trainer.history  # which nobody may use while a step is recorded
        self.usual = usual  # the handler before; that of a `fit` around this one, in whose callback this one runs, is told too
        self.asked = 0
        self.since = 0.0  # the time when it was asked first

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self.asked and (number == signal.SIGINT or now > self.since + _AT_ONCE)
        self.since = self.since if self.asked else now
        self.asked = number
        self.trainer.stop = self.history.interrupted = True
        if again and self.trainer.committing:  # for microseconds: the trainer raises it when the weights are whole
            self.trainer.interrupt_waits = self._error(number)
        elif isinstance(self.usual, _Ask):
            self.usual(number, frame)
        elif again:
            raise self._error(number)

    def _error(self, number: int) -> BaseException:
        return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


@contextlib.contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Let signals within the block stop the trainer after its batch.

    The first Ctrl-C does, and the second one interrupts at once. SIGTERM and SIGUSR1 do too, if the second comes a second
    later, and at the end of the block raise :class:`Terminated`. A signal that the caller ignores, or handles in a way of its
    own, stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only, and only it may set handlers
        return
    known: list[tuple[int, Any]] = [(signal.SIGINT, signal.default_int_handler)]
    known += [(getattr(signal, name), signal.SIG_DFL) for name in ENDING if hasattr(signal, name)]
    handlers = {}
    for number, default in known:
        usual = signal.getsignal(number)
        if usual is default or isinstance(usual, _Ask):
            handlers[number] = _Ask(trainer, usual)
            signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number, ask in handlers.items():
            signal.signal(number, ask.usual)
    for number, ask in handlers.items():
        if ask.asked and number != signal.SIGINT and not isinstance(ask.usual, _Ask):
            raise Terminated(number)
