"""Optimizer steps over a whole arena of parameters in one launch: ``kernels/optimizer.cu``.

All arrays of one call are flat, of one length and C-contiguous. The learning rate is a 0-d array and the number of
finished steps a 0-d int64 array, both on the device, so that a step can be captured and replayed; the launch adds one to
the step.
"""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.launch import THREADS, blocks_for, launch, vector_width
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import VECTORS, c_name, fits

Array = Any

_sgd = Kernel("optimizer", "sgd", FLOATS, VECTORS, (False, True), only=fits)
_adam = Kernel("optimizer", "adam", FLOATS, VECTORS, (False, True), only=fits)


def sgd(
    parameters: Array,
    gradients: Array,
    velocity: Array | None,
    learning_rate: Array,
    step: Array,
    ticket: Array,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay: Array | None = None,
) -> None:
    """One step of stochastic gradient descent, in place.

    velocity = momentum * velocity - lr * g, then parameters += velocity (with `nesterov`: momentum * velocity - lr * g),
    where g is the gradient plus weight_decay * parameters.

    Args:
        parameters: (n,) float32, float64, float16 or bfloat16.
        gradients: (n,), the same dtype.
        velocity: (n,), the same dtype; None without momentum.
        learning_rate: (), float64 for float64 parameters, else float32.
        step: (), int64.
        ticket: (), uint32, zero; the launch leaves it zero.
        momentum: in [0, 1).
        nesterov: look ahead.
        weight_decay: 0 for none.
        decay: (n,) uint8, 1 where weight decay applies; None: everywhere.
    """
    arrays = [a for a in (parameters, gradients, velocity) if a is not None]
    V = _width(arrays, decay)
    launch(
        _sgd[c_name(parameters), V, nesterov], blocks_for(parameters.size // V), THREADS, parameters, gradients, velocity,
        decay, learning_rate, step, ticket, parameters.size, momentum, weight_decay,
    )  # fmt: skip


def adam(
    parameters: Array,
    gradients: Array,
    mean: Array,
    square: Array,
    learning_rate: Array,
    step: Array,
    ticket: Array,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    decay: Array | None = None,
) -> None:
    """One step of Adam with bias correction, in place; `decoupled` makes it AdamW.

    Args:
        parameters, gradients, learning_rate, step, ticket, decay: as in `sgd`.
        mean, square: (n,), the running means of the gradient and of its square.
        beta1, beta2: their rates.
        epsilon: added to the root of the corrected square.
        weight_decay: added to the gradient, or with `decoupled` to the step.
        decoupled: whether weight decay leaves the running means alone.
    """
    V = _width([parameters, gradients, mean, square], decay)
    launch(
        _adam[c_name(parameters), V, decoupled], blocks_for(parameters.size // V), THREADS, parameters, gradients, mean,
        square, decay, learning_rate, step, ticket, parameters.size, beta1, beta2, epsilon, weight_decay,
    )  # fmt: skip


def _width(arrays: list[Array], decay: Array | None) -> int:
    return vector_width(arrays[0].size, *arrays, *(() if decay is None else (decay,)))
