"""Find the first value in a model, its inputs or its targets that is not finite."""

from __future__ import annotations

import math
from typing import Any

from xpnet.autograd.tape import no_grad
from xpnet.autograd.tensor import Tensor, bare
from xpnet.backend import Array, is_floating, namespace
from xpnet.layers.execution import runs_on_its_device
from xpnet.layers.hooks import wrapped
from xpnet.layers.module import Module

ADVICE = "try a smaller learning rate, scaled inputs or gradient clipping"


class NotFiniteError(ArithmeticError):
    """The loss became NaN or infinite; the message names the epoch, the batch and what is the first that is not finite."""


def not_finite_in(model: Module, where: str, loss: float, x: Any, y: Any, advice: str = ADVICE) -> NotFiniteError:
    """Return the error for a loss on the batch `x` with the targets `y`."""
    if bad := not_finite_targets(y):
        return NotFiniteError(
            f"the loss became {loss} in {where}: {bad}; take these examples out (keep = numpy.isfinite(y)), or fill in their "
            f"values"
        )
    if bad := not_finite_inputs(x):
        return NotFiniteError(
            f"the loss became {loss} in {where}: {bad}; take such examples out, or fill in their values (numpy.nan_to_num)"
        )
    return NotFiniteError(f"the loss became {loss} in {where}; {first_not_finite(model, x)}; {advice}")


def not_finite_targets(y: Any) -> str:
    """Return a clause about targets that are not finite, or "" where there are none."""
    for part in y if isinstance(y, tuple) else (y,):
        if hasattr(part, "dtype") and not _finite(part):
            xp = namespace(part)
            count = int(xp.sum(xp.astype(~xp.isfinite(part), xp.int64)))
            return f"the targets hold values that are not finite: {count} of {math.prod(part.shape)} in this batch"
    return ""


def not_finite_inputs(x: Any) -> str:
    """Return a clause about inputs that are not finite, or "" where there are none."""
    for part in _leaves(x):
        if hasattr(part, "dtype") and part.ndim and not _finite(part):
            xp = namespace(part)
            bad = ~xp.isfinite(part)
            rows = xp.astype(xp.any(xp.reshape(bad, (part.shape[0], -1)), axis=1), xp.int64)
            kind = "NaN" if bool(xp.any(xp.isnan(part))) else "infinity"
            return (
                f"the inputs hold {kind}: {int(xp.sum(rows))} of {part.shape[0]} examples in this batch, the first at index "
                f"{int(xp.argmax(rows))} of it"
            )
    return ""


def _leaves(x: Any) -> list[Any]:
    """Return the arrays of a batch's inputs."""
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else None
    return [bare(x)] if parts is None else [leaf for part in parts for leaf in _leaves(part)]


def _finite(array: Any) -> bool:
    array = bare(array)
    xp = namespace(array)
    return not is_floating(array) or bool(xp.all(xp.isfinite(array)))


def _native(x: Any) -> Any:
    return x.array if isinstance(x, Tensor) else x


@runs_on_its_device
def parameter_not_finite(model: Module) -> str:
    """Return a clause that names the first parameter that is not finite, or ""."""
    for path, parameter in model.parameters().items():
        if not _finite(parameter.array):
            labels = "" if model.context.device.kind == "cpu" else " (on a GPU labels and indices out of range do that, too)"
            return f"the parameter {path!r} is not finite{labels}"
    return ""


@runs_on_its_device
def first_not_finite(model: Module, x: Array) -> str:
    """Return a clause that names the first thing in `model` that is not finite for the batch `x`.

    The input, the parameters and then every layer's output are checked, in the order of computation.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    if bad := not_finite_inputs(x) or parameter_not_finite(model):
        return bad
    found: list[str] = []

    def look(layer: Module, forward: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        y = forward(*inputs, **keywords)
        array = _native(y)
        if not found and hasattr(array, "dtype") and not _finite(array):
            of_indices = bool(inputs) and hasattr(inputs[0], "dtype") and not is_floating(_native(inputs[0]))
            why = ": an index outside its table?" if of_indices and model.context.device.kind != "cpu" else ""
            found.append(f"the first layer whose output is not finite is {layer.path!r} ({type(layer).__name__}){why}")
        return y

    with no_grad(), wrapped(model, look):
        model(*inputs)
    own = "the output of every layer is finite, so it is the loss function's own value"
    return found[0] if found else f"{own} (on a GPU also that of a class index out of range)"
