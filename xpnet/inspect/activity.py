"""Activations and gradients of every layer on a batch, histograms of both, and dead units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpnet import backend, losses
from xpnet.autograd.tape import no_grad
from xpnet.autograd.tensor import Tensor, bare
from xpnet.backend import Array
from xpnet.inspect.figures import COLOURS, new_figure, style
from xpnet.layers.execution import runs_on_its_device, takes_batch
from xpnet.layers.hooks import Run, wrapped
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module

NumpyArray = np.ndarray[Any, Any]


@contextmanager
def observed(model: Module, observe: Callable[[Module, Any], Any]) -> Iterator[None]:
    """Call `observe(layer, output)` within the block, in evaluation mode, for every layer without sublayers.

    Its result, if not None, replaces the output.
    """

    def watched(layer: Module, forward: Run, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        output = forward(*inputs, **keywords)
        other = observe(layer, output)
        return output if other is None else other

    with wrapped(model, watched), eval_mode(model):
        yield


def _name(layer: Module) -> str:
    return layer.path or type(layer).__name__


@takes_batch
def activations(model: Module, x: Array) -> dict[str, Array]:
    """Return the output of every layer for the batch `x`, by path, in the order of computation: native arrays.

    A layer that is called several times has "path#2", "path#3", ... for the later calls. Outputs that are not one array (the
    states of a recurrent layer) are left out.
    """
    found: dict[str, Array] = {}

    def observe(layer: Module, output: Any) -> None:
        if isinstance(output, Tensor) or hasattr(output, "dtype"):
            found[_unique(found, _name(layer))] = bare(output)

    with observed(model, observe), no_grad():
        model(x)
    return found


def _unique(found: dict[str, Any], name: str) -> str:
    if name not in found:
        return name
    number = 2
    while f"{name}#{number}" in found:
        number += 1
    return f"{name}#{number}"


@dataclass(frozen=True)
class DeadUnits:
    """The result of :func:`dead_relus` for one layer.

    Attributes:
        units: how many units (channels of a convolution) it has.
        dead: the indices of those that were 0 for every example and position.
        active: the share of all its outputs that were above 0.
    """

    units: int
    dead: tuple[int, ...]
    active: float

    @property
    def fraction(self) -> float:
        """The share of the units that are dead."""
        return len(self.dead) / self.units


def activation_name(layer: Module) -> str:
    """Return the name of the activation that a layer ends with, or ""."""
    for name in ("fused", "after", "function", "operation"):
        if (found := getattr(layer, name, None)) is not None:
            return found if isinstance(found, str) else getattr(found, "__name__", "")
    return ""


@runs_on_its_device
def dead_relus(model: Module, x: Array, *, batch_size: int = 256) -> dict[str, DeadUnits]:
    """Find the ReLU units that never fire on `x`: a dead unit has no gradient, so training does not revive it.

    Args:
        model: any Module with ReLU layers, or layers whose activation is "relu".
        x: (N, ...): the training data, or enough of them; the result says nothing about other inputs.
        batch_size: examples at once.

    Returns:
        A DeadUnits by the path of each such layer; the last axis of its output is that of the units.

    Raises:
        ValueError: the model has no ReLU units.

    Source: CS231n, "Neural networks part 1": with too high a learning rate as much as 40 % of a network can be dead.
    """
    most: dict[str, NumpyArray] = {}
    counts: dict[str, tuple[float, int]] = {}

    def observe(layer: Module, output: Any) -> None:
        if activation_name(layer) != "relu":
            return
        y = bare(output)
        xp = backend.namespace(y)
        rows = xp.reshape(y, (-1, y.shape[-1]))
        if not rows.shape[0]:
            return
        name = _name(layer)
        largest = backend.to_numpy(xp.max(rows, axis=0))
        most[name] = np.maximum(most[name], largest) if name in most else largest
        above, total = counts.get(name, (0.0, 0))
        counts[name] = above + float(xp.sum(xp.astype(rows > 0, xp.float64))), total + int(rows.size)

    with observed(model, observe), no_grad():
        for start in range(0, max(len(x), 1), batch_size):
            model(backend.to_device(x[start : start + batch_size], model.context.device))
    if not most:
        raise ValueError("dead_relus: the model has no ReLU layer and no layer with the activation 'relu', or x is empty")
    return {
        name: DeadUnits(len(top), tuple(int(i) for i in np.flatnonzero(top <= 0)), counts[name][0] / counts[name][1])
        for name, top in most.items()
    }


@dataclass(frozen=True)
class Gradients:
    """The gradient of a loss: `parameters` by path, and with respect to every layer's `outputs` by path."""

    parameters: dict[str, Array]
    outputs: dict[str, Array]


@takes_batch
def layer_gradients(model: Module, loss: str | Callable[..., Any], x: Array, y: Array) -> Gradients:
    """Compute the gradient of ``loss(model(x), y)`` at every parameter and every layer's output, in evaluation mode.

    Pending gradients of the model are preserved.

    Args:
        model: a Module.
        loss: as for a Trainer.
        x, y: one batch.
    """
    if any(not layer.built for layer in model.modules()):
        model.predict(x)  # builds the model
    parameters = model.parameters()
    held = {name: _copy(p.grad) for name, p in parameters.items()}
    probes: dict[str, Tensor] = {}

    def observe(layer: Module, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        # A zero is added to the output: its gradient is the output's.
        probe = Tensor(backend.namespace(output.array).zeros_like(output.array), requires_grad=True)
        probes[_unique(probes, _name(layer))] = probe
        return output + probe

    model.zero_grad()
    try:
        with observed(model, observe):
            losses.get(loss)(model(x), y).backward()
        found = {name: _copy(p.grad) for name, p in parameters.items() if p.grad is not None}
        return Gradients(found, {name: probe.grad for name, probe in probes.items() if probe.grad is not None})
    finally:
        for name, parameter in parameters.items():
            parameter.grad = None
            if held[name] is not None:
                parameter._accumulate(held[name])


def _copy(array: Array | None) -> Any:
    return None if array is None else backend.namespace(array).asarray(array, copy=True)


@dataclass(frozen=True)
class Histogram:
    """A distribution of values.

    Attributes:
        counts: (bins,), how many values lie in each bin.
        edges: (bins + 1,).
        mean, std: of the values.
        zeros: the share that is exactly 0.
    """

    counts: NumpyArray
    edges: NumpyArray
    mean: float
    std: float
    zeros: float


def histogram(values: Array, bins: int = 50) -> Histogram:
    """Return the histogram of an array of any library.

    Raises:
        ValueError: it is empty, or a value is not finite.
    """
    flat = np.asarray(backend.to_numpy(values), dtype=np.float64).ravel()
    if not flat.size or not np.all(np.isfinite(flat)):
        raise ValueError(f"histogram: {'no values' if not flat.size else 'some values are not finite'}")
    counts, edges = np.histogram(flat, bins=bins)
    return Histogram(counts, edges, float(flat.mean()), float(flat.std()), float(np.mean(flat == 0)))


@takes_batch
def activation_histograms(model: Module, x: Array, *, bins: int = 50) -> dict[str, Histogram]:
    """Return the histogram of every layer's output on the batch `x`, by path.

    Good initial weights keep the standard deviation the same from layer to layer (Glorot and Bengio, 2010).
    """
    return {name: histogram(values, bins) for name, values in activations(model, x).items()}


@takes_batch
def gradient_histograms(
    model: Module, loss: str | Callable[..., Any], x: Array, y: Array, *, of: str = "parameters", bins: int = 50
) -> dict[str, Histogram]:
    """Return histograms of the loss's gradient, by path: of every parameter, or of every layer's output.

    Args:
        model, loss, x, y: as for :func:`layer_gradients`.
        of: "parameters" or "outputs".
        bins: how many.
    """
    if of not in ("parameters", "outputs"):
        raise ValueError(f'gradient_histograms: of must be "parameters" or "outputs", got {of!r}')
    return {name: histogram(g, bins) for name, g in getattr(layer_gradients(model, loss, x, y), of).items()}


def draw_histograms(histograms: dict[str, Histogram], *, title: str = "", columns: int = 4, shared: bool = True) -> Any:
    """Draw one small histogram for every layer, in reading order.

    Args:
        histograms: from :func:`activation_histograms` or :func:`gradient_histograms`.
        title: of the figure.
        columns: how many in a row.
        shared: use one range of values for all, so that widths can be compared.

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: no histograms.
        ImportError: matplotlib is not installed.
    """
    if not histograms:
        raise ValueError("draw_histograms: there is nothing to draw")
    columns = min(columns, len(histograms))
    rows = -(-len(histograms) // columns)
    figure = new_figure(1.9 * columns + 0.4, 1.6 * rows + 0.5)
    low = min(h.edges[0] for h in histograms.values())
    high = max(h.edges[-1] for h in histograms.values())
    with style():
        grid = figure.subplots(rows, columns, squeeze=False, sharex=shared)
        for number, (axes, (name, h)) in enumerate(zip(grid.ravel(), histograms.items())):
            axes.stairs(h.counts / h.counts.sum(), h.edges, fill=True, color=COLOURS[0])
            axes.set_title(f"{name}\nmean {h.mean:.2g}, std {h.std:.2g}", fontsize=8, loc="center", fontweight="normal")
            axes.set_yticks([])
            axes.tick_params(labelsize=7, labelbottom=not shared or number + columns >= len(histograms))
            axes.locator_params(axis="x", nbins=4)
            axes.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)
            axes.xaxis.get_offset_text().set_fontsize(7)
            axes.spines["left"].set_visible(False)
            if shared:
                axes.set_xlim(low, high)
        for axes in grid.ravel()[len(histograms) :]:
            axes.axis("off")
        if title:
            figure.suptitle(title, fontsize=10)
    return figure
