"""The networks whose GPU work is counted, and the fewest bytes that their steps can move.

They are plain data as in `nets.py`. Kinds of layers that the other libraries' modules do not know (`layer_norm`, `gelu`,
`attention`, `mean_tokens`, `last_lstm`) are here, with what makes xpnet's layers of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import xpnet as xn
from benchmarks import nets
from benchmarks.libraries.ours import Net
from benchmarks.nets import Layer, Shape

PRECISIONS = ("tf32", "bfloat16", "float32")
STEP, PREDICT = "step", "predict"
HEADS = 4


class Counted(NamedTuple):
    """A network with the shape of an example and the batch."""

    name: str
    net: list[Layer]
    shape: Shape
    batch: int


def networks() -> list[Counted]:
    """Return every network that is counted."""
    return [
        Counted("MLP 784-128-10", nets.mlp(128, 10), (784,), 64),
        Counted("MNIST ConvNet", nets.convnet(), (28, 28, 1), 128),
        Counted("LeNet-5", nets.lenet5(), (28, 28, 1), 64),
        Counted("VGG-style", nets.vgg(), (32, 32, 3), 64),
        Counted("ResNet-20", nets.resnet20(), (32, 32, 3), 128),
        Counted("MobileNet-like", mobilenet(), (32, 32, 3), 64),
        Counted("LSTM", [{"kind": "last_lstm", "units": 128}, nets.dense(10)], (28, 28), 64),
        Counted("transformer block", transformer(), (64, 128), 32),
    ]


def mobilenet() -> list[Layer]:
    """Return depthwise separable convolutions as in MobileNet (Howard et al., 2017, table 1), narrow, for small images."""
    layers = [nets.conv(32, 3, bias=False), nets.batch_norm(), nets.relu()]
    channels = 32
    for filters, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        layers += [nets.conv(channels, 3, stride=stride, groups=channels, bias=False), nets.batch_norm(), nets.relu()]
        layers += [nets.conv(filters, 1, bias=False), nets.batch_norm(), nets.relu()]
        channels = filters
    return [*layers, nets.global_average_pool(), nets.dense(10)]


def transformer() -> list[Layer]:
    """Return one pre-norm block (4 heads, four times as wide inside), the mean of the tokens and a classifier."""
    norm: Layer = {"kind": "layer_norm"}
    inner = [norm, nets.dense(512), {"kind": "gelu"}, nets.dense(128)]
    return [nets.residual([norm, {"kind": "attention"}]), nets.residual(inner), {"kind": "mean_tokens"}, nets.dense(10)]


class Attention(xn.Module):
    """Self-attention of HEADS heads out of operations: (N, T, D) -> (N, T, D)."""

    def __init__(self, width: int) -> None:
        self.mixed = xn.Dense(3 * width)
        self.out = xn.Dense(width)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def materialize(self, input_shape: Shape) -> Shape:
        self.mixed.materialize(input_shape)
        return self.out.materialize(input_shape)

    def forward(self, x: Any) -> Any:
        N, T, D = x.shape
        ops = xn.ops
        parts: Any = ops.transpose(ops.reshape(self.mixed(x), (N, T, 3, HEADS, D // HEADS)), (2, 0, 3, 1, 4))
        query, key, value = (ops.getitem(parts, i) for i in range(3))
        scores = ops.multiply(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), (D // HEADS) ** -0.5)
        mixed = ops.matmul(ops.softmax(scores), value)
        return self.out(ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (N, T, D)))


class MeanTokens(xn.Module):
    """The mean over the tokens: (N, T, D) -> (N, D)."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape[1:]

    def forward(self, x: Any) -> Any:
        return xn.ops.mean(x, axis=1)


class _Built(Net):
    """A network of xpnet's layers with their own initial weights."""

    def __init__(self, counted: Counted, dtype: str) -> None:
        self.modules = {}
        self.width = counted.shape[-1]
        layers = self._layers(counted.net, "")
        self.model = xn.Sequential(layers, input_shape=counted.shape, device="cuda", dtype=dtype)

    def _layer(self, layer: Layer, path: str, activation: str | None) -> Any:
        kind = layer["kind"]
        if kind == "last_lstm":
            return xn.LSTM(layer["units"])
        if kind == "attention":
            return Attention(self.width)
        simple = {"layer_norm": xn.LayerNorm, "gelu": xn.GELU, "mean_tokens": MeanTokens}
        return simple[kind]() if kind in simple else super()._layer(layer, path, activation)


def build(counted: Counted, precision: str) -> Any:
    """Return the model on the GPU; products in TF32 are allowed for "tf32" only."""
    xn.set_matmul_precision("tf32" if precision == "tf32" else "float32")
    return _Built(counted, "bfloat16" if precision == "bfloat16" else "float32").model


@dataclass
class _Sum:
    """What a walk over the layers adds up, for the whole batch."""

    size: int  # bytes of an activation's element
    batch: int
    shape: Shape
    forward: int = 0  # bytes of activations, also in prediction
    kept: int = 0  # bytes that only training writes in forward
    backward: int = 0  # bytes of activations and their gradients
    weights: int = 0  # elements
    first: bool = True  # nobody needs the gradient of the network's input

    @property
    def elements(self) -> int:
        return self.batch * math.prod(self.shape)


def least_bytes(counted: Counted, precision: str, kind: str) -> int:
    """Return the fewest bytes that one training step, or one prediction, reads and writes in global memory.

    The rule: nothing stays on the chip between layers, and a layer reads every array that it needs once and writes every array
    that it yields once, in each direction.

    * Forward: a layer reads its input x and its weights and writes its output y.
    * Backward: it reads dy, what it needs of forward (x of layers with weights and of normalisations, one byte for the place
      of each maximum, the gates and cells of an LSTM, the queries, keys, values and the output of attention), writes the
      gradients of its weights and, but for the first layer, reads its weights and writes dx.
    * Activations, sums of residual blocks, flattening and the statistics of batch norms cost nothing of their own: the layer
      before can do them while it has the numbers. A residual block reads its input once more, and so does its gradient.
      Attention keeps its scores on the chip.
    * Update (SGD with momentum): gradient, weight and momentum in float32, in half precision also the weight's 16-bit copy.
      What is updated in place counts once, as in the counts that this is compared with.
    * Examples are float32 and labels int64. Activations and weights in use have the size of the precision.
    """
    size = 2 if precision == "bfloat16" else 4
    found = _Sum(size, counted.batch, counted.shape)
    _walk(counted.net, found)
    given = counted.batch * math.prod(counted.shape) * (4 - size)  # the examples are wider than activations
    if kind == PREDICT:
        return found.forward + given + found.weights * size
    logits = 2 * counted.batch * 10 * size + 8 * counted.batch  # the loss reads logits and labels and writes the gradient
    update = found.weights * (3 * 4 + (2 if size == 2 else 0))
    return found.forward + found.kept + found.backward + 2 * given + logits + found.weights * (size + 4) + update


def _walk(net: list[Layer], found: _Sum) -> None:
    for layer in net:
        kind, before, x = layer["kind"], found.shape, found.elements
        if kind in ("relu", "tanh", "gelu"):
            continue
        if kind == "residual":
            _residual(layer, found)
            continue
        traced = _traced(layer, before)
        found.shape, weights = traced
        y, size = found.elements, found.size
        if kind == "flatten":
            continue
        found.weights += weights
        dx = 0 if found.first else x
        found.forward += (x + y) * size
        needs_x = x if weights else 0
        if kind == "attention":  # x -> query, key, value -> mixed -> y, of which the walk has x and y
            found.forward += (3 * x + 3 * x + x + x) * size
            found.backward += (2 * x + 3 * x + 2 * x + 3 * x + 3 * x) * size
        elif kind == "last_lstm":
            steps = found.batch * before[0] * layer["units"]
            found.kept += 5 * steps * size
            found.backward += 5 * steps * size
        elif kind == "max_pool":
            found.kept += y
            found.backward += y
        found.backward += (y + needs_x + dx + (0 if found.first else weights)) * size
        found.first = False


def _residual(layer: Layer, found: _Sum) -> None:
    before, x, first = found.shape, found.elements, found.first
    for part in ("shortcut", "body"):  # the body last: its output is the block's
        found.shape, found.first = before, first
        _walk(layer[part], found)
    found.forward += found.elements * found.size  # the other summand
    found.backward += 0 if first else x * found.size


def _traced(layer: Layer, shape: Shape) -> tuple[Shape, int]:
    """Return the shape of a layer's output, and the number of its weights."""
    kind, D = layer["kind"], shape[-1]
    if kind == "layer_norm":
        return shape, 2 * D
    if kind == "attention":
        return shape, 4 * D * D + 4 * D
    if kind == "mean_tokens":
        return shape[1:], 0
    if kind == "last_lstm":
        units = layer["units"]
        return (units,), 4 * units * (D + units + 1)
    found = nets.trace([layer], shape)
    return found.output_shape, sum(math.prod(w.shape) for w in found.weights)
