"""Profile of a training step: time and memory, layer by layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xpnet import losses
from xpnet.autograd.checkpointing import SegmentInput
from xpnet.autograd.tape import Node, no_grad, reachable, run_backward, store
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array, Device
from xpnet.inspect.timeline import write_trace
from xpnet.layers.execution import takes_batch
from xpnet.layers.hooks import leaves, unchanged, wrapped
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module


@dataclass
class LayerTime:
    """One layer's part of a step: medians over the timed steps.

    Attributes:
        path, kind: of the layer.
        forward, backward: seconds.
        saved: bytes that its forward pass saves for its backward pass, besides the parameters.
        output: bytes of its output.
    """

    path: str
    kind: str
    forward: float = 0.0
    backward: float = 0.0
    saved: int = 0
    output: int = 0


@dataclass
class Profile:
    """The result of :func:`profile`; prints as a table.

    Attributes:
        layers: one LayerTime for each layer, in the order of the tree, and last the loss and everything else.
        step: the median seconds of a whole forward and backward pass, with profiling.
        device: on which it ran.
    """

    layers: list[LayerTime]
    step: float
    device: str
    spans: list[tuple[str, str, float, float]] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        total = sum(layer.forward + layer.backward for layer in self.layers) or 1.0
        lines = [f"{'layer':<28}{'forward ms':>12}{'backward ms':>13}{'share':>8}{'saved MB':>11}"]
        for layer in self.layers:
            name = f"{layer.path} ({layer.kind})" if layer.path else layer.kind
            share = (layer.forward + layer.backward) / total
            times = f"{layer.forward * 1e3:>12.3f}{layer.backward * 1e3:>13.3f}"
            lines.append(f"{name[:27]:<28}{times}{share:>8.1%}{layer.saved / 1e6:>11.2f}")
        forward = sum(layer.forward for layer in self.layers) * 1e3
        backward = sum(layer.backward for layer in self.layers) * 1e3
        saved = sum(layer.saved for layer in self.layers) / 1e6
        lines.append(f"{'total':<28}{forward:>12.3f}{backward:>13.3f}{1:>8.1%}{saved:>11.2f}")
        return "\n".join([*lines, f"one forward and backward pass on {self.device}: {self.step * 1e3:.3f} ms"])

    def save_trace(self, path: str | Path) -> None:
        """Write the last timed step as a Chrome trace (open it at chrome://tracing or ui.perfetto.dev)."""
        events = [
            {"name": name, "cat": phase, "ph": "X", "ts": start * 1e6, "dur": length * 1e6, "pid": 0, "tid": 0}
            for name, phase, start, length in self.spans
        ]
        write_trace(path, events)


class _Clock:
    """A clock of the device: events on a GPU, which do not make it wait; the wall clock on a CPU."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.cuda: Any = None
        if device.kind == "cuda":
            import cupy

            self.cuda = cupy.cuda

    def read(self) -> Any:
        if self.cuda is None:
            return time.perf_counter()
        event = self.cuda.Event()
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Return the seconds between two readings."""
        if self.cuda is None:
            return float(end - start)
        end.synchronize()
        return float(self.cuda.get_elapsed_time(start, end)) / 1e3


@takes_batch
def profile(
    model: Module,
    x: Array,
    y: Array,
    loss: str | Callable[[Any, Any], Any] = "softmax_cross_entropy",
    *,
    steps: int = 10,
    warmup: int = 2,
) -> Profile:
    """Time every layer's forward and backward pass on one batch, and count the bytes saved in between.

    The model is run in training mode and not changed: gradients, running statistics and random counters are restored.

    Args:
        model: a Module.
        x, y: a batch.
        loss: a name or a function.
        steps: how many passes to take the median of.
        warmup: passes before those.

    Raises:
        ValueError: steps below 1.
    """
    if steps < 1:
        raise ValueError(f"profile: steps must be at least 1, got {steps}")
    loss_function = losses.get(loss)
    with unchanged(model), no_grad(), eval_mode(model):
        model(x)  # builds the model
    clock = _Clock(model.context.device)
    watched = {id(layer): LayerTime(layer.path or "", type(layer).__name__) for layer in leaves(model)}
    samples: list[_Pass] = []
    with unchanged(model):
        model.train()
        for number in range(warmup + steps):
            model.zero_grad()
            one = _Pass(model, clock)
            one.run(x, y, loss_function)
            if number >= warmup:
                samples.append(one)
    watched[0] = LayerTime("", "loss and everything else")
    for key, layer in watched.items():
        layer.forward = statistics.median(s.forward.get(key, 0.0) for s in samples)
        layer.backward = statistics.median(s.backward.get(key, 0.0) for s in samples)
        layer.saved = samples[-1].saved.get(key, 0)
        layer.output = samples[-1].output.get(key, 0)
    names = {key: f"{layer.path} {layer.kind}".strip() for key, layer in watched.items()}
    spans = [(names[key], phase, start, length) for key, phase, start, length in samples[-1].spans]
    step = statistics.median(s.total for s in samples)
    return Profile([*watched.values()], step, str(model.context.device), spans)


class _Pass:
    """One forward and backward pass, timed by layer; times are by the id of the layer, 0 for everything else."""

    def __init__(self, model: Module, clock: _Clock) -> None:
        self.model = model
        self.clock = clock
        self.forward: dict[int, float] = {}
        self.backward: dict[int, float] = {}
        self.saved: dict[int, int] = {}
        self.output: dict[int, int] = {}
        self.spans: list[tuple[int, str, float, float]] = []
        self.total = 0.0

    def run(self, x: Array, y: Array, loss: Callable[[Any, Any], Any]) -> None:
        """Run and time the pass."""
        owner: dict[Node, int] = {}
        marks: list[tuple[int, str, Any, Any]] = []

        def watch(layer: Module, forward: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            before = {node for t in inputs if isinstance(t, Tensor) and t.node for node in reachable(t.node)}
            start = self.clock.read()
            result = forward(*inputs, **keywords)
            marks.append((id(layer), "forward", start, self.clock.read()))
            for t in result if isinstance(result, tuple) else (result,):
                if isinstance(t, Tensor) and t.node is not None:
                    owner.update((node, id(layer)) for node in reachable(t.node) if node not in before and node not in owner)
                    self.output[id(layer)] = self.output.get(id(layer), 0) + _bytes(t.array)
            return result

        begin = self.clock.read()
        with wrapped(self.model, watch):
            prediction = self.model(x)
        start = self.clock.read()
        value = loss(prediction, y)
        marks.append((0, "forward", start, self.clock.read()))
        nodes = reachable(value.node)
        kept = {id(p.array) for p in self.model.parameters().values()}
        for node in reversed(nodes):  # an array that two layers save counts for the first
            key = owner.get(node, 0)
            self.saved[key] = self.saved.get(key, 0) + sum(_bytes(a) for a in _arrays(node.saved, kept))
        store(value.node, value.array * 0 + 1)
        for node in nodes:
            start = self.clock.read()
            run_backward(node)
            marks.append((owner.get(node, 0), "backward", start, self.clock.read()))
        end = self.clock.read()
        self.total = self.clock.between(begin, end)
        for key, phase, start, stop in marks:
            length = self.clock.between(start, stop)
            table = self.forward if phase == "forward" else self.backward
            table[key] = table.get(key, 0.0) + length
            self.spans.append((key, phase, self.clock.between(begin, start), length))


def _arrays(value: Any, seen: set[int]) -> list[Array]:
    """Return the arrays that an operation saved, each once over all operations."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return [array for part in value for array in _arrays(part, seen)]
    if isinstance(value, SegmentInput):  # an input of a checkpointed segment
        value = value.array
    if hasattr(value, "dtype") and hasattr(value, "shape") and id(value) not in seen:
        seen.add(id(value))
        return [value]
    return []


def _bytes(array: Array) -> int:
    itemsize = getattr(array, "itemsize", None) or array.dtype.itemsize
    return int(array.size) * int(itemsize)
