"""Running a whole model: layer by layer, or at once by what a device has for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xpnet.ops.registry import Op

if TYPE_CHECKING:
    from xpnet.layers.module import Module

_NOT_COMPUTING = frozenset({"__init__", "__repr__", "specs", "build", "materialize", "output_shape"})
"""Methods that a subclass may replace without a change to what its forward pass computes."""


def keeps_computation(kind: type, of: type) -> bool:
    """Return whether class `kind` is `of`, or inherits from it the forward pass and everything that this may call."""
    if not issubclass(kind, of):
        return False
    below = kind.__mro__[: kind.__mro__.index(of)]
    return not any(callable(getattr(of, name, None)) for c in below for name in vars(c).keys() - _NOT_COMPUTING)


def computes_as(module: Module, kind: type) -> bool:
    """Return whether `module` computes what the class `kind` does, with no function of the user's put into it."""
    return keeps_computation(type(module), kind) and not any(callable(getattr(kind, name, None)) for name in vars(module))


def is_plannable(module: Module) -> bool:
    """Return whether `module` (not those below it) does nothing but operations: `plannable` holds where it was declared."""
    declared = next(c for c in type(module).__mro__ if "plannable" in vars(c))
    functions = module._functions()
    return module.plannable and computes_as(module, declared) and all(f is None or isinstance(f, Op) for f in functions)
