"""Activations as layers, and activations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet import ops
from xpnet.layers.context import Shape
from xpnet.layers.module import Module
from xpnet.ops.activations import ACTIVATIONS_FROM_OUTPUT
from xpnet.ops.registry import Op
from xpnet.ops.shapes import is_whole
from xpnet.runtime.messages import quoted
from xpnet.runtime.settings import check_function, check_kind, check_numbers

_OPERATIONS = (
    ops.step, ops.relu, ops.leaky_relu, ops.elu, ops.selu, ops.gelu, ops.silu, ops.sigmoid, ops.hard_sigmoid, ops.tanh,
    ops.softplus, ops.softsign, ops.softmax, ops.log_softmax,
)  # fmt: skip
NAMES: dict[str, Callable[..., Any]] = {operation.__name__: operation for operation in _OPERATIONS}

_EXPECTED = f"a function of a Tensor or one of {', '.join(NAMES)}"


def get(activation: str | Callable[..., Any] | None, who: str = "") -> Callable[..., Any] | None:
    """Return an activation by name, or the function itself; None for None and "linear".

    Args:
        activation: either of them.
        who: the layer that it is for, in the errors.

    Raises:
        ValueError: no such name.
        TypeError: a class, or a function of another library.
    """
    if activation is None or (isinstance(activation, str) and activation == "linear"):
        return None
    before = who and f"{who}: "
    check_function(f"{before}activation", activation, _EXPECTED)
    if callable(activation):
        return activation
    if not isinstance(activation, str) or activation not in NAMES:
        raise ValueError(
            f"{before}unknown activation {quoted(activation)}: expected None, a function or one of {', '.join(NAMES)}"
        )
    return NAMES[activation]


def split(activation: str | Callable[..., Any] | None, who: str = "") -> tuple[str | None, Callable[..., Any] | None]:
    """Return (fused, after): the name of an activation that the operation before can fuse, or a function to call after it."""
    function = get(activation, who)
    name = getattr(function, "__name__", None)
    if name in ACTIVATIONS_FROM_OUTPUT and function is NAMES[name]:
        return name, None
    return None, function


class Activated(Module):
    """Base class of the layers that end in an activation, part of their operation where that can be fused."""

    _functions = ("after",)
    fused: str | None
    after: Callable[..., Any] | None

    @property
    def activation(self) -> str | Callable[..., Any] | None:
        """The activation, a name or a function of one Tensor, or None; another one counts from the next call on."""
        return self.fused if self.after is None else self.after

    @activation.setter
    def activation(self, value: str | Callable[..., Any] | None) -> None:
        self.fused, self.after = split(value, type(self).__name__)


class _Elementwise(Module):
    """A layer that applies one operation."""

    plannable = True
    _functions = ("operation",)
    operation: Callable[..., Any]

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the input's shape."""
        return input_shape

    def forward(self, x: Any) -> Any:
        """Apply the operation to x."""
        return type(self).operation(self.as_float(x))


class Activation(_Elementwise):
    """An activation function, by name or as a function of one Tensor."""

    plannable = True
    _functions = ("function",)

    def __init__(self, activation: str | Callable[..., Any]) -> None:
        self.activation = activation

    @property
    def activation(self) -> str | Callable[..., Any] | None:
        """The activation, its name or a function of one Tensor; another one counts from the next call on."""
        name = getattr(self.function, "__name__", None)
        return "linear" if self.function is None else name if self.function is NAMES.get(name or "") else self.function

    @activation.setter
    def activation(self, value: str | Callable[..., Any]) -> None:
        check_kind(type(self).__name__, "activation", value, "str | Callable[..., Any]")
        self.function = get(value, type(self).__name__)

    def forward(self, x: Any) -> Any:
        """Apply the function to x."""
        if self.function is None:
            return x
        # A function of the user's may take integers as places or classes.
        return self.function(self.as_float(x) if type(self.function) is Op else x)


class Step(_Elementwise):
    """1 where x > 0, else 0: the perceptron. Forward only."""

    operation = staticmethod(ops.step)


class ReLU(_Elementwise):
    """max(x, 0)."""

    operation = staticmethod(ops.relu)


class Sigmoid(_Elementwise):
    """1 / (1 + exp(-x))."""

    operation = staticmethod(ops.sigmoid)


class Tanh(_Elementwise):
    """The hyperbolic tangent."""

    operation = staticmethod(ops.tanh)


class SELU(_Elementwise):
    """The self-normalising exponential linear unit."""

    operation = staticmethod(ops.selu)


class SiLU(_Elementwise):
    """x * sigmoid(x)."""

    operation = staticmethod(ops.silu)


class Softplus(_Elementwise):
    """log(1 + exp(x))."""

    operation = staticmethod(ops.softplus)


class Softsign(_Elementwise):
    """x / (1 + |x|)."""

    operation = staticmethod(ops.softsign)


class HardSigmoid(_Elementwise):
    """x/6 + 1/2 limited to [0, 1]."""

    operation = staticmethod(ops.hard_sigmoid)


class LeakyReLU(_Elementwise):
    """max(x, slope * x)."""

    plannable = True

    def __init__(self, slope: float = 0.01) -> None:
        check_numbers("LeakyReLU", "(-inf, inf)", slope=slope)
        self.slope = slope

    def forward(self, x: Any) -> Any:
        """Compute max(x, slope * x)."""
        return ops.leaky_relu(self.as_float(x), slope=self.slope)


class ELU(_Elementwise):
    """x where positive, else alpha * (exp(x) - 1)."""

    plannable = True

    def __init__(self, alpha: float = 1.0) -> None:
        check_numbers("ELU", "[0, inf)", alpha=alpha)
        self.alpha = alpha

    def forward(self, x: Any) -> Any:
        """Apply the function to x."""
        return ops.elu(self.as_float(x), alpha=self.alpha)


class GELU(_Elementwise):
    """x times the normal distribution function of x."""

    plannable = True

    def __init__(self, approximate: bool = False) -> None:
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        """Apply the function to x."""
        return ops.gelu(self.as_float(x), approximate=self.approximate)


class Softmax(_Elementwise):
    """Probabilities along `axis`. For training leave it out and use softmax_cross_entropy on the logits."""

    plannable = True

    def __init__(self, axis: int = -1) -> None:
        if not is_whole(axis):
            raise TypeError(f"Softmax: axis must be an integer, got {axis!r}")
        self.axis = axis

    def forward(self, x: Any) -> Any:
        """Compute the softmax of x along the axis."""
        return ops.softmax(self.as_float(x), axis=self.axis)
