"""Functions of native arrays without a gradient that have faster versions for the arrays of some libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet.backend import Array, Namespace, name_of, namespace, namespaces
from xpnet.ops.registry import load_accelerations, reference_is_forced


class Function:
    """A function of arrays: ``function(x, y, **settings)`` calls the version for their library with the namespace first.

    As with operations, ``@function.accelerate("cupy")`` registers a faster version for the arrays of one library, and
    ``XPNET_REFERENCE=1`` turns all of them off.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.reference = function
        self.accelerated: dict[str, Callable[..., Any]] = {}
        self._chosen: dict[Namespace, Callable[..., Any]] = {}

    def accelerate(self, library: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a faster version for the arrays of one library (a decorator).

        Where it returns NotImplemented the reference runs.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self.accelerated[library] = function
            self._chosen.clear()
            return function

        return register

    def version(self, xp: Namespace) -> Callable[..., Any]:
        """Return the version that is called for arrays of a namespace."""
        if reference_is_forced():
            return self.reference
        chosen = self._chosen.get(xp)
        if chosen is None:
            library = name_of(xp)
            load_accelerations(library)
            chosen = self._chosen[xp] = self.accelerated.get(library, self.reference)
        return chosen

    def __call__(self, first: Array, *arrays: Any, **settings: Any) -> Any:
        """Call the function; the first array decides about the library."""
        xp = namespaces.get((type(first),)) or namespace(first)
        result = self.version(xp)(xp, first, *arrays, **settings)
        return self.reference(xp, first, *arrays, **settings) if result is NotImplemented else result
