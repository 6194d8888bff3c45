"""Rprop and Quickprop: optimizers for full batches that compare each gradient with the previous one."""

from __future__ import annotations

from typing import Any, cast

from xpnet.autograd.flat_parameters import FlatParameters
from xpnet.backend import Array
from xpnet.ops.updates import full_batch
from xpnet.optim.optimizer import Optimizer, Schedule
from xpnet.runtime.settings import check_numbers


class Rprop(Optimizer):
    """A step size for every weight, which grows while its gradient keeps its sign and shrinks where that changes.

    Only the signs of the gradients count, so they must not be noisy: use full batches.

    Args:
        learning_rate: the initial step size, a number.
        grow, shrink: the factors of a step size.
        smallest, largest: limits of a step size.
        weight_decay: as in Optimizer.

    Source: Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning", 1993.
    """

    slot_names = ("previous", "size")
    capturable = True
    rule = full_batch.rprop

    def __init__(
        self,
        learning_rate: float = 0.01,
        grow: float = 1.2,
        shrink: float = 0.5,
        smallest: float = 1e-6,
        largest: float = 50.0,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        check_numbers("Rprop", "(0, inf)", grow=grow, shrink=shrink, smallest=smallest, largest=largest)
        if not (shrink < 1 < grow and smallest <= largest):
            raise ValueError(
                f"Rprop: expected 0 < shrink < 1 < grow and 0 < smallest <= largest, "
                f"got {shrink}, {grow}, {smallest}, {largest}"
            )
        self.grow, self.shrink = grow, shrink
        self.smallest, self.largest = smallest, largest

    def initial_slot(self, name: str, xp: Any, flat: FlatParameters) -> Array:
        """Return the initial step sizes, or zeros for the previous gradients."""
        return cast(Array, xp.full_like(flat.values, self.current_learning_rate if name == "size" else 0))

    def update(self, w: Array, g: Array, learning_rate: Any) -> None:
        """See Optimizer."""
        self.rule(
            w,
            g,
            self.slots["previous"],
            self.slots["size"],
            learning_rate=learning_rate,
            grow=self.grow,
            shrink=self.shrink,
            smallest=self.smallest,
            largest=self.largest,
            **self.fused_decay,
        )


class Quickprop(Optimizer):
    """A jump of every weight to the minimum of the parabola through its last two slopes. For full batches.

    Args:
        learning_rate: of the gradient steps, which start the movement and are added while the slope keeps its sign.
        growth: a jump is at most this many times the last step.
        weight_decay: as in Optimizer; the paper uses 1e-4 to keep the weights from growing without bound.

    Source: Fahlman, "An empirical study of learning speed in back-propagation networks", 1988.
    """

    slot_names = ("step", "slope")
    capturable = True
    rule = full_batch.quickprop

    def __init__(self, learning_rate: float | Schedule = 0.01, growth: float = 1.75, *, weight_decay: float = 0.0) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        check_numbers("Quickprop", "(0, inf)", growth=growth)
        self.growth = growth

    def update(self, w: Array, g: Array, learning_rate: Any) -> None:
        """See Optimizer."""
        step, slope = self.slots["step"], self.slots["slope"]
        self.rule(w, g, step, slope, learning_rate=learning_rate, growth=self.growth, **self.fused_decay)
