"""Dtypes other than one of float32 and float64: what an operation does with integers, complex numbers and mixed inputs.

An operation declares it once, ``@op(integers=..., linear=..., indices=...)``, and what is decided here holds for all of them:

* integers and booleans: ``"promote"`` (the default) computes in float32, or in the dtype of the floating inputs, so that
  nothing wraps around; ``"keep"`` is for operations that only move or compare elements, and returns integers; ``"refuse"`` is a
  TypeError;
* complex numbers are taken by the operations that are `linear` alone. Their gradients follow the conjugate convention: the
  backward pass is the adjoint, <A x, y> = <x, A^H y>, and that of a real input is the real part;
* floats of two widths are computed in the wider one, and each gradient has the dtype of its input. Integers and booleans do not
  widen 16-bit floats. Numbers, NumPy's scalars among them, widen nothing; an array without axes is an array, whose dtype
  counts, and a number only where it is a setting;
* bytes in the other order are put right first.

`indices` names the inputs whose integers are places, labels or masks: they are left alone.
"""

from __future__ import annotations

import functools
from typing import Any

from xpnet.backend import Array, Namespace, dtype_name, kind_of
from xpnet.ops.implementation import Implementation
from xpnet.ops.operation import Op
from xpnet.runtime.dtypes import native

KEEP = "keep"
REFUSE = "refuse"


def suited(operation: Op, xp: Namespace, inputs: tuple[Any, ...]) -> Implementation:
    """Return the implementation for these inputs: the reference, that for 16-bit floats, or one that converts them first.

    Raises:
        TypeError: the operation does not take such numbers.
    """
    common = _common_dtype(inputs)
    if common is not None and native(common):
        kind = kind_of(common)
        if kind == "float":
            return operation.reference
        if kind == "half":
            return operation.half(operation, xp, inputs)
    targets = _targets(operation, xp, inputs)
    if targets is not None:
        return _converted(operation)
    if any(getattr(a, "dtype", None) is not None and kind_of(a.dtype) == "half" for a in inputs):
        return operation.half(operation, xp, inputs)
    return operation.reference


def _common_dtype(inputs: tuple[Any, ...]) -> Any:
    """Return the dtype of all arrays; None if they differ, or a complex number is among the inputs."""
    common = None
    for value in inputs:
        dtype = getattr(value, "dtype", None)
        if dtype is None:
            if type(value) is complex:
                return None
        elif common is None:
            common = dtype
        elif dtype is not common and dtype != common:
            return None
    return common


def _name(operation: Op, number: int) -> str:
    return operation.input_names[0 if operation.variadic else number]


def _targets(operation: Op, xp: Namespace, inputs: tuple[Any, ...]) -> list[Any] | None:
    """Return the dtype that each input is converted to, None where it stays; None if all stay.

    Raises:
        TypeError: as `suited`.
    """
    kinds: list[str | None] = []  # of the arrays that are computed with
    numbers = []
    for number, value in enumerate(inputs):
        counts = value is not None and _name(operation, number) not in operation.indices
        is_array = counts and hasattr(value, "dtype")
        kinds.append(kind_of(value.dtype) if is_array else None)
        if counts and not is_array:
            numbers.append(value)
    present = {kind for kind in kinds if kind is not None}
    if "complex" in present or any(type(n) is complex for n in numbers):
        _check_complex(operation, inputs)
        common = _complex_dtype(xp, inputs, kinds)
    elif operation.integers == REFUSE and present & {"integer", "boolean"}:
        place = next(i for i, kind in enumerate(kinds) if kind in ("integer", "boolean"))
        raise TypeError(
            f"{operation.__name__}: {_name(operation, place)} has dtype {dtype_name(inputs[place])}, expected floating point; "
            f"convert it to float32"
        )
    elif "other" in present:
        if operation.integers != KEEP:
            place = kinds.index("other")
            raise TypeError(
                f"{operation.__name__}: {_name(operation, place)} has dtype {dtype_name(inputs[place])}, expected numbers; "
                f"convert it, for example with x.astype(float32)"
            )
        return None
    elif (present & {"integer", "boolean"} and not _stays(operation, xp, inputs, kinds, numbers)) or (
        "float" in present and len({inputs[i].dtype for i, kind in enumerate(kinds) if kind == "float"}) > 1
    ):
        common = xp.float64 if _has_float64(inputs, kinds) else xp.float32
        if "float" not in present and "half" in present:
            halves = {inputs[i].dtype for i, kind in enumerate(kinds) if kind == "half"}
            common = halves.pop() if len(halves) == 1 else common  # integers do not widen the result
    else:
        common = None
    targets: list[Any] = []
    for value, kind in zip(inputs, kinds):
        target = common if kind not in (None, "half") else None
        if target is None and hasattr(value, "dtype") and not native(value.dtype):
            target = value.dtype.newbyteorder("=")
        targets.append(None if target is None or value.dtype == target else target)
    return targets if any(target is not None for target in targets) else None


def _has_float64(inputs: tuple[Any, ...], kinds: list[str | None]) -> bool:
    return any(kind == "float" and dtype_name(value).endswith(("64", "f8", "128")) for value, kind in zip(inputs, kinds))


def _check_complex(operation: Op, inputs: tuple[Any, ...]) -> None:
    if not operation.linear:
        shown = next(a for a in inputs if type(a) is complex or (hasattr(a, "dtype") and kind_of(a.dtype) == "complex"))
        what = f"of dtype {dtype_name(shown)}" if hasattr(shown, "dtype") else f"{shown}"
        raise TypeError(
            f"{operation.__name__}: got complex numbers ({what}), which only linear operations take: convolutions, dense and "
            f"matmul without an activation, sums, and those that move elements; compute with x.real and x.imag, or with abs(x)"
        )


def _complex_dtype(xp: Namespace, inputs: tuple[Any, ...], kinds: list[str | None]) -> Any:
    wide = _has_float64(inputs, kinds) or any(
        kind == "complex" and not dtype_name(value).endswith(("x64", "c8")) for value, kind in zip(inputs, kinds)
    )
    return xp.complex128 if wide else xp.complex64


def _stays(operation: Op, xp: Namespace, inputs: tuple[Any, ...], kinds: list[str | None], numbers: list[Any]) -> bool:
    """Return whether integers and booleans are computed with as they are: there is nothing else, and all numbers fit."""
    if operation.integers != KEEP or not set(kinds) <= {"integer", "boolean", None}:
        return False
    dtypes = [value.dtype for value, kind in zip(inputs, kinds) if kind is not None]
    if any(dtype != dtypes[0] for dtype in dtypes):
        if {"integer", "boolean"} <= set(kinds):
            return False
        dtypes = [xp.result_type(*dtypes)] if not _mixes_uint64(inputs, kinds) else []
    if not dtypes:
        return False
    if "boolean" in kinds:
        return all(type(n) is bool for n in numbers)
    limits = xp.iinfo(dtypes[0])
    return all(type(n) in (bool, int) and limits.min <= n <= limits.max for n in numbers)


def _mixes_uint64(inputs: tuple[Any, ...], kinds: list[str | None]) -> bool:
    """Return whether uint64 meets signed integers, for which there is no common integer."""
    names = {dtype_name(value) for value, kind in zip(inputs, kinds) if kind == "integer"}
    return "uint64" in names and any(name.startswith("int") for name in names)


@functools.cache
def _converted(operation: Op) -> Implementation:
    """Return an implementation that converts the inputs and runs the operation on them; each gradient is converted back."""

    def forward(xp: Namespace, *inputs: Any, save: bool, **settings: Any) -> Any:
        targets = _targets(operation, xp, inputs) or (None,) * len(inputs)
        given = tuple(a if target is None else xp.astype(a, target) for a, target in zip(inputs, targets))
        output, saved, implementation = operation.run(xp, given, settings, save)
        dtypes = [a.dtype if target is not None else None for a, target in zip(inputs, targets)]
        return output, (saved, implementation, dtypes)

    def backward(xp: Namespace, dy: Any, saved: Any, *, needs: tuple[bool, ...], into: Any, **settings: Any) -> Any:
        saved, implementation, dtypes = saved
        places = tuple(place if dtype is None else None for place, dtype in zip(into, dtypes))
        gradients = operation.gradients(implementation, xp, dy, saved, settings, needs, places)
        return [g if dtype is None or g is None else gradient_as(xp, g, dtype) for g, dtype in zip(gradients, dtypes)]

    made = Implementation(forward)
    if operation.differentiable:
        made.backward(backward)
    return made


def gradient_as(xp: Namespace, gradient: Array, dtype: Any) -> Array:
    """Return a gradient in the dtype of what it belongs to, in native byte order; that of something real is the real part.

    Integers have no gradient of their own dtype: theirs is left as it is.
    """
    kind = kind_of(dtype)
    if kind in ("integer", "boolean", "other"):
        return gradient
    if kind != "complex" and kind_of(gradient.dtype) == "complex":
        gradient = xp.real(gradient)
    converted: Array = xp.astype(gradient, dtype if native(dtype) else dtype.newbyteorder("="), copy=False)
    return converted
