"""Parameters: the Tensors that a model learns."""

from __future__ import annotations

from typing import Any

from xpnet import ops
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array, describe, device_of, dtype_name, half_dtypes, kind_of, to_device
from xpnet.runtime.messages import quoted
from xpnet.runtime.settings import check_function


def check_regularizer(who: str, value: Any) -> None:
    """Raise a TypeError unless a value can be a penalty."""
    check_function(who, value, "a function of the Parameter, such as xpnet.regularizers.L2(1e-4)")
    if value is not None and not callable(value):
        raise TypeError(
            f"{who} must be None or a function of the Parameter, such as xpnet.regularizers.L2(1e-4), got {quoted(value)}"
        )


def check_constraint(who: str, value: Any) -> None:
    """Raise a TypeError unless a value can be a projection."""
    check_function(who, value, "an object such as xpnet.regularizers.MaxNorm(3)")
    if value is not None and not callable(getattr(value, "project", None)):
        raise TypeError(
            f"{who} must be None or have a method project(array), such as xpnet.regularizers.MaxNorm(3), got {quoted(value)}"
        )


class Parameter(Tensor):
    """A Tensor that a model learns.

    Args:
        array: the initial values, floating-point; those of a Module are brought to the model's device and dtype.
        decay: whether weight decay and weight penalties apply: True for weights, False for biases and scales.

    Attributes:
        regularizer: None, or a penalty that a Trainer adds to the loss, such as xpnet.regularizers.L2(1e-4).
        constraint: None, or a projection after each update, such as xpnet.regularizers.MaxNorm(3).

    Both, `decay` and `requires_grad` may be set at any time and count from the next step on.

    Its array and gradient may be views into flat arrays (xpnet.autograd.flat_parameters); the gradient is then added to in
    place.
    """

    __slots__ = ("_constraint", "_decay", "_regularizer", "buffer", "flat", "path")

    def __init__(self, array: Any, *, decay: bool = True, requires_grad: bool = True) -> None:
        super().__init__(array, requires_grad)
        if kind_of(self.array.dtype) in ("integer", "boolean"):
            raise TypeError(
                f"Parameter: expected floating-point values, got {describe(self.array)}; use values.astype('float32')"
            )
        self.flat: Any = None  # a weak reference to the FlatParameters that sort it by the three below
        self._decay = decay
        self._regularizer: Any = None
        self._constraint: Any = None
        self.path = ""
        self.buffer: Array | None = None

    @property
    def decay(self) -> bool:
        """Whether weight decay applies."""
        return self._decay

    @decay.setter
    def decay(self, value: bool) -> None:
        self._decay = bool(value)
        self._sorted_again()

    @property
    def regularizer(self) -> Any:
        """The penalty, a function of this Parameter, or None."""
        return self._regularizer

    @regularizer.setter
    def regularizer(self, value: Any) -> None:
        check_regularizer(f"{self.path or 'Parameter'}: regularizer", value)
        self._regularizer = value
        self._sorted_again()

    @property
    def constraint(self) -> Any:
        """The projection, an object with a method `project(array)`, or None."""
        return self._constraint

    @constraint.setter
    def constraint(self, value: Any) -> None:
        check_constraint(f"{self.path or 'Parameter'}: constraint", value)
        self._constraint = value
        self._sorted_again()

    def __getstate__(self) -> Any:
        """Return what a copy holds: it is in no flat storage."""
        state: Any = super().__getstate__()
        return state[0], {**state[1], "flat": None}

    def _sorted_again(self) -> None:
        flat = None if self.flat is None else self.flat()
        if flat is not None:
            flat.sort_again()

    def destination(self) -> Array | None:
        """Return the view into the flat gradients, while it holds no gradient."""
        return self.buffer if self.grad is None else None

    def _accumulate(self, gradient: Array, fresh: bool = False) -> None:
        if self.buffer is None:
            if gradient.dtype in half_dtypes and self.array.dtype not in half_dtypes:
                gradient = ops.cast(gradient, dtype_name(self.array))  # a 16-bit copy of the parameter was used
            super()._accumulate(gradient, fresh)
        elif gradient is self.buffer:  # written there by an operation
            self.grad = gradient
        elif self.grad is None:
            self.buffer[...] = gradient
            self.grad = self.buffer
        else:
            if self.grad is not self.buffer:  # an array that the user assigned
                self.buffer[...] = self.grad
                self.grad = self.buffer
            self.buffer += gradient

    def set_gradient(self, gradient: Array) -> None:
        """Replace the gradient by these values, from any device."""
        self.grad = None
        self._accumulate(to_device(gradient, device_of(self.array)))

    def __repr__(self) -> str:
        return f"Parameter({self.path or '?'}, {tuple(self.array.shape)}, {dtype_name(self.array)})"
