"""What a training run measures: sums within an epoch, and the history, one float for each epoch and name."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnet.backend import Array, is_asynchronous, namespace
from xpnet.compiled.derived import HostNumberError
from xpnet.layers.modes import thread_state
from xpnet.ops.measures import add_means
from xpnet.runtime.messages import quoted
from xpnet.runtime.peers import missing_attribute


class History(dict[str, list[float]]):
    """``history["loss"]``, ``history["val_accuracy"]``, ...: lists with one float for each epoch.

    Attributes:
        interrupted: whether the run was stopped by Ctrl-C.
        restored: the epoch (from 0) whose weights EarlyStopping gave back to the model at the end; None: it did not.
        averaged: whether the model got the average of an ExponentialMovingAverage at the end, which no epoch has measured.
        measured: whether the last epoch was measured with the weights at the end: not where the run was cut short within the
            next one.
    """

    if not TYPE_CHECKING:  # mypy would know every attribute
        __getattr__ = missing_attribute
    interrupted = False
    restored: int | None = None
    averaged = False
    measured = True

    def record(self, values: dict[str, float]) -> None:
        """Add one epoch. A value that only some epochs have is nan in the others, so that all lists have one length."""
        before = self.epochs
        numbers = as_numbers(values)
        for name, value in numbers.items():
            self.setdefault(name, [math.nan] * before).append(value)
        for name in self.keys() - numbers.keys():
            self[name].append(math.nan)

    def of_the_model(self) -> dict[str, float]:
        """Return what was measured with the weights that the model has after `fit`.

        These are the values of the restored epoch, or else of the last one; none where the weights are an average, or were
        trained further since.
        """
        epoch = self.epoch_of_the_model
        if epoch is None:
            return {}
        return {name: values[epoch] for name, values in self.items() if epoch < len(values)}

    @property
    def epoch_of_the_model(self) -> int | None:
        """The epoch (from 0) that was measured with the weights that the model has after `fit`; None: there is none."""
        if self.restored is not None:
            return self.restored
        return None if self.averaged or not self.measured or not self.epochs else self.epochs - 1

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


def as_numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the values of an epoch as floats.

    Raises:
        TypeError: one of them is no number.
    """
    numbers = {}
    for name, value in values.items():
        try:
            numbers[name] = float("" if isinstance(value, str) else value)
        except (TypeError, ValueError):
            raise TypeError(
                f"the value {name!r} of an epoch must be a number, got {quoted(value)}, which a callback has put into `values`"
            ) from None
    return numbers


class Sums:
    """Means over the examples of an epoch of what is a mean over each batch, added up in place, in float64 on the device."""

    def __init__(self) -> None:
        self.count = 0
        self.totals: dict[str, Array] = {}
        self._namespaces: dict[str, Any] = {}  # of the totals
        self._before: dict[str, float] = {}  # from a checkpoint, until the device is known

    def add(self, x: Any, values: dict[str, Array]) -> None:
        """Add the means over a batch `x`: an array, or a tuple or dict of them."""
        count, terms = self.terms(x, values)
        self.add_terms(count, terms)
        self.count += count

    def terms(self, x: Any, values: dict[str, Array]) -> tuple[int, list[tuple[Any, Any]]]:
        """Return what :meth:`add` would add, and change nothing: the number of examples, and each total with its term.

        On a GPU a term is the mean itself, which `add_terms` multiplies by the number of examples.
        """
        while isinstance(x, (tuple, dict)):
            x = next(iter(x.values())) if isinstance(x, dict) else x[0]
        examples = len(x)
        terms: list[tuple[Any, Any]] = []
        for name, value in values.items():
            total = self.totals.get(name)
            term: Any
            if not hasattr(value, "dtype"):  # a user's metric may return a Python number
                if thread_state.recording:
                    raise HostNumberError(f"the metric {name} returned the Python number {value!r}")
                loss = values["loss"]
                value = namespace(loss).asarray(value, dtype=namespace(loss).float64, device=loss.device)
            xp = self._namespaces[name] if total is not None else namespace(value)
            if xp is np and total is not None and not value.ndim:
                term = float(value) * examples
            elif is_asynchronous(xp):
                # Added after the update of the weights: if it is a part of another array, which may be theirs, it is copied.
                part: Any = value
                term = part if part.base is None else xp.asarray(part, copy=True)
            else:
                term = xp.astype(value, xp.float64) * examples
            if total is None:
                self._namespaces[name] = xp
                start = self._before.get(name, 0.0)
                total = self.totals[name] = xp.asarray(start, dtype=xp.float64, device=value.device)
            terms.append((total, term))
        return examples, terms

    def add_terms(self, examples: int, terms: Iterable[tuple[Any, Any]]) -> None:
        """Add the terms of a batch to their totals; those on a GPU in one launch."""
        totals: list[Any] = []
        means: list[Any] = []
        for total, term in terms:
            if type(total) is np.ndarray or not is_asynchronous(namespace(total)):
                total += term
            else:
                totals.append(total)
                means.append(term)
        if totals:
            add_means(totals[0], totals, means, examples)

    def clear(self) -> None:
        """Start again in the same memory, which captured steps add to."""
        self.count = 0
        self._before = {}
        for total in self.totals.values():
            total[...] = 0

    def restart(self, known: Iterable[str]) -> None:
        """Give the totals that are not among `known` their first values: they were made for a batch that is undone."""
        for name in self.totals.keys() - set(known):
            self.totals[name][...] = self._before.get(name, 0.0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Sums:
        """Return a copy; the arrays are made anew on the device."""
        copy = Sums()
        copy.load_state(self.state())
        return copy

    def means(self) -> dict[str, float]:
        """Return the means over all examples as Python floats (waits for the device)."""
        return {name: total / max(self.count, 1) for name, total in self.state()["totals"].items()}

    def state(self) -> dict[str, Any]:
        """Return everything as Python numbers."""
        return {"count": self.count, "totals": {**self._before, **{name: float(a) for name, a in self.totals.items()}}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`."""
        self.count = int(state["count"])
        self.totals = {}
        self._before = dict(state["totals"])
