"""The gradient of a loss with respect to itself, 1: where it is a known constant, nothing has to be multiplied by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet.backend import Array, name_of, namespace

known_ones: dict[tuple[type, Any], Array] = {}
"""NumPy's constants by type and dtype: those of two libraries cannot always be compared."""

_makers: dict[str, Callable[[Any], Array | None]] = {}
_known: set[int] = set()  # the ids of constants on a device, which are never freed


def constants_of(library: str) -> Callable[[Callable[[Any], Array | None]], Callable[[Any], Array | None]]:
    """Register what makes the constants for arrays of a library (a decorator).

    It is given a loss without axes and returns 1 in its dtype and on its device, an array that is kept for good and that
    nobody writes to; or None, where none can be made now.
    """

    def register(function: Callable[[Any], Array | None]) -> Callable[[Any], Array | None]:
        _makers[library] = function
        return function

    return register


def root_gradient(loss: Array) -> Array:
    """Return ones like a loss: for one without axes a constant, where its library has any."""
    xp = namespace(loss)
    make = None if loss.ndim else _makers.get(name_of(xp))
    one = None if make is None else make(loss)
    if one is not None:
        _known.add(id(one))
        return one
    made: Any = xp.ones_like(loss)
    if xp.__name__ == "numpy" and not loss.ndim:
        made.flags.writeable = False
        known_ones[type(loss), loss.dtype] = made
    return made  # type: ignore[no-any-return]


def is_root_gradient(gradient: Array) -> bool:
    """Return whether a gradient is a constant of a device: exactly 1, which is known without reading it."""
    return id(gradient) in _known
