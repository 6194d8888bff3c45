"""Optimizer steps over the flat parameters of a model in one launch: ``kernels/cuda/optimizer.cu``.

All arrays of a call are flat, C-contiguous and of one length. The learning rate and the number of finished steps are Python
numbers, or on the device (a DeviceSchedule): then a step can be captured in a CUDA graph and replayed, and the launch
increments the steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xpnet.accel.cupy.launch import THREADS, grid_size, launch, vector_width
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import VECTORS, accumulator, c_name, valid_vector
from xpnet.ops.updates import rule as rules

Array = Any

_sgd = Kernel("optimizer", "sgd", FLOATS, VECTORS, (False, True), only=valid_vector)
_adam = Kernel("optimizer", "adam", FLOATS, VECTORS, (False, True), only=valid_vector)


class DeviceSchedule(NamedTuple):
    """The learning rate and the number of steps, on the device.

    Attributes:
        rate: (), float64 for float64 parameters, else float32.
        steps: (), int64, the finished steps; every update increments it.
        ticket: (), uint32, 0 between updates; counts finished blocks.
    """

    rate: Array
    steps: Array
    ticket: Array

    @classmethod
    def new(cls, xp: Any, parameters: Array, rate: float = 0.0) -> DeviceSchedule:
        """Return a schedule at step 0 for parameters of some dtype."""
        dtype = accumulator(xp, parameters)
        return cls(xp.asarray(rate, dtype=dtype), xp.zeros((), dtype=xp.int64), xp.zeros((), dtype=xp.uint32))

    def skipping(self, skip: Array) -> SkippingDeviceSchedule:
        """Return this schedule for an update that does nothing if `skip`, a () uint32, is not 0."""
        return SkippingDeviceSchedule(*self, skip)


class SkippingDeviceSchedule(NamedTuple):
    """A DeviceSchedule, and whether to skip the update: see DeviceSchedule.skipping."""

    rate: Array
    steps: Array
    ticket: Array
    skip: Array


def _schedule_arguments(rate: Any) -> tuple[tuple[Any, ...], float]:
    """Return a learning rate as kernels take it: the arrays of a SkippingDeviceSchedule (or None), and a number."""
    if isinstance(rate, (DeviceSchedule, SkippingDeviceSchedule)):
        return (*rate, None)[:4], 0.0
    return (None,) * 4, rate


def sgd(
    w: Array,
    g: Array,
    velocity: Array | None = None,
    *,
    rate: float | DeviceSchedule | SkippingDeviceSchedule,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decayed: int | None = None,
) -> None:
    """Take one step of gradient descent, in place.

    velocity = momentum * velocity - rate * g, then w += velocity (with `nesterov`: momentum * velocity - rate * g), where
    g is the gradient plus weight_decay * w.

    Args:
        w: (n,) parameters, float32, float64, float16 or bfloat16.
        g: (n,) gradients, the same dtype.
        velocity: (n,), the same dtype; None without momentum.
        rate: the learning rate, or a DeviceSchedule.
        momentum: in [0, 1).
        nesterov: whether to use Nesterov momentum.
        weight_decay: 0 for none.
        decayed: weight decay applies to the elements before this one; None: to all.
    """
    arrays = [a for a in (w, g, velocity) if a is not None]
    V = vector_width(w.size, *arrays)
    schedule, number = _schedule_arguments(rate)
    launch(
        _sgd[c_name(w), V, nesterov], grid_size(w.size // V), THREADS, w, g, velocity, *schedule, w.size,
        w.size if decayed is None else decayed, number, momentum, weight_decay,
    )  # fmt: skip


def adam(
    w: Array,
    g: Array,
    mean: Array,
    square: Array,
    *,
    rate: float | DeviceSchedule | SkippingDeviceSchedule,
    finished_steps: int = 0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    decayed: int | None = None,
) -> None:
    """Take one step of Adam with bias correction, in place; `decoupled` makes it AdamW.

    Args:
        w, g, rate, decayed: as in `sgd`.
        mean, square: (n,), the running means of the gradient and of its square.
        finished_steps: the steps before this one; unused with a DeviceSchedule.
        beta1, beta2: decay of the running means.
        epsilon: added to the root of the corrected square.
        weight_decay: times w it is added to the gradient; with `decoupled`, w shrinks by rate * weight_decay instead.
        decoupled: whether weight decay leaves the running means alone.
    """
    V = vector_width(w.size, w, g, mean, square)
    schedule, number = _schedule_arguments(rate)
    launch(
        _adam[c_name(w), V, decoupled], grid_size(w.size // V), THREADS, w, g, mean, square, *schedule, w.size,
        w.size if decayed is None else decayed, finished_steps, number, beta1, beta2, epsilon, weight_decay,
    )  # fmt: skip


# With weight decay an Optimizer adds weight_decay, decayed and decoupled to the settings; without, no element decays.


@rules.sgd.accelerate("cupy", decays=True)
@rules.momentum.accelerate("cupy", decays=True)
def _sgd_rule(xp: Any, *arrays: Array, learning_rate: Any, decoupled: bool = False, **settings: Any) -> None:
    sgd(*arrays, rate=learning_rate, **{"decayed": 0, **settings})


@rules.adam.accelerate("cupy", decays=True)
def _adam_rule(xp: Any, *arrays: Array, learning_rate: Any, step: int, **settings: Any) -> None:
    adam(*arrays, rate=learning_rate, finished_steps=step - 1, **{"decayed": 0, **settings})
