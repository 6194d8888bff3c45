"""Elementwise activations whose derivative is a function of their input: ``kernels/cuda/elementwise.cu``. They save x alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet.accel.cupy.launch import THREADS, grid_size, launch, vector_width
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import VECTORS, c_name, contiguous, supported, valid_vector
from xpnet.ops.activations import elu, gelu, hard_sigmoid, leaky_relu, selu, silu, softplus, softsign

Array = Any

FUNCTIONS = ("leaky_relu", "elu", "selu", "softplus", "softsign", "hard_sigmoid", "silu", "gelu", "gelu_tanh")
"""In the order of their numbers in the CUDA sources."""

_NUMBERS = tuple(range(len(FUNCTIONS)))
_forward = Kernel("elementwise", "elementwise", FLOATS, VECTORS, _NUMBERS, only=valid_vector)
_backward = Kernel("elementwise", "elementwise_backward", FLOATS, VECTORS, _NUMBERS, only=valid_vector)


def _run(kernel: Kernel, xp: Any, function: str, parameter: float, *arrays: Array) -> Array:
    sources = [contiguous(xp, a) for a in arrays]
    out = xp.empty(sources[0].shape, dtype=sources[0].dtype)
    V = vector_width(out.size, out, *sources)
    instance = kernel[c_name(out), V, FUNCTIONS.index(function)]
    launch(instance, grid_size(out.size // V), THREADS, *sources, out, parameter, out.size)
    return out


def _register(operation: Any, chosen: Callable[..., tuple[str, float]]) -> None:
    """Accelerate an operation. `chosen` returns the function and its parameter for the operation's settings."""

    @operation.accelerate("cupy")  # type: ignore[untyped-decorator]
    def forward(xp: Any, x: Array, **settings: Any) -> Any:
        if not supported(x):
            return NotImplemented
        return _run(_forward, xp, *chosen(**settings), x), x

    @forward.backward  # type: ignore[untyped-decorator]
    def backward(xp: Any, dy: Array, x: Array, **settings: Any) -> Any:
        return _run(_backward, xp, *chosen(**settings), dy, x)


_register(leaky_relu, lambda slope: ("leaky_relu", slope))
_register(elu, lambda alpha: ("elu", alpha))
_register(gelu, lambda approximate: ("gelu_tanh" if approximate else "gelu", 0.0))
for _operation in (selu, softplus, softsign, hard_sigmoid, silu):
    _register(_operation, lambda name=_operation.__name__: (name, 0.0))
