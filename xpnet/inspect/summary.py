"""Summary of a network: layers, shapes, parameters and memory, computed from shapes alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from xpnet.autograd.tape import no_grad
from xpnet.inspect.footprint.step import StepMemory, arrays_in, step_memory
from xpnet.inspect.shapes import _each, input_shapes
from xpnet.layers import Dropout, Flatten, Reshape, Residual, Sequential
from xpnet.layers.context import Shape, elements, meta_init
from xpnet.layers.hooks import hooked
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module
from xpnet.layers.sequential import _shape_through
from xpnet.optim import Adam, Optimizer

_ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Row:
    """One line of a summary.

    Attributes:
        path: of the layer: "3.body.0".
        kind: its class, or the name of a function.
        output_shape: without the batch axis.
        weights, biases: how many; parameters without weight decay count as biases. 0 where a shared layer is used again.
        values: activations of one example that the layer allocates in prediction; 0 where it returns a view.
        kept: the same in training.
        frozen: how many of the weights and biases are not trained.
    """

    path: str
    kind: str
    output_shape: Shape
    weights: int
    biases: int
    values: int
    kept: int
    frozen: int = 0

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weights + self.biases


@dataclass(frozen=True)
class Summary:
    """The table and the memory of a model; printing it shows both.

    The bytes that follow from the rows are the textbook's: parameters, the optimizer's state, every layer's output. `step` is
    the peak of a training step of this implementation: without outputs and gradients that are freed by then, and with
    workspace such as im2col columns.

    Attributes:
        name: the model's class.
        input_shape: of one example; a tuple of such shapes for a model of several inputs.
        dtype: of parameters and activations.
        rows: the layers in the order of computation.
        batch_size: for which the bytes are given.
        optimizer: its class's name.
        slots: how many numbers it keeps for each parameter.
        outputs: the shapes of the model's outputs, without the batch axis.
        step: see :func:`xpnet.inspect.step_memory`; None where it cannot be predicted.
        unknown: the reason for that.
    """

    name: str
    input_shape: Any
    dtype: str
    rows: tuple[Row, ...]
    batch_size: int
    optimizer: str
    slots: int
    outputs: tuple[Shape, ...] = ()
    step: StepMemory | None = None
    unknown: str = ""

    @property
    def weights(self) -> int:
        """All parameters but biases (and scales)."""
        return sum(row.weights for row in self.rows)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(row.parameters for row in self.rows)

    @property
    def frozen(self) -> int:
        """The parameters that are not trained."""
        return sum(row.frozen for row in self.rows)

    @property
    def values(self) -> int:
        """The activations of one example in prediction, its input among them."""
        return self._input_values() + sum(row.values for row in self.rows)

    def _input_values(self) -> int:
        return sum(elements(shape) for shape in _each(self.input_shape))

    @property
    def parameter_bytes(self) -> int:
        """Of the parameters; their gradients need as much again. A model of 16 bits keeps them in float32."""
        return self.parameters * max(_ITEM_SIZES[self.dtype], 4)

    @property
    def optimizer_bytes(self) -> int:
        """Of the optimizer's state, which there is of trained parameters alone."""
        return self.slots * (self.parameters - self.frozen) * max(_ITEM_SIZES[self.dtype], 4)

    @property
    def forward_bytes(self) -> int:
        """All activations of one batch in prediction."""
        return self.values * self.batch_size * _ITEM_SIZES[self.dtype]

    @property
    def kept_bytes(self) -> int:
        """All activations of one batch in training, kept for the backward pass."""
        kept = self._input_values() + sum(row.kept for row in self.rows)
        return kept * self.batch_size * _ITEM_SIZES[self.dtype]

    @property
    def prediction_total(self) -> int:
        """Bytes to predict a batch."""
        return self.parameter_bytes + self.forward_bytes

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [
            ("layer", "type", "output", "values", "parameters"),
            *(("input", "", _shown(shape), f"{elements(shape):,}", "") for shape in _each(self.input_shape)),
        ]
        for row in self.rows:
            counts = (f"{n:,}" if n else "-" for n in (row.values, row.parameters))
            kind = row.kind if not row.frozen else f"{row.kind}, {'partly ' * (row.frozen < row.parameters)}frozen"
            lines.append((row.path, kind, _shown(row.output_shape), *counts))
        lines.append(("total", "", "", f"{self.values:,}", f"{self.parameters:,}"))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        text = [
            "  ".join(part.ljust(w) if i < 3 else part.rjust(w) for i, (part, w) in enumerate(zip(line, widths))).rstrip()
            for line in lines
        ]
        rule = "-" * (sum(widths) + 8)
        p = _bytes(self.parameter_bytes)
        return "\n".join(
            [
                f"{self.name}: {', '.join(map(_shown, _each(self.input_shape)))} -> "
                f"{', '.join(map(_shown, self.outputs)) or '1'}, {self.dtype}",
                rule,
                text[0],
                rule,
                *text[1:-1],
                rule,
                text[-1],
                *([f"{self.parameters - self.frozen:,} trained, {self.frozen:,} frozen"] if self.frozen else ()),
                rule,
                f"memory for batches of {self.batch_size}",
                f"  prediction  {_bytes(self.prediction_total):>10}   parameters {p}, activations {_bytes(self.forward_bytes)}",
                *self._training_lines(),
            ]
        )

    def _training_lines(self) -> list[str]:
        step = self.step
        if step is None:
            return [f"  training        unknown   {self.unknown}"]
        return [
            f"  training    {_bytes(step.peak):>10}   at the peak of a step on {step.device}: parameters "
            f"{_bytes(step.parameters)}, their gradients {_bytes(step.gradients)},",
            f"                           {self.optimizer}'s state {_bytes(step.state)}, the batch {_bytes(step.batch)}, "
            f"saved activations {_bytes(step.activations)},",
            f"                           workspace {_bytes(step.working)}, temporaries {_bytes(step.passing)}",
        ]


def summarize(
    model: Module,
    input_shape: Any = None,
    *,
    batch_size: int = 1,
    optimizer: Optimizer | None = None,
    loss: Any = None,
    recompute: Any = False,
    device: Any = None,
) -> Summary:
    """Summarise the layers of a model, their output shapes and parameters, and the memory.

    A model that is not built stays so: nothing is allocated for its parameters. The forward pass of a user's class is run
    on one example of zeros, to see what it computes.

    Args:
        model: any Module.
        input_shape: of one example, or a list of such shapes for a model of several inputs; None for that of the model.
        batch_size: for the bytes.
        optimizer: for the bytes of its state; Adam by default.
        loss, recompute, device: of the training step whose peak is predicted: see :func:`xpnet.inspect.step_memory`.

    Raises:
        ValueError: no input shape is known.
        ShapeError: a layer does not fit its input.
    """
    shapes = input_shapes(model, input_shape, "summary", "summary((28, 28, 1))")
    if batch_size < 1:
        raise ValueError(f"summary: batch_size must be at least 1, got {batch_size}")
    optimizer = Adam() if optimizer is None else optimizer
    walk = _Walk(model)
    rows = tuple(walk.rows(model, shapes[0], "") if len(shapes) == 1 else walk.traced(model, shapes, ""))
    step, unknown = None, ""
    try:
        step = step_memory(
            model, shapes, batch_size=batch_size, optimizer=optimizer, loss=loss, recompute=recompute, device=device
        )
    except Exception as error:  # a user's layer may raise anything; the table gives the reason
        unknown = f"the step could not be followed: {type(error).__name__}: {error}"
    return Summary(
        type(model).__name__,
        shapes[0] if len(shapes) == 1 else shapes,
        model.context.dtype,
        rows,
        batch_size,
        type(optimizer).__name__,
        len(optimizer.slot_names),
        walk.shapes,
        step,
        unknown,
    )


class _Walk:
    """A walk through a model in the order of computation, with the input shape of each layer."""

    def __init__(self, root: Module) -> None:
        self.root = root
        self.seen: set[int] = set()
        self.shape: Shape = ()  # of the last output, or of the first of several
        self._several: tuple[Shape, ...] = ()

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of all outputs of the last layer."""
        return self._several if self._several and self._several[0] == self.shape else (self.shape,)

    def rows(self, module: Module, shape: Shape, path: str) -> Iterator[Row]:
        """Yield the rows of a Module; leave the shape of its output in `shape`."""
        if isinstance(module, Sequential) and type(module).forward is Sequential.forward:
            self.shape = shape
            for i, layer in enumerate(module.layers):
                below = f"{path}.{i}" if path else str(i)
                if isinstance(layer, Module):
                    yield from self.rows(layer, self.shape, below)
                else:
                    self.shape = _shape_through(layer, self.shape, self.root)
                    n = elements(self.shape)
                    yield Row(below, getattr(layer, "__name__", type(layer).__name__), self.shape, 0, 0, n, n)
        elif isinstance(module, Residual):
            yield from self.rows(module.body, shape, _join(path, "body"))
            after = self.shape
            if module.shortcut is not None:
                yield from self.rows(module.shortcut, shape, _join(path, "shortcut"))
            self.shape = module._fitting(after, self.shape if module.shortcut is not None else shape)
            yield Row(path, "Residual", self.shape, 0, 0, elements(self.shape), elements(self.shape))
        elif type(module).output_shape is not Module.output_shape:
            yield self._leaf(module, shape, path)
        else:
            yield from self.traced(module, (shape,), path)

    def _leaf(self, module: Module, shape: Shape, path: str) -> Row:
        """Return the row of a layer that computes its output shape."""
        meta = module
        if not module.built and module._waits():
            # A copy is built on meta arrays.
            meta = copy.deepcopy(module)
            with meta_init():
                meta.materialize(shape)
        self.shape = tuple(meta.output_shape(shape))
        return self._row(module, meta, (self.shape,), path)

    def _row(self, module: Module, meta: Module, shapes: tuple[Shape, ...], path: str) -> Row:
        found = [] if id(module) in self.seen else list(meta.parameters().values())
        self.seen.update(id(m) for m in module.modules())
        shape, n = shapes[0], sum(map(elements, shapes))
        view = isinstance(module, (Flatten, Reshape))
        # An activation that is not fused into the operation allocates a second array.
        arrays = 2 if getattr(module, "after", None) is not None else 1
        return Row(
            path,
            type(module).__name__,
            shape,
            sum(p.size for p in found if p.decay),
            sum(p.size for p in found if not p.decay),
            0 if view or isinstance(module, Dropout) else n,
            0 if view else n * arrays,
            sum(p.size for p in found if not p.requires_grad),
        )

    def traced(self, module: Module, shapes: tuple[Shape, ...], path: str) -> Iterator[Row]:
        """Yield the rows of a user's class: the layers that its forward pass calls, and its own parameters."""
        waiting = not module._is_built()
        runner = copy.deepcopy(module) if waiting else module
        places = dict(runner.named_modules())
        leaves = {
            name: m
            for name, m in places.items()
            if name and type(m).output_shape is not Module.output_shape and not isinstance(m, (Sequential, Residual))
        }
        # Layers inside a leaf are not listed.
        leaves = {n: m for n, m in leaves.items() if not any(n.startswith(f"{other}.") for other in leaves if other != n)}
        originals = dict(module.named_modules())
        calls: list[tuple[str, tuple[Shape, ...]]] = []
        names = {leaf: name for name, leaf in leaves.items()}

        def watched(leaf: Module, forward: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            y = forward(*inputs, **keywords)
            calls.append((names[leaf], _shapes_of(y)))
            return y

        counters = runner.rng_counters()
        try:
            context = runner.context
            with hooked(leaves.values(), watched), meta_init(), context.device, no_grad(), eval_mode(runner):
                y = runner(*(context.device.xp.zeros((1, *shape), dtype=runner._dtype()) for shape in shapes))
        finally:
            runner.load_rng_counters(counters)
        for name, after in calls:
            yield self._row(originals[name], leaves[name], after, _join(path, name))
        rest = [
            p
            for name, m in places.items()
            if not any(name == leaf or name.startswith(f"{leaf}.") for leaf in leaves)
            for p in m._parameters.values()
        ]
        self._several = _shapes_of(y)
        self.shape = self._several[0]
        if rest:
            weights = sum(p.size for p in rest if p.decay)
            frozen = sum(p.size for p in rest if not p.requires_grad)
            yield Row(
                path or "(own)", type(module).__name__, self.shape, weights, sum(p.size for p in rest) - weights, 0, 0, frozen
            )


def _shapes_of(result: Any) -> tuple[Shape, ...]:
    """Return the shapes of all arrays in the output of a layer, without the batch axis."""
    return tuple(tuple(part.shape[1:]) for part in arrays_in(result)) or ((),)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "1"


def _bytes(count: int) -> str:
    """Format a number of bytes, in powers of 1024."""
    if count < 1024:
        return f"{count} B"
    power = min(int(math.log2(count) // 10), 4)
    return f"{count / 1024**power:.1f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
