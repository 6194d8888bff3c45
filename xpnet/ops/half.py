"""16-bit floats: the cast, and how an operation is computed on them where no kernel takes them (``@op(half=...)``)."""

from __future__ import annotations

import functools
from typing import Any

from xpnet.backend import Array, Namespace, dtype_name, dtype_named, half_dtypes, is_floating, kind_of, name_of, quiet
from xpnet.ops.implementation import Implementation
from xpnet.ops.operation import Op, register


@register
@Op
def cast(xp: Namespace, x: Array, dtype: str) -> Any:
    """Convert x to another floating dtype, by its name: "float32", "float16", "bfloat16", ...; the gradient is cast back.

    What is too large for the dtype becomes infinite.

    Raises:
        ValueError: no such dtype.
        TypeError: x is complex, whose imaginary part would be lost, or the dtype is.
        ImportError: "bfloat16" without the package ml_dtypes.
    """
    target = dtype_named(xp, dtype)
    if "complex" in (kind_of(x.dtype), kind_of(target)):
        raise TypeError(f"cast: from {dtype_name(x)} to {dtype}, expected real numbers; use x.real and x.imag")
    with quiet(xp):
        return xp.astype(x, target), dtype_name(x)


@cast.backward
def _(xp: Namespace, dy: Array, before: Any, *, dtype: str) -> Any:
    with quiet(xp):
        return xp.astype(dy, dtype_named(xp, before))


def in_float32(operation: Op, xp: Namespace, inputs: tuple[Any, ...]) -> Implementation:
    """Return an implementation that widens the inputs, computes in float32 and rounds the outputs once, backward too."""
    return _widened(operation, None)


def statistics_in_float32(operation: Op, xp: Namespace, inputs: tuple[Any, ...]) -> Implementation:
    """Return that of `in_float32`, with all outputs but the first left in float32."""
    return _widened(operation, 1)


def in_float32_on_cpu(operation: Op, xp: Namespace, inputs: tuple[Any, ...]) -> Implementation:
    """Return the reference for CuPy arrays of one dtype, as a single rounding needs no widening; else that of `in_float32`.

    NumPy computes with 16-bit floats one by one in software; through float32 is several times as fast there.
    """
    dtype = getattr(inputs[0], "dtype", None)
    if name_of(xp) == "cupy" and dtype is not None and all(getattr(a, "dtype", None) == dtype for a in inputs):
        return operation.reference
    return _widened(operation, None)


@functools.cache
def _widened(operation: Op, rounded: int | None) -> Implementation:
    """Return an implementation that computes an operation in float32 and rounds its first `rounded` outputs, None for all.

    A gradient that is written to a float32 array (of a float32 parameter whose rounded copy was an input) is not rounded.
    """

    def convert(xp: Namespace, array: Any, dtype: str) -> Any:
        return cast.run(xp, (array,), {"dtype": dtype}, False)[0]

    def widen(xp: Namespace, values: Any) -> Any:
        if type(values) in (tuple, list):
            return tuple(widen(xp, value) for value in values)
        return convert(xp, values, "float32") if getattr(values, "dtype", None) in half_dtypes else values

    def forward(xp: Namespace, *inputs: Any, save: bool, **settings: Any) -> Any:
        names = [dtype_name(a) if getattr(a, "dtype", None) in half_dtypes else None for a in inputs]
        with quiet(xp):
            output, saved, implementation = operation.run(xp, widen(xp, inputs), settings, save)
        # An input that was wide makes the result wide, as in any arithmetic.
        mixed = any(name is None and hasattr(a, "dtype") and is_floating(a) for name, a in zip(names, inputs))
        outputs = output if type(output) is tuple else (output,)
        if not mixed:
            name = next((name for name in names if name is not None), "float32")
            narrow = [convert(xp, y, name) if is_floating(y) else y for y in outputs[:rounded]]
            outputs = (*narrow, *outputs[len(narrow) :])
        return outputs if type(output) is tuple else outputs[0], (saved, implementation, names)

    def backward(xp: Namespace, dy: Any, saved: Any, *, needs: tuple[bool, ...], into: Any, **settings: Any) -> Any:
        saved, implementation, names = saved
        places = tuple(p if p is not None and dtype_name(p) == "float32" else None for p in into)
        with quiet(xp):
            gradients = operation.gradients(implementation, xp, widen(xp, dy), saved, settings, needs, places)
        return [
            g if g is None or name is None or (place is not None and g is place) else convert(xp, g, name)
            for g, name, place in zip(gradients, names, places)
        ]

    made = Implementation(forward)
    if operation.differentiable:
        made.backward(backward)
    return made
