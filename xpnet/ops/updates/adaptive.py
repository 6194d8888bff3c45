"""Update rules with a step size for every weight, besides Adam's."""

from __future__ import annotations

import math

from xpnet.backend import Array, Namespace
from xpnet.ops.updates.rule import Rule


@Rule
def adagrad(xp: Namespace, w: Array, g: Array, total: Array, *, learning_rate: float, epsilon: float) -> None:
    """Update total += g*g; w -= learning_rate * g / (sqrt(total) + epsilon)."""
    total += g * g
    root = xp.sqrt(total)
    root += epsilon
    w -= learning_rate * g / root


@Rule
def rmsprop(
    xp: Namespace,
    w: Array,
    g: Array,
    square: Array,
    *more: Array,
    learning_rate: float,
    decay: float,
    epsilon: float,
    centered: bool,
    momentum: float,
) -> None:
    """Update w -= learning_rate * g / (sqrt(square) + epsilon), `square` a decaying mean of g*g.

    With `centered` the first of `more` is a decaying mean of g, and the variance square - mean*mean replaces `square`. With
    a momentum the last of `more` is a velocity = momentum * velocity + g / (...), and w -= learning_rate * velocity.
    """
    square *= decay
    square += (1 - decay) * g * g
    below = square
    if centered:
        mean = more[0]
        mean *= decay
        mean += (1 - decay) * g
        below = square - mean * mean
        below = xp.where(below > 0, below, xp.zeros_like(below))  # rounding may make a variance of 0 negative
    root = xp.sqrt(below)
    root += epsilon
    ahead = g / root
    if momentum:
        velocity = more[-1]
        velocity *= momentum
        velocity += ahead
        ahead = velocity
    w -= learning_rate * ahead


@Rule
def amsgrad(
    xp: Namespace,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    largest: Array,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    """Update as Adam with the largest v so far instead of v, so that the step size never grows again."""
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    largest[...] = xp.maximum(largest, v)
    root = xp.sqrt(largest) / math.sqrt(1 - beta2**step)
    root += epsilon
    w -= (learning_rate / (1 - beta1**step)) * m / root


@Rule
def nadam(
    xp: Namespace,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    learning_rate: float,
    beta2: float,
    epsilon: float,
    step: int,
    beta1: float,
    now: float,
    following: float,
    product: float,
) -> None:
    """Update as Adam with Nesterov's momentum.

    Args:
        xp: the namespace.
        w, g: weights and gradients.
        m, v: decaying means of g and g*g.
        learning_rate, beta1, beta2, epsilon, step: as in adam.
        now, following: the momentum's schedule at this step and at the next.
        product: of the schedule over all steps up to this one.
    """
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * g * g
    root = xp.sqrt(v) / math.sqrt(1 - beta2**step)
    root += epsilon
    ahead = (learning_rate * (1 - now) / (1 - product)) * g
    ahead += (learning_rate * following / (1 - product * following)) * m
    w -= ahead / root


@Rule
def adamax(
    xp: Namespace,
    w: Array,
    g: Array,
    m: Array,
    largest: Array,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    """Update as Adam with a decaying maximum of |g| instead of the root of v."""
    m *= beta1
    m += (1 - beta1) * g
    largest *= beta2
    largest[...] = xp.maximum(largest, xp.abs(g) + epsilon)
    w -= (learning_rate / (1 - beta1**step)) * m / largest
