"""Update rules: how an optimizer changes a flat array of weights, in place, given the flat array of gradients.

A rule is array code over the whole model at once. An accelerated rule for one array library can replace it, as with
operations: ``@sgd.accelerate("cupy")``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xpnet.backend import Array, Namespace, name_of, namespace
from xpnet.ops.registry import load_accelerations, reference_is_forced

RuleFunction = Callable[..., None]


class Rule:
    """An update rule: ``rule(w, g, *slots, **settings)`` changes w and the slots in place; g may be overwritten."""

    def __init__(self, function: RuleFunction) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.reference = function
        self.accelerated: dict[str, RuleFunction] = {}
        rules[self.__name__] = self

    def accelerate(self, library: str) -> Callable[[RuleFunction], RuleFunction]:
        """Register a faster version for the arrays of one library (a decorator)."""

        def register(function: RuleFunction) -> RuleFunction:
            self.accelerated[library] = function
            return function

        return register

    def __call__(self, w: Array, g: Array, *slots: Array, **settings: Any) -> None:
        """Update w and the slots in place; all are 1-D arrays of one size."""
        xp = namespace(w)
        name = name_of(xp)
        load_accelerations(name)
        function = self.reference if reference_is_forced() else self.accelerated.get(name, self.reference)
        function(xp, w, g, *slots, **settings)


rules: dict[str, Rule] = {}
"""Every update rule by name."""


@Rule
def sgd(xp: Namespace, w: Array, g: Array, *, learning_rate: float) -> None:
    """w -= learning_rate * g."""
    w -= learning_rate * g


@Rule
def momentum(xp: Namespace, w: Array, g: Array, v: Array, *, learning_rate: float, momentum: float, nesterov: bool) -> None:
    """v = momentum * v - learning_rate * g; w += v, or with Nesterov's look-ahead w += momentum * v - learning_rate * g."""
    step = learning_rate * g
    v *= momentum
    v -= step
    if nesterov:
        w += momentum * v
        w -= step
    else:
        w += v


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
    """m and v are decaying means of g and g*g; w -= learning_rate * mhat / (sqrt(vhat) + epsilon), bias-corrected."""
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    root = xp.sqrt(v) / math.sqrt(1 - beta2**step)
    root += epsilon
    w -= (learning_rate / (1 - beta1**step)) * m / root
