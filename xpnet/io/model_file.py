"""Model files.

A model file is one zip archive, stored without compression: ``document.json`` (the architecture, see
:mod:`xpnet.io.architecture`, how the inputs were read, and metadata) and ``arrays.safetensors`` (parameters and buffers
by path). Reading never runs code from it.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from xpnet import backend
from xpnet.backend import Device, to_numpy
from xpnet.io import archive
from xpnet.io.architecture import ARGUMENT, Decoder, Encoder, checked_classes
from xpnet.layers.context import FLOATS, Context, float_name, meta_init, on_device
from xpnet.layers.module import Module
from xpnet.runtime.messages import quoted
from xpnet.runtime.settings import checked

if TYPE_CHECKING:
    from xpnet.data.inputs import InputRecord
    from xpnet.data.preprocessing import Transform

FORMAT = "xpnet-model"
VERSION = 1
_PREPROCESSING = "preprocessing/"
_INPUTS = "inputs/"
_LARGEST_EXAMPLE = 2**28


class ModelFileError(archive.ArchiveError):
    """A model file is truncated, damaged or of another format, or it needs classes that were not passed."""


@dataclass(frozen=True)
class SavedModel:
    """The contents of a model file.

    Attributes:
        model: the Module, in evaluation mode.
        class_names: names of the outputs, or ().
        preprocessing: the transform of the model's inputs, or None.
        metadata: JSON values by name, as passed to `save`.
        inputs: how the inputs were read from files, or None where the file does not say.
    """

    model: Module
    class_names: tuple[str, ...] = ()
    preprocessing: Transform | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    inputs: InputRecord | None = None


def save(
    model: Module,
    path: str | Path,
    *,
    class_names: Sequence[str] = (),
    preprocessing: Transform | None = None,
    metadata: Mapping[str, Any] | None = None,
    inputs: InputRecord | None = None,
) -> None:
    """Write a model to one file: architecture, parameters, buffers and random counters.

    The file is written atomically. The same model gives the same bytes.

    Args:
        model: all its layers must be built.
        path: by convention it ends in ".xpnet".
        class_names: names of the outputs.
        preprocessing: a fitted transform of xpnet.data.preprocessing for the inputs.
        metadata: anything that JSON can represent, and numbers of NumPy.
        inputs: how the inputs were read from files (:class:`xpnet.data.inputs.InputRecord`); `xpnet predict` and `evaluate`
            read theirs in the same way.

    Raises:
        ValueError: the model cannot be written (a lambda among its arguments, layers assigned after its constructor
            ran, ...); nothing was written.
        OSError: the file cannot be written; what was there before is untouched.
    """
    document, arrays = describe(model, class_names=class_names, preprocessing=preprocessing, metadata=metadata, inputs=inputs)
    archive.write(path, document, arrays)


def describe(
    model: Module,
    *,
    class_names: Sequence[str] = (),
    preprocessing: Transform | None = None,
    metadata: Mapping[str, Any] | None = None,
    inputs: InputRecord | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what :func:`save` would write, as a document and arrays: a check whether a model can be saved.

    Arguments and errors as in :func:`save`.
    """
    model._require_built("save")
    if model.path is None:
        model._attach("", model.context)
    encoder = Encoder()
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": encoder.model(model),
        "seed": model.context.seed,
        "dtype": model.context.dtype,
        "input_shape": getattr(model, "input_shape", None),
        # Parents come before the layers that they create.
        "built_for": {name: list(m.built_for) for name, m in model.named_modules() if m.built_for is not None},
        "frozen": [name for name, p in model.parameters().items() if not p.requires_grad],
        "untrainable": [name for name, m in model.named_modules() if not m.__dict__["_trainable"]],
        "counters": model.rng_counters(),
        "class_names": [str(name) for name in class_names],
        "metadata": {name: _json(name, value) for name, value in (metadata or {}).items()},
    }
    arrays = {name: to_numpy(array) for name, array in model.state().items()}
    arrays.update(encoder.arrays)
    if preprocessing is not None:
        state = preprocessing.state()
        document["preprocessing"] = {"kind": state["kind"], "settings": state["settings"]}
        arrays.update({_PREPROCESSING + name: array for name, array in state["arrays"].items()})
    if inputs is not None:
        document["inputs"] = inputs.settings()
        arrays.update({_INPUTS + name: array for name, array in inputs.arrays().items()})
    try:
        document = json.loads(json.dumps(document, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{type(model).__name__}: its settings hold what JSON cannot: {error}") from None
    try:
        _made(document, arrays, list(encoder.classes.values()))
    except ValueError as error:
        raise ValueError(
            f"{type(model).__name__} would not come back from a file: {error}. A model is made again by calling its "
            f"constructor with the same arguments, so all its layers must be made there; save the weights alone with "
            f"model.save_weights(path)"
        ) from error
    return document, arrays


def _json(name: str, value: Any) -> Any:
    """Return a value of the metadata as JSON gives it back; raise a ValueError that names it where JSON cannot hold it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, default=_number))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"metadata[{quoted(name)}]: only what JSON can hold can be saved, got {quoted(value)}: {error}"
        ) from None


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be written")


@checked
def load(path: str | Path, device: str | Device = "cpu", *, classes: Sequence[Callable[..., Any]] = ()) -> Module:
    """Read a model from a file of `model.save`, in evaluation mode.

    Args:
        path: the file.
        device: "cpu", "cuda" or "cuda:N", for its arrays.
        classes: your own classes and functions that the model consists of. No other code is run.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: it is truncated, damaged or of another format, or needs classes that were not passed.
        DeviceError: the device cannot be used.
    """
    return read(path, device, classes=classes).model


def read(path: str | Path, device: str | Device = "cpu", *, classes: Sequence[Any] = ()) -> SavedModel:
    """Read everything in a model file; arguments and errors as in :func:`load`."""
    where = backend.device(device)
    checked_classes(classes)
    if not Path(path).is_file():
        _refuse_missing(Path(path))
    try:
        document, arrays = archive.read(path)
    except archive.ArchiveError as error:
        raise ModelFileError(str(error)) from error
    if document.get("format") != FORMAT:
        raise ModelFileError(f"{path}: not a model file of xpnet: its format is {str(document.get('format'))[:40]!r}")
    if document.get("version") != VERSION:
        raise ModelFileError(
            f"{path}: written in version {str(document.get('version'))[:20]} of the format, this xpnet reads version "
            f"{VERSION}; update xpnet"
        )
    try:
        model = _made(document, arrays, classes)
        _fill(model, document, arrays)
        preprocessing = _preprocessing(document, arrays)
        names = tuple(str(name) for name in document["class_names"])
        metadata = dict(document["metadata"])
        inputs = _inputs(document, arrays)
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise ModelFileError(f"{path}: a damaged model file ({type(error).__name__}: {error})") from error
    return SavedModel(model.to(where) if where.kind != "cpu" else model, names, preprocessing, metadata, inputs)


def _refuse_missing(path: Path) -> NoReturn:
    """Raise the error for a path that is no file."""
    if path.is_dir():
        inside = next(iter(sorted(path.glob("*.xpnet"))), None)
        hint = f"such as the one in it, {inside}" if inside is not None else 'as model.save("m.xpnet") and xpnet train write it'
        raise IsADirectoryError(errno.EISDIR, f"is a folder; expected a model file, {hint}", str(path))
    raise FileNotFoundError(
        errno.ENOENT, 'No such file; expected a model file, as model.save("m.xpnet") and xpnet train write it', str(path)
    )


def _made(document: dict[str, Any], arrays: Mapping[str, Any], classes: Sequence[Any]) -> Module:
    """Build the model that a document describes, on meta arrays that fit the arrays of the file.

    Raises:
        ValueError: the document is inconsistent, or its parameters are not those among the arrays.
    """
    if document["dtype"] not in FLOATS:
        raise ValueError(f"its dtype {str(document['dtype'])[:20]!r} is none of {', '.join(FLOATS)}")
    float_name(document["dtype"], "load")  # raises where bfloat16 is not available
    shapes = {str(name): _shape(shape) for name, shape in document["built_for"].items()}
    with meta_init():
        model = Decoder(arrays, classes).model(document["model"])
        model._attach("", Context(int(document["seed"]), backend.CPU, document["dtype"]))
        modules = dict(model.named_modules())
        for name, shape in shapes.items():
            if name not in modules:
                # Layers that a Module creates when it is built exist now, if it was built before.
                modules = dict(model.named_modules())
            if name not in modules:
                raise ValueError(f"it holds weights for a layer {name!r} that the model does not have")
            module = modules[name]
            if not module.built:
                module.build(shape)
                module.built, module.built_for = True, shape
    if document["input_shape"] is not None:
        model.__dict__["input_shape"] = _shape(document["input_shape"])
    _compare(model, arrays)
    return model


def _compare(model: Module, arrays: Mapping[str, Any]) -> None:
    own = {name: (tuple(a.shape), backend.dtype_name(a)) for name, a in model.state().items()}
    found = {
        name: (tuple(a.shape), backend.dtype_name(a))
        for name, a in arrays.items()
        if not name.startswith((ARGUMENT, _PREPROCESSING, _INPUTS))
    }
    problems = [f"no array for {name}" for name in own if name not in found]
    problems += [f"an array {name} too many" for name in found if name not in own]
    problems += [
        f"{name} is {found[name][1]} {found[name][0]} instead of {own[name][1]} {own[name][0]}"
        for name in own
        if name in found and found[name] != own[name]
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"weights and architecture differ: {'; '.join(problems[:3])}{more}")


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(value)
    if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) > _LARGEST_EXAMPLE:
        raise ValueError(f"{str(shape)[:60]} is not the shape of an example")
    return shape


def _fill(model: Module, document: dict[str, Any], arrays: Mapping[str, Any]) -> None:
    """Give a model on meta arrays its arrays and the rest of its state."""
    frozen = set(document["frozen"])
    for name, parameter in model.parameters().items():
        parameter.array = on_device(arrays[name], model.context)
        parameter.requires_grad = name not in frozen
    untrainable = set(document.get("untrainable", ()))  # files of earlier versions say only which Parameters are frozen
    for path, module in model.named_modules():
        module.__dict__["_trainable"] = path not in untrainable
        for name in module._buffers:
            setattr(module, name, on_device(arrays[f"{path}.{name}" if path else name], model.context))
    model.load_rng_counters({str(path): int(count) for path, count in document["counters"].items()})
    model.eval()


def _preprocessing(document: dict[str, Any], arrays: Mapping[str, Any]) -> Transform | None:
    if document.get("preprocessing") is None:
        return None
    from xpnet.data.preprocessing import from_state

    found = {name.removeprefix(_PREPROCESSING): a for name, a in arrays.items() if name.startswith(_PREPROCESSING)}
    return from_state({**document["preprocessing"], "arrays": found})


def _inputs(document: dict[str, Any], arrays: Mapping[str, Any]) -> InputRecord | None:
    if document.get("inputs") is None:
        return None
    from xpnet.data.inputs import record_from

    return record_from(document["inputs"], {n.removeprefix(_INPUTS): a for n, a in arrays.items() if n.startswith(_INPUTS)})
