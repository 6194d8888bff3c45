"""Objects and functions that cannot be used where this package calls them: refused, with what to give instead."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

_LIBRARIES = frozenset(
    {"torch", "torchvision", "torchmetrics", "lightning", "tensorflow", "keras", "jax", "flax", "optax", "haiku", "chainer",
     "mxnet", "paddle", "mlx"}
)  # fmt: skip
"""Libraries whose losses, metrics and layers compute on arrays of their own."""

_TRUTHS = frozenset(
    {"y_true", "true", "truth", "target", "targets", "label", "labels", "expected", "y", "y_test", "y_val", "ground_truth",
     "gt", "actual", "observed", "t"}
)  # fmt: skip
_PREDICTIONS = frozenset(
    {"y_pred", "pred", "preds", "prediction", "predictions", "predicted", "y_score", "y_prob", "y_proba", "y_hat", "yhat",
     "output", "outputs", "logits", "input", "p"}
)  # fmt: skip


def refuse_foreign(what: str, thing: Any, instead: str) -> None:
    """Raise a TypeError for an object of a library whose arrays are not these, such as ``torch.nn.MSELoss()``.

    Args:
        what: what it is given as, such as "a loss".
        thing: the object or function.
        instead: what to give.
    """
    for kind in (thing, *type(thing).__mro__):
        library = str(getattr(kind, "__module__", None)).partition(".")[0]
        if library in _LIBRARIES:
            name = getattr(thing, "__qualname__", type(thing).__qualname__)
            raise TypeError(f"{what} of {library} ({name}) computes on that library's own arrays only; {instead}")


def refuse_truth_first(what: str, function: Any) -> None:
    """Raise a TypeError for a function whose parameters are (y_true, y_pred): it is called with the prediction first."""
    named = function
    while isinstance(named, partial):
        named = named.func
    try:
        parameters = list(inspect.signature(function).parameters)[:2]
    except (TypeError, ValueError):  # of a function written in C
        return
    if len(parameters) == 2 and parameters[0] in _TRUTHS and parameters[1] in _PREDICTIONS:
        name = getattr(named, "__name__", type(named).__name__)
        raise TypeError(
            f"{what} is called with (prediction, target), and {name} takes ({', '.join(parameters)}); swap its parameters, or "
            f"give lambda prediction, target: {name}(target, prediction)"
        )


def refuse_lazy(what: str, function: Any) -> None:
    """Raise a TypeError for a generator function or a coroutine function: calling it runs nothing of it."""
    while isinstance(function, partial):
        function = function.func
    called = function if inspect.isroutine(function) else type(function).__call__
    for kind, is_kind in (
        ("generator", inspect.isgeneratorfunction),
        ("coroutine", inspect.iscoroutinefunction),
        ("generator", inspect.isasyncgenfunction),
    ):
        if is_kind(called):
            raise TypeError(f"{what} is a {kind} function, of which a call runs nothing; leave out yield, async and await")
