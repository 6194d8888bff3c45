"""Running a whole model on data, and taking up the arrays of another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpnet import backend
from xpnet.backend import Array, Device
from xpnet.layers.context import placed
from xpnet.tape import no_grad
from xpnet.tensor import Tensor

if TYPE_CHECKING:
    from xpnet.layers.module import Module


class Evaluation:
    """Within the block a Module is in evaluation mode; afterwards each part is in the mode that it was in."""

    def __init__(self, module: Module) -> None:
        self.changed = [m for m in module.modules() if m.training]

    def __enter__(self) -> None:
        for module in self.changed:
            module.training = False

    def __exit__(self, *exception: object) -> None:
        for module in self.changed:
            module.training = True


def predict(model: Module, x: Array, batch_size: int) -> Array:
    """See Module.predict."""
    if batch_size < 1:
        raise ValueError(f"predict: batch_size must be at least 1, got {batch_size}")
    if isinstance(x, Tensor):
        x = x.array
    xp = backend.namespace(x)
    home = backend.device_of(x)
    away = isinstance(home, Device) and home != model.context.device
    outputs = []
    with no_grad(), Evaluation(model):
        run = _predictor(model)
        for start in range(0, max(len(x), 1), batch_size):
            batch = x if len(x) <= batch_size else x[start : start + batch_size]
            y = run(backend.to_device(batch, model.context.device) if away else batch)
            y = y.array if isinstance(y, Tensor) else y
            outputs.append(backend.to_device(y, home) if isinstance(home, Device) and away else y)
    return outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=0)


def _predictor(model: Module) -> Any:
    """What predict calls with each batch: the Module, or on a GPU its forward pass as a CUDA graph."""
    if model.context.device.kind != "cuda" or not all(module.capturable for module in model.modules()):
        return model
    captured = model.__dict__.get("_captured")
    if captured is None or captured.graphs.device != model.context.device:
        from xpnet.accel.cupy.graphs import CudaGraphs
        from xpnet.capture import CapturedModel

        captured = model.__dict__["_captured"] = CapturedModel(model, CudaGraphs(model.context.device))
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
