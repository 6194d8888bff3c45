"""Update rules: how an optimizer updates the flat weights of a model in place, given their flat gradients.

As with operations, ``@sgd.accelerate("cupy")`` registers a faster version for the arrays of one library.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from xpnet.backend import Array, Namespace, namespace
from xpnet.ops.function import Function

RuleFunction = Callable[..., None]


class Rule(Function):
    """An update rule: ``rule(w, g, *slots, **settings)`` changes w and the slots, 1-D arrays of one size, in place.

    g may be overwritten.
    """

    def __init__(self, function: RuleFunction) -> None:
        super().__init__(function)
        self.footprints: dict[RuleFunction, RuleFunction] = {}
        self._decaying: set[RuleFunction] = set()
        rules[self.__name__] = self

    def accelerate(
        self, library: str, *, decays: bool = False, footprint: RuleFunction = lambda xp, *arrays, **settings: None
    ) -> Callable[[RuleFunction], RuleFunction]:
        """Register a faster version for the arrays of one library (a decorator).

        Args:
            library: "numpy" or "cupy".
            decays: it applies weight decay in the same pass and takes three more settings: weight_decay, the number `decayed`
                of elements from the front that decay, and whether this is `decoupled` from the gradient.
            footprint: what it allocates, on fake arrays; nothing unless given. See `Implementation.footprint`.
        """

        def register(function: RuleFunction) -> RuleFunction:
            self.footprints[function] = footprint
            if decays:
                self._decaying.add(function)
            return super(Rule, self).accelerate(library)(function)

        return register

    def decays(self, w: Array) -> bool:
        """Return whether the version that runs for `w` applies weight decay itself."""
        return self.version(namespace(w)) in self._decaying


rules: dict[str, Rule] = {}
"""Every update rule by name."""


@Rule
def sgd(xp: Namespace, w: Array, g: Array, *, learning_rate: float) -> None:
    """Update w -= learning_rate * g."""
    w -= learning_rate * g


@Rule
def momentum(xp: Namespace, w: Array, g: Array, v: Array, *, learning_rate: float, momentum: float, nesterov: bool) -> None:
    """Update v = momentum * v - learning_rate * g; w += v, or with `nesterov` w += momentum * v - learning_rate * g."""
    step = learning_rate * g
    v *= momentum
    v -= step
    if nesterov:
        w += momentum * v
        w -= step
    else:
        w += v


@Rule
def inertia(xp: Namespace, w: Array, g: Array, v: Array, *, learning_rate: float, momentum: float) -> None:
    """Update v = momentum * v + (1 - momentum) * g, a mean of the gradients; w -= learning_rate * v."""
    v *= momentum
    v += (1 - momentum) * g
    w -= learning_rate * v


@Rule
def adam(
    xp: Namespace,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    """Update w -= learning_rate * mhat / (sqrt(vhat) + epsilon): bias-corrected decaying means m of g and v of g*g."""
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    root = xp.sqrt(v) / math.sqrt(1 - beta2**step)
    root += epsilon
    w -= (learning_rate / (1 - beta1**step)) * m / root
