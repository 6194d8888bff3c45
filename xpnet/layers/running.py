"""Running a whole model on data, and taking up the arrays of another one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from xpnet import backend, ops
from xpnet.autograd.tape import no_grad
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array, Device, DeviceError
from xpnet.layers.context import Context, placed
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.late import late

if TYPE_CHECKING:
    from xpnet.layers.module import Module


class _Here(threading.local):
    """What blocks of :class:`Evaluation` say in this thread: modes that go before the Modules' own, and how many blocks do."""

    def __init__(self) -> None:
        self.modes: dict[Module, bool] = {}
        self.blocks: dict[Module, int] = {}


here = _Here()


class Evaluation:
    """Within the block a Module is in evaluation mode, in this thread alone; afterwards it is in its own mode again.

    Another thread may train it meanwhile. A mode that is set within the block, of a part that the block holds, ends with it.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.held: tuple[Module, ...] = ()

    def __enter__(self) -> None:
        self.held = self.module.modules()
        modes, blocks = here.modes, here.blocks
        for module in self.held:
            modes[module] = False
            blocks[module] = blocks.get(module, 0) + 1

    def __exit__(self, *exception: object) -> None:
        modes, blocks = here.modes, here.blocks
        for module in self.held:
            left = blocks[module] - 1
            if left:
                modes[module] = False
                blocks[module] = left
            else:
                del modes[module], blocks[module]


def received(x: Any, context: Context) -> Any:
    """An input of the root: floats in the model's dtype, on the model's device."""
    if not hasattr(x, "dtype"):
        return x
    if backend.dtype_name(x) == context.dtype and context.device.kind == "cpu":
        return x
    xp = backend.namespace(x)
    place = backend.device_of(x)
    if isinstance(place, Device) and place != context.device and backend.name_of(xp) in ("numpy", "cupy"):
        raise DeviceError(
            f"the model is on {context.device}, but its input on {place}; use model.to({str(place)!r}) or "
            f"xpnet.to_device(x, {str(context.device)!r})"
        )
    if backend.is_floating(x) and backend.dtype_name(x) != context.dtype:
        return ops.cast(x, context.dtype)
    return x


def predict(model: Module, x: Array, batch_size: int) -> Array:
    """See Module.predict."""
    if batch_size < 1:
        raise ValueError(f"predict: batch_size must be at least 1, got {batch_size}")
    on_cpu = model.context.device.kind == "cpu"
    if on_cpu and len(x) <= batch_size and (y := plans().planned(model, x)) is not None:
        return y
    several = isinstance(x, tuple)
    parts = x if several else (x,)
    if several or isinstance(x, Tensor):
        parts = tuple([part.array if isinstance(part, Tensor) else part for part in parts])
    xp = backend.namespace(*parts)
    first = parts[0]
    expected = getattr(model, "input_shape", None)
    if expected is not None and not several and first.ndim == len(expected):
        raise ShapeError(
            f"predict: x has shape {tuple(first.shape)}, expected (N, {', '.join(map(str, expected))}), the examples along the "
            f"first axis; for one example use x[None]"
        )
    home = backend.device_of(first)
    away = isinstance(home, Device) and home != model.context.device
    outputs = []
    with no_grad(), Evaluation(model):
        if on_cpu and len(first) <= batch_size and not several and (y := plans().make(model, first)) is not None:
            return y
        run = model if several else _predictor(model)
        for start in range(0, max(len(first), 1), batch_size):
            batch = parts if len(first) <= batch_size else tuple(part[start : start + batch_size] for part in parts)
            y = run(*(backend.to_device(part, model.context.device) for part in batch) if away else batch)
            outputs.append(y.array if isinstance(y, Tensor) and not away else _returned(y, home if away else None))
    if len(outputs) == 1:
        return outputs[0]
    if isinstance(outputs[0], tuple):
        return tuple(xp.concat(list(part), axis=0) for part in zip(*outputs))
    return xp.concat(outputs, axis=0)


def plans() -> Any:
    """What makes and runs small predictions on the CPU; imported when the first one comes."""
    return late("numpy predictions")


def steps() -> Any:
    """What runs small training steps on the CPU."""
    return late("numpy steps")


def _returned(output: Any, home: Any) -> Any:
    """A model's output, or each of several, as a native array, moved to `home` if that is given."""
    if isinstance(output, (tuple, list)):
        return tuple(_returned(part, home) for part in output)
    array = output.array if isinstance(output, Tensor) else output
    return array if home is None else backend.to_device(array, home)


def _predictor(model: Module) -> Any:
    """What predict calls with each batch: the Module, or on a GPU its forward pass as a CUDA graph."""
    if model.context.device.kind != "cuda" or not all(module.capturable for module in model.modules()):
        return model
    captured = model.__dict__.get("_captured")
    if captured is None or captured.graphs.device != model.context.device:
        captured = model.__dict__["_captured"] = late("cuda predictions")(model)
    return captured


def load_state(model: Module, state: dict[str, Array], strict: bool) -> None:
    """See Module.load_state."""
    own = model.state()
    missing = sorted(set(own) - set(state)) if strict else []
    extra = sorted(set(state) - set(own)) if strict else []
    wrong = [
        f"{name}: {tuple(state[name].shape)}, expected {tuple(array.shape)}"
        for name, array in own.items()
        if name in state and tuple(state[name].shape) != tuple(array.shape)
    ]
    problems = [f"{what} {', '.join(names)}" for what, names in _listed(missing, extra, wrong) if names]
    if problems:
        raise ValueError(f"these weights do not fit the model: {'; '.join(problems)}")
    parameters = model.parameters()
    owners = {
        f"{path}.{name}" if path else name: (module, name) for path, module in model.named_modules() for name in module._buffers
    }
    for name in own:
        if name in state:
            if name in parameters:
                parameters[name].array[...] = placed(state[name], model.context)
            else:
                module, attribute = owners[name]
                setattr(module, attribute, placed(state[name], model.context))


def _listed(missing: list[str], extra: list[str], wrong: list[str]) -> tuple[tuple[str, list[str]], ...]:
    return ("missing", missing), ("left over", extra), ("of another shape:", wrong)
