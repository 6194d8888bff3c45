"""Progress of a training run: a bar on a terminal, one line for each epoch in a log, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self


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
        self.lines = verbose is not False
        self.bar: Any = None
        if verbose is None and sys.stderr.isatty():
            self.bar = _bar()
        self._task: Any = None
        self._seen = 0
        self._started = self._shown = 0.0

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, epoch: int, done: int = 0) -> None:
        """Start an epoch (from 0), with some batches done already."""
        self._seen = 0
        self._started = time.perf_counter()
        if self.bar is not None:
            if self._task is not None:
                self.bar.remove_task(self._task)
            self._task = self.bar.add_task(f"epoch {epoch + 1}/{self.epochs}", total=self.batches, completed=done, status="")

    def advance(self, examples: int, means: Callable[[], dict[str, float]]) -> None:
        """Count a batch; `means` returns the epoch's values so far, and is called only when they are shown."""
        self._seen += examples
        if self.bar is None:
            return
        now = time.perf_counter()
        status: dict[str, str] = {}
        if now - self._shown > self.REFRESH:
            self._shown = now
            rate = self._seen / max(now - self._started, 1e-9)
            values = "  ".join(f"{name} {value:.4f}" for name, value in means().items())
            status = {"status": f"{values}  {rate:,.0f} examples/s"}
        self.bar.update(self._task, advance=1, **status)

    def end(self, epoch: int, values: dict[str, float]) -> None:
        """End an epoch: print its values in one line."""
        if not self.lines:
            return
        seconds = time.perf_counter() - self._started
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        rate = self._seen / max(seconds, 1e-9)
        line = f"epoch {epoch + 1}/{self.epochs}  {shown}  {seconds:.1f} s  {rate:,.0f} examples/s"
        if self.bar is not None:
            self.bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


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
