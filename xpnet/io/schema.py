"""What a JSON document of ours must look like: small checks that are put together, for files that may be damaged or hostile.

A check is a function (value, where) that returns None or raises a :class:`MismatchError` that names the place:

    check = fields({"epoch": integer(), "name": text}, optional={"history": dict_of(list_of(maybe(number)))})
    check(document, "the record")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from xpnet.runtime.messages import quoted

Check = Callable[[Any, str], None]
LARGEST = 2**62
"""Of an integer in a document: what arithmetic and the libraries below can take."""
DEEPEST = 20


class MismatchError(ValueError):
    """A part of a document is not what it must be."""

    def __init__(self, where: str, value: Any, expected: str) -> None:
        super().__init__(f"{where} is {quoted(value)}, expected {expected}")


def text(value: Any, where: str) -> None:
    """Check for a string."""
    if not isinstance(value, str):
        raise MismatchError(where, value, "text")


def flag(value: Any, where: str) -> None:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise MismatchError(where, value, "true or false")


def number(value: Any, where: str) -> None:
    """Check for a number; one of JSON, so that it may be NaN or infinite where the file was written that way."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (isinstance(value, int) and abs(value) > LARGEST):
        raise MismatchError(where, value, "a number")


def finite(value: Any, where: str) -> None:
    """Check for a finite number."""
    number(value, where)
    if not math.isfinite(value):
        raise MismatchError(where, value, "a finite number")


def integer(least: int = 0, most: int = LARGEST) -> Check:
    """Return a check for an integer in a range."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise MismatchError(where, value, f"an integer from {least}" + (f" to {most}" if most < LARGEST else ""))

    return check


def one_of(*values: str) -> Check:
    """Return a check for one of a few words."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in values:
            raise MismatchError(where, value, f"one of {', '.join(values)}")

    return check


def maybe(check: Check) -> Check:
    """Return a check that lets None pass."""
    return lambda value, where: None if value is None else check(value, where)


def list_of(check: Check, length: int | None = None, *, least: int = 0) -> Check:
    """Return a check for a list whose elements pass one, of a given length or any of at least `least`."""

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) < least or (length is not None and len(value) != length):
            raise MismatchError(
                where, value, f"a list{f' of {length}' if length is not None else ' with elements' if least else ''}"
            )
        for i, part in enumerate(value):
            check(part, f"{where}[{i}]")

    return check_list


def dict_of(check: Check) -> Check:
    """Return a check for an object whose values pass one."""

    def check_dict(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise MismatchError(where, value, "an object")
        for name, part in value.items():
            check(part, f"{where}.{quoted(name, 40)[1:-1]}")

    return check_dict


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Return a check for an object with these members; others are not looked at."""
    other = optional or {}

    def check_fields(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise MismatchError(where, value, "an object")
        missing = [name for name in required if name not in value]
        if missing:
            raise MismatchError(where, value, f"an object with {', '.join(missing)}")
        for name, check in {**required, **other}.items():
            if name in value:
                check(value[name], f"{where}.{name}")

    return check_fields


def free(value: Any, where: str, depth: int = 0) -> None:
    """Check a part that may be anything: that it is not nested more than `DEEPEST` deep, and that its numbers are sane."""
    if depth > DEEPEST:
        raise MismatchError(where, value, f"nothing nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for part in value.values():
            free(part, where, depth + 1)
    elif isinstance(value, list):
        for part in value:
            free(part, where, depth + 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        number(value, where)
