"""Adagrad and RMSprop: gradients divided by the root of their mean square."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from xpnet.autograd.flat_parameters import FlatParameters
from xpnet.backend import Array
from xpnet.ops.updates import adaptive
from xpnet.optim.optimizer import Optimizer, Schedule
from xpnet.runtime.refused import refused_attribute
from xpnet.runtime.settings import Converted, check_numbers


class Adagrad(Optimizer):
    """w -= learning_rate * g / (sqrt(sum of all g*g so far) + epsilon): rare features keep large steps.

    Args:
        learning_rate: a number or a schedule.
        epsilon: added to the root.
        initial: the sum before the first step.
        weight_decay: as in Optimizer.

    Source: Duchi et al., "Adaptive subgradient methods", 2011; CS231n, "Neural networks part 3".
    """

    slot_names = ("sum",)
    capturable = True
    rule = adaptive.adagrad

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        epsilon: float = 1e-10,
        *,
        initial: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        check_numbers("Adagrad", "[0, inf)", epsilon=epsilon, initial=initial)
        self.epsilon = epsilon
        self.initial = initial

    def initial_slot(self, name: str, xp: Any, flat: FlatParameters) -> Array:
        """Return the sum before the first step."""
        return cast(Array, xp.full_like(flat.values, self.initial))

    def update(self, w: Array, g: Array, learning_rate: Any) -> None:
        """See Optimizer."""
        self.rule(w, g, self.slots["sum"], learning_rate=learning_rate, epsilon=self.epsilon, **self.fused_decay)


class _Decay(refused_attribute):
    """The name of an argument of RMSprop's, which is that of a method of every optimizer."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return Optimizer.decay if instance is None else Optimizer.decay.__get__(instance)


def _rate_decay(value: float) -> float:
    check_numbers("RMSprop", "[0, 1)", decay=value)
    return value


class RMSprop(Optimizer):
    """w -= learning_rate * g / (sqrt(decaying mean of g*g) + epsilon).

    Args:
        learning_rate: a number or a schedule.
        decay: of the mean, in [0, 1); the attribute is `rate_decay`.
        epsilon: added to the root.
        centered: divide by the standard deviation of g instead, sqrt(mean of g*g - (mean of g)**2).
        momentum: in [0, 1): above 0 the scaled gradients are accumulated in a velocity.
        weight_decay: as in Optimizer.

    Source: Tieleman and Hinton, Coursera lecture 6.5, 2012; Graves, 2013 (centered); CS231n, "Neural networks part 3".
    """

    capturable = True
    rule = adaptive.rmsprop
    rate_decay = Converted(_rate_decay)
    if not TYPE_CHECKING:  # it is the method
        decay = _Decay("use optimizer.rate_decay")

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        decay: float = 0.9,
        epsilon: float = 1e-8,
        *,
        centered: bool = False,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        if not (0 <= decay < 1 and 0 <= momentum < 1):
            raise ValueError(f"RMSprop: decay and momentum must be in [0, 1), got {decay} and {momentum}")
        check_numbers("RMSprop", "[0, inf)", epsilon=epsilon)
        self.rate_decay = decay
        self.epsilon = epsilon
        self.centered = centered
        self.momentum = momentum
        self.slot_names = ("square", *(("mean",) if centered else ()), *(("velocity",) if momentum else ()))

    def update(self, w: Array, g: Array, learning_rate: Any) -> None:
        """See Optimizer."""
        self.rule(
            w,
            g,
            *(self.slots[name] for name in self.slot_names),
            learning_rate=learning_rate,
            decay=self.rate_decay,
            epsilon=self.epsilon,
            centered=self.centered,
            momentum=self.momentum,
            **self.fused_decay,
        )
