"""Checks of what a Trainer is given, whose errors say what to give instead."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xpnet import metrics
from xpnet.autograd.tensor import Tensor
from xpnet.layers.module import Module
from xpnet.optim.optimizer import Optimizer
from xpnet.runtime.foreign import refuse_lazy
from xpnet.runtime.given import listed
from xpnet.runtime.messages import quoted
from xpnet.runtime.overrides import names_used, own_attributes
from xpnet.runtime.peers import OF_MODELS
from xpnet.runtime.settings import check_kind, check_whole
from xpnet.training.callback import Callback

Metric = str | Callable[[Any, Any], Any]


def named_metrics(
    given: str | Sequence[Metric] | Mapping[str, Metric],
) -> dict[str, Callable[[Any, Any], Any]]:
    """Return the metric functions by name.

    Raises:
        ValueError: two of them have the same name.
    """
    if isinstance(given, Mapping):
        named = [(name, metrics.get(m)[1]) for name, m in given.items()]
    elif isinstance(given, (str, Sequence)):
        named = [metrics.get(m) for m in ([given] if isinstance(given, str) else given)]
    else:
        raise TypeError(f"Trainer: metrics must be a list of names and functions, or a dict of them, got {quoted(given)}")
    for name, _ in named:
        if name == "loss" or name.startswith("val_"):
            raise ValueError(
                f"Trainer: a metric is called {name!r}, but the history has the loss and what validation measures under such "
                f"names; give the function another one"
            )
    if len(dict(named)) < len(named):
        raise ValueError(
            f"Trainer: two metrics have one name, got {', '.join(name for name, _ in named)}; give them names: "
            f'metrics={{"top1": TopK(1), "top5": TopK(5)}}'
        )
    return dict(named)


def check_methods(trainer: Any) -> None:
    """Warn of a method of a Trainer's model that other libraries' training loops call, where nothing is seen to call it here.

    What the classes of the model, the loss, a metric, a callback or the Trainer mention is called by them.

    Raises:
        TypeError: an argument of `forward` would tell it whether it is training, and nobody gives it.
    """
    kinds = [kind for kind in {type(part) for part in trainer.model.modules()} if not _is_ours(kind)]
    if not kinds:
        return
    for part in (trainer.model, *(c for m in trainer.model.modules() if _is_ours(type(m)) for c in m._children.values())):
        mode = next((name for name in ("training", "train", "is_training") if name in _parameters(type(part))), None)
        if mode is not None and "training" not in own_attributes(type(part)):  # it may be the default
            raise TypeError(
                f"{type(part).__name__}.forward is called with its input alone, so its {mode!r} would always be the default; "
                f"read self.training instead"
            )
    beside = (trainer.loss, *trainer.metrics.values(), *trainer.callbacks, trainer)
    for kind in kinds:
        defined = {name for c in kind.__mro__ if not _is_ours(c) for name in vars(c)} & OF_MODELS.keys()
        if defined:
            called = set().union(*(names_used(part) for part in (*kinds, *beside)))
            for name in sorted(defined - called):
                warnings.warn(
                    f"a Trainer does not call {kind.__name__}.{name}; unless code of yours does: {OF_MODELS[name]}",
                    RuntimeWarning,
                    stacklevel=3,
                )


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("xpnet.")


def _parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    """Return the optional parameters of the forward of a user's class."""
    forward: Any = getattr(kind, "forward", None)
    found = {} if _is_ours(kind) else inspect.signature(forward).parameters
    return {name: parameter for name, parameter in found.items() if parameter.default is not parameter.empty}


def refuse_loss(function: Any, loss: Any) -> None:
    """Raise an error for what a loss function returned, unless it is a Tensor of shape ()."""
    name = getattr(function, "__name__", type(function).__name__)
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"the loss function {name} returned {listed([loss])}, expected a Tensor: compute it from the prediction with "
            f"xn.ops or the operators of Tensor, so that it has a gradient"
        )
    if loss.array.ndim:
        raise ValueError(
            f"the loss function {name} returned shape {loss.shape}, expected a single number, shape (); reduce it with "
            f".mean() or .sum()"
        )


def refuse_metric(name: str, value: Any) -> None:
    """Raise an error for what a metric returned, which is no single number."""
    if getattr(value, "ndim", 0):
        raise ValueError(
            f"the metric {name} returned shape {tuple(value.shape)}, expected a single number: its mean over the batch"
        )
    raise TypeError(f"the metric {name} returned {quoted(value)}, expected a number: its mean over the batch")


_HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))

_COUNTS = frozenset({"epoch", "batch", "step", "index", "idx", "iteration", "logs", "batch_idx", "epoch_idx"})
"""What the first parameter of hooks is called in libraries that call them with a number."""

_FOREIGN = {
    "on_train_begin": "on_fit_begin", "on_train_start": "on_fit_begin", "on_fit_start": "on_fit_begin",
    "on_train_end": "on_fit_end", "on_epoch_start": "on_epoch_begin", "on_train_epoch_start": "on_epoch_begin",
    "on_train_epoch_end": "on_epoch_end", "on_validation_end": "on_epoch_end", "on_test_end": "on_epoch_end",
    "on_batch_end": "on_step_end", "on_train_batch_end": "on_step_end", "on_after_backward": "on_before_optimizer_step",
    "on_save_checkpoint": "on_checkpoint",
}  # fmt: skip
"""What hooks of other libraries are called here."""


def _refuse_hooks(callback: Callback) -> None:
    """Raise a TypeError for a method like one of Callback's that would never be called, or cannot be with what it gets."""
    kind = type(callback)
    for name in _HOOKS:
        if getattr(kind, name) is not getattr(Callback, name):
            _refuse_signature(kind, name, getattr(callback, name))
    used = names_used(kind)
    for name in dir(callback):
        if name.startswith("on_") and name not in (*_HOOKS, *used) and callable(getattr(callback, name)):
            near = _FOREIGN.get(name) or next(iter(difflib.get_close_matches(name, _HOOKS, 1, cutoff=0.8)), None)
            if near is None:
                continue  # a method for another use
            raise TypeError(
                f"{kind.__name__}: {name} would never be called: did you mean {near}? A Callback has {', '.join(_HOOKS)}"
            )


def _refuse_signature(kind: type, name: str, hook: Any) -> None:
    """Raise a TypeError for a hook that does not take what it is called with."""
    given = list(inspect.signature(getattr(Callback, name)).parameters)[1:]
    refuse_lazy(f"{kind.__name__}: the hook {name}", hook)
    try:
        own = inspect.signature(hook)
    except ValueError:  # of a function written in C
        return
    first = next(iter(own.parameters), "")
    if first in _COUNTS:
        raise TypeError(
            f"{kind.__name__}: the hook {name} is called with ({', '.join(given)}), and its first parameter is called "
            f"{first!r}; it gets the Trainer: trainer.epoch, trainer.batch and trainer.iteration are the numbers"
        )
    try:
        own.bind(*given)
    except TypeError:
        raise TypeError(f"{kind.__name__}: the hook {name} is called with ({', '.join(given)}), and takes {own}") from None


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


def required_count(accumulate: Any) -> int:
    """Return of how many batches a Trainer averages the gradients; raise an error for less than 1, or a fraction."""
    check_whole("Trainer", 1, accumulate=accumulate)
    return accumulate  # type: ignore[no-any-return]


def required_seed(seed: Any) -> int:
    """Return a Trainer's seed; raise a TypeError for what is no integer."""
    check_kind("Trainer", "seed", seed, "int")
    return seed  # type: ignore[no-any-return]


def required_switch(capture: Any) -> bool:
    """Return whether a Trainer captures its steps; raise a TypeError for neither True nor False."""
    check_kind("Trainer", "capture", capture, "bool")
    return capture  # type: ignore[no-any-return]


def check_callback(callback: Any) -> None:
    """Raise a TypeError for what is no Callback, or for one with a hook that would not be called."""
    if not isinstance(callback, Callback):
        raise TypeError(f"Trainer: callbacks must be objects of subclasses of xn.Callback, got {quoted(callback)}")
    _refuse_hooks(callback)


def required_callbacks(callbacks: Any) -> list[Callback]:
    """Return a Trainer's callbacks as a list; raise a TypeError if one of them is none."""
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        check_callback(callback)
    if isinstance(callbacks, Callback):
        raise TypeError(f"Trainer: callbacks must be a list, got one: write [{type(callbacks).__name__}(...)]")
    keeping = [c for c in callbacks if type(c).state is not Callback.state]  # it would count every epoch twice
    double = next((c for c in keeping if sum(other is c for other in keeping) > 1), None)
    if double is not None:
        raise ValueError(
            f"Trainer: the same {type(double).__name__} is among the callbacks twice; give it once, or a second one"
        )
    return list(callbacks)
