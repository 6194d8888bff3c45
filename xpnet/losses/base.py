"""Helpers shared by all losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from xpnet import ops
from xpnet.autograd.tensor import Tensor, bare
from xpnet.backend import Array, dtype_name, is_floating, kind_of, namespace
from xpnet.ops.shapes import ShapeError
from xpnet.ops.softmax import check_reduction

Loss = Callable[..., Any]


def reduce(name: str, terms: Any, reduction: str) -> Any:
    """Sum or average `terms`, or return them as they are. The mean of no terms is 0, for empty batches."""
    check_reduction(name, reduction)
    if reduction == "none":
        return terms
    return ops.mean(terms) if reduction == "mean" and math.prod(terms.shape) else ops.sum(terms)


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


def matching(name: str, prediction: Any, target: Any) -> Any:
    """Return the target in the prediction's dtype (an integer target must not widen the loss), after checking its shape.

    That of an integer prediction is left as it is: the loss is then computed in floats, which hold both.
    """
    same_shape(name, prediction, target)
    array, other = bare(target), bare(prediction)
    if kind_of(array.dtype) == "complex":
        raise TypeError(f"{name}: the target has dtype {dtype_name(array)}, expected real numbers; use target.real")
    if array.dtype == other.dtype or isinstance(target, Tensor) or not is_floating(other):
        return target
    return namespace(array).astype(array, other.dtype)


def float_dtype(array: Array) -> Any:
    """Return the dtype in which a loss of this array is computed: its own, or float32 for integers."""
    return array.dtype if is_floating(array) else namespace(array).float32
