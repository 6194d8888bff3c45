"""Convolutional layers over images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet import ops
from xpnet.autograd.parameter import Parameter
from xpnet.layers import activation as activations
from xpnet.layers.context import Shape, Spec
from xpnet.layers.dense import Initial, default_kernel, kernel_and_bias
from xpnet.layers.given import naming
from xpnet.ops.convolution import transposed_size
from xpnet.ops.geometry import Padding, Size, pair, windows
from xpnet.ops.shapes import ShapeError, is_whole
from xpnet.runtime.settings import check_whole


def image_shape(name: str, input_shape: Shape) -> Shape:
    """Return `input_shape` if it is (H, W, C).

    Raises:
        ShapeError: it is not.
    """
    if len(input_shape) != 3:
        raise ShapeError(
            f"{name} got examples of shape {tuple(input_shape)}, expected images (H, W, C); "
            f"put Reshape((H, W, C)) before it, with C=1 for grey images"
        )
    return input_shape


class Convolution(activations.Activated):
    """Base class of the convolutional layers: filters over groups of channels, a bias, an activation.

    Args:
        filters: O, the number of output channels.
        groups: the channels are split into this many groups; C of them make a depthwise convolution.
        activation: a name ("relu", ...), a function, or None.
        use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, kernel_constraint: as in Dense.
    """

    shares_work = True
    kernel: Parameter
    bias: Parameter

    def __init__(
        self,
        filters: int,
        *,
        groups: int = 1,
        activation: str | Callable[..., Any] | None = None,
        use_bias: bool = True,
        kernel_initializer: Initial = None,
        bias_initializer: Initial = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
    ) -> None:
        if not is_whole(filters) or filters < 1 or not is_whole(groups) or groups < 1 or filters % groups:
            raise ValueError(f"{type(self).__name__}: filters={filters!r} must be a positive multiple of groups={groups}")
        self.filters = int(filters)
        self.groups = int(groups)
        self.use_bias = use_bias
        self.activation = activation
        self.kernel_initializer = default_kernel(activation) if kernel_initializer is None else kernel_initializer
        self.bias_initializer = bias_initializer
        self.kernel_regularizer = kernel_regularizer
        self.bias_regularizer = bias_regularizer
        self.kernel_constraint = kernel_constraint

    def _specs(self, window: Shape, C: int) -> dict[str, Spec]:
        """Return the specs of the kernel (*window, C/groups, O) and the bias (O,)."""
        if C % self.groups:
            raise ShapeError(f"{type(self).__name__}: {C} input channels are not a multiple of groups={self.groups}")
        return kernel_and_bias(self, (*window, C // self.groups, self.filters))

    def _check_channels(self, C: int) -> None:
        if self.built and self.kernel.shape[-2] * self.groups != C:
            raise ShapeError(
                f"{type(self).__name__} got {C} channels, its kernel {self.kernel.shape} takes "
                f"{self.kernel.shape[-2] * self.groups}"
            )


class Conv2D(Convolution):
    """Convolution over images, and an activation.

    Args:
        filters: O, the number of output channels.
        window: int or (KH, KW).
        stride: int or (h, w).
        padding: int, (h, w), ((top, bottom), (left, right)), "valid" or "same".
        dilation: int or (h, w).
        groups: the channels are split into this many groups; C of them make a depthwise convolution.
        activation: a name ("relu", ...), a function, or None.
        use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, kernel_constraint: as in Dense.

    Shapes:
        (N, H, W, C) -> (N, OH, OW, O). Parameters: kernel (KH, KW, C/groups, O), bias (O,).
    """

    plannable = True

    def __init__(
        self,
        filters: int,
        window: Size,
        *,
        stride: Size = 1,
        padding: Padding = "valid",
        dilation: Size = 1,
        groups: int = 1,
        activation: str | Callable[..., Any] | None = None,
        use_bias: bool = True,
        kernel_initializer: Initial = None,
        bias_initializer: Initial = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
    ) -> None:
        super().__init__(
            filters,
            groups=groups,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
        )
        with naming(self):
            self.window = pair(window, "window")
            self.stride = pair(stride, "stride")
            self.padding = padding
            self.dilation = pair(dilation, "dilation")
            windows((1, 1 << 20, 1 << 20, 1), self.window, self.stride, padding, self.dilation)  # malformed values raise here

    def parameter_specs(self, input_shape: Shape) -> dict[str, Spec]:
        """Return the specs of the kernel and the bias."""
        return self._specs(self.window, image_shape("Conv2D", input_shape)[2])

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (H, W, C) to (OH, OW, O)."""
        H, W, C = image_shape("Conv2D", input_shape)
        self._check_channels(C)
        g = windows((1, H, W, C), self.window, self.stride, self.padding, self.dilation)
        return g.h.out, g.w.out, self.filters

    def forward(self, x: Any, pool: Any = None) -> Any:
        """Map x (N, H, W, C) to (N, OH, OW, O); with `pool`, the MaxPool2D that follows, both in one operation."""
        inputs = self.as_float(x), self.kernel, self.bias if self.use_bias else None
        settings: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "activation": self.fused,
        }
        if pool is not None:
            return ops.conv2d_max_pool2d(
                *inputs, window=pool.window, pool_stride=pool.stride, pool_padding=pool.padding, **settings
            )
        y = ops.conv2d(*inputs, **settings)
        return y if self.after is None else self.after(y)


class Conv2DTranspose(Convolution):
    """The transposed convolution: every input element spreads its kernels over a window of the output.

    Args:
        filters: O, the number of output channels.
        window: int or (KH, KW).
        stride: int or (h, w): the step between the windows of neighbouring elements.
        padding: as of the convolution whose transpose this is: cropped from the output. "same" gives H * stride.
        output_padding: int or (h, w), less than the stride: additional rows and columns at the end of the output.
        dilation: int or (h, w).
        groups, activation, ...: as in Conv2D.

    Shapes:
        (N, H, W, C) -> (N, OH, OW, O) with OH = (H - 1) * stride + dilation*(KH-1)+1 - padding at both ends + output_padding.
        Parameters: kernel (KH, KW, C/groups, O), bias (O,).

    Source: Zeiler et al., "Deconvolutional networks", 2010; Dumoulin and Visin, 2016.
    """

    plannable = True

    def __init__(
        self,
        filters: int,
        window: Size,
        *,
        stride: Size = 1,
        padding: Padding = "valid",
        output_padding: Size = 0,
        dilation: Size = 1,
        **keywords: Any,
    ) -> None:
        super().__init__(filters, **keywords)
        with naming(self):
            self.window = pair(window, "window")
            self.stride = pair(stride, "stride")
            self.padding = padding
            self.output_padding = pair(output_padding, "output_padding")
            check_whole("Conv2DTranspose", 0, **{f"output_padding[{i}]": size for i, size in enumerate(self.output_padding)})
            self.dilation = pair(dilation, "dilation")
            windows((1, 1 << 20, 1 << 20, 1), self.window, self.stride, padding, self.dilation)  # malformed values raise here

    def parameter_specs(self, input_shape: Shape) -> dict[str, Spec]:
        """Return the specs of the kernel and the bias."""
        return self._specs(self.window, image_shape("Conv2DTranspose", input_shape)[2])

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (H, W, C) to (OH, OW, O)."""
        H, W, C = image_shape("Conv2DTranspose", input_shape)
        self._check_channels(C)
        size, _ = transposed_size((H, W), self.window, self.stride, self.padding, self.output_padding, self.dilation)
        return *size, self.filters

    def forward(self, x: Any) -> Any:
        """Map x (N, H, W, C) to (N, OH, OW, O)."""
        y = ops.conv_transpose2d(
            self.as_float(x),
            self.kernel,
            self.bias if self.use_bias else None,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if self.fused is not None:
            return activations.NAMES[self.fused](y)
        return y if self.after is None else self.after(y)
