"""Networks by what the command line says: a name, or a function in a Python file."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from xpnet import models
from xpnet.cli.argument_types import UsageError
from xpnet.layers.module import Module
from xpnet.ops.shapes import ShapeError

NETWORKS: dict[str, Callable[..., Module]] = {"mlp": models.mlp, "cnn": models.cnn}
_OFFERED = ("input_shape", "classes", "seed", "device")

NetworkFactory = Callable[[Sequence[int], int, int, str], Module]


def find_network(name: str) -> tuple[str, NetworkFactory]:
    """A short name, and the function (input_shape, classes, seed, device) -> Module, for the value of --model.

    Raises:
        UsageError: there is no such network, file or function.
    """
    if name in NETWORKS:
        return name, _checked(name, NETWORKS[name])
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        if name.endswith(".py"):
            raise UsageError(f"--model {name}: add the function that makes the network, such as {name}:make")
        raise UsageError(f"unknown network {name!r}: expected mlp, cnn or PATH.py:function")
    module = run_file(path)
    made = getattr(module, function, None)
    if not callable(made):
        known = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise UsageError(f"{path} has no function {function!r}; it has {', '.join(known) or 'none'}")
    return function, _checked(name, made)


def _checked(name: str, function: Callable[..., Any]) -> NetworkFactory:
    parameters = inspect.signature(function).parameters.values()
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    taken = [o for o in _OFFERED if everything or any(p.name == o for p in parameters)]
    unknown = [
        p.name
        for p in parameters
        if p.name not in _OFFERED and p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if unknown:
        raise UsageError(f"{name} needs {', '.join(unknown)}; it may take {', '.join(_OFFERED)} and what has a default")

    def make(input_shape: Sequence[int], classes: int, seed: int, device: str) -> Module:
        given = {"input_shape": tuple(input_shape), "classes": classes, "seed": seed, "device": device}
        try:
            model = function(**{key: given[key] for key in taken})
        except ShapeError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise UsageError(f"{name}: {describe_error(error)}") from error
        if not isinstance(model, Module):
            raise UsageError(f"{name} returned a {type(model).__name__}, expected an xpnet Module such as Sequential")
        return model if "device" in taken else model.to(device)

    return make


def run_file(path: str) -> ModuleType:
    """Run a Python file of the user's as a module.

    Raises:
        UsageError: there is no such file, or it raises something.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{path}: no such file")
    name = file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)  # so that it can import its neighbours
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise UsageError(f"{path}: {describe_error(error)}") from error
    finally:
        sys.path.remove(folder)
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
    return module


def user_classes(path: str | None) -> list[Any]:
    """The classes and functions that a Python file (--code) defines."""
    if path is None:
        return []
    module = run_file(path)
    return [v for v in vars(module).values() if callable(v) and getattr(v, "__module__", None) == module.__name__]


def describe_error(error: Exception) -> str:
    """An exception of the user's code in one line, with the place in their file."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[1])
    place = next((f"line {f.lineno}: " for f in reversed(frames) if not f.filename.startswith((ours, "<frozen"))), "")
    if isinstance(error, SyntaxError):
        place = f"line {error.lineno}: "
        return f"{place}SyntaxError: {error.msg}"
    return f"{place}{type(error).__name__}: {error}"
