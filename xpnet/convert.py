"""Conversion of one architecture into another that computes the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from xpnet.layers.activation import Activation, Softmax, _Elementwise
from xpnet.layers.context import Shape
from xpnet.layers.convolution import Conv2D
from xpnet.layers.dense import Dense
from xpnet.layers.dropout import Dropout
from xpnet.layers.module import Module
from xpnet.layers.normalization import BatchNorm, LayerNorm
from xpnet.layers.pooling import AveragePool2D, GlobalAveragePool2D
from xpnet.layers.sequential import Sequential
from xpnet.layers.shaping import Flatten
from xpnet.ops.registry import Op, registry


def dense_to_conv(model: Sequential, input_shape: Sequence[int] | None = None) -> Sequential:
    """Convert an image classifier with fully connected layers to a fully convolutional one for larger images.

    Flatten and the Dense layer after it become a convolution whose window is the whole map, the further Dense layers 1x1
    convolutions, a GlobalAveragePool2D an average pooling over a window of that size. The weights are kept, as copies.

    A network that takes 224x224 images and reduces them by 32 gives 1x1xK for them and 6x6xK for 384x384: position (i, j) holds
    the classifier's output for the crop that begins at (32 i, 32 j), at little more than the cost of one evaluation. This
    is exact where no layer pads; padding would put zeros around each crop where the larger image continues.

    Args:
        model: a Sequential of layers on images (H, W, C), then Flatten or GlobalAveragePool2D, then Dense layers with
            activations, dropout and normalisation.
        input_shape: (H, W, C) of the images that the new model is built for; it takes any larger ones too. None: that of
            `model`. For a model without an input_shape: that of its training images.

    Returns:
        A new Sequential on the same device: (N, H, W, C) -> (N, OH, OW, K).

    Raises:
        ValueError: the model's input shape is not known, or a layer cannot slide; the message names it.

    Source: CS231n, "Convolutional Networks", converting fully connected layers to convolutional layers.
    """
    if not isinstance(model, Sequential):
        raise ValueError(f"dense_to_conv takes a Sequential of layers, got {type(model).__name__}")
    given = None if input_shape is None else tuple(int(n) for n in input_shape)
    before = model.input_shape if model.input_shape is not None else given
    if before is None or len(before) != 3:
        raise ValueError(
            f"dense_to_conv: the model's images must be known as (H, W, C), got {before}; pass input_shape=(H, W, C)"
        )
    layers, filled = _converted(model, before)
    context = model.context
    made = Sequential(layers, input_shape=given or before, device=str(context.device), dtype=context.dtype, seed=context.seed)
    for conv, dense in filled:
        conv.kernel.array[...] = context.device.xp.reshape(dense.kernel.array, conv.kernel.shape)
        conv.kernel.requires_grad = dense.kernel.requires_grad
        if dense.use_bias:
            conv.bias.array[...] = dense.bias.array
            conv.bias.requires_grad = dense.bias.requires_grad
    return made.train(model.training)


def _chain(model: Sequential) -> Iterator[Any]:
    """Yield the layers in order, those of nested Sequentials included."""
    for layer in model:
        yield from _chain(layer) if isinstance(layer, Sequential) else (layer,)


def _converted(model: Sequential, shape: Shape) -> tuple[list[Any], list[tuple[Conv2D, Dense]]]:
    """Return the new layers, and pairs of a convolution and the Dense layer whose weights it takes."""
    layers: list[Any] = []
    filled: list[tuple[Conv2D, Dense]] = []
    window: tuple[int, int] | None = None  # of the next Dense layer; None while the maps are images
    for layer in _chain(model):
        after = layer.materialize(shape) if isinstance(layer, Module) else shape
        if isinstance(layer, Flatten) and window is None:
            if len(shape) != 3:
                raise _cannot(layer, f"gets {shape}, not images (H, W, C)")
            window = (shape[0], shape[1])
        elif isinstance(layer, GlobalAveragePool2D):
            layers.append(AveragePool2D((shape[0], shape[1]), 1))
            window = (1, 1)
        elif window is None:
            if len(after) != 3:
                raise _cannot(layer, f"gives {after}, not images (H, W, C)")
            layers.append(_copied(layer))
        elif isinstance(layer, Dense):
            conv = Conv2D(
                layer.units,
                window,
                activation=layer.fused or layer.after,
                use_bias=layer.use_bias,
                kernel_regularizer=layer.kernel_regularizer,
                bias_regularizer=layer.bias_regularizer,
                kernel_constraint=layer.kernel_constraint,
            )
            layers.append(conv)
            filled.append((conv, layer))
            window = (1, 1)
        elif not isinstance(layer, Flatten):  # flattening a vector changes nothing
            layers.append(_sliding(layer, window))
        shape = after
    if not filled:
        raise ValueError("dense_to_conv: the model has no Dense layer after a Flatten or GlobalAveragePool2D")
    return layers, filled


def _sliding(layer: Any, window: tuple[int, int]) -> Any:
    """Return a copy of a layer between or after the Dense layers, if it works on every position of a map separately."""
    if isinstance(layer, Softmax):
        if layer.axis in (-1, 1):
            return Softmax()
    elif isinstance(layer, (_Elementwise, Activation)) or (isinstance(layer, Dropout) and not layer.spatial):
        return _copied(layer)
    elif isinstance(layer, BatchNorm) or (isinstance(layer, LayerNorm) and layer.axes == 1):
        # Between Flatten and the first Dense layer each position of the map would have its own statistics.
        if window == (1, 1):
            return _copied(layer)
    elif isinstance(layer, Op):
        return layer
    raise _cannot(layer, "cannot slide over a larger map")


def _cannot(layer: Any, why: str) -> ValueError:
    where = f"layer {layer.path!r} ({type(layer).__name__})" if isinstance(layer, Module) else f"{layer!r}"
    return ValueError(f"dense_to_conv: {where} {why}")


def _copied(layer: Any) -> Any:
    """Return a layer with copies of parameters and buffers, outside any tree and any flat parameters."""
    if not isinstance(layer, Module):
        return layer
    shared: dict[int, Any] = {id(operation): operation for operation in registry.values()}
    twin = copy.deepcopy(layer, shared)
    for module in twin.modules():
        module.__dict__["_flat_storage"] = None
    for parameter in twin.parameters().values():
        parameter.grad = parameter.buffer = None
    return twin


__all__ = ["dense_to_conv"]
