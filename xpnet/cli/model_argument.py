"""The MODEL argument: a saved model, the name of a ready-made network, or a function in a Python file of the user's."""

from __future__ import annotations

import argparse
import difflib
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
from xpnet.data.dataset import check_regular
from xpnet.io import model_file
from xpnet.io.architecture import MissingClassError
from xpnet.io.model_file import ModelFileError, SavedModel
from xpnet.layers.module import Module
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.messages import quoted

MODEL = "model.xpnet"
"""The model in the folder of a run."""
NETWORKS: dict[str, Callable[..., Module]] = {"mlp": models.mlp, "cnn": models.cnn}
_OFFERED = ("input_shape", "classes", "seed", "device")

user_files: set[str] = set()
"""Files of the user's that were run: an error that passes through one is theirs to mend."""

NetworkFactory = Callable[[Sequence[int], int, int, str], Module]


def saved_model(args: argparse.Namespace, device: str = "cpu") -> SavedModel | None:
    """Return the saved model that MODEL names, or None where it names a network to be built.

    Raises:
        UsageError: MODEL is neither.
    """
    inside = in_run_folder(args.model)
    if Path(inside).is_file() and not inside.endswith(".py"):
        args.model = inside
        return read_model(args, device)
    if args.model not in NETWORKS and ".py" not in args.model:
        raise UsageError(f"{args.model}: no such file or network; expected a model file, mlp, cnn or PATH.py:function")
    return None


def in_run_folder(path: str) -> str:
    """Return the model in the folder of a run; any other path as it is."""
    inside = Path(path) / MODEL
    return str(inside) if inside.is_file() else path


def read_model(args: argparse.Namespace, device: str) -> SavedModel:
    """Read the saved model that MODEL names: a file, or the folder of a run.

    Raises:
        UsageError: it needs classes of the user's that --code does not define.
    """
    args.model = in_run_folder(args.model)
    check_regular(args.model)
    try:
        return model_file.read(args.model, device, classes=user_classes(args.code))
    except ModelFileError as error:
        missing = error.__cause__
        if not isinstance(missing, MissingClassError):
            raise
        given = f", which {args.code} does not define" if args.code else ""
        raise UsageError(
            f"{args.model}: it needs the {missing.what} {missing.name} of your own{given}: name the file that defines it "
            f"with --code FILE.py"
        ) from error


def new_network(args: argparse.Namespace) -> NetworkFactory:
    """Return the function that builds the network that MODEL names.

    Raises:
        UsageError: there is no such network, or the shape of its examples (--input) is missing.
    """
    _, make = find_network(args.model)
    if args.input is None:
        raise UsageError("a new network needs the shape of an example: add --input, such as --input 28,28,1")
    return make


def example_shape(saved: SavedModel, path: str = "the model") -> tuple[int, ...]:
    """Return the shape of the examples that a model takes.

    Raises:
        UsageError: the file does not say.
    """
    known = saved.preprocessing.shape if saved.preprocessing is not None else None
    known = known or getattr(saved.model, "input_shape", None) or saved.model.built_for
    if known is None:
        raise UsageError(f"{path} does not say what shape it takes; save it with an input_shape or a preprocessing")
    return tuple(known)


def find_network(name: str) -> tuple[str, NetworkFactory]:
    """Return the short name of a network and the function (input_shape, classes, seed, device) -> Module that builds it.

    Raises:
        UsageError: there is no such network, file or function.
    """
    if name in NETWORKS:
        return name, _factory(name, NETWORKS[name])
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        if name.endswith(".py"):
            raise UsageError(f"--model {name}: add the function that builds the network, such as {name}:make")
        meant = difflib.get_close_matches(name, NETWORKS, 1)
        hint = f"; did you mean {meant[0]}?" if meant else ""
        raise UsageError(f"unknown network {quoted(name)}: expected mlp, cnn or PATH.py:function{hint}")
    module = run_file(path)
    made = getattr(module, function, None)
    if not callable(made):
        known = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise UsageError(f"{path} has no function {function!r}; it has {', '.join(known) or 'none'}")
    return function, _factory(name, made)


def _factory(name: str, function: Callable[..., Any]) -> NetworkFactory:
    """Wrap a function that takes some of input_shape, classes, seed and device."""
    parameters = inspect.signature(function).parameters.values()
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    taken = [o for o in _OFFERED if everything or any(p.name == o for p in parameters)]
    unknown = [
        p.name
        for p in parameters
        if p.name not in _OFFERED and p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if unknown:
        raise UsageError(f"{name} needs {', '.join(unknown)}; its arguments may be {', '.join(_OFFERED)}, or have defaults")

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
    user_files.add(str(file))
    before = sys.modules.get(name)
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)  # so that it can import files beside it
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
    """Return the classes and functions that a Python file (--code) defines."""
    if path is None:
        return []
    module = run_file(path)
    return [v for v in vars(module).values() if callable(v) and getattr(v, "__module__", None) == module.__name__]


def describe_error(error: Exception) -> str:
    """Describe an exception of the user's code in one line, with the line number in their file."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: SyntaxError: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[1])
    place = next((f"line {f.lineno}: " for f in reversed(frames) if not f.filename.startswith((ours, "<frozen"))), "")
    return f"{place}{type(error).__name__}: {error}"
