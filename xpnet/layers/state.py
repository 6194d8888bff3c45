"""Loading the state of a model, and the counters of its random layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from xpnet.backend import Array, namespace
from xpnet.layers.context import on_device
from xpnet.layers.execution import on_device_of
from xpnet.layers.modes import thread_state
from xpnet.runtime.messages import shorten

if TYPE_CHECKING:
    from xpnet.layers.module import Module


def load_state(model: Module, state: Mapping[str, Array], strict: bool) -> None:
    """Load parameters and buffers: see Module.load_state."""
    own = check_state(model, state, strict)
    parameters = model.parameters()
    owners = {
        f"{path}.{name}" if path else name: (module, name) for path, module in model.named_modules() for name in module._buffers
    }
    with on_device_of(model, "load_state"):
        for name in own:
            if name not in state:
                continue
            values = on_device(state[name], model.context)
            if name in parameters:
                parameters[name].array[...] = values
            else:
                _fill(*owners[name], values)


def check_state(model: Module, state: Mapping[str, Array], strict: bool = True) -> dict[str, Array]:
    """Return the model's own state, after a check that `state` fits it.

    Raises:
        ValueError: missing, left-over or mis-shaped names.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"load_state: expected a mapping of names to arrays, as state() returns, got {type(state).__name__}; "
            f"model.load_weights reads a file"
        )
    own = model.state()
    problems = [f"{what} {', '.join(names)}" for what, names in _misfits(own, state, strict) if names]
    if problems:
        raise ValueError(shorten(f"these weights do not fit the model: {'; '.join(problems)}"))
    return own


def _fill(module: Module, name: str, values: Array) -> None:
    """Write the values into a buffer in place: a CUDA graph reads and writes that very array.

    One that cannot hold them as they are (another dtype, read-only) is replaced, by a copy: no array of the caller's becomes
    the model's.
    """
    buffer = module._buffers[name]
    if buffer is values:
        return
    if buffer.dtype == values.dtype and getattr(getattr(buffer, "flags", None), "writeable", True):
        buffer[...] = values
    else:
        setattr(module, name, namespace(values).asarray(values, copy=True))


def _misfits(own: dict[str, Array], state: Mapping[str, Array], strict: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield each kind of misfit with the names that have it."""
    if strict:
        yield "missing", sorted(own.keys() - state.keys())
        yield "left over", sorted(state.keys() - own.keys())
    shapes = {name: (tuple(state[name].shape), tuple(array.shape)) for name, array in own.items() if name in state}
    yield "of another shape:", [f"{name}: {got}, expected {want}" for name, (got, want) in shapes.items() if got != want]


class RepeatedNumbersError(Exception):
    """A random layer was called in a recording whose replays would all draw the same numbers.

    Attributes:
        layer: the Module.
    """

    def __init__(self, layer: Module, recorded: str) -> None:
        super().__init__(f"{type(layer).__name__} draws random numbers")
        self.layer = layer
        self.recorded = recorded


def next_step(module: Module) -> Any:
    """Return the step of a random layer's stream and increment it: a number, or an array where the counter is on the device.

    Raises:
        RepeatedNumbersError: a recording of a step, while the counter is on the host, or of a prediction.
    """
    recorded = thread_state.recording
    if recorded == "prediction" or (recorded == "step" and module.device_counter is None):
        raise RepeatedNumbersError(module, recorded)
    if module.device_counter is not None:
        return module.device_counter.take()
    step = module.counter
    module.counter = step + 1
    return step


def rng_counters(model: Module) -> dict[str, int]:
    """Return the counters that are not 0, by path."""
    found = {}
    for path, module in model.named_modules():
        count = counter_of(module)
        if count:
            found[path] = count
    return found


def load_rng_counters(model: Module, counters: dict[str, int]) -> None:
    """Set the counters of all layers; missing ones are 0."""
    for path, module in model.named_modules():
        set_counter(module, int(counters.get(path, 0)))


def counter_of(module: Module) -> int:
    """Return the counter of one layer, wherever it is (waits for the device)."""
    return module.counter if module.device_counter is None else module.device_counter.value


def set_counter(module: Module, value: int) -> None:
    """Set the counter of one layer, wherever it is."""
    module.counter = value
    if module.device_counter is not None:
        module.device_counter.value = value
