"""16-bit floats where no kernel takes them: computed in float32, rounded once."""

from __future__ import annotations

from typing import Any

from xpnet.backend import Namespace, dtype_name, half_dtypes, is_floating, quiet
from xpnet.ops.registry import Implementation, Op, registry, set_widened


def in_float32(operation: Op) -> Implementation:
    """An operation on 16-bit floats: its inputs widened to float32, computed as float32 arrays are, and rounded once.

    So is its backward pass. A gradient that has a float32 array to go to (that of a float32 parameter whose rounded copy was
    an input) is not rounded.
    """

    def cast(xp: Namespace, array: Any, dtype: str) -> Any:
        return registry["cast"].run(xp, (array,), {"dtype": dtype}, False)[0]

    def widened(xp: Namespace, values: Any) -> Any:
        if type(values) in (tuple, list):
            return tuple(widened(xp, value) for value in values)
        return cast(xp, values, "float32") if getattr(values, "dtype", None) in half_dtypes else values

    def forward(xp: Namespace, *inputs: Any, save: bool, **settings: Any) -> Any:
        names = [dtype_name(a) if getattr(a, "dtype", None) in half_dtypes else None for a in inputs]
        wide = widened(xp, inputs)
        with quiet(xp):
            output, saved, implementation = operation.run(xp, wide, settings, save)
        # An input that was wide makes the result wide, as in any arithmetic.
        mixed = any(name is None and hasattr(a, "dtype") and is_floating(a) for name, a in zip(names, inputs))
        several = output if type(output) is tuple else (output,)
        narrow = tuple(
            y
            if mixed or not is_floating(y) or (i and operation.__name__ in _STATISTICS)
            else cast(xp, y, names[0] or "float32")
            for i, y in enumerate(several)
        )
        return narrow if type(output) is tuple else narrow[0], (saved, implementation, names)

    def backward(xp: Namespace, dy: Any, saved: Any, *, needs: tuple[bool, ...], into: Any, **settings: Any) -> Any:
        saved, implementation, names = saved
        places = tuple(p if p is not None and dtype_name(p) == "float32" else None for p in into)
        with quiet(xp):
            gradients = operation.gradients(implementation, xp, widened(xp, dy), saved, settings, needs, places)
        return [
            g if g is None or name is None or (place is not None and g is place) else cast(xp, g, name)
            for g, name, place in zip(gradients, names, places)
        ]

    made = Implementation(forward)
    if operation.differentiable:
        made.backward(backward)
    return made


_STATISTICS = frozenset({"batch_norm_with_statistics"})  # all outputs but the first stay float32

set_widened(in_float32)
