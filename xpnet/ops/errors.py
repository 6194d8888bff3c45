"""Errors of array libraries within an operation, explained: its name, what came, and what to do."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from xpnet.backend import Namespace, dtype_name, kind_of, name_of, namespace, raise_explained
from xpnet.ops.shapes import ShapeError, is_whole

NAMED = re.compile(r"\w+: ")  # a message that begins with an operation's name


def explain_inputs(operation: Any, xp: Namespace, error: Exception, inputs: tuple[Any, ...], settings: dict[str, Any]) -> None:
    """Raise an error that names the operation, if an array library refused shapes, an axis or a dtype."""
    if NAMED.match(str(error)):
        return
    if isinstance(error, RuntimeError) and name_of(xp) == "cupy":
        return  # the device's: a launch that failed, or a call that is not possible while a CUDA graph is captured
    name = operation.__name__
    arrays = [a for a in inputs if hasattr(a, "shape")]
    shapes = [tuple(a.shape) for a in arrays]
    if operation.broadcasts and not _broadcast(shapes):
        raise ShapeError(
            f"{name}: shapes {' and '.join(map(str, shapes))} do not fit together: compared from the last axis on, sizes must "
            f"be equal or 1; use reshape, or x[:, None] to add an axis"
        ) from None
    axis = settings.get("axis")
    if isinstance(axis, int) and shapes and not -len(shapes[0]) <= axis < len(shapes[0]):
        raise ShapeError(f"{name}: axis {axis} does not exist in an array of shape {shapes[0]}") from None
    if "axis" in settings and not _is_axis(axis, _several(operation)):
        expected = "an int, several of them or None" if _several(operation) else "an int"
        raise TypeError(f"{name}: axis must be {expected}, got {axis!r}") from None
    constants = [value for value in settings.values() if hasattr(value, "ndim") and not isinstance(value, type)]
    namespace(*inputs, *constants)  # raises for two libraries
    kinds = [dtype_name(a) for a in arrays]
    if {"float16", "bfloat16"} <= set(kinds):
        raise TypeError(f"{name}: got arrays of float16 and of bfloat16; convert one of them, with xpnet.ops.cast") from error
    other = next((kind for array, kind in zip(arrays, kinds) if kind_of(array.dtype) == "other"), None)
    if other is not None:
        raise TypeError(f"{name}: got an array of dtype {other}, expected numbers; convert it, as with x.astype") from error
    if not (operation.integers == "keep" and operation.linear) and kinds and "float" not in kinds[0]:
        raise TypeError(f"{name}: x has dtype {kinds[0]}, expected floating point; convert it to float32 ({error})") from error


def _several(operation: Any) -> bool:
    """Return whether an operation takes several axes."""
    annotation = str(operation.__signature__.parameters["axis"].annotation)
    return "Axes" in annotation or "Sequence" in annotation


def _is_axis(axis: Any, several: bool) -> bool:
    if several and not is_whole(axis):
        return axis is None or (isinstance(axis, (list, tuple)) and all(map(is_whole, axis)))
    return is_whole(axis)


def explain_library(operation: Any, xp: Namespace, error: Exception, inputs: tuple[Any, ...]) -> None:
    """Raise an error that names the library, if its arrays lack something of the standard, as dask's do."""
    if any(hasattr(a, "shape") and not hasattr(a, "device") for a in inputs):
        raise TypeError(
            f"{operation.__name__}: arrays of {name_of(xp)} lack something that it needs ({error}); convert them first, with "
            f"numpy.asarray(x) or, from dask, with x.compute()"
        ) from error


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> bool:
    return all(len(set(sizes) - {1}) < 2 for sizes in itertools.zip_longest(*(s[::-1] for s in shapes), fillvalue=1))


def explain_memory(xp: Namespace, error: MemoryError, doing: str, arrays: Any) -> None:
    """Raise an error that says how much was requested and what would help, if a GPU is out of memory."""
    if name_of(xp) == "cupy":
        raise_explained(error, doing, arrays)
