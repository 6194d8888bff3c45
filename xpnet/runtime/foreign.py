"""Objects and functions of other libraries where those of this package are expected: refused, with what to give instead."""

from __future__ import annotations

import inspect
from typing import Any

_LIBRARIES = frozenset(
    {"torch", "torchvision", "torchmetrics", "lightning", "tensorflow", "keras", "jax", "flax", "optax", "haiku", "chainer",
     "mxnet", "paddle", "mlx"}
)  # fmt: skip
"""Libraries whose losses, metrics and layers compute on arrays of their own."""

_TRUTHS = frozenset({"y_true", "true", "truth", "target", "targets", "label", "labels", "expected", "y"})
_PREDICTIONS = frozenset(
    {"y_pred", "pred", "preds", "prediction", "predictions", "predicted", "y_score", "y_prob", "y_proba", "y_hat", "yhat",
     "output", "outputs", "logits"}
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
    try:
        parameters = list(inspect.signature(function).parameters)[:2]
    except (TypeError, ValueError):  # of a function written in C
        return
    if len(parameters) == 2 and parameters[0] in _TRUTHS and parameters[1] in _PREDICTIONS:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"{what} is called with (prediction, target), and {name} takes ({', '.join(parameters)}); swap its parameters, or "
            f"give lambda prediction, target: {name}(target, prediction)"
        )
