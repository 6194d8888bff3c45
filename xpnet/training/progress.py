"""Progress of a training run: a bar on a terminal, one line for each epoch in a log, or nothing."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

from xpnet.training.history import Sums


class Progress:
    """Progress display, epoch by epoch.

    Args:
        epochs: how many epochs there will be in all.
        batches: batches in an epoch, or None if unknown.
        verbose: None shows a bar on a terminal and a line for each epoch elsewhere; True always shows lines; False nothing.
    """

    REFRESH = 0.1  # seconds; reading the loss waits for the device, so it is read no more often

    def __init__(self, epochs: int, batches: int | None, verbose: bool | None = None) -> None:
        self.epochs = epochs
        self.batches = batches
        self.lines = verbose is None or bool(verbose)
        self.bar: Any = _bar() if verbose is None and sys.stderr.isatty() else None
        self._task: Any = None
        self._sums: Any = None  # a Sums
        self._before = 0
        self._started = self._shown = 0.0

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, epoch: int, done: int, sums: Sums) -> None:
        """Start an epoch (from 0), with some batches done already; what is measured in it is added to `sums`."""
        self._sums, self._before = sums, sums.count
        self._started = time.perf_counter()
        if self.bar is not None:
            if self._task is not None:
                self.bar.remove_task(self._task)
            self._task = self.bar.add_task(f"epoch {epoch + 1}/{self.epochs}", total=self.batches, completed=done, status="")

    def advance(self) -> None:
        """Count a batch."""
        if self.bar is None:
            return
        now = time.perf_counter()
        status: dict[str, str] = {}
        if now - self._shown > self.REFRESH:
            self._shown = now
            values = "  ".join(f"{name} {value:.4f}" for name, value in self._sums.means().items())
            status = {"status": f"{values}  {self._rate(now - self._started):,.0f} examples/s"}
        self.bar.update(self._task, advance=1, **status)

    def end(self, epoch: int, values: dict[str, float]) -> None:
        """End an epoch: print its values in one line."""
        if not self.lines:
            return
        seconds = time.perf_counter() - self._started
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        line = f"epoch {epoch + 1}/{self.epochs}  {shown}  {seconds:.1f} s  {self._rate(seconds):,.0f} examples/s"
        if self.bar is not None:
            self.bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _rate(self, seconds: float) -> float:
        examples: int = self._sums.count - self._before
        return examples / max(seconds, 1e-9)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
