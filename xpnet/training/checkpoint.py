"""Checkpoints: everything that a run needs to resume bit for bit, in one file."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnet.backend import dtype_name, to_device, to_numpy
from xpnet.io import archive
from xpnet.io.schema import LARGEST, MismatchError, dict_of, fields, flag, integer, list_of, maybe, number, text
from xpnet.layers.context import FLOATS
from xpnet.layers.modes import stateful_layers
from xpnet.layers.state import check_state
from xpnet.runtime.determinism import get_deterministic
from xpnet.runtime.messages import quoted, shorten
from xpnet.runtime.settings import checked
from xpnet.training.callback import Callback
from xpnet.training.description import describe, differences
from xpnet.training.final_weights import raw_state
from xpnet.training.not_finite import lost_epoch, lost_weights
from xpnet.training.run import claim

if TYPE_CHECKING:
    from xpnet.layers.module import Module
    from xpnet.training.trainer import Trainer

FORMAT = "xpnet-checkpoint-1"
_RENAMED = {"Call": "LambdaCallback"}  # callbacks in files of earlier versions


@checked
def save_checkpoint(trainer: Trainer, path: str | Path) -> None:
    """Write the complete state of a training run to a file, atomically: weights, running statistics, random counters,
    optimizer, position in the data, history and the state of every callback.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
        NotFiniteError: a loss of this epoch or a trainable parameter is not finite: a run could not go on from there.
    """
    sums = trainer.sums.state()
    loss = sums["totals"].get("loss", 0.0) / max(sums["count"], 1)
    if not math.isfinite(loss):
        raise lost_epoch(trainer, loss)
    arrays: dict[str, Any] = {}
    parameters = trainer.model.parameters()
    document = {
        "format": FORMAT,
        "trainer": {
            "epoch": trainer.epoch,
            "batch": trainer.batch,
            "iteration": trainer.iteration,
            "pending": trainer.pending,
            "shared_by": trainer.shared_by,
            "data": _described(trainer.epoch_data),
            "first_epoch": trainer.first_epoch,
            "seed": trainer.seed,
            "deterministic": get_deterministic(),
            "sums": sums,
        },
        "description": describe(trainer),
        "history": dict(trainer.history),
        "counters": trainer.model.rng_counters(),
        "off": {a: [name for name, p in parameters.items() if not getattr(p, a)] for a in ("requires_grad", "decay")},
        "carried": _pack({m.path: m.carried for m in stateful_layers(trainer.model)}, arrays, "carried"),
        "model": _pack(raw_state(trainer), arrays, "model"),
        "optimizer": _pack(trainer.optimizer.state(), arrays, "optimizer"),
        # Pending gradients, with gradient accumulation.
        "gradients": _pack({name: p.grad for name, p in parameters.items() if p.grad is not None}, arrays, "gradients"),
        "callbacks": [
            {"kind": type(callback).__name__, "state": _pack(callback.state(), arrays, f"callbacks.{i}")}
            for i, callback in enumerate(trainer.callbacks)
        ],
    }
    if not all(np.isfinite(arrays[f"model.{name}"]).all() for name, p in parameters.items() if p.requires_grad):
        raise lost_weights(trainer)
    archive.write(path, document, arrays)


@checked
def load_checkpoint(trainer: Trainer, path: str | Path) -> None:
    """Restore a trainer (with its model, optimizer and callbacks) from a file of :func:`save_checkpoint`.

    The trainer is changed wholly or, where an error is raised, not at all.

    Raises:
        FileNotFoundError: there is no such file.
        ArchiveError: the file is truncated, damaged or not a checkpoint.
        ValueError: it belongs to another model, optimizer or list of callbacks.
    """
    document, arrays = _read(path)
    try:
        parts = {name: _unpack(document[name], arrays) for name in ("model", "optimizer", "gradients")}
        carried = _unpack(document.get("carried", {}), arrays)
        states = [_unpack(entry["state"], arrays) for entry in document["callbacks"]]
    except (MismatchError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    kinds, ours = (
        [_RENAMED.get(kind, kind) for kind in names]
        for names in ([entry["kind"] for entry in document["callbacks"]], [type(c).__name__ for c in trainer.callbacks])
    )
    if kinds != ours:
        had = shorten(str(kinds), 500)
        raise ValueError(f"{path}: the run had the callbacks {had}, this trainer has {ours}; give it the same ones")
    place = document["trainer"]
    if place["seed"] != trainer.seed:
        raise ValueError(f"{path}: the run had seed {place['seed']}, this trainer has {trainer.seed}; give it the same one")
    if place.get("deterministic", False) and not get_deterministic():
        warnings.warn(
            f"{path}: the run was deterministic until here and goes on otherwise: its bits will not be those of a run without "
            f"interruption; call xpnet.set_deterministic(True) first",
            RuntimeWarning,
            stacklevel=3,
        )
    _check_model(trainer, path, parts["model"], parts["gradients"], document["counters"])
    others = differences(document["description"], describe(trainer)) if "description" in document else []
    if others:
        warnings.warn(
            shorten(f"{path}: the run goes on otherwise than it was: {'; '.join(others)}"), RuntimeWarning, stacklevel=3
        )
    # What may find fault with its part comes first; what was loaded then is put back. The model, checked above, is last.
    before = [(part, dict(vars(part))) for part in (*trainer.callbacks, trainer.optimizer, trainer.sums)]
    try:
        for callback, state in zip(trainer.callbacks, states):
            _check_state(callback, state)
            callback.load_state(state)
        trainer.optimizer.load_state(parts["optimizer"])
        trainer.sums.load_state(place["sums"])
        if trainer.optimizer.slots:
            trainer.optimizer.bind(trainer.model)  # whose it is from now on
        trainer.model.load_state(parts["model"])
    except Exception as error:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)
        if isinstance(error, (MismatchError, KeyError, TypeError, AttributeError, IndexError, OverflowError)):
            raise _damaged(path, error) from error
        if isinstance(error, ValueError):
            raise ValueError(shorten(f"{path}: {error}")) from error
        raise
    if place["batch"] and "off" in document:
        _set_as_saved(trainer.model, document["off"], path)
    trainer.model.load_rng_counters(document["counters"])
    device = trainer.model.context.device
    for layer in stateful_layers(trainer.model):
        found = carried.get(layer.path)
        layer.carried = None if found is None else tuple(to_device(array, device) for array in found)
    parameters = trainer.model.parameters()
    for name, gradient in parts["gradients"].items():
        parameters[name].set_gradient(gradient)
    trainer.history.clear()
    trainer.history.update({name: [math.nan if v is None else float(v) for v in h] for name, h in document["history"].items()})
    trainer.epoch, trainer.batch = place["epoch"], place["batch"]
    trainer.iteration, trainer.first_epoch = place["iteration"], place["first_epoch"]
    # Earlier versions counted the batches of an accumulated update across epochs.
    trainer.pending = place.get("pending", place["iteration"] % trainer.accumulate)
    trainer.shared_by = place.get("shared_by", trainer.accumulate)
    trainer.epoch_data = place.get("data")
    trainer.set_aside = None
    for callback in trainer.callbacks:
        claim(trainer, callback)


def checkpoint_epoch(path: str | Path) -> int:
    """Return the epoch, from 1, that a checkpoint is in the middle of, or the last one before it where it is between two.

    Raises:
        FileNotFoundError: there is no such file.
        ArchiveError: the file is truncated, damaged or not a checkpoint.
    """
    place = _read(path)[0]["trainer"]
    return int(place["epoch"]) + bool(place["batch"])


def _read(path: str | Path) -> tuple[dict[str, Any], archive.NumpyArrays]:
    """Return the document and the arrays of a checkpoint; errors as in :func:`checkpoint_epoch`."""
    document, arrays = archive.read(path)
    if document.get("format") != FORMAT:
        raise archive.ArchiveError(f"{path}: not a checkpoint of xpnet: its format is {quoted(document.get('format'))}")
    try:
        _DOCUMENT(document, "its document")
    except (MismatchError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return document, arrays


def _set_as_saved(model: Module, off: dict[str, list[str]], path: str | Path) -> None:
    """Freeze what was frozen, and exempt from decay what was exempt, when a run was saved within an epoch.

    A callback may have done it at the beginning of that epoch.
    """
    changed = []
    for attribute, names in off.items():
        for name, parameter in model.parameters().items():
            if getattr(parameter, attribute) == (name in names):
                setattr(parameter, attribute, name not in names)
                changed.append(f"{name}.{attribute} = {name not in names}")
    if changed:
        warnings.warn(
            f"{path}: the rest of the epoch goes on as it was saved, with "
            f"{', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}",
            RuntimeWarning,
            stacklevel=4,
        )


def _described(data: Any) -> Any:
    """Return the description of the data of an epoch, for JSON."""
    from xpnet.data.identity import describe

    return data if data is None or isinstance(data, dict) else describe(data)


def _path_or_place(value: Any, where: str) -> None:
    if isinstance(value, str):
        text(value, where)
    else:
        integer()(value, where)


_DOCUMENT = fields(
    {
        "trainer": fields(
            {
                **dict.fromkeys(("epoch", "batch", "iteration", "first_epoch"), integer()),
                "seed": integer(-LARGEST),
                "sums": fields({"count": integer(), "totals": dict_of(number)}),
            },
            {"deterministic": flag, "pending": integer(), "shared_by": integer(1), "data": maybe(fields({}))},
        ),
        "history": dict_of(list_of(maybe(number))),
        "counters": dict_of(integer()),
        "model": dict_of(fields({"array": text})),
        "gradients": dict_of(fields({"array": text})),
        "optimizer": fields(
            {"iterations": integer(), "factor": number, "slots": dict_of(fields({"array": text}))},
            {"skipped": integer(), "parameters": list_of(list_of(_path_or_place, 3))},
        ),
        "callbacks": list_of(fields({"kind": text, "state": fields({})})),
    },
    {
        "off": fields({"requires_grad": list_of(text), "decay": list_of(text)}),
        "carried": dict_of(maybe(list_of(fields({"array": text})))),
        "description": fields({"loss": text, "layers": dict_of(dict_of(text))}),
    },
)


def _damaged(path: str | Path, error: Exception) -> archive.ArchiveError:
    what = str(error) if isinstance(error, MismatchError) else f"{type(error).__name__}: {quoted(str(error), 200)}"
    return archive.ArchiveError(f"{path}: a damaged checkpoint: {what}")


def _check_model(
    trainer: Trainer, path: str | Path, state: dict[str, Any], gradients: dict[str, Any], counters: dict[str, int]
) -> None:
    """Raise an ArchiveError where arrays cannot be those of a model, and a ValueError where they are another model's."""
    own, parameters = trainer.model.state(), trainer.model.parameters()
    try:
        check_state(trainer.model, state)
    except ValueError as error:
        trainer.model._require_built(f"{path}")
        raise ValueError(f"{path}: {error}") from None
    if counters.keys() - dict(trainer.model.named_modules()).keys():
        raise ValueError(f"{path}: the run's model had other random layers: {quoted(sorted(counters), 200)}")
    for name, array in state.items():
        if (array.dtype.kind in "biu") != (dtype_name(own[name]) not in FLOATS):
            raise archive.ArchiveError(f"{path}: a damaged checkpoint: {name} is {array.dtype}")
    for name, gradient in gradients.items():
        if name not in parameters or gradient.shape != parameters[name].shape or gradient.dtype.kind in "biu":
            raise archive.ArchiveError(f"{path}: a damaged checkpoint: a gradient {quoted(name)} that fits no parameter")


def _check_state(callback: Callback, state: dict[str, Any]) -> None:
    """Raise a MismatchError where the state of a callback has other parts than the callback's own, or parts of another kind.

    A user's callback may keep what it likes: of its state only the names are compared.
    """
    kind = type(callback)
    if not kind.__module__.startswith("xpnet."):
        return
    for name, value in callback.state().items():
        where = f"its {kind.__name__}.{name}"
        if name not in state:
            raise MismatchError(where, None, "a value")
        _alike(value, state[name], where)


def _alike(own: Any, value: Any, where: str) -> None:
    if isinstance(own, bool):
        flag(value, where)
    elif isinstance(own, (int, float)):
        number(value, where)
    elif isinstance(own, str):
        text(value, where)
    elif isinstance(own, (list, dict)) and value is not None:
        if type(own) is not type(value):
            raise MismatchError(where, value, f"a {type(own).__name__}")
    elif isinstance(value, str):  # None so far: a number, an array, or some by name
        raise MismatchError(where, value, "a number or arrays")


def _pack(value: Any, arrays: dict[str, Any], name: str) -> Any:
    """Return `value` for JSON, each array replaced by a reference and put into `arrays`."""
    if isinstance(value, dict):
        return {key: _pack(part, arrays, f"{name}.{key}") for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(part, arrays, f"{name}.{i}") for i, part in enumerate(value)]
    if hasattr(value, "dtype"):
        arrays[name] = np.asarray(to_numpy(value))
        return {"array": name}
    return value


def _unpack(value: Any, arrays: dict[str, Any]) -> Any:
    """Reverse _pack."""
    if isinstance(value, dict):
        if set(value) == {"array"}:
            name = value["array"]
            if not isinstance(name, str) or name not in arrays:
                raise MismatchError("the reference to an array", name, "one that the file holds")
            return arrays[name]
        return {key: _unpack(part, arrays) for key, part in value.items()}
    return [_unpack(part, arrays) for part in value] if isinstance(value, list) else value
