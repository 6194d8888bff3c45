"""Optimizers with a learning rate of its own for every weight."""

from __future__ import annotations

from typing import Any

from xpnet.arena import Arena
from xpnet.backend import Array
from xpnet.optim import rules
from xpnet.optim.optimizer import Optimizer, Schedule


class Adam(Optimizer):
    """Steps of about the learning rate, along the mean gradient over the root of the mean squared gradient.

    Args:
        learning_rate: a number or a schedule.
        beta1, beta2: decay of the means of g and of g*g.
        epsilon: added to the root.
        weight_decay: added to the gradient (L2). AdamW decays the weights themselves.

    Source: Kingma and Ba, "Adam", 2015.
    """

    slot_names = ("mean", "square")
    capturable = True

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
            raise ValueError(f"{type(self).__name__}: beta1 and beta2 must be in [0, 1), got {beta1} and {beta2}")
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon

    def update(self, w: Array, g: Array, learning_rate: Any) -> None:
        """See Optimizer."""
        rules.adam(
            w,
            g,
            self.slots["mean"],
            self.slots["square"],
            learning_rate=learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            step=self.iterations,
        )


class AdamW(Adam):
    """Adam with weight decay taken out of the gradient: w -= learning_rate * weight_decay * w. Biases are left alone.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay=weight_decay)

    def decay(self, arena: Arena, learning_rate: Any) -> None:
        """Shrink the weights themselves."""
        rate = learning_rate if self.clock is None else self.clock.rate
        arena.values[: arena.decayed] *= 1 - rate * self.weight_decay
