"""What an attribute of a Module may hold: nothing that looks as if it were trained, and is not."""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tensor import Tensor
from xpnet.layers.context import Context
from xpnet.runtime.messages import quoted

if TYPE_CHECKING:
    from xpnet.layers.tree import ModuleTree

_CONTAINERS = (list, tuple, dict, set, frozenset)
_TABLES = frozenset({"_arguments", "_children", "_parameters", "_buffers", "_known_modules", "_made"})


_LAYERS = (
    "layers or Parameters that were put in unseen",
    "assign a finished flat list of layers (self.{name} = [...], where xn.Sequential(...) is one layer), or each to an "
    "attribute (setattr(self, name, layer))",
)
_PARAMETERS = (
    "Parameters or Tensors, which are not looked for there",
    "assign each to an attribute of its own (self.{name}0 = xn.Parameter(...), or setattr(self, f'{name}{{i}}', parameter) in "
    "a loop), or make a list of small Modules that hold one each",
)
"""What a container holds that its Module does not know, and what to write instead."""


def named(module: Any, path: str | None = None) -> str:
    """Return what a Module, at its path or that which it is about to get, is called in an error."""
    kind, path = type(module).__name__, path or module.path
    return f"layer {path!r} ({kind})" if path else kind


def is_not_built(module: Any, name: str) -> bool:
    """Return whether a class declares a Parameter of this name (``kernel: Parameter``), and the layer is not built."""
    if module.__dict__.get("built", True):
        return False
    return any(vars(kind).get("__annotations__", {}).get(name) in ("Parameter", Parameter) for kind in type(module).__mro__)


def _is_module(value: Any) -> bool:
    return hasattr(value, "_tree_version")


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and value.node is None


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return quoted(value) if shape is None else f"{type(value).__name__} {tuple(shape)}"


@cache
def _is_method(kind: Any, name: str) -> bool:
    """Return whether a name is a method that a Module needs, and no class of the user's has given it another meaning."""
    found = next((c for c in kind.__mro__ if name in vars(c)), None)
    return found is not None and found.__module__.startswith("xpnet.") and callable(vars(found)[name])


def refuse_own_name(module: ModuleTree, name: str, value: Any) -> None:
    """Raise an AttributeError for a value under a name that a Module uses itself."""
    if name == "path" or (name == "context" and not isinstance(value, Context)):
        what = "is where a layer is in its model" if name == "path" else "is the device and the dtype of its model"
    elif _is_method(cast("Any", type(module)), name) and (not callable(value) or _is_module(value)):
        what = f"is a method of {type(module).__name__}"
    else:
        return
    raise AttributeError(f"{named(module)}: self.{name} {what}; choose another name for your attribute")


def refuse_value(module: ModuleTree, name: str, value: Any) -> None:
    """Raise a TypeError for a Tensor with a gradient that is no Parameter, and for another value where a Parameter or an array
    of the layer's is."""
    if module._buffers.get(name) is not None and not hasattr(value, "shape"):
        raise TypeError(
            f"{named(module)}: {name} is an array that belongs to the layer, and cannot become {quoted(value)}; write the "
            f"values into it (layer.{name}[...] = values)"
        )
    if isinstance(value, Parameter) or value is None or _is_module(value):
        return
    if _is_leaf(value):
        raise TypeError(
            f"{named(module)}: self.{name} is a Tensor with requires_grad=True, which would not be trained; make it a "
            f"Parameter: self.{name} = xn.Parameter(array)"
        )
    if name in module._parameters:
        raise TypeError(
            f"{named(module)}: {name} is a Parameter, and what replaces it would not be trained: got {_kind(value)}; write "
            f"the values into it (layer.{name}.array[...] = values), assign xn.Parameter(values), or delete it first "
            f"(del layer.{name})"
        )


def refuse_lost(module: ModuleTree, name: str) -> None:
    """Raise a ValueError where the array that is about to be created would replace one that was assigned earlier."""
    table = module.__dict__
    now = table.get(name)
    if not table.get("built", True) and now is not None and table.get("_made", {}).get(name) is not now:
        raise ValueError(
            f"{named(module)}: {name} was assigned before the layer was built, and would be replaced by its initial values. "
            f"Build it first: give the model input_shape=, or call layer.materialize(shape); then write the values into it"
        )


def refuse_unseen(module: ModuleTree, path: str) -> None:
    """Raise a TypeError where a list, tuple, dict or set, or one in it, holds a layer that was not assigned with it."""
    for name, value in module.__dict__.items():
        if name in _TABLES or not isinstance(value, _CONTAINERS):
            continue
        known = {id(part) for part in (*module._children.values(), *module._parameters.values())}
        if any(True for _ in _unseen(value, known)):
            known |= {id(part) for part in (*module.modules(), *module.parameters().values())}
            unseen = list(_unseen(value, known))
            if unseen:
                held, remedy = _LAYERS if any(map(_is_module, unseen)) else _PARAMETERS
                raise TypeError(
                    f"{named(module, path)}: the {type(value).__name__} in self.{name} holds {held}, and would not be trained; "
                    f"{remedy.format(name=name)}"
                )


def _unseen(value: Any, known: Container[int]) -> Iterator[Any]:
    """Yield the layers and the leaves with a gradient in a container, and in those in it, but those of known id."""
    waiting, seen = [value], set()
    while waiting:
        parts = waiting.pop()
        if id(parts) in seen:
            continue
        seen.add(id(parts))
        for part in parts.values() if isinstance(parts, dict) else parts:
            if isinstance(part, _CONTAINERS):
                waiting.append(part)
            elif (_is_module(part) or _is_leaf(part)) and id(part) not in known:
                yield part
