"""Receptive fields: the part of the image that one unit depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xpnet.layers.context import Shape
from xpnet.layers.convolution import Conv2D
from xpnet.layers.module import Module
from xpnet.layers.pooling import AveragePool2D, LpPool2D, MaxPool2D
from xpnet.ops.geometry import windows


class Field(NamedTuple):
    """The receptive field of one unit of a layer, along height and width.

    Attributes:
        size: (h, w) in pixels.
        stride: (h, w), the distance in pixels between the fields of neighbouring units.
        start: (h, w), where the field of the first unit begins; negative within the padding.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]


def receptive_fields(layers: Module | Sequence[Any], input_shape: Shape | None = None) -> list[tuple[str, Field]]:
    """Compute the receptive field after every convolution and pooling of a chain of layers: [(path, field), ...].

    With window F, dilation D and stride S the size grows by D*(F - 1) times the stride so far, and that stride then
    becomes S times as large.

    Args:
        layers: a Sequential, or a list of layers; all but convolutions and poolings are ignored.
        input_shape: (H, W, C), which a padding of "same" needs; None takes the input_shape of a Sequential.

    Raises:
        ValueError: a padding is "same" and the input's shape is not known.

    Source: A. Araujo et al., "Computing receptive fields of convolutional neural networks", Distill, 2019.
    """
    shape = input_shape or getattr(layers, "input_shape", None)
    size, stride, start = [1, 1], [1, 1], [0, 0]
    found: list[tuple[str, Field]] = []
    for number, layer in enumerate(layers):  # type: ignore[arg-type]
        if isinstance(layer, (Conv2D, MaxPool2D, AveragePool2D, LpPool2D)):
            dilation = getattr(layer, "dilation", 1)
            if layer.padding == "same" and shape is None:
                raise ValueError('receptive_fields: a padding of "same" depends on the image; give input_shape=(H, W, C)')
            known = shape if shape is not None else (1 << 20, 1 << 20, 1)  # large enough for any window
            geometry = windows((1, *known[:2], 1), layer.window, layer.stride, layer.padding, dilation)
            for i, axis in enumerate((geometry.h, geometry.w)):
                size[i] += (axis.reach - 1) * stride[i]
                start[i] -= axis.before * stride[i]
                stride[i] *= axis.stride
            found.append((layer.path or str(number), Field((size[0], size[1]), (stride[0], stride[1]), (start[0], start[1]))))
        if shape is not None and isinstance(layer, Module):
            shape = layer.output_shape(shape)
    return found
