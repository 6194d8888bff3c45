"""Learning-rate schedules: schedule(step) -> learning rate, for the steps 0, 1, 2, ...

Pass one to an optimizer instead of a number: ``xn.optim.SGD(xn.optim.schedules.Cosine(0.1, steps=10_000))``. Steps
are updates, not epochs: an epoch has ceil(examples / batch size) of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xpnet.runtime.settings import Checked, check_numbers, check_whole


@dataclass(frozen=True)
class Constant(Checked):
    """The same rate at every step."""

    rate: float

    def __post_init__(self) -> None:
        check_numbers("Constant", "[0, inf)", rate=self.rate)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rate


@dataclass(frozen=True)
class Step(Checked):
    """rate * factor ** (step // every): step decay."""

    rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_numbers("Step", "[0, inf)", rate=self.rate, factor=self.factor)
        check_numbers("Step", "(0, inf)", every=self.every)
        check_whole("Step", 1, every=self.every)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rate * math.pow(self.factor, step // self.every)


@dataclass(frozen=True)
class Exponential(Checked):
    """rate * factor ** (step / every): exponential decay."""

    rate: float
    factor: float
    every: float = 1.0

    def __post_init__(self) -> None:
        check_numbers("Exponential", "[0, inf)", rate=self.rate)
        check_numbers("Exponential", "(0, inf)", every=self.every, factor=self.factor)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rate * math.pow(self.factor, step / self.every)


@dataclass(frozen=True)
class InverseTime(Checked):
    """rate / (1 + decay * step), the 1/t decay."""

    rate: float
    decay: float

    def __post_init__(self) -> None:
        check_numbers("InverseTime", "[0, inf)", rate=self.rate, decay=self.decay)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rate / (1 + self.decay * step)


@dataclass(frozen=True)
class Cosine(Checked):
    """From `rate` down to `end` along half a cosine in `steps` steps; `end` afterwards.

    Source: Loshchilov and Hutter, "SGDR", 2017 (without restarts).
    """

    rate: float
    steps: float
    end: float = 0.0

    def __post_init__(self) -> None:
        check_numbers("Cosine", "[0, inf)", rate=self.rate, end=self.end)
        check_numbers("Cosine", "(0, inf)", steps=self.steps)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return _half_cosine(self.rate, self.end, step / self.steps)


def _half_cosine(begin: float, end: float, part: float) -> float:
    """Interpolate from begin (part 0) to end (part 1) along half a cosine."""
    return end + (begin - end) * (1 + math.cos(math.pi * min(max(part, 0.0), 1.0))) / 2


@dataclass(frozen=True)
class Piecewise(Checked):
    """rates[i] from step boundaries[i - 1] on: one rate more than there are boundaries."""

    boundaries: Sequence[int]
    rates: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.boundaries) + 1 or list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(
                f"Piecewise: expected growing boundaries and one rate more than those, got {self.boundaries} and {self.rates}"
            )
        check_whole("Piecewise", 0, **{f"boundaries[{i}]": step for i, step in enumerate(self.boundaries)})
        check_numbers("Piecewise", "[0, inf)", **{f"rates[{i}]": rate for i, rate in enumerate(self.rates)})

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rates[sum(step >= b for b in self.boundaries)]


@dataclass(frozen=True)
class WarmUp(Checked):
    """Linear warm-up: in `steps` steps from `start` to the first rate of another schedule, which follows.

    Args:
        after: a number, or a schedule; its step 0 is step `steps`.
        steps: how many.
        start: the rate at step 0.

    Source: Goyal et al., "Accurate, large minibatch SGD", 2017.
    """

    after: float | Callable[[int], float]
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        check_numbers("WarmUp", "(0, inf)", steps=self.steps)
        check_numbers("WarmUp", "[0, inf)", start=self.start, **({} if callable(self.after) else {"after": self.after}))

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        if step >= self.steps:
            return self._after(step - self.steps)
        return self.start + (self._after(0) - self.start) * step / self.steps

    def _after(self, step: int) -> float:
        return float(self.after(step)) if callable(self.after) else self.after


@dataclass(frozen=True)
class OneCycle(Checked):
    """Up from rate/divide to `rate` along half a cosine, then down to rate/divide/final_divide along another.

    Args:
        rate: the highest.
        steps: of the whole cycle; the lowest rate is reached at the last one and kept.
        up: the fraction of the steps that goes up.
        divide, final_divide: as above.

    Source: Smith and Topin, "Super-convergence", 2018.
    """

    rate: float
    steps: float
    up: float = 0.3
    divide: float = 25.0
    final_divide: float = 1e4

    def __post_init__(self) -> None:
        check_numbers("OneCycle", "[0, inf)", rate=self.rate)
        check_numbers("OneCycle", "(0, inf)", steps=self.steps, divide=self.divide, final_divide=self.final_divide)
        if not 0 < self.up < 1 or self.up * self.steps <= 1:
            raise ValueError(f"OneCycle: up={self.up} of {self.steps} steps must be more than one step, and not all")

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        first = self.rate / self.divide
        top, last = self.up * self.steps - 1, self.steps - 1
        if step <= top:
            return _half_cosine(first, self.rate, step / top)
        return _half_cosine(self.rate, first / self.final_divide, (step - top) / (last - top))


__all__ = ["Constant", "Cosine", "Exponential", "InverseTime", "OneCycle", "Piecewise", "Step", "WarmUp"]
