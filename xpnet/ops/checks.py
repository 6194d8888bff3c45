"""Checks of operations from outside this package, and of settings that are numbers.

What a user's forward and backward functions return is checked at every call: a mistake there is a wrong gradient, or an error
somewhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from xpnet.backend import plain_settings
from xpnet.ops.shapes import ShapeError

INTEGERS = ("promote", "keep", "refuse")


def check_declaration(function: Any, integers: str) -> None:
    """Raise an error unless `function` may become an operation."""
    if not inspect.isfunction(function):
        raise TypeError(
            f"op: got {function!r}, expected a function such as def leaky_relu(xp, x: Array, *, slope: float = 0.01)"
        )
    if integers not in INTEGERS:
        raise ValueError(f"{function.__name__}: integers={integers!r}, expected one of {', '.join(map(repr, INTEGERS))}")


def check_indices(operation: Any) -> None:
    """Raise a ValueError if `indices` names no input of an operation."""
    unknown = sorted(operation.indices - set(operation.input_names))
    if unknown:
        raise ValueError(
            f"{operation.__name__}: indices names {unknown[0]!r}, which is no array input; those are "
            f"{', '.join(operation.input_names)}"
        )


def check_backward(operation: Any, function: Callable[..., Any]) -> None:
    """Raise a TypeError unless a backward function takes the settings of the forward function."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    missing = [name for name in operation.setting_names if name not in parameters]
    if missing:
        raise TypeError(
            f"{operation.__name__}: its backward function does not take the setting {missing[0]!r}; it gets all settings of "
            f"the forward function by keyword: def _(xp, dy, saved, *, {', '.join(operation.setting_names)})"
        )


def plain_numbers(operation: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings with NumPy's scalars and arrays without axes as Python numbers, which do not widen what they meet.

    Raises:
        TypeError: an array, or for an operation that is not linear a complex number, where a number is declared.
    """
    plain = plain_settings(settings)
    for name in operation.declared_numbers:
        value = plain[name]
        if hasattr(value, "shape"):
            raise TypeError(f"{operation.__name__}: {name} must be a number, got an array of shape {tuple(value.shape)}")
        if type(value) is complex and not operation.linear:
            raise TypeError(f"{operation.__name__}: {name} must be a real number, got {value}")
    return plain


def checked_result(operation: Any, result: Any, inputs: Sequence[Any]) -> tuple[Any, Any]:
    """Return the output of a forward function from outside, and what it saved together with the shapes of its inputs.

    Raises:
        TypeError: it returned something other than its output and what backward needs.
    """
    name = operation.__name__
    pair = type(result) is tuple and len(result) == 2
    outputs = result[0] if pair and type(result[0]) is tuple else result[:1] if pair else ()
    if not outputs or not all(hasattr(y, "dtype") or isinstance(y, (int, float, complex)) for y in outputs):
        got = f"a tuple of {len(result)}" if type(result) is tuple and not pair else f"{_kind(outputs if pair else result)}"
        raise TypeError(
            f"{name}: the forward function returned {got}, expected two values: the output, an array or a tuple of arrays, "
            f"and what backward needs, or None; for example return y, x"
        )
    return result[0], (result[1], [getattr(x, "shape", None) for x in inputs])


def _kind(value: Any) -> str:
    if type(value) is tuple:
        return f"({', '.join(_kind(v) for v in value)}) as its output"
    return type(value).__name__


def check_gradients(operation: Any, gradients: Sequence[Any], shapes: Sequence[Any], needs: Sequence[bool]) -> None:
    """Raise an error unless a backward function from outside gave one gradient of the right shape for each array input."""
    name = operation.__name__
    names = [operation.input_names[0 if operation.variadic else i] for i in range(len(needs))]
    if len(gradients) != len(needs):
        raise TypeError(
            f"{name}: the backward function gave {len(gradients)} gradients, expected {len(needs)}, one for each array input "
            f"({', '.join(names)}), None where there is none"
        )
    for gradient, shape, need, which in zip(gradients, shapes, needs, names):
        if not need:
            continue
        if gradient is None or (not hasattr(gradient, "shape") and shape != ()):
            raise TypeError(f"{name}: the backward function gave {gradient!r:.60} for {which}, expected its gradient, an array")
        if hasattr(gradient, "shape") and tuple(gradient.shape) != tuple(shape):
            raise ShapeError(
                f"{name}: the backward function gave a gradient of shape {tuple(gradient.shape)} for {which}, which has shape "
                f"{tuple(shape)}; sum it over the axes that were broadcast"
            )
