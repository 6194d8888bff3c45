"""Chains of layers, and residual blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from xpnet import ops
from xpnet.autograd.checkpointing import recompute
from xpnet.backend import Device
from xpnet.layers.activation import ReLU
from xpnet.layers.context import Shape
from xpnet.layers.convolution import Conv2D
from xpnet.layers.execution import shape_of_examples
from xpnet.layers.hooks import recomputing
from xpnet.layers.module import Module
from xpnet.layers.normalization import BatchNorm
from xpnet.layers.pooling import MaxPool2D
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.foreign import refuse_foreign
from xpnet.runtime.messages import quoted
from xpnet.runtime.settings import check_whole, sizes


class Sequential(Module):
    """A chain of layers: the output of each is the input of the next.

    Args:
        layers: Modules, or functions of one Tensor.
        input_shape: the input's shape without the batch axis, such as (28, 28, 1). With it all parameters are created now,
            and shapes that do not fit raise here; without it they are created at the first batch.
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32", "float64"; or "float16", "bfloat16", which compute in 16 bits with parameters in float32, see
            xpnet.layers.mixed.
        seed: of initial weights and of everything random in the model.

    Raises:
        ShapeError: a layer does not fit its input; the message names the layer's path.
    """

    plannable = True
    _functions = ("layers",)
    _segments: tuple[range, ...] = ()  # the layers that are recomputed in the backward pass, set for a training step

    def __init__(
        self,
        layers: Sequence[Any],
        *,
        input_shape: Sequence[int] | None = None,
        device: str | Device = "cpu",
        dtype: Any = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(device=device, dtype=dtype, seed=seed)
        if isinstance(layers, Module) or not all(callable(layer) for layer in layers):
            raise TypeError(f"Sequential takes a list of layers, got {quoted(layers)}")
        classes = [layer.__name__ for layer in layers if isinstance(layer, type)]
        if classes:
            raise TypeError(f"Sequential takes layers, got the class {classes[0]}: write {classes[0]}(...)")
        for layer in layers:
            refuse_foreign("a layer", layer, "use those of xpnet itself, such as xn.Dense, and functions of xn.ops")
        if input_shape is not None and not hasattr(input_shape, "__iter__"):
            raise ValueError(f"Sequential: input_shape must be a tuple such as ({input_shape},), got {quoted(input_shape)}")
        if input_shape is not None and None in tuple(input_shape):
            raise ValueError(
                f"Sequential: input_shape must hold sizes, got {tuple(input_shape)}; where one varies give any that occurs ("
                f"the layers that can take others will), or leave input_shape out"
            )
        if input_shape is not None:
            check_whole("Sequential", 0, **{f"input_shape[{i}]": n for i, n in enumerate(input_shape)})
        self.layers = tuple(layers)
        self.input_shape = None if input_shape is None else sizes("Sequential", "input_shape", input_shape)
        self._attach("", self.context)
        if self.input_shape is not None:
            self.materialize(self.input_shape)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "layers":
            super().__setattr__(name, value)
            return
        value = tuple(value)
        # Paths are "0", "1", ..., without the list's own name.
        children = {str(i): layer for i, layer in enumerate(value) if isinstance(layer, Module)}
        others = {name: child for name, child in self._children.items() if not name.isdigit()}
        self.__dict__.update(layers=value, _fused=_fused(value))
        if type(self) is Sequential:  # what a model file says
            args, keywords = self._arguments
            given = (args, {**keywords, name: value}) if name in keywords else ((value, *args[1:]), keywords)
            self.__dict__["_arguments"] = given
        self._set_children({**children, **others}, children)

    def forward(self, x: Any, *, residual: Any = None, activation: str | None = None) -> Any:
        """Apply the layers in turn; some and the one behind are one operation: see `_keywords`.

        residual, activation: what the batch normalisation at the end does as well (see Residual).
        """
        last = {} if residual is None else {"residual": residual, "activation": activation}
        segments = self._segments
        if not segments:
            return self._through(x, 0, len(self.layers), **last)
        done = 0
        for segment in segments:
            x = self._through(x, done, segment.start)
            x = recompute(self._through)(x, segment.start, segment.stop)
            done = segment.stop
        return self._through(x, done, len(self.layers), **last)

    def _through(self, x: Any, start: int, stop: int, **last: Any) -> Any:
        """Apply some of the layers."""
        if last:
            return self.layers[stop - 1](self._through(x, start, stop - 1), **last)
        layers, fused = self.layers, self.__dict__["_fused"]
        if not fused:
            for layer in layers if stop - start == len(layers) else layers[start:stop]:
                x = layer(x)
            return x
        done = -1
        for i in range(start, stop):
            if i == done:
                continue
            layer = layers[i]
            # A hook must see the output of its layer alone.
            if i in fused and i + 1 < stop and not _is_watched(layer) and not _is_watched(layers[i + 1]):
                keywords = _keywords(layer, layers[i + 1])
                x = layer(x, **keywords)
                done = i + 1 if keywords else i
            else:
                x = layer(x)
        return x

    def materialize(self, input_shape: Shape) -> Shape:
        """Create all parameters for this input shape, and return the output's shape."""
        shape = input_shape
        for layer in self.layers:
            shape = layer.materialize(shape) if isinstance(layer, Module) else _shape_through(layer, shape, self)
        return shape

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the output's shape, both without the batch axis."""
        shape = input_shape
        for layer in self.layers:
            shape = layer.output_shape(shape) if isinstance(layer, Module) else _shape_through(layer, shape, self)
        return shape

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Any:
        """Return one of the layers."""
        return self.layers[index]


def _is_watched(layer: Module) -> bool:
    return layer._forward_hooks not in ((), (recomputing,)) or "forward" in layer.__dict__


def _fused(layers: Sequence[Any]) -> frozenset[int]:
    """Return the indices of the layers that may compute the one behind as well: of a subclass anything may change."""
    kinds = ((Conv2D, MaxPool2D), (BatchNorm, ReLU), (Residual, ReLU))
    pairs = enumerate(itertools.pairwise(layers))
    return frozenset(i for i, (layer, after) in pairs if (type(layer), type(after)) in kinds)


def _keywords(layer: Any, after: Any) -> dict[str, Any]:
    """Return with which keywords a layer computes the one behind as well; none where it does not."""
    if type(after) is ReLU:
        return {"activation": "relu"}
    return {"pool": after} if layer.after is None else {}  # what comes after the convolution is applied before the pooling


def _shape_through(function: Any, shape: Shape, model: Module) -> Shape:
    """Return the output's shape of a plain function of arrays, found by running it on one example of zeros."""
    xp = model.context.device.xp
    name = getattr(function, "__name__", type(function).__name__)
    return shape_of_examples(function(xp.zeros((1, *shape), dtype=model._dtype())), f"Sequential: the function {name}")


class Residual(Module):
    """Residual block: x + body(x), so that the body learns the difference from its input.

    Args:
        body: a Module, or a list of layers.
        shortcut: a Module for x where the body changes its shape, such as a 1x1 convolution; None leaves x as it is.

    Source: He et al., "Deep residual learning for image recognition", 2015.
    """

    plannable = True

    def __init__(self, body: Module | Sequence[Any], shortcut: Module | None = None) -> None:
        self.body = body if isinstance(body, Module) else Sequential(body)
        self.shortcut = shortcut

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the body's output, which must be the shortcut's."""
        return self._fitting(
            self.body.output_shape(input_shape),
            self.shortcut.output_shape(input_shape) if self.shortcut is not None else input_shape,
        )

    def materialize(self, input_shape: Shape) -> Shape:
        """Create the parameters of body and shortcut."""
        after = self.body.materialize(input_shape)
        return self._fitting(after, self.shortcut.materialize(input_shape) if self.shortcut is not None else input_shape)

    def _fitting(self, body: Shape, shortcut: Shape) -> Shape:
        if tuple(body) != tuple(shortcut):
            raise self._located(
                ShapeError(
                    f"the body gives {tuple(body)}, the shortcut {tuple(shortcut)}; give the body's last layer that shape, "
                    f"or pass a shortcut layer that changes x"
                )
            )
        return body

    def forward(self, x: Any, activation: str | None = None) -> Any:
        """Add x (through the shortcut) and the body's output; then apply `activation`, None or "relu"."""
        x = self.as_float(x)
        if self._body_adds():
            side = x if self.shortcut is None else self.shortcut(x)
            try:
                return self.body(x, residual=side, activation=activation)
            except ShapeError:
                self._fitting(self.body.output_shape(tuple(x.shape[1:])), tuple(side.shape[1:]))
                raise
        y = self.body(x)
        side = x if self.shortcut is None else self.shortcut(x)
        self._fitting(tuple(y.shape[1:]), tuple(side.shape[1:]))
        y = y + side
        return y if activation is None else ops.relu(y)

    def _body_adds(self) -> bool:
        """Return whether the body ends in a batch normalisation, which adds the shortcut itself where nothing watches it."""
        body = self.body
        if type(body) is not Sequential or not body.layers or type(body.layers[-1]) is not BatchNorm:
            return False
        return not _is_watched(body) and not _is_watched(body.layers[-1])
