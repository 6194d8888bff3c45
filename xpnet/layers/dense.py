"""The fully connected layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet import ops
from xpnet.autograd.parameter import Parameter
from xpnet.layers import activation as activations
from xpnet.layers.context import Shape, Spec
from xpnet.ops.shapes import ShapeError, is_whole
from xpnet.runtime.messages import quoted

Initial = Any


def default_kernel(activation: str | Callable[..., Any] | None) -> str:
    """Return the default initializer: He's before rectifiers, which halve the variance, Glorot's otherwise."""
    name = activation if isinstance(activation, str) else getattr(activation, "__name__", "")
    return "he_normal" if name in ("relu", "leaky_relu", "elu", "gelu", "silu") else "glorot_uniform"


def kernel_and_bias(layer: Any, shape: Shape) -> dict[str, Spec]:
    """Return the specs of a layer's kernel of `shape` (..., outputs), and of its bias (outputs,) if it has one."""
    initial, regularizer, constraint = layer.kernel_initializer, layer.kernel_regularizer, layer.kernel_constraint
    specs = {"kernel": Spec(shape, initial, regularizer=regularizer, constraint=constraint)}
    if layer.use_bias:
        specs["bias"] = Spec(shape[-1:], layer.bias_initializer, decay=False, regularizer=layer.bias_regularizer)
    return specs


class Dense(activations.Activated):
    """Fully connected layer: activation(x @ kernel + bias).

    Args:
        units: the number of outputs.
        activation: a name ("relu", "sigmoid", ...), a function, or None.
        use_bias: whether a bias is added.
        kernel_initializer, bias_initializer: names or initializers; by default He's before rectifiers, else Glorot's, and 0.
        kernel_regularizer: a penalty on the kernel, such as xpnet.regularizers.L2(1e-4).
        bias_regularizer: a penalty on the bias; the others leave biases alone.
        kernel_constraint: a projection of the kernel after each update, such as xpnet.regularizers.MaxNorm(3).

    Shapes:
        (N, ..., in) -> (N, ..., units). Parameters: kernel (in, units), bias (units,).
    """

    plannable = True
    kernel: Parameter
    bias: Parameter

    def __init__(
        self,
        units: int,
        activation: str | Callable[..., Any] | None = None,
        *,
        use_bias: bool = True,
        kernel_initializer: Initial = None,
        bias_initializer: Initial = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
    ) -> None:
        if not is_whole(units) or units < 1:
            raise ValueError(f"Dense: units must be at least 1 and whole, got {quoted(units)}")
        self.units = int(units)
        self.use_bias = use_bias
        self.activation = activation
        self.kernel_initializer = default_kernel(activation) if kernel_initializer is None else kernel_initializer
        self.bias_initializer = bias_initializer
        self.kernel_regularizer = kernel_regularizer
        self.bias_regularizer = bias_regularizer
        self.kernel_constraint = kernel_constraint

    def parameter_specs(self, input_shape: Shape) -> dict[str, Spec]:
        """Return the specs of the kernel and the bias."""
        if not input_shape:
            raise ShapeError("Dense: got examples that are single numbers, shape (N,); reshape them to (N, 1)")
        return kernel_and_bias(self, (input_shape[-1], self.units))

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (..., in) to (..., units)."""
        if self.built and input_shape[-1:] != self.kernel.shape[:1]:
            raise ShapeError(
                f"got examples of shape {tuple(input_shape)}, expected a last axis of {self.kernel.shape[0]}; "
                f"put Flatten() or Reshape(...) before this layer"
            )
        return (*input_shape[:-1], self.units)

    def forward(self, x: Any) -> Any:
        """Map x (N, ..., in) to (N, ..., units)."""
        y = ops.dense(self.as_float(x), self.kernel, self.bias if self.use_bias else None, activation=self.fused)
        return y if self.after is None else self.after(y)
