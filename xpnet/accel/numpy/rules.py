"""Update rules for NumPy: in place, in blocks that stay in the cache, on all threads.

The reference rules allocate a temporary array as large as the model for every product; here the gradient, which is not read
after the update, is overwritten instead.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import PASS_SECONDS
from xpnet.accel.numpy.workspace import Floats
from xpnet.ops.updates import rule as rules
from xpnet.runtime.threads import own_threads_preferred, parallel

_BLOCK = 1 << 15
"""Elements of a block: five arrays of that size stay in a core's L2 cache."""


def _in_blocks(update: Any, *arrays: Floats) -> None:
    """Call ``update(*views)`` for consecutive blocks of 1-D arrays of one size."""
    size = arrays[0].shape[0]
    if size <= _BLOCK:
        update(*arrays)
        return

    def block(number: int) -> None:
        part = slice(number * _BLOCK, (number + 1) * _BLOCK)
        update(*[array[part] for array in arrays])

    count = -(-size // _BLOCK)
    if own_threads_preferred():
        parallel(block, count, 3 * PASS_SECONDS * len(arrays) * size, 3 * len(arrays))
    else:  # the threads of BLAS may still be busy waiting for the next product
        for number in range(count):
            block(number)


@rules.sgd.accelerate("numpy")
def sgd(xp: Any, w: Floats, g: Floats, *, learning_rate: float) -> None:
    """Update w -= learning_rate * g."""

    def update(w: Floats, g: Floats) -> None:
        np.multiply(g, learning_rate, out=g)
        np.subtract(w, g, out=w)

    _in_blocks(update, w, g)


@rules.momentum.accelerate("numpy")
def momentum(xp: Any, w: Floats, g: Floats, v: Floats, *, learning_rate: float, momentum: float, nesterov: bool) -> None:
    """Update v = momentum * v - learning_rate * g, and w += v, or momentum * v - learning_rate * g."""

    def update(w: Floats, g: Floats, v: Floats) -> None:
        np.multiply(g, learning_rate, out=g)
        np.multiply(v, momentum, out=v)
        np.subtract(v, g, out=v)
        if nesterov:
            np.subtract(w, g, out=w)
            np.multiply(v, momentum, out=g)
            np.add(w, g, out=w)
        else:
            np.add(w, v, out=w)

    _in_blocks(update, w, g, v)


def _adam_footprint(xp: Any, w: Any, *others: Any, **settings: Any) -> None:
    xp.temporary(w.dtype, (min(w.size, _BLOCK),))


@rules.adam.accelerate("numpy", footprint=_adam_footprint)
def adam(
    xp: Any,
    w: Floats,
    g: Floats,
    m: Floats,
    v: Floats,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    """Update m and v, the means of g and of g * g, and w, with the bias corrections in two constants.

    mhat / (sqrt(vhat) + epsilon) = m / (sqrt(v) + epsilon * c) * c / (1 - beta1**step) with c = sqrt(1 - beta2**step).
    """
    correction = math.sqrt(1 - beta2**step)
    rate = learning_rate * correction / (1 - beta1**step)

    def update(w: Floats, g: Floats, m: Floats, v: Floats) -> None:
        square = g * g
        np.multiply(square, 1 - beta2, out=square)
        np.multiply(v, beta2, out=v)
        np.add(v, square, out=v)
        np.multiply(g, 1 - beta1, out=g)
        np.multiply(m, beta1, out=m)
        np.add(m, g, out=m)
        np.sqrt(v, out=square)
        np.add(square, epsilon * correction, out=square)
        np.divide(m, square, out=g)
        np.multiply(g, rate, out=g)
        np.subtract(w, g, out=w)

    _in_blocks(update, w, g, m, v)
