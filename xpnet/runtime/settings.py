"""Checks of numeric settings: of layers, losses, optimizers, schedules and augmentations."""

from __future__ import annotations

import math
from functools import lru_cache
from operator import index
from typing import Any

from xpnet.runtime.messages import quoted


@lru_cache(maxsize=64)
def _parsed(interval: str) -> tuple[bool, float, float, bool]:
    """Return whether the lower end is excluded, both ends, and whether the upper end is excluded."""
    low, high = interval[1:-1].split(",")
    return interval[0] == "(", float(low), float(high), interval[-1] == ")"


def _words(interval: str) -> str:
    """Return an interval in words, where that is shorter than its brackets."""
    without_low, low, high, _ = _parsed(interval)
    if high < math.inf:
        return f"in {interval}"
    if low == -math.inf:
        return "finite"
    return f"{'above' if without_low else 'at least'} {low:g} and finite"


def _number(value: Any) -> float:
    if isinstance(value, (str, bytes)):  # float() would read it
        raise TypeError
    return float(value)


def check_numbers(who: str, interval: str, **values: Any) -> None:
    """Raise an error unless every value is a number within an interval, such as "[0, 1)" or "(0, inf)". NaN is in none.

    Raises:
        TypeError: something that is no number.
        ValueError: a number outside the interval.
    """
    without_low, low, high, without_high = _parsed(interval)
    for name, value in values.items():
        try:
            number = _number(value)
        except (TypeError, ValueError):
            raise TypeError(f"{who}: {name} must be a number {_words(interval)}, got {quoted(value)}") from None
        inside = (low < number if without_low else low <= number) and (number < high if without_high else number <= high)
        if not inside:
            raise ValueError(f"{who}: {name} must be {_words(interval)}, got {value}")


def check_whole(who: str, least: int, **values: Any) -> None:
    """Raise an error unless every value is a whole number, at least `least`.

    Raises:
        TypeError: something that is no number.
        ValueError: a fraction, or a number below `least`.
    """
    for name, value in values.items():
        try:
            whole = _number(value).is_integer()
        except (TypeError, ValueError):
            raise TypeError(f"{who}: {name} must be at least {least} and whole, got {quoted(value)}") from None
        if not whole or value < least:
            raise ValueError(f"{who}: {name} must be at least {least} and whole, got {value}")


def whole(who: str, name: str, value: Any) -> int:
    """Return a whole number, such as a seed, as an int.

    Raises:
        TypeError: a fraction, text, or anything else that is no integer.
    """
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{who}: {name} must be a whole number, got {quoted(value)}") from None


def sizes(who: str, name: str, value: Any) -> tuple[int, ...]:
    """Return sizes, such as an input's shape, as a tuple of ints.

    Raises:
        TypeError: text, or sizes that are no integers.
    """
    try:
        return tuple(map(index, value))
    except TypeError:
        raise TypeError(f"{who}: {name} must be a tuple of whole numbers such as (28, 28, 1), got {quoted(value)}") from None


_LIBRARIES = frozenset({"numpy", "cupy", "scipy", "torch", "tensorflow", "keras", "jax", "jaxlib", "math"})


def check_function(who: str, value: Any, remedy: str) -> None:
    """Raise a TypeError for a class instead of an object, and for a function of a library that does not know Tensors.

    Args:
        who: what takes the function: "Dense: activation".
        value: what it was given; anything else passes.
        remedy: what to give instead, for the message.
    """
    if value is None or isinstance(value, str):
        return
    if isinstance(value, type):
        raise TypeError(f"{who} got the class {value.__name__}; write {value.__name__}(...), or give {remedy}")
    owner = getattr(value, "__self__", None)  # of a bound method; a class or a module for functions written in C
    places = (value, type(value), owner, type(owner))
    roots = {str(getattr(place, "__module__", None)).partition(".")[0] for place in places}
    if callable(value) and roots & _LIBRARIES:
        name = getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"{who} got {name} of {min(roots & _LIBRARIES)}, which cannot be used here; give {remedy}")
