"""Optimizer steps over the flat parameters of a model in one launch: ``kernels/cuda/optimizer.cu``.

All arrays of a call are flat, C-contiguous and of one length. The learning rate and the number of finished steps are Python
numbers, or on the device (a DeviceSchedule): then a step can be captured in a CUDA graph and replayed, and the launch
increments the steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xpnet.accel.cupy.launch import THREADS, grid_size, launch, vector_width
from xpnet.accel.cupy.losses import grid_sum
from xpnet.accel.cupy.source import FLOATS, Kernel, dtype_of
from xpnet.accel.cupy.support import VECTORS, accumulator, c_name, valid_vector
from xpnet.ops.updates import adaptive, flat, full_batch
from xpnet.ops.updates import rule as rules

Array = Any

SGD_FORMS = {"velocity": 0, "nesterov": 1, "inertia": 2}
"""The number in the CUDA source of each form of momentum."""

_sgd = Kernel("optimizer", "sgd", FLOATS, VECTORS, tuple(SGD_FORMS.values()), only=valid_vector)
_adam = Kernel("optimizer", "adam", FLOATS, VECTORS, (False, True), only=valid_vector)
_nadam = Kernel("optimizer", "nadam", FLOATS, VECTORS, only=valid_vector)
_adamax = Kernel("optimizer", "adamax", FLOATS, VECTORS, only=valid_vector)
_adagrad = Kernel("optimizer", "adagrad", FLOATS, VECTORS, only=valid_vector)
_rmsprop = Kernel("optimizer", "rmsprop", FLOATS, VECTORS, only=valid_vector)
_rprop = Kernel("optimizer", "rprop", FLOATS, VECTORS, only=valid_vector)
_quickprop = Kernel("optimizer", "quickprop", FLOATS, VECTORS, only=valid_vector)
_clipping_factor = Kernel("optimizer", "clipping_factor", ("float",))
_clip = Kernel("optimizer", "clip", FLOATS, VECTORS, only=valid_vector)
_moving_average = Kernel("optimizer", "moving_average", FLOATS, VECTORS, only=valid_vector)


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


def _launch(kernel: Kernel, form: tuple[Any, ...], arrays: tuple[Array | None, ...], *arguments: Any) -> None:
    """Launch a kernel over all elements of flat arrays, which are its first arguments."""
    used = [a for a in arrays if a is not None]
    size, V = used[0].size, vector_width(used[0].size, *used)
    launch(kernel[c_name(used[0]), V, *form], grid_size(size // V), THREADS, *arrays, *arguments)


def _decayed(w: Array, decayed: int | None) -> int:
    return int(w.size) if decayed is None else decayed


def sgd(
    w: Array,
    g: Array,
    velocity: Array | None = None,
    *,
    rate: float | DeviceSchedule | SkippingDeviceSchedule,
    momentum: float = 0.0,
    nesterov: bool = False,
    inertia: bool = False,
    weight_decay: float = 0.0,
    decayed: int | None = None,
) -> None:
    """Take one step of gradient descent, in place.

    velocity = momentum * velocity - rate * g, then w += velocity (with `nesterov`: momentum * velocity - rate * g), where
    g is the gradient plus weight_decay * w. With `inertia` the velocity is a mean of the gradients, momentum * velocity +
    (1 - momentum) * g, and w -= rate * velocity.

    Args:
        w: (n,) parameters, float32, float64, float16 or bfloat16.
        g: (n,) gradients, the same dtype.
        velocity: (n,), the same dtype; None without momentum.
        rate: the learning rate, or a DeviceSchedule.
        momentum: in [0, 1).
        nesterov, inertia: the form of the momentum.
        weight_decay: 0 for none.
        decayed: weight decay applies to the elements before this one; None: to all.
    """
    schedule, number = _schedule_arguments(rate)
    form = SGD_FORMS["inertia" if inertia else "nesterov" if nesterov else "velocity"]
    _launch(
        _sgd, (form,), (w, g, velocity), *schedule, w.size, _decayed(w, decayed), number, momentum, 1 - momentum, weight_decay
    )


def adam(
    w: Array,
    g: Array,
    mean: Array,
    square: Array,
    largest: Array | None = None,
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
        largest: (n,), the largest `square` so far, which makes it AMSGrad; or None.
        finished_steps: the steps before this one; unused with a DeviceSchedule.
        beta1, beta2: decay of the running means.
        epsilon: added to the root of the corrected square.
        weight_decay: times w it is added to the gradient; with `decoupled`, w shrinks by rate * weight_decay instead.
        decoupled: whether weight decay leaves the running means alone.
    """
    schedule, number = _schedule_arguments(rate)
    _launch(
        _adam, (decoupled,), (w, g, mean, square, largest), *schedule, w.size, _decayed(w, decayed), finished_steps, number,
        beta1, beta2, epsilon, weight_decay,
    )  # fmt: skip


# With weight decay an Optimizer adds weight_decay, decayed and decoupled to the settings; without, no element decays.


@rules.sgd.accelerate("cupy", decays=True)
@rules.momentum.accelerate("cupy", decays=True)
def _sgd_rule(xp: Any, *arrays: Array, learning_rate: Any, decoupled: bool = False, **settings: Any) -> None:
    sgd(*arrays, rate=learning_rate, **{"decayed": 0, **settings})


@rules.inertia.accelerate("cupy", decays=True)
def _inertia_rule(xp: Any, *arrays: Array, learning_rate: Any, decoupled: bool = False, **settings: Any) -> None:
    sgd(*arrays, rate=learning_rate, inertia=True, **{"decayed": 0, **settings})


@rules.adam.accelerate("cupy", decays=True)
@adaptive.amsgrad.accelerate("cupy", decays=True)
def _adam_rule(xp: Any, *arrays: Array, learning_rate: Any, step: int, **settings: Any) -> None:
    adam(*arrays, rate=learning_rate, finished_steps=step - 1, **{"decayed": 0, **settings})


@adaptive.nadam.accelerate("cupy", decays=True)
def _nadam_rule(
    xp: Any,
    *arrays: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    now: float,
    following: float,
    product: float,
    weight_decay: float = 0.0,
    decayed: int = 0,
    decoupled: bool = False,
) -> None:
    _launch(
        _nadam, (), arrays, arrays[0].size, decayed, learning_rate, (1 - now) / (1 - product),
        following / (1 - product * following), beta1, 1 - beta1, beta2, 1 - beta2, 1 / (1 - beta2**step), epsilon, weight_decay,
    )  # fmt: skip


@adaptive.adamax.accelerate("cupy", decays=True)
def _adamax_rule(
    xp: Any,
    *arrays: Array,
    learning_rate: Any,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    weight_decay: float = 0.0,
    decayed: int = 0,
    decoupled: bool = False,
) -> None:
    schedule, number = _schedule_arguments(learning_rate)
    _launch(_adamax, (), arrays, *schedule, arrays[0].size, decayed, step - 1, number, beta1, beta2, epsilon, weight_decay)


@adaptive.adagrad.accelerate("cupy", decays=True)
def _adagrad_rule(
    xp: Any,
    *arrays: Array,
    learning_rate: Any,
    epsilon: float,
    weight_decay: float = 0.0,
    decayed: int = 0,
    decoupled: bool = False,
) -> None:
    schedule, number = _schedule_arguments(learning_rate)
    _launch(_adagrad, (), arrays, *schedule, arrays[0].size, decayed, number, epsilon, weight_decay)


@adaptive.rmsprop.accelerate("cupy", decays=True)
def _rmsprop_rule(
    xp: Any,
    w: Array,
    g: Array,
    square: Array,
    *more: Array,
    learning_rate: Any,
    decay: float,
    epsilon: float,
    centered: bool,
    momentum: float,
    weight_decay: float = 0.0,
    decayed: int = 0,
    decoupled: bool = False,
) -> None:
    schedule, number = _schedule_arguments(learning_rate)
    arrays = w, g, square, more[0] if centered else None, more[-1] if momentum else None
    _launch(_rmsprop, (), arrays, *schedule, w.size, decayed, number, decay, 1 - decay, momentum, epsilon, weight_decay)


@full_batch.rprop.accelerate("cupy", decays=True)
def _rprop_rule(
    xp: Any,
    *arrays: Array,
    learning_rate: Any,
    grow: float,
    shrink: float,
    smallest: float,
    largest: float,
    weight_decay: float = 0.0,
    decayed: int = 0,
    decoupled: bool = False,
) -> None:
    schedule, _ = _schedule_arguments(learning_rate)
    _launch(_rprop, (), arrays, *schedule, arrays[0].size, decayed, grow, shrink, smallest, largest, weight_decay)


@full_batch.quickprop.accelerate("cupy", decays=True)
def _quickprop_rule(
    xp: Any,
    *arrays: Array,
    learning_rate: Any,
    growth: float,
    weight_decay: float = 0.0,
    decayed: int = 0,
    decoupled: bool = False,
) -> None:
    schedule, number = _schedule_arguments(learning_rate)
    bound = growth / (1 + growth)
    _launch(_quickprop, (), arrays, *schedule, arrays[0].size, decayed, number, growth, bound, weight_decay)


# -- beside the update --


@flat.clip_norm.accelerate("cupy")
def _clip_norm(xp: Any, g: Array, *, norm: float) -> Any:
    if dtype_of(g) != "float32":
        return NotImplemented
    blocks, factor = grid_size(g.size, waves=8), xp.empty((), dtype=g.dtype)
    launch(_clipping_factor["float",], blocks, THREADS, g, factor, *grid_sum(xp, blocks, xp.float64), g.size, norm)
    _launch(_clip, (), (g,), factor, g.size, 0.0)
    return None


@flat.clip_value.accelerate("cupy")
def _clip_value(xp: Any, g: Array, *, value: float) -> None:
    _launch(_clip, (), (g,), None, g.size, value)


@flat.moving_average.accelerate("cupy")
def _average(xp: Any, average: Array, values: Array, *, decay: float, steps: Array | None, before: Array | None) -> Any:
    moved = xp.empty(values.shape, dtype=values.dtype)
    before, after = (None, None) if steps is None else (before, xp.empty((), dtype=steps.dtype))
    _launch(_moving_average, (), (average, values, moved), steps, before, after, values.size, decay, 1 - decay)
    return moved, after
