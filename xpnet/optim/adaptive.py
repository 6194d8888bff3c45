"""Adam and its variants: an adaptive learning rate for every weight, from running means of its gradient."""

from __future__ import annotations

import math
from typing import Any

from xpnet.autograd.flat_parameters import FlatParameters
from xpnet.backend import Array
from xpnet.ops.updates import adaptive
from xpnet.ops.updates import rule as rules
from xpnet.optim.optimizer import Optimizer, Schedule
from xpnet.runtime.settings import check_numbers


class Adam(Optimizer):
    """Steps of about the learning rate, along the mean gradient over the root of the mean squared gradient.

    Args:
        learning_rate: a number or a schedule.
        beta1, beta2: decay of the means of g and of g*g.
        epsilon: added to the root.
        amsgrad: divide by the root of the largest mean square so far, not of the current one.
        weight_decay: added to the gradient (L2). AdamW decays the weights directly.

    The bias correction counts the optimizer's updates, as in Keras. Parameters that are unfrozen after many of them begin
    without it: their first steps are up to (1 - beta1) / sqrt(1 - beta2) times the learning rate, 3.2 by default. For steps of
    the learning rate from the first one on, give the Trainer a new optimizer when they are unfrozen.

    Source: Kingma and Ba, "Adam", 2015; Reddi et al., "On the convergence of Adam and beyond", 2018 (amsgrad).
    """

    capturable = True

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        amsgrad: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay)
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
            raise ValueError(f"{type(self).__name__}: beta1 and beta2 must be in [0, 1), got {beta1} and {beta2}")
        check_numbers(type(self).__name__, "[0, inf)", epsilon=epsilon)
        self.amsgrad = amsgrad
        self.slot_names = ("mean", "square", "largest") if amsgrad else ("mean", "square")
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon

    @property
    def rule(self) -> rules.Rule:
        """See Optimizer."""
        return adaptive.amsgrad if self.amsgrad else rules.adam

    def update(self, w: Array, g: Array, learning_rate: Any, **settings: float) -> None:
        """See Optimizer; `settings` are those of a rule beyond Adam's."""
        self.rule(
            w,
            g,
            *(self.slots[name] for name in self.slot_names),
            learning_rate=learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            epsilon=self.epsilon,
            step=self._iterations,
            **settings,
            **self.fused_decay,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: w -= learning_rate * weight_decay * w. Biases and scales are exempt.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
    """

    decoupled = True

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        amsgrad: bool = False,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, amsgrad=amsgrad, weight_decay=weight_decay)

    def decay(self, flat: FlatParameters, learning_rate: Any) -> None:
        """Shrink the weights directly."""
        rate = learning_rate if self.clock is None else self.clock.rate
        flat.values[: flat.decayed] *= 1 - rate * self.weight_decay


class Nadam(Adam):
    """Adam with Nesterov's look-ahead.

    Args:
        learning_rate, beta1, beta2, epsilon, weight_decay: as in Adam.
        momentum_decay: how fast the momentum grows towards beta1: at step t it is beta1 * (1 - 0.96**(t * momentum_decay) / 2).

    Source: Dozat, "Incorporating Nesterov momentum into Adam", 2016.
    """

    capturable = False
    rule = adaptive.nadam

    def __init__(
        self,
        learning_rate: float | Schedule = 0.002,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        momentum_decay: float = 0.004,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay=weight_decay)
        check_numbers("Nadam", "[0, inf)", momentum_decay=momentum_decay)
        self.momentum_decay = momentum_decay
        self._product = (0, 1.0)  # of the momentum over the steps up to one of them

    def _momentum(self, step: int) -> float:
        return self.beta1 * (1 - 0.5 * math.pow(0.96, step * self.momentum_decay))

    def update(self, w: Array, g: Array, learning_rate: Any, **settings: float) -> None:
        """See Optimizer."""
        t, product = self._product
        if t >= self.iterations:  # a state was loaded
            t, product = 0, 1.0
        for step in range(t + 1, self.iterations + 1):
            product *= self._momentum(step)
        self._product = self.iterations, product
        now, following = self._momentum(self.iterations), self._momentum(self.iterations + 1)
        super().update(w, g, learning_rate, now=now, following=following, product=product)


class Adamax(Adam):
    """Adam with a decaying maximum of |g| instead of the root of the mean square.

    Args:
        learning_rate, beta1, beta2, weight_decay: as in Adam.
        epsilon: added to |g|.

    Source: Kingma and Ba, "Adam", 2015, section 7.1.
    """

    rule = adaptive.adamax

    def __init__(
        self,
        learning_rate: float | Schedule = 0.002,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay=weight_decay)
        self.slot_names = ("mean", "largest")
