"""Checks of what a Trainer is given, whose errors say what to give instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xpnet import metrics
from xpnet.autograd.tensor import Tensor
from xpnet.layers.module import Module
from xpnet.optim.optimizer import Optimizer
from xpnet.runtime.messages import quoted
from xpnet.training.callback import Callback
from xpnet.training.data_adapter import kinds

Metric = str | Callable[[Any, Any], Any]


def named_metrics(
    given: str | Sequence[Metric] | Mapping[str, Callable[[Any, Any], Any]],
) -> dict[str, Callable[[Any, Any], Any]]:
    """Return the metric functions by name.

    Raises:
        ValueError: two of them have the same name.
    """
    if isinstance(given, Mapping):  # as an attribute is
        return dict(given)
    named = [metrics.get(m) for m in ([given] if isinstance(given, str) else given)]
    if len(dict(named)) < len(named):
        raise ValueError(
            f"Trainer: two metrics have one name, got {', '.join(name for name, _ in named)}; a function's name is what "
            f"def gives it"
        )
    return dict(named)


def refuse_loss(function: Any, loss: Any) -> None:
    """Raise an error for what a loss function returned, unless it is a Tensor of shape ()."""
    name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"the loss function {name} returned {kinds([loss])}, expected a Tensor: compute it from the prediction with "
            f"xn.ops or the operators of Tensor, so that it has a gradient"
        )
    if loss.array.ndim:
        raise ValueError(
            f"the loss function {name} returned shape {loss.shape}, expected a single number, shape (); reduce it with "
            f".mean() or .sum()"
        )


def required_model(model: Any) -> Module:
    """Return a Trainer's model; raise a TypeError if it is none."""
    if not isinstance(model, Module):
        raise TypeError(f"Trainer: model must be a Module such as xn.Sequential([...]), got {quoted(model)}")
    return model


def required_optimizer(optimizer: Any) -> Any:
    """Return a Trainer's optimizer; raise a TypeError if it is none, such as one of another library."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"Trainer: optimizer must be an object such as xn.optim.Adam(0.001), got {quoted(optimizer)}")
    return optimizer


def required_callbacks(callbacks: Any) -> list[Callback]:
    """Return a Trainer's callbacks as a list; raise a TypeError if one of them is none."""
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        if not isinstance(callback, Callback):
            raise TypeError(f"Trainer: callbacks must be objects of subclasses of xn.Callback, got {quoted(callback)}")
    if isinstance(callbacks, Callback):
        raise TypeError(f"Trainer: callbacks must be a list, got one: write [{type(callbacks).__name__}(...)]")
    return list(callbacks)
