"""Networks as plain data, which the module of each library converts to its layers.

A network is a list of dictionaries, one per layer, so that it can be sent to a worker as JSON. `trace` walks it and returns
what all libraries have to agree on: shapes, weights, matrix products and bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

Layer = dict[str, Any]
Shape = tuple[int, ...]
FLOAT = 4  # bytes


def dense(units: int) -> Layer:
    return {"kind": "dense", "units": units}


def conv(filters: int, window: int, *, stride: int = 1, padding: int | None = None, dilation: int = 1, groups: int = 1,
         bias: bool = True) -> Layer:  # fmt: skip
    """Return a convolution; padding=None keeps the size (at stride 1)."""
    padding = dilation * (window - 1) // 2 if padding is None else padding
    return {"kind": "conv", "filters": filters, "window": window, "stride": stride, "padding": padding,
            "dilation": dilation, "groups": groups, "bias": bias}  # fmt: skip


def relu() -> Layer:
    return {"kind": "relu"}


def tanh() -> Layer:
    return {"kind": "tanh"}


def max_pool(window: int, stride: int | None = None, padding: int = 0) -> Layer:
    return {"kind": "max_pool", "window": window, "stride": stride or window, "padding": padding}


def average_pool(window: int) -> Layer:
    return {"kind": "average_pool", "window": window, "stride": window, "padding": 0}


def global_average_pool() -> Layer:
    return {"kind": "global_average_pool"}


def flatten() -> Layer:
    return {"kind": "flatten"}


def batch_norm() -> Layer:
    return {"kind": "batch_norm", "epsilon": 1e-5}


def residual(body: list[Layer], shortcut: list[Layer] | None = None) -> Layer:
    """Return shortcut(x) + body(x)."""
    return {"kind": "residual", "body": body, "shortcut": shortcut or []}


def lstm(units: int) -> Layer:
    """Return an LSTM layer: (N, T, C) -> (N, T, units), all steps."""
    return {"kind": "lstm", "units": units}


def softmax_cross_entropy() -> Layer:
    """Return the loss as a layer: logits (N, K), labels (N,) -> the mean loss."""
    return {"kind": "softmax_cross_entropy"}


def mlp(*units: int) -> list[Layer]:
    layers: list[Layer] = []
    for count in units[:-1]:
        layers += [dense(count), relu()]
    return [*layers, dense(units[-1])]


def convnet() -> list[Layer]:
    """Return the ConvNet of the MNIST tutorials: conv 32, pool, conv 64, pool, dense."""
    return [conv(32, 3, padding=0), relu(), max_pool(2), conv(64, 3, padding=0), relu(), max_pool(2), flatten(), dense(10)]


def lenet5() -> list[Layer]:
    """Return LeNet-5 with ReLU and max pooling, as it is taught today."""
    head = [flatten(), dense(120), relu(), dense(84), relu(), dense(10)]
    return [conv(6, 5), relu(), max_pool(2), conv(16, 5, padding=0), relu(), max_pool(2), *head]


def vgg() -> list[Layer]:
    """Return 3x3 convolutions 64-64, 128-128, 256-256 with pooling between, then one dense layer."""
    layers: list[Layer] = []
    for filters in (64, 128, 256):
        layers += [conv(filters, 3), relu(), conv(filters, 3), relu(), max_pool(2)]
    return [*layers, flatten(), dense(10)]


def resnet20() -> list[Layer]:
    """Return ResNet-20 (He et al., 2015, section 4.2) with 1x1 convolutions where the shape changes (their option B)."""
    layers = [conv(16, 3, bias=False), batch_norm(), relu()]
    channels = 16
    for filters in (16, 32, 64):
        for _ in range(3):
            stride = 1 if filters == channels else 2
            body = [conv(filters, 3, stride=stride, bias=False), batch_norm(), relu()]
            body += [conv(filters, 3, bias=False), batch_norm()]
            shortcut = [conv(filters, 1, stride=2, padding=0, bias=False), batch_norm()] if stride == 2 else None
            layers += [residual(body, shortcut), relu()]
            channels = filters
    return [*layers, global_average_pool(), dense(10)]


@dataclass(frozen=True)
class Weight:
    """One weight: its path in the network, its shape in xpnet's layout, and its distribution."""

    path: str
    shape: Shape
    spread: float  # standard deviation
    mean: float = 0.0


@dataclass
class Trace:
    """Shapes, weights and costs of a network, for one example."""

    output_shape: Shape = ()
    weights: list[Weight] = field(default_factory=list)
    products: list[tuple[int, int, int]] = field(default_factory=list)  # rows per example, inner, columns: forward only
    moved: int = 0  # elements per example that forward must read and write, without weights


def trace(net: list[Layer], input_shape: Shape, prefix: str = "") -> Trace:
    """Trace a network; shapes are without the batch axis."""
    found = Trace(tuple(input_shape))
    for i, layer in enumerate(net):
        before = found.output_shape
        _WALK[layer["kind"]](layer, f"{prefix}{i}", found)
        if layer["kind"] not in ("residual", "flatten"):
            found.moved += math.prod(before) + math.prod(found.output_shape)
    return found


def _dense(layer: Layer, path: str, found: Trace) -> None:
    inner, units = found.output_shape[-1], layer["units"]
    found.weights += [Weight(f"{path}.kernel", (inner, units), math.sqrt(2 / inner)), Weight(f"{path}.bias", (units,), 0.1)]
    found.products.append((math.prod(found.output_shape[:-1]), inner, units))
    found.output_shape = (*found.output_shape[:-1], units)


def _conv(layer: Layer, path: str, found: Trace) -> None:
    H, W, C = found.output_shape
    K, O, groups = layer["window"], layer["filters"], layer["groups"]
    OH, OW = (output_size(n, layer) for n in (H, W))
    inner = K * K * C // groups
    found.weights.append(Weight(f"{path}.kernel", (K, K, C // groups, O), math.sqrt(2 / inner)))
    if layer["bias"]:
        found.weights.append(Weight(f"{path}.bias", (O,), 0.1))
    if groups == 1:  # the products of a depthwise convolution are tiny
        found.products.append((OH * OW, inner, O))
    found.output_shape = (OH, OW, O)


def output_size(size: int, layer: Layer) -> int:
    """Return the length of the output along one axis of a convolution or a pooling."""
    reach = layer.get("dilation", 1) * (layer["window"] - 1) + 1
    return (size + 2 * layer["padding"] - reach) // layer["stride"] + 1


def _pool(layer: Layer, path: str, found: Trace) -> None:
    H, W, C = found.output_shape
    found.output_shape = (output_size(H, layer), output_size(W, layer), C)


def _global_pool(layer: Layer, path: str, found: Trace) -> None:
    found.output_shape = found.output_shape[-1:]


def _flatten(layer: Layer, path: str, found: Trace) -> None:
    found.output_shape = (math.prod(found.output_shape),)


def _batch_norm(layer: Layer, path: str, found: Trace) -> None:
    C = found.output_shape[-1]
    found.weights += [Weight(f"{path}.scale", (C,), 0.1, 1.0), Weight(f"{path}.offset", (C,), 0.1)]


def _lstm(layer: Layer, path: str, found: Trace) -> None:
    T, C = found.output_shape
    U = layer["units"]
    spread = 1 / math.sqrt(U)
    found.weights += [
        Weight(f"{path}.kernel", (C, 4 * U), spread),  # gates in the order input, forget, cell, output
        Weight(f"{path}.recurrent", (U, 4 * U), spread),
        Weight(f"{path}.bias", (4 * U,), 0.1),
    ]
    found.products += [(T, C, 4 * U), (T, U, 4 * U)]
    found.output_shape = (T, U)


def _residual(layer: Layer, path: str, found: Trace) -> None:
    before = found.output_shape
    for name in ("body", "shortcut"):
        part = trace(layer[name], before, f"{path}.{name}.")
        found.weights += part.weights
        found.products += part.products
        found.moved += part.moved
        if name == "body":
            found.output_shape = part.output_shape
    found.moved += 3 * math.prod(found.output_shape)


def _same(layer: Layer, path: str, found: Trace) -> None:
    pass


def _loss(layer: Layer, path: str, found: Trace) -> None:
    found.output_shape = ()


_WALK = {
    "dense": _dense,
    "conv": _conv,
    "max_pool": _pool,
    "average_pool": _pool,
    "global_average_pool": _global_pool,
    "flatten": _flatten,
    "batch_norm": _batch_norm,
    "lstm": _lstm,
    "residual": _residual,
    "softmax_cross_entropy": _loss,
    "relu": _same,
    "tanh": _same,
}
