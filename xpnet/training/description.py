"""What a run trains, in words that a checkpoint can keep: the loss, and the settings of every layer that have a description."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from xpnet.layers.attributes import constructor_names
from xpnet.layers.module import Module
from xpnet.runtime.messages import quoted

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer

_PLAIN = (bool, int, float, str, type(None))


def describe(trainer: Trainer) -> dict[str, Any]:
    """Return {"loss": ..., "layers": {path: {setting: value}}}, all of it words."""
    layers = {path: _settings(module) for path, module in trainer.model.named_modules()}
    return {"loss": _word(trainer.loss) or "", "layers": layers}


def _settings(module: Module) -> dict[str, str]:
    """Return the class of a Module, and the constructor's arguments that it keeps under their names and that have a word."""
    found = {"class": type(module).__name__}
    for name in sorted(constructor_names(type(module))):  # type: ignore[arg-type]
        if name.endswith("initializer") or name in ("device", "seed"):
            continue  # of what the checkpoint holds; and a run may go on on another device
        if name in module.__dict__ or isinstance(getattr(type(module), name, None), property):
            word = _word(getattr(module, name))
            if word is not None:
                found[name] = word
    return found


def _word(value: Any) -> str | None:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return repr(value) if all(isinstance(part, _PLAIN) for part in value) else None
    if dataclasses.is_dataclass(value) and type(value).__module__.startswith("xpnet."):  # a regularizer
        return repr(value)
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) and name != "<lambda>" else None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs between two descriptions, as far as both say something."""
    found = []
    if before["loss"] and now["loss"] and before["loss"] != now["loss"]:
        found.append(f"the loss was {quoted(before['loss'])[1:-1]}, is {now['loss']}")
    for path, settings in now["layers"].items():
        known = before["layers"].get(path, {})
        found += [
            f"{name} of layer {path!r} ({settings['class']}) was {quoted(known[name])[1:-1]}, is {value}"
            for name, value in settings.items()
            if name in known and known[name] != value
        ]
    return found
