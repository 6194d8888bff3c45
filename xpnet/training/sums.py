"""What is measured within an epoch, added up where the arrays are."""

from __future__ import annotations

from typing import Any

from xpnet.backend import Array, namespace


class Sums:
    """Means over examples of values that are means over batches, added up in float64 on the device, always in place."""

    def __init__(self) -> None:
        self.count = 0
        self.totals: dict[str, Array] = {}
        self._before: dict[str, float] = {}  # from a checkpoint, until the device is known

    def add(self, examples: int, values: dict[str, Array]) -> None:
        """A batch's means."""
        self.count += examples
        for name, value in values.items():
            total = self.totals.get(name)
            if not hasattr(value, "dtype"):  # a metric of one's own may give a Python number
                loss = values["loss"]
                value = namespace(loss).asarray(value, dtype=namespace(loss).float64, device=loss.device)
            xp = namespace(value)
            if total is None:
                start = self._before.pop(name, 0.0)
                total = self.totals[name] = xp.asarray(start, dtype=xp.float64, device=value.device)
            total += xp.astype(value, xp.float64) * examples

    def clear(self) -> None:
        """Begin again, in the same memory: recorded steps add to it."""
        self.count = 0
        self._before = {}
        for total in self.totals.values():
            total[...] = 0

    def means(self) -> dict[str, float]:
        """The means over all examples as Python floats (waits for the device)."""
        return {name: total / max(self.count, 1) for name, total in self.state()["totals"].items()}

    def state(self) -> dict[str, Any]:
        """Everything as Python numbers."""
        return {"count": self.count, "totals": {**self._before, **{name: float(a) for name, a in self.totals.items()}}}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state from :meth:`state`."""
        self.count = int(state["count"])
        self.totals = {}
        self._before = dict(state["totals"])
