"""Diagnosis of a network that does not learn: each finding is a sentence with advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpnet import losses
from xpnet.autograd.tape import no_grad
from xpnet.autograd.tensor import bare
from xpnet.backend import Array, to_numpy
from xpnet.inspect.activity import activation_name
from xpnet.layers.execution import takes_batch
from xpnet.layers.hooks import unchanged, wrapped
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module
from xpnet.layers.not_finite import first_not_finite, not_finite_targets
from xpnet.ops.shapes import ShapeError
from xpnet.training.first_look import no_logarithms, not_logits, probabilities, refuse_output, strays, untrainable

DEAD = 0.5
"""A layer is reported when more than this share of its units is dead or saturated."""

HUGE = 1000
"""Gradients are reported as exploding when all are more than this many times as large as the weights."""


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        kind: "inputs", "labels", "outputs", "start", "dead", "saturated", "vanishing", "exploding", "untrained", "nothing to
            train" or "not finite"; of :func:`xpnet.inspect.outcome` also "unequal", "never found" and "underfit".
        text: a sentence, with advice.
        path: the layer or parameter it is about, or "".
    """

    kind: str
    text: str
    path: str = ""

    def __str__(self) -> str:
        return self.text


@takes_batch
def diagnose(
    model: Module, x: Array, y: Array, loss: str | Callable[[Any, Any], Any] = "softmax_cross_entropy"
) -> list[Finding]:
    """Run one batch forward and backward and report likely problems; an empty list if there are none.

    Checked are: the scale of the inputs; labels that do not match the outputs; probabilities where the loss expects logits;
    values that are not finite; the softmax cross entropy against ln K, that of guessing; units that are dead (a ReLU that is
    0 for the whole batch) or saturated (a sigmoid or tanh within 0.01 of its limits); gradients that vanish or explode from
    layer to layer, or that are far larger than the weights in all of them; parameters that no gradient reaches, and Parameters
    that are not the model's.

    The model is not changed.

    Args:
        model: a Module.
        x, y: a batch of at least some tens of examples.
        loss: a name or a function.

    Source: CS231n, "Neural networks part 3", babysitting the learning process.
    """
    findings = list(_inputs(x))
    function = losses.get(loss)
    outputs: list[tuple[Module, Any]] = []

    def observe(layer: Module, forward: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        result = forward(*inputs, **keywords)
        outputs.append((layer, bare(result)))
        return result

    with unchanged(model), no_grad(), eval_mode(model):
        model(x)  # builds the model
    with unchanged(model):
        model.train()
        model.zero_grad()
        with wrapped(model, observe):
            prediction = model(x)
            refuse_output(model, prediction, [function])
            fault = strays(model, prediction) or untrainable(model)
            if fault is not None:
                return [*findings, Finding("nothing to train", fault)]
            try:
                value = function(prediction, y)
            except (ShapeError, ValueError) as error:
                return [*findings, Finding("labels", f"the labels do not match the model's output: {error}")]
        findings += _labels(prediction.array, y)
        if not math.isfinite(float(value.array)):
            cause = not_finite_targets(y) or first_not_finite(model, x)
            return [*findings, Finding("not finite", f"the loss is {float(value.array)}; {cause}")]
        findings += _outputs(prediction, value, function)
        findings += _start(prediction.array, float(value.array), function)
        for layer, array in outputs:
            findings += _units(layer, array)
        value.backward()
        findings += _gradients(model)
    return findings


def _inputs(x: Array) -> Iterator[Finding]:
    """Check the scale of the inputs."""
    values = to_numpy(x)
    if values.dtype.kind not in "fiu" or values.size == 0:
        return
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        yield Finding("inputs", "some inputs are not finite; remove or fill in those examples")
        return
    mean, std = float(values.mean()), float(values.std())
    if std == 0:
        yield Finding("inputs", f"all inputs equal {mean:g}, so there is nothing to learn from; check how they are loaded")
    elif std > 10 or abs(mean) > 10:
        advice = "divide by 255" if 100 < float(values.max()) <= 255 and float(values.min()) >= 0 else "standardise them"
        text = f"the inputs have mean {mean:.3g} and standard deviation {std:.3g}; {advice}, so that both are near 1"
        yield Finding("inputs", text)
    elif abs(mean) > 5 * std:
        text = f"the inputs' mean {mean:.3g} is far larger than their deviation {std:.3g}; subtract the mean"
        yield Finding("inputs", text)


def _labels(prediction: Array, y: Array) -> Iterator[Finding]:
    """Check class indices against the number of outputs."""
    labels = to_numpy(y)
    if prediction.ndim != 2 or labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size == 0:
        return
    K, seen = int(prediction.shape[1]), np.unique(labels)
    if seen.size == 1:
        yield Finding("labels", f"every label of this batch is {int(seen[0])}; shuffle the data, or check the labels")
    elif labels.size >= 20 * K and seen.size < K:
        missing = sorted(set(range(K)) - set(seen.tolist()))
        text = f"the model has {K} outputs, but the classes {missing} never occur; are there fewer classes?"
        yield Finding("labels", text)


def _outputs(prediction: Any, loss: Any, function: Callable[..., Any]) -> Iterator[Finding]:
    """Check for probabilities where the loss expects logits, also where no operation says so, and the other way round."""
    text = probabilities(loss) or no_logarithms(function, prediction)
    if text is None and function is losses.softmax_cross_entropy and prediction.ndim >= 2 and prediction.shape[-1] > 1:
        values = to_numpy(prediction.array).astype(np.float64)
        if values.size and not (values < 0).any() and np.abs(values.sum(axis=-1) - 1).max() <= 1e-2:
            text = not_logits("softmax_cross_entropy", "softmax")
    if text is not None:
        yield Finding("outputs", text)


def _start(prediction: Array, loss: float, function: Callable[..., Any]) -> Iterator[Finding]:
    """Check the softmax cross entropy of an untrained network against guessing."""
    if function is not losses.softmax_cross_entropy or prediction.ndim < 2:
        return
    guess = math.log(prediction.shape[-1])
    if loss > 2.5 * guess + 0.5:  # without normalisation, ReLUs and dropout often start at twice that
        text = (
            f"the loss is {loss:.3g}, guessing costs ln {prediction.shape[-1]} = {guess:.3g}: the model is sure and wrong; "
            f"use smaller initial weights in the last layer, or scale the inputs"
        )
        yield Finding("start", text)


def _units(layer: Module, output: Array) -> Iterator[Finding]:
    """Check for dead ReLUs and saturated sigmoids."""
    name = activation_name(layer)
    if name not in ("relu", "sigmoid", "tanh") or not hasattr(output, "ndim") or output.ndim < 2:
        return
    values = to_numpy(output).reshape(-1, output.shape[-1])
    if values.shape[0] < 2:
        return
    if name == "relu":
        kind, share = "dead", float((values <= 0).all(axis=0).mean())
        text = (
            f"{share:.0%} of the units of layer {layer.path!r} are 0 for the whole batch (dead ReLUs); "
            f"use a smaller learning rate, He initialisation, a small positive bias or leaky_relu"
        )
    else:
        low = 0.01 if name == "sigmoid" else -0.99
        kind, share = "saturated", float(((values < low) | (values > 0.99)).mean())
        text = (
            f"{share:.0%} of the outputs of layer {layer.path!r} are within 0.01 of the ends of {name} (saturated), where "
            f"the gradient is almost 0; scale the inputs, use smaller initial weights, batch normalisation or relu"
        )
    if share > DEAD:
        yield Finding(kind, text, layer.path or "")


def _size(array: Array) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(to_numpy(array), dtype=np.float64))))


def _gradients(model: Module) -> Iterator[Finding]:
    """Check the root mean square of each weight's gradient: from last to first layer it should not change by 1000."""
    sizes: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for path, parameter in model.parameters().items():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None or not to_numpy(parameter.grad).any():
            text = f"no gradient reaches the parameter {path!r}, so it will not learn; "
            yield Finding("untrained", text + "is its output used, and not cut off by dead units?", path)
        elif parameter.ndim > 1:
            sizes[path] = _size(parameter.grad)
            if weights := _size(parameter.array):
                ratios[path] = sizes[path] / weights
    if ratios and min(ratios.values()) > HUGE:
        path = max(ratios, key=ratios.__getitem__)
        text = (
            f"every gradient is more than {HUGE} times as large as the weights ({ratios[path]:.2g} times at {path!r}): the "
            f"first step would destroy them (exploding); use smaller initial weights, scaled inputs or ClipGradients(norm=1)"
        )
        yield Finding("exploding", text, path)
    if len(sizes) > 1:
        (start, first), *_, (end, last) = sizes.items()
        if first < 1e-3 * last:
            text = (
                f"the gradient shrinks from {last:.2g} at {end!r} to {first:.2g} at {start!r} (vanishing); "
                f"use relu, He or Glorot initialisation, batch normalisation or residual connections"
            )
            yield Finding("vanishing", text, start)
        elif first > 1e3 * last:
            text = (
                f"the gradient grows from {last:.2g} at {end!r} to {first:.2g} at {start!r} (exploding); "
                f"use smaller initial weights, ClipGradients(norm=1) or batch normalisation"
            )
            yield Finding("exploding", text, start)
