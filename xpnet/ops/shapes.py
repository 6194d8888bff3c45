"""Checks of arguments, and small array helpers that operations share."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from xpnet.backend import Array, Namespace, dtype_name, half_dtypes, is_floating, kind_of
from xpnet.ops.sums import total


class ShapeError(ValueError):
    """An operation or layer got an array of the wrong shape or dtype; the message says what is expected."""


def expect_rank(operation: str, name: str, array: Array, letters: str) -> None:
    """Raise a ShapeError unless `array` has one axis for each of `letters` ("N H W C")."""
    expect_axes(operation, name, array.shape, letters)


def expect_axes(operation: str, name: str, shape: tuple[int, ...], letters: str) -> None:
    """Raise a ShapeError unless `shape` has one size for each of `letters` ("N H W C")."""
    axes = letters.split()
    if len(shape) != len(axes):
        raise ShapeError(
            f"{operation}: {name} has shape {tuple(shape)}, expected {len(axes)} axes ({', '.join(axes)}); "
            f"add or merge axes with reshape"
        )


def expect_real(operation: str, **arrays: Array) -> None:
    """Raise a TypeError unless all arrays, given by name, hold real numbers, which have an order."""
    for name, array in arrays.items():
        if kind_of(array.dtype) in ("complex", "other"):
            raise TypeError(f"{operation}: the {name} has dtype {dtype_name(array)}, expected real numbers")


def is_whole(value: Any) -> bool:
    """Return whether `value` is an integer of Python or of an array library (sizes often come from arrays)."""
    return isinstance(value, int) or (hasattr(value, "__index__") and not hasattr(value, "__len__"))


def normalize_axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return `axis` as a tuple of non-negative axes; None means all."""
    if axis is None:
        return tuple(range(ndim))
    given: Any = axis
    axes = (int(given),) if is_whole(given) else tuple(map(index, given))
    for a in axes:
        if not -ndim <= a < ndim:
            raise ShapeError(f"axis {a} does not exist in an array of {ndim} axes")
    return tuple(a % ndim for a in axes)


def unbroadcast(xp: Namespace, dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum dy over the axes along which an input of `shape` was broadcast."""
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    repeated = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 and dy.shape[extra + i] != 1)
    if repeated:
        if dy.dtype in half_dtypes:
            dy = xp.astype(total(xp, dy, repeated, keepdims=True, dtype=xp.float32), dy.dtype)
        else:
            dy = total(xp, dy, repeated, keepdims=True)
    summed: Array = xp.reshape(dy, shape)
    return summed


def conjugate(xp: Namespace, x: Array) -> Array:
    """Return the complex conjugate of complex numbers, real ones as they are."""
    if kind_of(x.dtype) != "complex":
        return x
    conjugated: Array = xp.conj(x)
    return conjugated


def zeros_like_shape(xp: Namespace, like: Array, shape: tuple[int, ...]) -> Array:
    """Return zeros of `shape`, with the dtype and on the device of `like`."""
    zeros: Array = xp.zeros(shape, dtype=like.dtype, device=like.device)
    return zeros


def is_float(xp: Namespace, array: Array) -> bool:
    """Return whether an array holds real floating-point numbers."""
    return is_floating(array)
