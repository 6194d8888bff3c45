"""Attributes that are set on a Module after it was made: they count, or are refused with a reason.

`trainable` freezes and unfreezes. What the parameters were made from (units, initializers) cannot change once they exist;
penalties and constraints can, and are passed on to the Parameters. Names under which other libraries set the dtype or the name
of a layer are refused, as setting them would do nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any

from xpnet.autograd.parameter import Parameter
from xpnet.layers.context import Spec
from xpnet.layers.holding import named
from xpnet.runtime.messages import quoted
from xpnet.runtime.peers import ATTRIBUTES, KEYWORDS, setting_hint
from xpnet.runtime.set_later import own_kind, settings_of

if TYPE_CHECKING:
    from xpnet.layers.module import Module

REFUSED = {
    "requires_grad": "use layer.trainable = False for a layer, parameter.requires_grad = False for one Parameter",
    "name": "a layer's name is its path in the model, such as '0' or 'body.0': the attribute that it is assigned to",
    "dtype": "the whole model has one: xn.Sequential(..., dtype=...), or dtype= of your Module's constructor",
    "device": "use model.to(device)",
    "seed": "the whole model has one: xn.Sequential(..., seed=...), or seed= of your Module's constructor",
    "weight": "the weights of most layers are layer.kernel; layer.parameters() names them",
    "stop_training": "use trainer.stop = True",
    "activity_regularizer": "add a penalty on activations to the loss function",
}
"""Attributes that mean something in other libraries, and what to use here."""


def remedy_of(kind: Any, name: str) -> str:
    """Return what to use instead of an attribute of other libraries that would do nothing in a class of Modules, or ""."""
    return _remedies(own_kind(kind)).get(name, "")


@cache
def _remedies(kind: Any) -> dict[str, str]:
    settings = settings_of(kind)
    is_layer = "device" not in settings  # which models have
    found = {name: setting_hint(name, settings, is_layer) for name in KEYWORDS}
    for owner in (c.__name__ for c in reversed(kind.__mro__) if c.__name__ != "Module"):  # its words are those of methods
        found |= {name: setting_hint(name, settings, is_layer, owner) for name in ATTRIBUTES.get(owner, ())}
    return found | REFUSED


@cache
def constructor_names(kind: type) -> frozenset[str]:
    """Return the names of all arguments that the constructors of a class and of its bases take."""
    found = (
        inspect.signature(vars(c)["__init__"]).parameters for c in kind.__mro__ if c is not object and "__init__" in vars(c)
    )
    return frozenset(name for parameters in found for name in parameters) - {"self", "args", "keywords", "kwargs"}


class Reset:
    """One attribute of a built layer being set again: an error if the parameters that exist were made from it."""

    def __init__(self, module: Module, name: str) -> None:
        self.module, self.name = module, name
        self.old = module.__dict__[name]
        self.before = self._specs()

    def _specs(self) -> dict[str, Spec]:
        shape = self.module.built_for
        return {} if shape is None else self.module.parameter_specs(shape)

    def apply(self, new: Any) -> None:
        """Pass penalties and constraints on to the Parameters.

        Raises:
            AttributeError: the new value would make other parameters; the old one is back.
        """
        module = self.module
        try:
            after = self._specs()
            same = all(self._is_made(name, spec) for name, spec in after.items())
        except (ValueError, TypeError, AttributeError):
            same, after = False, {}
        if not same:
            module.__dict__[self.name] = self.old
            raise AttributeError(
                f"{named(module)}: {self.name} cannot become {new!r}: its parameters were made with {self.name} = "
                f"{self.old!r}; make a new layer"
            )
        for name, spec in after.items():
            parameter = module._parameters.get(name)
            for what in ("regularizer", "constraint", "decay"):
                value = getattr(spec, what)
                if parameter is not None and name in self.before and value != getattr(self.before[name], what):
                    setattr(parameter, what, value)

    def _is_made(self, name: str, spec: Spec) -> bool:
        """Return whether a spec is that of a parameter which exists. One that is no longer used does no harm (use_bias)."""
        parameter, before = self.module._parameters.get(name), self.before.get(name)
        if parameter is None or tuple(parameter.shape) != tuple(spec.shape):
            return False
        return before is None or bool(before.initializer == spec.initializer)


def is_settled(module: Module, name: str) -> bool:
    """Return whether the parameters of a built layer may have been made from this attribute."""
    table = module.__dict__
    if table.get("built_for") is None or name not in table or name not in constructor_names(type(module)):  # type: ignore[arg-type]
        return False
    return name not in module._parameters and name not in module._children


def current_arguments(module: Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments that make a layer like this one: those of its constructor, and what was set since (for a file)."""
    kind: Any = type(module)
    args, keywords = module._arguments
    bound = inspect.signature(kind).bind(*args, **keywords)
    bound.apply_defaults()
    given = {**bound.arguments, **bound.arguments.get("keywords", {})}
    made = None if module._children else kind(*args, **keywords)  # its layers are in this one
    late = {}
    for name in constructor_names(kind):
        if made is not None and hasattr(made, name) and hasattr(module, name):
            before, now = getattr(made, name), getattr(module, name)
        elif made is None and name in given and name in module.__dict__ and name not in module._children:
            before, now = given[name], module.__dict__[name]
        else:
            continue
        if not _equal(before, now):
            late[name] = now
    if not late:
        return args, keywords
    named = inspect.signature(kind).bind(*args, **keywords).arguments
    return (), {**{name: value for name, value in named.items() if name != "keywords"}, **named.get("keywords", {}), **late}


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except (ValueError, TypeError):  # of arrays
        return False


# -- trainable --


def trainable(module: Module) -> bool:
    """Return whether any parameter of a Module is trained; without parameters yet, whether those to come will be."""
    parameters = module.parameters().values()
    return any(p.requires_grad for p in parameters) if parameters else bool(module.__dict__["_trainable"])


def set_trainable(module: Module, value: Any) -> None:
    """Freeze or unfreeze a Module: its parameters and those of all Modules below it, also those that are made later."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise TypeError(f"{type(module).__name__}: trainable must be True or False, got {quoted(value)}")
    for part in module.modules():
        part.__dict__["_trainable"] = bool(value)
        part._tree_version.changed()
        for parameter in part._parameters.values():
            parameter.requires_grad = bool(value)


def select(model: Module, where: str | None, value: bool) -> None:
    """Freeze or unfreeze the Modules and Parameters whose path fits a pattern: see Module.freeze."""
    if where is None:
        set_trainable(model, value)
        return
    if model.path is None:
        model._attach("", model.context)
    modules: list[Module] = []
    parameters: list[Parameter] = []
    for path, part in model.named_modules():
        if path and fnmatchcase(path, where):
            modules.append(part)
        parameters += [p for name, p in _own(path, part) if fnmatchcase(name, where)]
    if not modules and not parameters:
        paths = ", ".join([path for path, _ in model.named_modules() if path][:20])
        raise ValueError(f"{'un' * value}freeze: nothing has a path like {where!r}; there are {paths}")
    for part in modules:
        set_trainable(part, value)
    for parameter in parameters:
        parameter.requires_grad = value


def _own(path: str, module: Module) -> Iterator[tuple[str, Parameter]]:
    for name, parameter in module._parameters.items():
        yield f"{path}.{name}" if path else name, parameter
