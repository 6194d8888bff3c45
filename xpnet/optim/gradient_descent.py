"""Gradient descent, with and without momentum."""

from __future__ import annotations

from typing import Any

from xpnet.backend import Array
from xpnet.ops.updates import rule as rules
from xpnet.optim.optimizer import Optimizer, Schedule
from xpnet.runtime.settings import check_numbers


class SGD(Optimizer):
    """Gradient descent: v = momentum * v - learning_rate * g; w += v.

    Batch, mini-batch or stochastic gradient descent, depending on the batches.

    Args:
        learning_rate: a number or a schedule.
        momentum: in [0, 1); 0 leaves w -= learning_rate * g.
        nesterov: look ahead: w += momentum * v - learning_rate * g.
        form: "velocity", as above, or "inertia": v = momentum * v + (1 - momentum) * g; w -= learning_rate * v. There v is a
            mean of gradients, and steps are 1 - momentum times as long as in the other form.
        weight_decay: as in Optimizer.

    Source: CS231n, "Neural networks part 3"; Polyak, 1964; Sutskever et al., 2013.
    """

    capturable = True

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        *,
        form: str = "velocity",
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        check_numbers("SGD", "[0, 1)", momentum=momentum)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov=True needs a momentum above 0, such as 0.9")
        if form not in ("velocity", "inertia"):
            raise ValueError(f'SGD: form must be "velocity" or "inertia", got {form!r}')
        if nesterov and form == "inertia":
            raise ValueError('SGD: nesterov=True goes with form="velocity"')
        self.form = form
        self.momentum = momentum
        self.nesterov = nesterov
        self.slot_names = ("velocity",) if momentum else ()

    @property
    def rule(self) -> rules.Rule:
        """See Optimizer."""
        if not self.momentum:
            return rules.sgd
        return rules.inertia if self.form == "inertia" else rules.momentum

    def update(self, w: Array, g: Array, learning_rate: Any) -> None:
        """See Optimizer."""
        if not self.momentum:
            rules.sgd(w, g, learning_rate=learning_rate, **self.fused_decay)
            return
        settings = {} if self.form == "inertia" else {"nesterov": self.nesterov}
        self.rule(
            w,
            g,
            self.slots["velocity"],
            learning_rate=learning_rate,
            momentum=self.momentum,
            **settings,
            **self.fused_decay,
        )
