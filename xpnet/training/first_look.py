"""The first look at a model in training: what would train nothing, or the wrong thing, without an error.

The first step of a model, and the first after layers or Parameters were added, is looked at before its backward pass, while the
tape still says what the prediction and the loss were made from. Nothing is read from a GPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from xpnet import losses, metrics
from xpnet.autograd.functional import map_structure
from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tape import Node, ending, leaves, made_by, reachable
from xpnet.autograd.tensor import Tensor, bare
from xpnet.backend import is_asynchronous, namespace
from xpnet.layers.module import Module
from xpnet.runtime.given import listed
from xpnet.runtime.messages import shorten

if TYPE_CHECKING:
    from xpnet.training.steps import Steps

_LOGITS = {"softmax_cross_entropy": ("softmax", "log_softmax"), "sigmoid_cross_entropy": ("sigmoid",)}
"""What an operation applies itself, and should not get."""


def first_loss(steps: Steps, prediction: Any, y: Any) -> Any:
    """Return the loss of the first batch, after a look at how the prediction and the loss were made.

    Raises:
        TypeError: forward returned something else than the loss or a metric takes.
        ValueError: there is nothing to train, or the prediction was made by Parameters that are not the model's.
    """
    model = steps.model
    refuse_output(model, prediction, [steps.loss, *steps.metrics.values()])
    fault = strays(model, prediction)
    if fault is None:
        model._require_built("fit")
        fault = untrainable(model)
    if fault is not None:
        raise ValueError(fault)
    _refuse_sigmoid(steps.metrics, prediction)
    loss = steps.loss(prediction, y)
    if isinstance(loss, Tensor):  # which the caller requires
        for text in filter(None, (*_seen(steps, loss), probabilities(loss), no_logarithms(steps.loss, prediction))):
            warnings.warn(text, RuntimeWarning, stacklevel=6)  # for `fit`; `step` is one less
    steps.step_state.seen(model)
    return loss


def refuse_output(model: Module, prediction: Any, functions: Iterable[Any] = ()) -> None:
    """Raise a TypeError for an output that no loss, or none of these functions, can be computed from."""
    name = type(model).__name__
    if prediction is None:
        raise TypeError(f"{name}: forward returned None; does it end in `return`?")
    if isinstance(prediction, (tuple, list, dict)):
        taker = next(filter(None, map(_ours, functions)), None)
        if taker is not None:
            raise TypeError(
                f"{name}: forward returned a {type(prediction).__name__} of {len(prediction)} outputs, and {taker} takes one; "
                f"pass a function (prediction, target) that takes the {type(prediction).__name__}, such as "
                f"lambda p, t: {taker}(p[0], t)"
            )
        return
    if not isinstance(prediction, Tensor) and model.parameters():
        raise TypeError(
            f"{name}: forward returned {listed([prediction])}, expected a Tensor, made from the model's Parameters: it left "
            f"the tape by .array, xn.to_numpy or a function of another library; use xn.ops instead"
        )


def _ours(function: Any) -> str | None:
    """Return the name of a loss or metric of this package; each takes one output."""
    function = _inner(function)
    known = str(getattr(function, "__module__", None)).startswith(("xpnet.losses", "xpnet.metrics"))
    return f"xn.{'.'.join(function.__module__.split('.')[1:2])}.{function.__name__}" if known else None


def _inner(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function


def _nodes(output: Any) -> tuple[list[Node], bool]:
    """Return the nodes behind an output, or several, and whether these are all: those of a recomputed segment are not there."""
    found: dict[int, Node] = {}

    def add(part: Any) -> None:
        if isinstance(part, Tensor) and part.node is not None:
            found.update((id(node), node) for node in reachable(part.node))

    map_structure(add, output)
    return list(found.values()), all(node.settings is not None for node in found.values())


def strays(model: Module, prediction: Any) -> str | None:
    """Return what is wrong where a prediction was made by Parameters that the model does not have and nothing would train."""
    own = {id(p) for p in model.parameters().values()}
    found = [p for p in leaves(_nodes(prediction)[0]).values() if isinstance(p, Parameter) and id(p) not in own]
    if not found:
        return None
    shown = ", ".join(f"{p.path or '?'} {p.shape}" for p in found[:6]) + ", ..." * (len(found) > 6)
    return (
        f"{type(model).__name__}: forward uses Parameters that are not the model's, and they would never be trained: {shown}. "
        f"Make layers in __init__, and assign each to an attribute or in a flat list, self.blocks = [...] (xn.Sequential(...) "
        f"makes one layer of an inner list); those in nested lists, dicts, other objects, closures, global variables or made "
        f"in forward are not the model's. For layers that shall stay as they are: layer.freeze()"
    )


def untrainable(model: Module) -> str | None:
    """Return what is wrong where a model has nothing to train."""
    parameters = model.parameters().values()
    if not parameters:
        return (
            f"{type(model).__name__} has no Parameters, so there is nothing to train; assign layers to attributes in __init__, "
            f"and weights of your own as xn.Parameter(array): plain arrays are not trained"
        )
    if not any(p.requires_grad for p in parameters):
        return f"every Parameter of {type(model).__name__} is frozen, so there is nothing to train; use model.unfreeze(path)"
    return None


def _seen(steps: Steps, loss: Tensor) -> list[str]:
    """Return what to say about what the loss was made from: Parameters that it misses, and broadcasting.

    Raises:
        ValueError: it depends on nothing.
    """
    name = getattr(steps.loss, "__name__", type(steps.loss).__name__)
    left = "by .array, xn.to_numpy, float() or item()"
    if not loss.requires_grad:
        raise ValueError(
            f"the loss does not depend on any Parameter of {type(steps.model).__name__}: forward or the loss function {name} "
            f"left the tape {left}; use xn.ops instead"
        )
    nodes, whole = _nodes(loss)
    if not whole:
        return []
    reached, found = leaves(nodes), []
    paths = [path for path, p in steps.model.parameters().items() if p.requires_grad and id(p) not in reached]
    if paths:
        text = (
            f"not trained in this step: {', '.join(paths)}: forward does not use them, or left the tape behind them {left}, or "
            f"the loss function {name} does not use their output"
        )
        found.append(shorten(text))
    for node in nodes:
        if node.op.broadcasts and isinstance(node.saved, tuple) and len(node.saved) == 2:
            one, other = sorted([tuple(getattr(s, "shape", s if isinstance(s, tuple) else ())) for s in node.saved], key=len)
            if len(one) == 1 and one[0] > 1 and other == (one[0], 1):
                found.append(
                    f"the loss function {name} broadcasts {other} and {one} to ({one[0]}, {one[0]}): every prediction meets "
                    f"every target; give both the same shape, as with y[:, None]"
                )
                break
    return found


def probabilities(loss: Tensor) -> str | None:
    """Return what is wrong where a loss that takes logits was given probabilities: training works, but slowly and badly."""
    for node in _nodes(loss)[0]:
        name = node.op.__name__
        last = ending(node.inputs[0]) if name in _LOGITS else ""
        if last and last in _LOGITS[name]:
            return not_logits(name, last)
    return None


def not_logits(loss: str, last: str) -> str:
    """Return the sentence about a loss that applies an activation itself, which its input has behind it already."""
    what = "logarithms of probabilities" if last == "log_softmax" else "probabilities"
    itself = last.removeprefix("log_")
    return (
        f"the outputs are {what} already, but {loss} takes logits and applies {itself} itself; leave the {last} at the end of "
        f"the network away, and apply xpnet.ops.{itself} to predictions"
    )


def no_logarithms(function: Any, prediction: Any) -> str | None:
    """Return what is wrong where the likelihood gets something else than logarithms of probabilities, which are at most 0."""
    array = bare(prediction)
    if _inner(function) is not losses.negative_log_likelihood or not math.prod(array.shape):
        return None
    xp = namespace(array)
    if _last(prediction) == "log_softmax" or is_asynchronous(xp) or not bool(xp.any(array > 0)):
        return None
    return (
        "the outputs hold positive numbers, but negative_log_likelihood takes logarithms of probabilities; put log_softmax at "
        "the end of the network, or use softmax_cross_entropy on its logits"
    )


def _last(prediction: Any) -> str:
    return ending(prediction.node) if isinstance(prediction, Tensor) and made_by(prediction.node) is not None else ""


def _refuse_sigmoid(measured: dict[str, Any], prediction: Any) -> None:
    """Raise a ValueError where a metric takes logits, and the prediction comes from a sigmoid: all of it is above 0."""
    for name, metric in measured.items():
        if _inner(metric) is metrics.binary_accuracy and _last(prediction) == "sigmoid":
            raise ValueError(
                f"the metric {name} takes logits, and counts what is above 0 as 1, but the outputs come from a sigmoid and all "
                f"are; leave the sigmoid at the end of the network away (with the loss sigmoid_cross_entropy), or pass a "
                f"function: lambda p, t: xn.metrics.binary_accuracy(p - 0.5, t)"
            )
