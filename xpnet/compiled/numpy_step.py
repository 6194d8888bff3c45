"""Planned training steps: forward and backward pass of a small dense network as a list of NumPy calls with fixed operands.

A step of a network with thirty hidden units is thirty NumPy calls of one or two microseconds, and as much Python again that
sorts arguments, records operations and walks the tape. Here that is done once for each shape of a batch. The calls are those
of the operations (accel/numpy/linear.py, softmax.py) in the same order, so a planned step gives the same bits.

Planned are Dense layers with nothing between them but ReLUs, optionally behind a Flatten or Reshape to vectors, with
softmax cross entropy of class indices. See numpy_predict.py for predictions of any network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xpnet import layers
from xpnet.accel.numpy.epilogue import ACTIVATIONS, activate, activation_gradient, integer_dtype
from xpnet.accel.numpy.linear import PLAIN_SUMS, SERIAL_PRODUCT, column_sums
from xpnet.accel.numpy.softmax import SMALL, row_offsets, valid_class_indices
from xpnet.accel.numpy.workspace import Floats
from xpnet.autograd.parameter import Parameter
from xpnet.compiled.derived import Classes, patched, user_classes
from xpnet.compiled.numpy_predict import MAX_ELEMENTS
from xpnet.layers.execution import computes_as
from xpnet.layers.module import Module
from xpnet.layers.version import Version
from xpnet.ops import dense, relu, softmax_cross_entropy
from xpnet.ops.registry import customized, reference_is_forced
from xpnet.ops.shapes import ShapeError
from xpnet.ops.sums import LONG, in_blocks

Call = Callable[[], Any]


class _Layer(NamedTuple):
    kernel: Parameter
    bias: Parameter | None
    activation: str | None


class _Input:
    """The batch of the step that runs.

    The calls of a plan hold this and not the plan: it would hold itself, and the parameters of a dropped model would wait for
    the garbage collector.
    """

    __slots__ = ("x",)

    def __init__(self, x: Floats) -> None:
        self.x = x

    def product(self, kernel: Any, y: Floats) -> None:
        """Compute y = x @ kernel."""
        self.x.dot(kernel, y)

    def gradient(self, dy: Floats, out: Any) -> None:
        """Compute the gradient of that kernel."""
        self.x.T.dot(dy, out)


class Step:
    """Forward and backward pass for batches of one shape.

    Args:
        chain: the layers.
        batch: examples in a batch.
        dtype: of everything except the labels.
        version: the model's.
        classes: those of a user among the model's, see `user_classes`.
    """

    def __init__(self, chain: list[_Layer], batch: int, dtype: np.dtype[Any], version: Version, classes: Classes) -> None:
        self.classes = classes
        self.version, self.changes, self.customized = version, version.changes, len(customized)
        self.chain = chain
        self.parameters = [p for layer in chain for p in (layer.kernel, layer.bias) if p is not None]
        self.arrays = [(p, p.array, p.buffer) for p in self.parameters]
        self.count = batch
        self.large = batch * max(layer.kernel.array.size for layer in chain) > SERIAL_PRODUCT
        self.features = chain[0].kernel.array.shape[0]
        self.forwards: list[Call] = []
        self.backwards: list[Call] = []
        self.input = _Input(np.empty(0, dtype))
        self.places = np.empty(batch, np.intp)
        self.outputs = [np.empty((batch, layer.kernel.array.shape[1]), dtype) for layer in chain]
        self.logits = self.outputs[-1]
        self.offsets = row_offsets(*self.logits.shape)
        self._forward_calls()
        self.losses, self.gradient = self._loss_calls()
        self._backward_calls()

    def _forward_calls(self) -> None:
        calls = self.forwards
        for i, ((kernel, bias, activation), y) in enumerate(zip(self.chain, self.outputs)):
            if i:
                calls.append(partial(np.dot, self.outputs[i - 1], kernel.array, y))
            else:
                calls.append(partial(self.input.product, kernel.array, y))
            if bias is not None:
                calls.append(partial(np.add, y, bias.array, out=y))
            if activation == "relu":
                calls.append(partial(np.maximum, y, np.zeros_like(y), out=y))
            elif activation is not None:
                calls.append(partial(activate, y, activation))

    def _loss_calls(self) -> tuple[Floats, Floats]:
        """Add softmax cross entropy, as softmax.loss_forward and loss_backward compute it for few logits."""
        logits, places = self.logits, self.places
        dtype, count = logits.dtype, len(logits)
        peak, total = np.empty((2, count, 1), dtype)
        e, gradient = np.empty_like(logits), np.empty_like(logits)
        picked, terms = np.empty((2, count), dtype)
        self.forwards += [
            partial(np.maximum.reduce, logits, axis=1, keepdims=True, out=peak),
            partial(np.subtract, logits, peak, out=e),
            partial(e.reshape(-1).take, places, out=picked, mode="clip"),  # the labels are valid indices
            partial(np.exp, e, out=e),
            partial(np.add.reduce, e, axis=1, keepdims=True, out=total),
            partial(np.log, total[:, 0], out=terms),
            partial(np.subtract, terms, picked, out=terms),
        ]
        weight = np.ones((), dtype) / count
        flat = gradient.reshape(-1)

        def less_one() -> None:
            flat[places] -= weight

        self.backwards += [partial(np.divide, e, total, out=e), partial(np.multiply, e, weight, out=gradient), less_one]
        return terms, gradient

    def _backward_calls(self) -> None:
        calls, dy = self.backwards, self.gradient
        for i in range(len(self.chain) - 1, -1, -1):
            kernel, bias, activation = self.chain[i]
            y = self.outputs[i]
            if activation is not None:
                dz = np.empty_like(dy)
                if activation == "relu":
                    mask, whole = np.empty(y.shape, bool), integer_dtype(y.dtype)
                    calls.append(partial(np.greater, y, 0, out=mask))
                    calls.append(partial(np.multiply, dy.view(whole), mask.view(np.int8), out=dz.view(whole)))
                else:
                    calls.append(partial(activation_gradient, dy, y, activation, dz))
                dy = dz
            dx = None
            if i:
                dx = np.empty_like(self.outputs[i - 1])
                calls.append(partial(np.dot, dy, kernel.array.T, dx))
                calls.append(partial(np.dot, self.outputs[i - 1].T, dy, kernel.buffer))
            else:
                calls.append(partial(self.input.gradient, dy, kernel.buffer))
            if bias is not None:
                buffer: Any = bias.buffer
                few = len(dy) <= PLAIN_SUMS
                calls.append(partial(np.add.reduce, dy, axis=0, out=buffer) if few else partial(column_sums, dy, buffer))
            if dx is not None:
                dy = dx

    @property
    def x(self) -> Floats:
        """The batch of the step that runs; none is kept between two steps."""
        return self.input.x

    def holds(self) -> bool:
        """Return whether the model is unchanged since it was planned, and has no gradients to add to."""
        if self.version.changes != self.changes or len(customized) != self.customized or reference_is_forced():
            return False
        if self.classes and patched(self.classes):
            return False
        for p, array, buffer in self.arrays:
            if p.array is not array or p.buffer is not buffer or p.grad is not None or not p.requires_grad:
                return False
            if p._regularizer is not None:
                return False
        return True

    def forward(self, x: Floats, labels: Any) -> Floats | None:
        """Return the mean loss, a new 0-d array; None for labels that are not valid class indices."""
        if not valid_class_indices(self.logits, labels):
            return None
        self.input.x = x if x.ndim == 2 else x.reshape(self.count, self.features)
        np.add(self.offsets, labels, out=self.places, casting="unsafe")
        for call in self.forwards:
            call()
        return np.asarray(np.add.reduce(self.losses) / self.count)

    def backward(self) -> None:
        """Leave the gradients in the parameters."""
        for call in self.backwards:
            call()
        for p, _, buffer in self.arrays:
            p.grad = buffer
        self.input.x = self.logits  # release the batch


def _chain(model: Module, shape: tuple[int, ...]) -> list[_Layer] | None:
    """Return the dense layers of a model that consists of them, or None; `shape` is that of one example, which must reach the
    first of them as a vector."""
    chain: list[_Layer] = []
    for layer in _flat(model):
        if computes_as(layer, layers.Dense):
            if len(shape) != 1 or layer.after is not None or layer.fused not in ACTIVATIONS:
                return None
            chain.append(_Layer(layer.kernel, layer.bias if layer.use_bias else None, layer.fused))
        elif chain and chain[-1].activation is None and _is_relu(layer):
            chain[-1] = chain[-1]._replace(activation="relu")
        elif chain or not (computes_as(layer, layers.Flatten) or computes_as(layer, layers.Reshape)):
            return None
        else:
            try:
                shape = layer.output_shape(shape)
            except ShapeError:
                return None  # the layer raises it when it is run
    return chain or None


def _flat(module: Any) -> list[Any]:
    if not computes_as(module, layers.Sequential):
        return [module]
    return [part for layer in module.layers for part in _flat(layer)]


def _is_relu(layer: Any) -> bool:
    return computes_as(layer, layers.ReLU) or (computes_as(layer, layers.Activation) and layer.function is relu)


_PLANNED = (dense, relu, softmax_cross_entropy)


def plan_step(model: Module, x: Floats) -> Step | None:
    """Return the planned step for batches like `x`, or None where the model or its size does not allow one."""
    chain = _chain(model, x.shape[1:]) if all(isinstance(m, Module) for m in _flat(model)) else None
    if chain is None or model.context.dtype != x.dtype.name or any(op in customized for op in _PLANNED):
        return None
    flat = model.flat_parameters
    parameters = [p for layer in chain for p in (layer.kernel, layer.bias) if p is not None]
    if any(type(p) is not Parameter for p in parameters):
        return None
    sizes = [p.array.shape for p in (layer.kernel for layer in chain)]
    batch, features = x.shape[0], math.prod(x.shape[1:])
    fits = all(map(lambda a, b: a[1] == b[0], sizes, sizes[1:])) and sizes[0][0] == features
    shared = len({id(p) for p in parameters}) < len(parameters)
    if shared or not fits or flat.regularized or {id(p) for p in parameters} != {id(p) for p in flat.parameters}:
        return None
    if batch > LONG and any(in_blocks(batch, *size) for size in sizes):
        return None  # `dense` sums them so
    if batch * sizes[-1][1] > SMALL or 4 * batch * sum(size[1] for size in sizes) > MAX_ELEMENTS:
        return None
    return Step(chain, batch, x.dtype, model._tree_version, user_classes(model))
