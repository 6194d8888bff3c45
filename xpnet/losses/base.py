"""How a target has to fit a prediction, and the reduction of terms: shared by all losses and metrics.

A target never broadcasts against a prediction: `same_shape` and `matching` are for targets with a number for each element,
`xpnet.ops.softmax.check_labels` for classes, and `admitted` for targets of which only some values mean anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xpnet import ops
from xpnet.autograd.tensor import Tensor, bare
from xpnet.backend import Array, array_types, dtype_name, is_asynchronous, is_floating, kind_of, namespace
from xpnet.ops.shapes import NOT_REAL, ShapeError, not_real
from xpnet.ops.softmax import check_reduction
from xpnet.runtime.given import plain

Loss = Callable[..., Any]


def widened(*values: Any) -> tuple[Any, ...]:
    """Return the values, in float32 if the first holds 16-bit floats, whose squares and sums would be infinite."""
    if kind_of(bare(values[0]).dtype) != "half":
        return values
    return tuple([ops.cast(value, "float32") for value in values])


def reduce(name: str, terms: Any, reduction: str, like: Any = None) -> Any:
    """Sum or average `terms`, or return them as they are; in the dtype of `like` if those are 16-bit floats.

    Raises:
        ValueError: an unknown reduction, or the mean of no terms.
    """
    check_reduction(name, reduction)
    if reduction == "mean":
        not_empty(name, terms)
        terms = ops.mean(terms)
    elif reduction == "sum":
        terms = ops.sum(terms)
    if like is not None and kind_of(bare(like).dtype) == "half":
        return ops.cast(terms, dtype_name(bare(like)))
    return terms


def not_empty(name: str, terms: Any) -> None:
    """Raise a ValueError where there is nothing to take the mean of."""
    if not math.prod(terms.shape):
        raise ValueError(
            f"{name}: the mean of an empty batch is not defined (there are no terms, shape {tuple(terms.shape)}); leave the "
            f'batch out, or use reduction="sum"'
        )


def same_shape(name: str, prediction: Any, target: Any) -> None:
    """Raise a ShapeError unless both have one shape: broadcasting here would hide a mistake."""
    shape, other = tuple(prediction.shape), tuple(target.shape)
    if shape != other:
        hint = (
            "reshape one of them"
            if math.prod(shape) != math.prod(other)
            else f"use target.reshape({', '.join(map(str, shape))})"
        )
        raise ShapeError(f"{name}: the prediction has shape {shape}, the target {other}; they must be equal: {hint}")


def as_target(name: str, target: Any, what: str = "target") -> Any:
    """Return a target, or `what`, of no known library as an array: a series or a table of pandas and the like, by position.

    Raises:
        TypeError: a list, a tuple, a dict or a number.
    """
    found = plain(target, f"{name}: the {what}")
    if not hasattr(found, "dtype"):
        raise TypeError(
            f"{name}: the {what} is a {type(target).__name__}, expected one array; convert a list with numpy.asarray; for "
            f"several outputs write a function (prediction, target) of your own"
        )
    return found


def matching(name: str, prediction: Any, target: Any) -> Any:
    """Return the target in the prediction's dtype (an integer target must not widen the loss), after checking its shape.

    That of an integer prediction is left as it is: the loss is then computed in floats, which hold both.

    Raises:
        ShapeError: shapes that differ.
        TypeError: either holds no real numbers.
    """
    if type(target) not in array_types:
        target = as_target(name, target)
    same_shape(name, prediction, target)
    array, other = bare(target), bare(prediction)
    if kind_of(array.dtype) in NOT_REAL:
        raise not_real(name, "target", array)
    if array.dtype == other.dtype:
        return target
    if kind_of(other.dtype) in NOT_REAL:
        raise not_real(name, "prediction", other)
    if isinstance(target, Tensor) or not is_floating(other):
        return target
    return namespace(array).astype(array, other.dtype)


def admitted(name: str, target: Array, valid: Array, missing: Array, expected: str) -> Array | None:
    """Return None where all targets are valid, or else a mask of those that are: the loss of the others is NaN.

    Args:
        name: of the loss.
        target: the target, for the message.
        valid: booleans, one for each term of the loss.
        missing: booleans of the same shape: the target holds NaN there, which is no mistake in the call.
        expected: what a target may be.

    Raises:
        ValueError: a target that is neither; on a GPU, where that would wait for the device, its loss is NaN instead.
    """
    xp = namespace(target)
    if is_asynchronous(xp):
        return valid
    if bool(xp.all(valid)):
        return None
    if not bool(xp.all(valid | missing)):
        raise ValueError(f"{name}: the target {tuple(target.shape)} must hold {expected}")
    return valid


def float_dtype(array: Array) -> Any:
    """Return the dtype in which a loss of this array is computed: its own, or float32 for integers."""
    return array.dtype if is_floating(array) else namespace(array).float32
