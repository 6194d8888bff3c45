"""One way to compute an operation: the reference, or an acceleration for the arrays of one library."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from xpnet.backend import Namespace


class Implementation:
    """One way to compute an operation: forward, backward, and which of the optional keywords they take."""

    __slots__ = (
        "adds", "backward_function", "declared_footprint", "fallback", "forward", "ours", "owns_result", "reference",
        "takes_half", "wants_into", "wants_needs", "wants_save",
    )  # fmt: skip

    def __init__(self, forward: Callable[..., Any], reference: Implementation | None = None) -> None:
        self.forward = forward
        self.reference = reference
        self.declared_footprint: Implementation | None = None
        self.wants_save = "save" in inspect.signature(forward).parameters
        self.fallback: Implementation | None = None  # tried where this one returns NotImplemented; None: the reference
        module = str(getattr(forward, "__globals__", {}).get("__name__", ""))
        self.ours = module.startswith("xpnet.")  # whether it is part of this package
        self.takes_half = False  # whether it takes 16-bit floats, computes in float32 and rounds once
        # An accelerated forward without a backward must save what the reference's backward expects.
        self.backward_function: Callable[..., Any] | None = reference.backward_function if reference else None
        self.wants_needs: bool = reference.wants_needs if reference else False
        self.wants_into: bool = reference.wants_into if reference else False
        self.owns_result = self.adds = False

    def compute(self, xp: Namespace, inputs: tuple[Any, ...], settings: dict[str, Any], save: bool) -> Any:
        """Run the forward function."""
        if self.wants_save:
            return self.forward(xp, *inputs, save=save, **settings)
        return self.forward(xp, *inputs, **settings)

    def backward(
        self, function: Callable[..., Any] | None = None, *, owns_result: bool = False, adds: bool = False
    ) -> Callable[..., Any]:
        """Register the backward function that belongs to this forward (a decorator).

        Args:
            function: the backward function.
            owns_result: its gradients are new arrays without other references, so that a leaf may keep them without a copy.
            adds: of several outputs: it takes the gradient of an output that two others have used as a list of the two parts.
        """
        if function is None:
            return functools.partial(self.backward, owns_result=owns_result, adds=adds)
        self.owns_result, self.adds = owns_result, adds
        self.backward_function = function
        parameters = inspect.signature(function).parameters
        self.wants_needs = "needs" in parameters
        self.wants_into = "into" in parameters
        return function

    def footprint(self, function: Callable[..., Any]) -> Implementation:
        """Declare what this implementation allocates (a decorator): the same function on fake arrays, without computing.

        It creates the arrays that the implementation creates, in the same order, and returns what that returns; workspace is
        counted with ``xp.workspace`` and ``xp.temporary``. Its `backward` declares that of the backward function. Declare
        ``footprint(op.reference.forward)`` if the reference allocates the same.
        """
        self.declared_footprint = Implementation(function, self.reference)
        return self.declared_footprint
