"""Normalisation layers."""

from __future__ import annotations

from typing import Any

from xpnet import ops
from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tape import runs_again
from xpnet.autograd.tensor import bare
from xpnet.layers.context import Shape, Spec
from xpnet.layers.module import Module
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.settings import check_numbers, check_whole


class _Normalization(Module):
    """Base class of the normalisations: a trained scale and offset for each channel, initially 1 and 0."""

    scale: Parameter
    offset: Parameter

    def __init__(self, epsilon: float = 1e-5, *, use_scale: bool = True, use_offset: bool = True) -> None:
        check_numbers(type(self).__name__, "(0, inf)", epsilon=epsilon)
        self.epsilon = float(epsilon)
        self.use_scale = use_scale
        self.use_offset = use_offset

    def _vector_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of scale and offset."""
        if not input_shape:
            raise ShapeError(f"{type(self).__name__} got examples that are single numbers, expected (..., C)")
        return (input_shape[-1],)

    def parameter_specs(self, input_shape: Shape) -> dict[str, Spec]:
        """Return the specs of scale and offset."""
        shape = self._vector_shape(input_shape)
        found = {"scale": Spec(shape, "ones", decay=False)} if self.use_scale else {}
        return {**found, "offset": Spec(shape, "zeros", decay=False)} if self.use_offset else found

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the input's shape."""
        shape = self._vector_shape(input_shape)
        if not self.built:
            return input_shape
        learnt = self.scale if self.use_scale else self.offset if self.use_offset else None
        if learnt is not None and learnt.shape != shape:
            raise ShapeError(f"{type(self).__name__} got examples {tuple(input_shape)}, expected {learnt.shape} at the end")
        return input_shape

    def _affine(self, x: Any) -> tuple[Any, Any]:
        """Check that scale and offset fit x, and return them."""
        self.output_shape(tuple(x.shape[1:]))
        return self.scale if self.use_scale else None, self.offset if self.use_offset else None


class BatchNorm(_Normalization):
    """Batch normalisation: every channel normalised to mean 0 and variance 1, then times `scale` plus `offset`.

    In training with the mean and variance of the batch (and, in images, of all positions), which also update the running
    statistics: running = momentum * running + (1 - momentum) * batch, with the unbiased variance. In evaluation with the
    running statistics. After dense layers as after convolutions: the channels are the last axis.

    Args:
        momentum: of the running statistics, which part is kept in each step. (PyTorch's momentum is 1 minus this.)
        epsilon: added to the variance.
        use_scale, use_offset: whether these are learnt.

    Shapes:
        (N, ..., C) -> (N, ..., C). Parameters: scale, offset (C,). Buffers: running_mean, running_variance (C,).

    Source: Ioffe and Szegedy, "Batch normalization", 2015.
    """

    plannable = True
    running_mean: Any
    running_variance: Any

    def __init__(
        self, momentum: float = 0.9, epsilon: float = 1e-5, *, use_scale: bool = True, use_offset: bool = True
    ) -> None:
        super().__init__(epsilon, use_scale=use_scale, use_offset=use_offset)
        check_numbers("BatchNorm", "[0, 1]", momentum=momentum)
        self.momentum = float(momentum)

    def build(self, input_shape: Shape) -> None:
        """Create scale, offset and the running statistics."""
        super().build(input_shape)
        (C,) = self._vector_shape(input_shape)
        self.add_buffer("running_mean", [0.0] * C)
        self.add_buffer("running_variance", [1.0] * C)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the input's shape."""
        if self.built and input_shape[-1:] != self.running_mean.shape:
            raise ShapeError(f"BatchNorm got examples {tuple(input_shape)}, expected {self.running_mean.shape[0]} channels")
        return super().output_shape(input_shape)

    def forward(self, x: Any, residual: Any = None, activation: str | None = None) -> Any:
        """Normalise x (N, ..., C), add `residual` and apply `activation`; in training also update the running statistics."""
        x = self.as_float(x)
        scale, offset = self._affine(x)
        if not self.training or not self.__dict__["_trainable"]:
            y = ops.batch_norm_inference(
                x, scale, offset, mean=self.running_mean, variance=self.running_variance, epsilon=self.epsilon
            )
            y = y if residual is None else y + residual
            return y if activation is None else ops.relu(y)
        settings = {"momentum": self.momentum, "epsilon": self.epsilon, "activation": activation}
        if runs_again():  # the first run has updated them
            return ops.batch_norm_training(x, scale, offset, residual, **settings)
        running = {"running_mean": self.running_mean, "running_variance": self.running_variance}
        y, mean, variance = ops.batch_norm_training(x, scale, offset, residual, **running, **settings)
        self.running_mean, self.running_variance = bare(mean), bare(variance)
        return y


class LayerNorm(_Normalization):
    """Each example (and each position in it) normalised over its channels, then times `scale` plus `offset`.

    Args:
        axes: how many of the last axes are normalised over together; 1 are the channels alone.
        epsilon, use_scale, use_offset: as in BatchNorm.

    Shapes:
        (N, ..., C) -> (N, ..., C). Parameters: scale, offset, of the shape of the axes normalised over.

    Source: Ba et al., "Layer normalization", 2016.
    """

    plannable = True

    def __init__(self, axes: int = 1, epsilon: float = 1e-5, *, use_scale: bool = True, use_offset: bool = True) -> None:
        super().__init__(epsilon, use_scale=use_scale, use_offset=use_offset)
        check_whole("LayerNorm", 1, axes=axes)
        self.axes = int(axes)

    def _vector_shape(self, input_shape: Shape) -> Shape:
        if len(input_shape) < self.axes:
            raise ShapeError(f"LayerNorm: examples {tuple(input_shape)} have fewer than axes={self.axes} axes")
        return tuple(input_shape[-self.axes :])

    def forward(self, x: Any) -> Any:
        """Normalise x (N, ..., C)."""
        return ops.layer_norm(self.as_float(x), *self._affine(x), axis=tuple(range(-self.axes, 0)), epsilon=self.epsilon)


class GroupNorm(_Normalization):
    """Each example's channels normalised in groups, over a group's channels and all positions, then scaled and offset.

    Args:
        groups: how many groups; a divisor of C.
        epsilon, use_scale, use_offset: as in BatchNorm.

    Shapes:
        (N, ..., C) -> (N, ..., C). Parameters: scale, offset (C,).

    Source: Wu and He, "Group normalization", 2018.
    """

    plannable = True

    def __init__(self, groups: int, epsilon: float = 1e-5, *, use_scale: bool = True, use_offset: bool = True) -> None:
        super().__init__(epsilon, use_scale=use_scale, use_offset=use_offset)
        check_whole("GroupNorm", 1, groups=groups)
        self.groups = int(groups)

    def _vector_shape(self, input_shape: Shape) -> Shape:
        shape = super()._vector_shape(input_shape)
        if not self.built and shape[0] % self.groups:
            raise ShapeError(f"GroupNorm: {shape[0]} channels are not a multiple of groups={self.groups}")
        return shape

    def forward(self, x: Any) -> Any:
        """Normalise x (N, ..., C)."""
        return ops.group_norm(self.as_float(x), *self._affine(x), groups=self.groups, epsilon=self.epsilon)


class InstanceNorm(_Normalization):
    """Instance normalisation: each channel of each example normalised over all positions, then scaled and offset.

    Args:
        epsilon, use_scale, use_offset: as in BatchNorm.

    Shapes:
        (N, ..., C) -> (N, ..., C). Parameters: scale, offset (C,).

    Source: Ulyanov et al., "Instance normalization", 2016.
    """

    plannable = True

    def forward(self, x: Any) -> Any:
        """Normalise x (N, ..., C)."""
        return ops.group_norm(self.as_float(x), *self._affine(x), groups=x.shape[-1], epsilon=self.epsilon)


class LocalResponseNorm(Module):
    """x / (k + alpha * s)**beta with s the sum of squares over `size` neighbouring channels.

    Args:
        size: odd, the number of channels summed.
        k, alpha, beta: the constants, with the paper's values; alpha multiplies the sum (PyTorch divides it by size first).

    Shapes:
        (N, H, W, C) -> (N, H, W, C). No parameters.

    Source: Krizhevsky et al., 2012, section 3.3.
    """

    plannable = True

    def __init__(self, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> None:
        check_whole("LocalResponseNorm", 1, size=size)
        if size % 2 == 0:
            raise ValueError(f"LocalResponseNorm: size must be odd, got {size}")
        check_numbers("LocalResponseNorm", "(0, inf)", k=k)
        check_numbers("LocalResponseNorm", "[0, inf)", alpha=alpha, beta=beta)
        self.size, self.k, self.alpha, self.beta = size, k, alpha, beta

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the input's shape."""
        if len(input_shape) != 3:
            raise ShapeError(f"LocalResponseNorm got examples of shape {tuple(input_shape)}, expected images (H, W, C)")
        return input_shape

    def forward(self, x: Any) -> Any:
        """Normalise x (N, H, W, C)."""
        self.output_shape(tuple(x.shape[1:]))
        return ops.local_response_norm(self.as_float(x), size=self.size, k=self.k, alpha=self.alpha, beta=self.beta)
