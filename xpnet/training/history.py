"""The history of a training run: one float for each epoch and name."""

from __future__ import annotations

import csv
import io
import math
from typing import Any


class History(dict[str, list[float]]):
    """``history["loss"]``, ``history["val_accuracy"]``, ...: lists with one float for each epoch.

    Attributes:
        interrupted: whether the run was stopped by Ctrl-C.
    """

    interrupted = False

    def record(self, values: dict[str, float]) -> None:
        """Add one epoch. A value that only some epochs have is nan in the others, so that all lists have one length."""
        before = self.epochs
        for name, value in values.items():
            self.setdefault(name, [math.nan] * before).append(float(value))
        for name in self.keys() - values.keys():
            self[name].append(math.nan)

    @property
    def epochs(self) -> int:
        """How many epochs were recorded."""
        return max((len(values) for values in self.values()), default=0)

    def to_csv(self) -> str:
        """Return a table with a row for each epoch, numbered from 1."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["epoch", *self])
        for i in range(self.epochs):
            row: list[Any] = [i + 1]
            row += [repr(values[i]) if i < len(values) else "" for values in self.values()]
            writer.writerow(row)
        return text.getvalue()
