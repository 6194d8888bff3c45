"""The context that layers get from their root, and the specs of parameters that do not exist yet."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from xpnet import backend, initializers, random
from xpnet.autograd.parameter import Parameter
from xpnet.backend import Array, Device
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.messages import quoted

Shape = tuple[int, ...]
_meta_init: ContextVar[bool] = ContextVar("meta_init", default=False)


@dataclass(frozen=True)
class Context:
    """Seed, device and dtype, which the root decides for the whole tree of Modules."""

    seed: int = 0
    device: Device = backend.CPU
    dtype: str = "float32"  # that the layers compute in

    @property
    def storage(self) -> str:
        """The dtype of parameters and buffers: float32 for layers that compute with 16-bit floats."""
        return "float32" if self.dtype in backend.HALF_NAMES else self.dtype

    @cached_property
    def ready_dtype(self) -> Any:
        """The dtype of inputs that need no preparation on the CPU; None on a GPU, where their device is checked."""
        if self.device.kind != "cpu":
            return None
        xp = self.device.xp
        return xp.zeros((), dtype=backend.dtype_named(xp, self.dtype)).dtype


@dataclass(frozen=True)
class Spec:
    """A parameter that a layer will need, before it exists."""

    shape: Shape
    initializer: Any
    decay: bool = True
    regularizer: Any = None
    constraint: Any = None

    def make(self, path: str, context: Context) -> Parameter:
        """Return the Parameter at `path`, whose random key is the model's seed and that path."""
        if in_meta_init():
            array = meta_array(self.shape, context.storage, context)
        else:
            values = initializers.get(self.initializer)(self.shape, random.key(context.seed, path))
            if tuple(values.shape) != tuple(self.shape):
                raise ShapeError(f"the initializer of {path} made shape {tuple(values.shape)}, expected {self.shape}")
            array = on_device(values, context)
        parameter = Parameter(array, decay=self.decay)
        parameter.path, parameter.regularizer, parameter.constraint = path, self.regularizer, self.constraint
        return parameter


FLOATS = ("float16", "bfloat16", "float32", "float64")


def float_name(dtype: Any, who: str) -> str:
    """Return the name of a floating-point dtype, given by name or as a dtype of an array library (numpy.float64)."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype)).rsplit(".", 1)[-1]
    if name not in FLOATS:
        raise ValueError(f"{who}: dtype must be one of {', '.join(FLOATS)}, got {quoted(dtype)}")
    backend.dtype_named(backend.CPU.xp, name)  # raises where bfloat16 is not available
    return name


@contextlib.contextmanager
def meta_init() -> Iterator[None]:
    """Create parameters and buffers within the block with a shape and a dtype, but without memory or values (all read as 0).

    For models whose weights are about to come from a file, and for looking at models that would not fit.
    """
    token = _meta_init.set(True)
    try:
        yield
    finally:
        _meta_init.reset(token)


def in_meta_init() -> bool:
    """Return whether this is within :func:`meta_init`."""
    return _meta_init.get()


def on_device(values: Any, context: Context) -> Array:
    """Return a copy of `values`, an array of any library, on the context's device; floats in its storage dtype."""
    host = backend.to_numpy(values)
    if backend.is_floating(host):
        host = host.astype(context.storage)
    else:
        host = host.copy()
    return backend.to_device(host, context.device)


def place_parameter(parameter: Parameter, context: Context) -> None:
    """Bring a Parameter to the context's device and storage dtype, if it is not there; its gradient is dropped then."""
    array, place = parameter.array, backend.device_of(parameter.array)
    other_dtype = backend.is_floating(array) and backend.dtype_name(array) != context.storage
    if isinstance(place, Device) and (other_dtype or place != context.device):  # of NumPy or CuPy
        parameter.array = on_device(array, context)
        parameter.grad = parameter.buffer = None


def new_buffer(values: Any, context: Context) -> Array:
    """Return the first values of a buffer."""
    if not in_meta_init():
        return on_device(values, context)
    host = backend.to_numpy(values)
    return meta_array(host.shape, context.storage if host.dtype.kind == "f" else host.dtype.name, context)


def meta_array(shape: Shape, dtype: str, context: Context) -> Array:
    """Return zeros without memory of their own, all of them one element: see meta_init."""
    xp = context.device.xp
    return cast(Array, xp.broadcast_to(xp.zeros((), dtype=getattr(xp, dtype)), tuple(shape)))


def elements(shape: Shape) -> int:
    """Return the number of elements of a shape."""
    return math.prod(shape)
