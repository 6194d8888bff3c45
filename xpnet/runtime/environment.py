"""Settings from the environment: every variable of this package, what it may hold, and the one function that reads them.

What a variable holds and means nothing is a ValueError: when xpnet is imported, and where it is read later. Without a value, or
with an empty one, a variable is not set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from xpnet.runtime.messages import quoted

_FLAGS = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}


class Variable(NamedTuple):
    """What a variable may hold: how it is read, in words, and its value when it is not set."""

    read: Callable[[str], Any]  # raises a KeyError or a ValueError
    expected: str
    unset: Any


def _flag(unset: bool) -> Variable:
    return Variable(lambda value: _FLAGS[value.lower()], "1, true, yes or on; or 0, false, no or off", unset)


def _count() -> Variable:
    def read(value: str) -> int:
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            raise ValueError
        return int(value)

    return Variable(read, "a whole number of at least 1", None)


def _choice(*names: str) -> Variable:
    return Variable({name: name for name in names}.__getitem__, f"one of {', '.join(names)}", names[0])


def _text(expected: str) -> Variable:
    return Variable(str, expected, None)


VARIABLES = {
    "XPNET_CACHE": _text("a folder"),
    "XPNET_CONVOLUTION": _choice("auto", "im2col", "implicit", "cudnn"),
    "XPNET_DATA": _text("a folder"),
    "XPNET_DATA_MIRROR": _text("the address of a mirror"),
    "XPNET_DETERMINISTIC": _flag(False),
    "XPNET_KEEP_MEMORY": _flag(True),
    "XPNET_NUM_THREADS": _count(),
    "XPNET_OFFLINE": _flag(False),
    "XPNET_REFERENCE": _flag(False),
    "XPNET_WINOGRAD": _flag(True),
}


def setting(name: str) -> Any:
    """Return the value of one of VARIABLES.

    Raises:
        ValueError: it holds something else than is expected.
    """
    variable, value = VARIABLES[name], os.environ.get(name, "").strip()
    if not value:
        return variable.unset
    try:
        return variable.read(value)
    except (KeyError, ValueError):
        raise ValueError(
            f"the environment variable {name} must be {variable.expected}, got {quoted(value)}: change it, or unset it"
        ) from None


for _name in VARIABLES:  # at import: an error in the middle of a run comes too late
    setting(_name)
