"""What is derived from a model, a plan or a recording, and whether the model is still the one that it was derived from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from xpnet.autograd.parameter import Parameter
from xpnet.compiled.plain import same
from xpnet.layers.module import Module
from xpnet.layers.tree import OWN_ATTRIBUTES
from xpnet.ops.registry import customized, reference_is_forced
from xpnet.runtime.determinism import get_deterministic
from xpnet.runtime.precision import get_matmul_precision

Classes = list[tuple[type, dict[str, Any], tuple[type, ...]]]


def user_classes(model: Module) -> Classes:
    """Return, for each class of a user among those of the model's layers, its attributes and bases as they are now."""
    return classes_of(model.modules())


def classes_of(objects: Iterable[object]) -> Classes:
    """Return the like for objects of any kind."""
    kinds = {c for o in objects for c in type(o).__mro__ if not c.__module__.startswith(("xpnet.", "builtins"))}
    return [(c, dict(vars(c)), c.__bases__) for c in kinds]


def patched(classes: Classes) -> bool:
    """Return whether a class has changed since `user_classes`: assigning to a class counts in no model's version."""
    return any(
        c.__bases__ is not bases or len(vars(c)) != len(before) or any(_differs(vars(c).get(n), v) for n, v in before.items())
        for c, before, bases in classes
    )


def _differs(a: Any, b: Any) -> bool:
    return a is not b and not same(a, b)


def package_settings() -> tuple[Any, ...]:
    """Return the settings of the package that choose among kernels."""
    return get_matmul_precision(), get_deterministic()


class Derived:
    """Something that was derived from a model and is valid as long as nothing that it depends on changes."""

    def remember(self, model: Module) -> None:
        """Note the model as it is now; its parameters exist."""
        self.version, self.changes = model._tree_version, model._tree_version.changes
        self.customized, self.reference = len(customized), reference_is_forced()
        self.classes = user_classes(model)
        self.parameters = [(p, p.array) for p in model.parameters().values()]
        self.buffers = [(m._buffers, name, array) for m in model.modules() for name, array in m._buffers.items()]

    def holds(self) -> bool:
        """Return whether the model is unchanged since then, and run by the same implementations."""
        if self.version.changes != self.changes or len(customized) != self.customized:
            return False
        if reference_is_forced() is not self.reference:
            return False
        if self.classes and patched(self.classes):
            return False
        for parameter, array in self.parameters:
            if parameter.array is not array:
                return False
        return all(table.get(name) is array for table, name, array in self.buffers)


class ModelChangedError(Exception):
    """A recorded function assigned to an attribute of a Module, or of a loss and the like, which no replay of it would do.

    Attributes:
        layer: the Module, or the other object.
        name: of the attribute.
    """

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(f"self.{name} was assigned")
        self.layer = layer
        self.name = name


class HostNumberError(Exception):
    """A recorded function computed a number on the host, which its replays would repeat."""


@contextmanager
def unchanging(model: Module) -> Iterator[None]:
    """Raise a ModelChangedError after a block that assigned to attributes of the model's Modules, buffers among them.

    They get their values back then, and where the block raised: arrays that were computed during a recording have no values.
    """
    before = [(module, dict(module.__dict__)) for module in model.modules()]
    try:
        yield
    except BaseException:
        _restore(before)
        raise
    changed = _restore(before)
    if changed is not None:
        raise ModelChangedError(*changed)


def _restore(before: list[tuple[Module, dict[str, Any]]]) -> tuple[Module, str] | None:
    """Give attributes their values back; return a Module and the name of an attribute that had changed, or None."""
    found = None
    for module, attributes in before:
        table = module.__dict__
        names = [
            n
            for n in {**attributes, **table}
            if n not in OWN_ATTRIBUTES and table.get(n, table) is not attributes.get(n, table)
        ]
        for name in names:
            found = found or (module, name)
            if isinstance(attributes.get(name), (Module, Parameter)) or isinstance(table.get(name), (Module, Parameter)):
                continue  # registered in the tree
            if name not in attributes:
                del table[name]
                continue
            table[name] = attributes[name]
            if name in module._buffers:
                module._buffers[name] = attributes[name]
    return found
