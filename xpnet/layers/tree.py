"""The tree of Modules: their paths, parameters, buffers and devices, and whether anything has changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self, cast

from xpnet import backend
from xpnet.autograd.parameter import Parameter
from xpnet.backend import Array
from xpnet.layers.attributes import Reset, is_settled, remedy_of
from xpnet.layers.context import Context, on_device, place_parameter
from xpnet.layers.given import check_setting, set_again
from xpnet.layers.holding import named, refuse_own_name, refuse_unseen, refuse_value
from xpnet.layers.version import Version
from xpnet.runtime.deprecation import renamed_attribute
from xpnet.runtime.overrides import refuse_uncalled
from xpnet.runtime.refused import refuse
from xpnet.runtime.settings import check_constructor

if TYPE_CHECKING:
    from xpnet.layers.module import Module

# Set while a model runs or is put together, without making plans stale.
INTERNAL_ATTRIBUTES = frozenset(
    {"context", "path", "built", "built_for", "counter", "device_counter", "_forward_hooks", "_kept_in_eval"}
)
DERIVED_ATTRIBUTES = frozenset(
    {
        "_tree_version", "_known_modules", "_known_version", "_flat_storage", "_flat_storage_version", "_model_executor",
        "_forward_hooks",
    }
)  # fmt: skip
OWN_ATTRIBUTES = INTERNAL_ATTRIBUTES | DERIVED_ATTRIBUTES | {"_children", "_parameters", "_buffers", "_half", "_own_threads"}
"""Attributes that no layer's own code assigns."""


def _has_setter(cls: type, name: str) -> bool:
    """Tell whether what the class has under this name takes its own values, as a property does."""
    found = next((vars(c)[name] for c in cls.__mro__ if name in vars(c)), None)
    if isinstance(found, property):
        return found.fset is not None  # a subclass may replace a setting by a read-only property
    return hasattr(found, "__set__") and not isinstance(found, renamed_attribute)  # a layer may use an old name otherwise


class ModuleTree:
    """The part of a Module that holds Modules, Parameters and buffers.

    Whatever is assigned to an attribute is registered under its name; a list of Modules becomes a tuple. What may not be
    assigned is in xpnet.layers.holding.

    Attributes:
        path: the place in the tree: "" for the root, "2.body.0" and the like below it, None before the first run.
        context: what the root decided.
    """

    path: str | None
    context: Context
    shares_work: bool = False  # whether on a CPU its work is shared out over xpnet's threads rather than those of BLAS
    if TYPE_CHECKING:  # typing.get_type_hints, of a subclass too, could not resolve Module
        _arguments: tuple[tuple[Any, ...], dict[str, Any]]
        _children: dict[str, Module]
        _parameters: dict[str, Parameter]
        _buffers: dict[str, Any]
        _half: bool  # whether it computes with 16-bit floats
        _tree_version: Version
        _known_modules: tuple[Module, ...]  # those below, as of
        _known_version: int
        _own_threads: bool  # whether any of them shares its work

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """Set up the tables here, so that a subclass need not call super().__init__()."""
        if not cls.__module__.startswith("xpnet."):
            refuse_uncalled(cls)
        if args or keywords:  # copy.copy gives none
            check_constructor(cls, args, keywords)
        self = super().__new__(cls)
        table = self.__dict__
        table.update(path=None, context=Context(), _half=False, _children={}, _parameters={}, _buffers={}, _trainable=True)
        table.update(_tree_version=Version(), _known_modules=(), _known_version=-1)
        table["_arguments"] = (args, keywords)  # what the model file writes down
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what copy.deepcopy copies, which is not what is derived: flat storage, plans, versions."""
        return {name: value for name, value in self.__dict__.items() if name not in DERIVED_ATTRIBUTES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for child in self._children.values():
            child._tree_version.put_below(self._tree_version)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in INTERNAL_ATTRIBUTES:
            refuse_own_name(self, name, value)
            self.__dict__[name] = value
            return
        if _has_setter(type(self), name):
            super().__setattr__(name, value)
            if name != "training":  # the mode makes no plan stale
                self._tree_version.changed()
            return
        remedy = remedy_of(type(self), name)
        if remedy and name not in self.__dict__ and not isinstance(value, Parameter):
            refuse(self, name, remedy, named(self), 1)
        refuse_own_name(self, name, value)
        refuse_value(self, name, value)
        check_setting(self, name, value)
        value = set_again(self, name, value)
        reset = Reset(cast("Module", self), name) if is_settled(cast("Module", self), name) else None
        others = self._children_beside(name)
        new: dict[str, Any] = {}
        was_parameter = self._parameters.pop(name, None) is not None
        if isinstance(value, Parameter):
            self._parameters[name] = value
            if self.path is not None:
                place_parameter(value, self.context)
            if not self.__dict__["_trainable"]:
                value.requires_grad = False
        elif isinstance(value, ModuleTree):
            new = {name: value}
        elif isinstance(value, (list, tuple)) and any(isinstance(v, ModuleTree) for v in value):
            # A tuple, so that no layer can be appended unnoticed; functions between the layers have no parameters.
            value = tuple(value)
            new = {f"{name}.{i}": v for i, v in enumerate(value) if isinstance(v, ModuleTree)}
        elif name in self._buffers:
            self._buffers[name] = value
        self.__dict__[name] = value
        if reset is not None:
            reset.apply(value)
        if new or len(others) < len(self._children):
            self._set_children({**others, **new}, new)
        elif was_parameter or isinstance(value, Parameter):
            self._tree_version.changed(structure=True)
        elif name not in self._buffers:
            self._tree_version.changed()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._buffers.pop(name, None)
        was_parameter = self._parameters.pop(name, None) is not None
        others = self._children_beside(name)
        if len(others) < len(self._children):
            self._set_children(others, {})
        self._tree_version.changed(structure=was_parameter)

    def _children_beside(self, name: str) -> dict[str, Module]:
        """Return the direct children but those of one attribute."""
        return {path: c for path, c in self._children.items() if path != name and not path.startswith(name + ".")}

    def _set_children(self, children: dict[str, Module], new: dict[str, Module]) -> None:
        """Replace the direct children, of which `new` were assigned now."""
        before = {child._tree_version for child in self._children.values()}
        after = {child._tree_version for child in children.values()}
        for version in before - after:
            version.take_from(self._tree_version)
        for version in after - before:
            version.put_below(self._tree_version)
        self.__dict__["_children"] = children
        self._tree_version.changed(structure=True)
        if self.path is not None:  # otherwise the first run does it
            for name, child in new.items():
                child._attach(f"{self.path}.{name}" if self.path else name, self.context)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Yield (path, module) for this Module and all below it, each once, under its first path."""
        return _walk("", cast("Module", self), set())

    def modules(self) -> tuple[Module, ...]:
        """Return this Module and all below it."""
        if self._known_version != self._tree_version.structure:
            below = tuple([module for _, module in self.named_modules()][1:])  # without itself: no reference cycle
            for module in (self, *below):  # again, as a class may copy its instances in its own way
                for child in module._children.values():
                    child._tree_version.put_below(module._tree_version)
            own_threads = self.shares_work or any(module.shares_work for module in below)
            self.__dict__.update(_known_modules=below, _known_version=self._tree_version.structure, _own_threads=own_threads)
        return (cast("Module", self), *self._known_modules)

    def parameters(self) -> dict[str, Parameter]:
        """Return all Parameters by path, {"0.kernel": ..., "0.bias": ...}; a shared one under its first path."""
        found: dict[str, Parameter] = {}
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    found[f"{path}.{name}" if path else name] = parameter
        return found

    def buffers(self) -> dict[str, Array]:
        """Return the arrays that belong to the model but are not trained by gradient (running statistics), by path."""
        return {
            f"{path}.{name}" if path else name: array
            for path, module in self.named_modules()
            for name, array in module._buffers.items()
        }

    def _attach(self, path: str, context: Context) -> None:
        """Set path and context of this Module and all below it."""
        refuse_unseen(self, path)
        moved = context.device != self.context.device or context.dtype != self.context.dtype
        self.__dict__.update(path=path, context=context, _half=context.dtype in backend.HALF_NAMES)
        if moved:
            self._place(context)
            self._tree_version.changed()
        for name, parameter in self._parameters.items():
            place_parameter(parameter, context)
            parameter.path = f"{path}.{name}" if path else name
        for name, child in self._children.items():
            child._attach(f"{path}.{name}" if path else name, context)

    def _place(self, context: Context) -> None:
        """Move this Module's own arrays to the context's device and dtype."""
        for parameter in self._parameters.values():
            place_parameter(parameter, context)
        for name, array in self._buffers.items():
            setattr(self, name, on_device(array, context))


def _walk(path: str, module: Module, seen: set[int]) -> Iterator[tuple[str, Module]]:
    """Yield (path, module) for a Module and those below it that are not among `seen`."""
    if id(module) in seen:
        return
    seen.add(id(module))
    yield path, module
    for name, child in module._children.items():
        yield from _walk(f"{path}.{name}" if path else name, child, seen)
