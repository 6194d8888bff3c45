"""Checks of what a Trainer is given, whose errors say what to give instead."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from xpnet import metrics
from xpnet.autograd.tensor import Tensor
from xpnet.layers.module import Module
from xpnet.training.callback import Callback
from xpnet.training.data_adapter import kinds

Metric = str | Callable[[Any, Any], Any]


def named_metrics(given: str | Sequence[Metric]) -> dict[str, Callable[[Any, Any], Any]]:
    """Return the metric functions by name.

    Raises:
        ValueError: two of them have the same name.
    """
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


def require_parts(model: Any, optimizer: Any, callbacks: Sequence[Any]) -> None:
    """Raise a TypeError that says which argument of a Trainer is not what it must be."""
    if not isinstance(model, Module):
        raise TypeError(f"Trainer: model must be a Module such as xn.Sequential([...]), got {model!r}")
    if not hasattr(optimizer, "step") or isinstance(optimizer, type):
        raise TypeError(f"Trainer: optimizer must be an object such as xn.optim.Adam(0.001), got {optimizer!r}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"Trainer: callbacks must be objects of subclasses of xn.Callback, got {callback!r}")
        refuse_hooks(callback)


_HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))

_FOREIGN = {
    "on_train_begin": "on_fit_begin", "on_train_start": "on_fit_begin", "on_fit_start": "on_fit_begin",
    "on_train_end": "on_fit_end", "on_epoch_start": "on_epoch_begin", "on_train_epoch_start": "on_epoch_begin",
    "on_train_epoch_end": "on_epoch_end", "on_validation_end": "on_epoch_end", "on_test_end": "on_epoch_end",
    "on_batch_end": "on_step_end", "on_train_batch_end": "on_step_end", "on_after_backward": "on_before_optimizer_step",
    "on_save_checkpoint": "on_checkpoint",
}  # fmt: skip
"""What hooks of other libraries are called here."""


def refuse_hooks(callback: Callback) -> None:
    """Raise a TypeError for a callback with a method that looks like one of `Callback` and would never be called."""
    kind = type(callback)
    for name in dir(kind):
        if name.startswith("on_") and name not in _HOOKS and callable(getattr(kind, name)):
            near = _FOREIGN.get(name) or next(iter(difflib.get_close_matches(name, _HOOKS, 1)), None)
            hint = "" if near is None else f"; did you mean {near}?"
            raise TypeError(
                f"{kind.__name__}: {name} would never be called: a Callback has {', '.join(_HOOKS)}{hint} (a method of another "
                f"use gets another name)"
            )
