"""Gradient descent, with and without momentum."""

from __future__ import annotations

from typing import Any

from xpnet.backend import Array
from xpnet.optim import rules
from xpnet.optim.optimizer import Optimizer, Schedule


class SGD(Optimizer):
    """Gradient descent: v = momentum * v - learning_rate * g; w += v.

    Whether it is batch, mini-batch or stochastic descent is a matter of the batches it is given.

    Args:
        learning_rate: a number or a schedule.
        momentum: in [0, 1); 0 leaves w -= learning_rate * g.
        nesterov: look ahead: w += momentum * v - learning_rate * g.
        weight_decay: as in Optimizer.

    Source: CS231n, "Neural networks part 3"; Sutskever et al., 2013.
    """

    capturable = True

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"SGD: momentum must be in [0, 1), got {momentum}")
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov=True needs a momentum above 0, such as 0.9")
        self.momentum = momentum
        self.nesterov = nesterov
        self.slot_names = ("velocity",) if momentum else ()

    def update(self, w: Array, g: Array, learning_rate: Any) -> None:
        """See Optimizer."""
        if self.momentum:
            rules.momentum(
                w,
                g,
                self.slots["velocity"],
                learning_rate=learning_rate,
                momentum=self.momentum,
                nesterov=self.nesterov,
            )
        else:
            rules.sgd(w, g, learning_rate=learning_rate)
