"""The architecture of a model as JSON: which class made each Module, with which arguments.

Numbers, strings, None, lists and dicts of them are written as they are. Everything else is an object that one key
identifies:

    {"layer": "Conv2D", "args": [...], "keywords": {...}}   a layer class of xpnet
    {"class": "MyNet", ...}                                 a Module class of the user's
    {"shared": 3}                                           the fourth Module in order of writing, again
    {"setting": "initializers.He", "fields": {...}}         an initializer, regularizer or constraint
    {"op": "relu"}                                          an operation of xpnet
    {"function": "swish2"}                                  a function of the user's
    {"tuple": [...]}  {"dict": {...}}  {"float": "inf"}  {"array": "argument.0"}

Reading calls the named classes with these arguments and nothing else. The user's classes and functions are those that
are passed to the Decoder: a file can name code, but never contains or imports any.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xpnet import initializers, layers, regularizers
from xpnet.backend import to_numpy
from xpnet.layers.attributes import current_arguments
from xpnet.layers.module import Module
from xpnet.layers.sequential import Sequential
from xpnet.ops.registry import Op, registry

LAYERS: dict[str, type[Module]] = {
    name: made for name in layers.__all__ if isinstance(made := getattr(layers, name), type) and issubclass(made, Module)
}
_SETTINGS: dict[str, type] = {
    f"{module.__name__.rpartition('.')[2]}.{name}": made
    for module in (initializers, regularizers)
    for name, made in vars(module).items()
    if isinstance(made, type) and dataclasses.is_dataclass(made)
}
_ROOT_ONLY = ("device", "dtype", "seed")  # keywords of a constructor that the file stores once for the whole model
_MOST_MODULES = 100_000
ARGUMENT = "argument."


class MissingClassError(ValueError):
    """A file needs a class or function of the user's that was not given."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"it needs the {what} {name}, which is not part of xpnet: pass classes=[{name}, ...]")
        self.name, self.what = name, what


class Encoder:
    """Encoder of one model.

    Attributes:
        arrays: arrays among the arguments, by the name that refers to them.
        classes: the user's classes and functions that reading will need.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.classes: dict[str, Any] = {}
        self._seen: dict[int, int] = {}

    def model(self, module: Module) -> dict[str, Any]:
        """Encode a Module for JSON.

        Raises:
            ValueError: one of its arguments cannot be written; the message says which and what to do.
        """
        return self._module(module, type(module).__name__)

    def _module(self, module: Module, where: str) -> dict[str, Any]:
        if id(module) in self._seen:
            return {"shared": self._seen[id(module)]}
        kind = type(module)
        args, keywords = module._arguments
        if isinstance(module, Sequential) and _constructor(kind) is _constructor(Sequential):
            # The list that the caller passed may have changed since; the input shape is stored elsewhere.
            args, keywords = (module.layers,), {k: v for k, v in keywords.items() if k not in ("layers", "input_shape")}
        if _constructor(kind) in (_constructor(Sequential), _constructor(Module)):
            keywords = {k: v for k, v in keywords.items() if k not in _ROOT_ONLY}
        if "device" in keywords:
            keywords = {**keywords, "device": "cpu"}  # a file may be read on a machine without that GPU
        name = kind.__name__ if LAYERS.get(kind.__name__) is kind else None
        if name and not isinstance(module, Sequential):
            args, keywords = current_arguments(module)
        if name is None:
            self._user(kind, where)
        made = {
            "layer" if name else "class": name or kind.__name__,
            "args": [self._value(value, f"{where}, argument {i + 1}") for i, value in enumerate(args)],
            "keywords": {key: self._value(value, f"{where}, {key}") for key, value in keywords.items()},
        }
        self._seen[id(module)] = len(self._seen)
        return made

    def _user(self, made: Any, where: str) -> str:
        name = str(made.__name__)
        if "<" in made.__qualname__:
            what = "a lambda" if name == "<lambda>" else f"{name}, which is defined inside a function"
            raise ValueError(
                f"{where}: {what} cannot be written to a file; define it with a name at the top of a module, and read the "
                f"model with xpnet.load(path, classes=[...])"
            )
        if self.classes.setdefault(name, made) is not made:
            raise ValueError(f"{where}: the model has two classes or functions named {name}; rename one of them")
        return name

    def _value(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, (int, np.integer)):
            return int(value)
        if isinstance(value, (float, np.floating)):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, Module):
            return self._module(value, f"{where}: {type(value).__name__}")
        if isinstance(value, list):
            return [self._value(part, where) for part in value]
        if isinstance(value, tuple):
            return {"tuple": [self._value(part, where) for part in value]}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self._value(part, f"{where}[{key!r}]") for key, part in value.items()}}
        if isinstance(value, Op):
            return {"op": value.__name__}
        setting = f"{type(value).__module__.rpartition('.')[2]}.{type(value).__name__}"
        if _SETTINGS.get(setting) is type(value) and dataclasses.is_dataclass(value):
            fields = {f.name: self._value(getattr(value, f.name), f"{where}: {f.name}") for f in dataclasses.fields(value)}
            return {"setting": setting, "fields": fields}
        if callable(value) and hasattr(value, "__qualname__") and not isinstance(value, type):
            return {"function": self._user(value, where)}
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            name = f"{ARGUMENT}{len(self.arrays)}"
            self.arrays[name] = to_numpy(value)
            return {"array": name}
        raise ValueError(
            f"{where}: a {type(value).__name__} cannot be written to a file; arguments of layers may be numbers, strings, "
            f"lists, arrays, layers, functions with a name, and xpnet's own initializers and regularizers. Save the weights "
            f"alone with model.save_weights(path)"
        )


def checked_classes(classes: Sequence[Any]) -> Sequence[Any]:
    """Return the user's classes and functions.

    Raises:
        TypeError: it is no list of them.
    """
    if not isinstance(classes, (list, tuple)):
        raise TypeError(f"classes: expected a list of classes and functions, such as [MyLayer], got {classes!r}")
    for made in classes:
        if not callable(made) or not hasattr(made, "__name__"):
            raise TypeError(f"classes: expected classes and functions, got {made!r}")
    return classes


class Decoder:
    """Decoder of one model from the output of an Encoder.

    Args:
        arrays: the file's arrays.
        classes: the user's classes and functions.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray[Any, Any]], classes: Sequence[Any] = ()) -> None:
        self._arrays = arrays
        self._classes: dict[str, Callable[..., Any]] = {}
        for made in checked_classes(classes):
            self._classes[made.__name__] = made
        self._seen: list[Module] = []
        self._sizes: list[int] = []  # how many Modules each of them contains, shared ones counted each time
        self._size = 0

    def model(self, value: Any) -> Module:
        """Return the Module that `value` describes.

        Raises:
            ValueError: it describes none, or one whose class was not passed.
        """
        made = self._value(value)
        if not isinstance(made, Module):
            raise ValueError("it does not describe a model")
        return made

    def _value(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, str, int, float)):
            return value
        if isinstance(value, list):
            return [self._value(part) for part in value]
        for key, read in self._READERS.items():
            if isinstance(value, dict) and key in value:
                try:
                    return read(self, value)
                except (KeyError, IndexError, TypeError, AttributeError) as error:
                    raise ValueError(f"a malformed {key!r} ({type(error).__name__}: {error})") from error
        raise ValueError(f"an entry of an unknown kind: {str(value)[:80]}")

    def _layer(self, value: dict[str, Any]) -> Module:
        name = value["layer"]
        if name not in LAYERS:
            raise ValueError(f"the layer {name!r} is unknown to this version of xpnet")
        return self._call(name, LAYERS[name], value)

    def _call(self, name: str, kind: Callable[..., Any], value: dict[str, Any]) -> Module:
        before = self._size
        args = [self._value(part) for part in value["args"]]
        keywords = {key: self._value(part) for key, part in value["keywords"].items()}
        self._size += 1
        try:
            made = kind(*args, **keywords)
        except (TypeError, ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"{name} cannot be made with the arguments in it: {error}") from error
        if not isinstance(made, Module):
            raise ValueError(f"{name} is not a Module")
        self._seen.append(made)
        self._sizes.append(self._size - before)
        return made

    def _named(self, name: str, what: str) -> Callable[..., Any]:
        if name not in self._classes:
            raise MissingClassError(name, what)
        return self._classes[name]

    def _shared(self, value: dict[str, Any]) -> Module:
        index = value["shared"]
        if not 0 <= index < len(self._seen):
            raise ValueError("a layer that is shared comes before the first of its places")
        self._size += self._sizes[index]
        if self._size > _MOST_MODULES:
            # A layer twice in a layer that is twice in a layer ...: a short file could describe endless work.
            raise ValueError(f"more than {_MOST_MODULES} layers, shared ones counted at each of their places")
        shared: Module = self._seen[index]
        return shared

    def _setting(self, value: dict[str, Any]) -> Any:
        if value["setting"] not in _SETTINGS:
            raise ValueError(f"the setting {value['setting']!r} is unknown to this version of xpnet")
        return _SETTINGS[value["setting"]](**{key: self._value(part) for key, part in value["fields"].items()})

    def _op(self, value: dict[str, Any]) -> Op:
        if value["op"] not in registry:
            raise ValueError(f"the operation {value['op']!r} is unknown to this version of xpnet")
        return registry[value["op"]]

    _READERS: Mapping[str, Callable[[Decoder, dict[str, Any]], Any]] = {
        "layer": _layer,
        "class": lambda self, value: self._call(value["class"], self._named(value["class"], "class"), value),
        "shared": _shared,
        "setting": _setting,
        "op": _op,
        "function": lambda self, value: self._named(value["function"], "function"),
        "tuple": lambda self, value: tuple([self._value(part) for part in value["tuple"]]),
        "dict": lambda self, value: {str(key): self._value(part) for key, part in value["dict"].items()},
        "float": lambda self, value: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[value["float"]],
        "array": lambda self, value: self._arrays[value["array"]].copy(),
    }


def _constructor(kind: type) -> Any:
    return getattr(kind, "__init__")  # noqa: B009 - mypy rejects kind.__init__ as unsafe
