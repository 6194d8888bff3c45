"""The registry: :func:`op` makes an operation and keeps it by name. What an operation is: :mod:`xpnet.ops.operation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

from xpnet.ops.checks import check_declaration, check_indices
from xpnet.ops.conversion import suited
from xpnet.ops.half import in_float32, in_float32_on_cpu, statistics_in_float32
from xpnet.ops.implementation import Implementation
from xpnet.ops.operation import (
    HalfPolicy,
    Op,
    Recordable,
    as_is,
    customized,
    load_accelerations,
    reference_is_forced,
    reference_only,
    register,
    registry,
)


@overload
def op(function: Callable[..., Any], /) -> Op: ...


@overload
def op(
    *,
    half: HalfPolicy = in_float32,
    broadcasts: bool = False,
    integers: Literal["promote", "keep", "refuse"] = "promote",
    linear: bool = False,
    indices: Sequence[str] = (),
    absent: bool = False,
) -> Callable[[Callable[..., Any]], Op]: ...


def op(
    function: Callable[..., Any] | None = None,
    /,
    *,
    half: HalfPolicy = in_float32,
    broadcasts: bool = False,
    integers: Literal["promote", "keep", "refuse"] = "promote",
    linear: bool = False,
    indices: Sequence[str] = (),
    absent: bool = False,
) -> Op | Callable[[Callable[..., Any]], Op]:
    """Make an operation of its reference forward function (a decorator, with or without arguments).

    Args:
        function: the forward function.
        half: how to compute 16-bit floats where no accelerated implementation takes them: `in_float32`, `as_is` (elements are
            only moved), `in_float32_on_cpu`, `statistics_in_float32`, or another function like these.
        broadcasts: the inputs broadcast, so that an error may explain the rules.
        integers: what happens to integers and booleans: "promote" computes in float32, or in the dtype of the floating inputs;
            "keep" computes with them as they are, for operations that move or compare elements; "refuse" raises a TypeError.
        linear: the operation takes complex numbers: it is linear in each input, and its backward pass is the adjoint (with
            conjugated factors). All others raise a TypeError for them.
        indices: the names of the inputs whose integers are places, labels or masks, which are left alone.
        absent: of several outputs: the backward functions of this package take None as the gradient of an output that nothing
            used; otherwise it is zeros.

    Raises:
        TypeError: an operation of this name exists, the array inputs are not annotated Array, or it is no function.
        ValueError: `integers` or `indices` that do not exist.
    """

    def make(function: Callable[..., Any]) -> Op:
        check_declaration(function, integers)
        made = Op(function, half, broadcasts, integers=integers, linear=linear, indices=indices, absent=absent, suited=suited)
        check_indices(made)
        return register(made)

    return make if function is None else make(function)


__all__ = [
    "Implementation", "Op", "Recordable", "as_is", "customized", "in_float32", "in_float32_on_cpu", "load_accelerations", "op",
    "reference_is_forced", "reference_only", "registry", "statistics_in_float32",
]  # fmt: skip
