"""Predicts the memory of a training step: the step runs on fake arrays, and what it would allocate is counted."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from xpnet import losses
from xpnet.autograd.functional import map_structure
from xpnet.autograd.tape import no_grad
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array, Device, dtype_name
from xpnet.inspect.footprint import FAKE_CPU, FAKE_CUDA, AllocationLog, FakeArray, FakeCupyArray, FakeNumpyArray, counting
from xpnet.inspect.footprint.operations import use_footprints
from xpnet.inspect.shapes import input_shapes
from xpnet.layers.context import Context, Shape, meta_init
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module
from xpnet.optim import Adam, Optimizer
from xpnet.runtime.messages import quoted

POOL_UNIT = 512
"""CuPy's memory pool allocates multiples of this many bytes."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs.

    Attributes:
        device: "cpu" or "cuda".
        batch_size: examples of the batch.
        parameters: the weights and buffers (running statistics).
        gradients: of all trainable parameters.
        state: the optimizer's.
        batch: the inputs and targets.
        activations: what the forward pass saves for the backward pass, and the outputs.
        working: the workspace that operations keep from step to step: of the threads on a CPU, of cuBLAS on a GPU.
        peak: the most in use at one time of a step: all of the above and temporaries (gradients of activations, im2col
            matrices, transformed kernels).
    """

    device: str
    batch_size: int
    parameters: int
    gradients: int
    state: int
    batch: int
    activations: int
    working: int
    peak: int

    @property
    def passing(self) -> int:
        """The temporaries at the peak."""
        return self.peak - (self.parameters + self.gradients + self.state + self.batch + self.activations + self.working)


def step_memory(
    model: Module,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    *,
    batch_size: int = 1,
    optimizer: Optimizer | None = None,
    loss: str | Callable[[Any, Any], Any] | None = None,
    target: tuple[Sequence[int], str] | None = None,
    recompute: Any = False,
    accumulate: int = 1,
    device: str | Device | None = None,
) -> StepMemory:
    """Predict the memory of a step of a Trainer with these settings. The model is not run and not changed.

    Args:
        model: any Module; its parameters need not exist yet.
        input_shape: of one example; a list of such shapes for a model of several inputs. None if the model knows it.
        batch_size: examples a batch.
        optimizer: Adam if None.
        loss: as for Trainer; None means the softmax cross entropy of a single output, or the sum of the means of several.
        target: (shape, dtype) of one example's target; None means a class index for cross entropy and hinge losses, and the
            output's shape otherwise.
        recompute, accumulate: as for Trainer.
        device: "cpu" or "cuda"; the model's if None. "cuda" needs no GPU; without one the sizes of caches and the number of
            multiprocessors are those of an H100.

    Raises:
        ValueError: no input shape is known.
        AttributeError, TypeError: a custom layer calls a function of an array library that is not known here, or reads values.
    """
    shapes = input_shapes(model, input_shape, "step_memory", "(28, 28, 1)")
    if batch_size < 1:
        raise ValueError(f"step_memory: batch_size must be at least 1, got {batch_size}")
    place = model.context.device if device is None else device
    kind = place.kind if isinstance(place, Device) else str(place).partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f'step_memory: device must be "cpu" or "cuda", got {quoted(device)}')
    use_footprints("numpy" if kind == "cpu" else "cupy")
    fake: tuple[Device, type[FakeArray]] = (FAKE_CPU, FakeNumpyArray) if kind == "cpu" else (FAKE_CUDA, FakeCupyArray)
    optimizer = Adam() if optimizer is None else optimizer
    with counting(AllocationLog(1 if kind == "cpu" else POOL_UNIT)) as log, _launches(kind):
        return _measured(model, shapes, batch_size, optimizer, loss, target, recompute, accumulate, *fake, log)


def _launches(kind: str) -> contextlib.AbstractContextManager[None]:
    """Ignore this thread's launches within the block, and count cuBLAS's workspace."""
    if kind == "cpu":
        return contextlib.nullcontext()
    from xpnet.accel.cupy.launch import use_thread_runtime
    from xpnet.inspect.footprint.cupy_runtime import PlanningRuntime

    return use_thread_runtime(PlanningRuntime())


def _measured(
    model: Module, shapes: tuple[Shape, ...], batch_size: int, optimizer: Optimizer, loss: Any, target: Any, recompute: Any,
    accumulate: int, device: Device, kind: type[FakeArray], log: AllocationLog,
) -> StepMemory:  # fmt: skip
    from xpnet.training.trainer import Trainer

    twin = _twin(model, shapes, device, kind)
    flat = twin.flat_parameters  # holds the parameters from now on; the memory that they had before is free
    gradients = 0 if flat.values is None else log.rounded(flat.values.nbytes)
    parameters = log.now - log.kept - gradients
    fresh = copy.copy(optimizer)
    fresh.slots, fresh._flat, fresh._iterations, fresh.clock = {}, None, 0, None
    fresh.bind(twin)
    state = log.now - log.kept - parameters - gradients
    inputs = tuple(kind.new((batch_size, *shape), twin.context.dtype) for shape in shapes)
    with no_grad(), eval_mode(twin):
        outputs = arrays_in(twin(*inputs))
    function, y = _loss(loss, target, outputs, batch_size, kind)
    del outputs
    in_use: list[int] = []

    def observed(prediction: Any, labels: Any) -> Any:
        value = function(prediction, labels)
        in_use.append(log.now)
        return value

    trainer = Trainer(
        twin, loss=observed, optimizer=fresh, recompute=_of_twin(recompute, model, twin), accumulate=accumulate, capture=False
    )
    batch = sum(log.rounded(a.nbytes) for a in (*inputs, y) if isinstance(a, FakeArray))
    x = inputs if len(inputs) > 1 else inputs[0]
    trainer.step(x, y)  # workspace is kept from the first step on
    working, before = log.kept, log.now
    log.reset_peak()
    for _ in range(accumulate):
        trainer.step(x, y)
    activations = max(in_use[1:]) - before
    return StepMemory(device.kind, batch_size, parameters, gradients, state, batch, activations, working, log.peak)


def _twin(model: Module, shapes: tuple[Shape, ...], device: Device, kind: type[FakeArray]) -> Module:
    """Return a copy of the model with fake arrays."""
    known: dict[int, Any] = {}
    kept: list[Any] = []  # so that no id is used twice
    for parameter in model.parameters().values():
        kept.extend((parameter.array, parameter.grad, parameter.buffer))
        known[id(parameter.array)] = kind.new(parameter.array.shape, _numpy_dtype(parameter.array))
        known.update((id(gradient), None) for gradient in (parameter.grad, parameter.buffer) if gradient is not None)
    for buffer in model.buffers().values():
        if buffer is not None:
            kept.append(buffer)
            known[id(buffer)] = kind.new(buffer.shape, _numpy_dtype(buffer))
    twin: Module = copy.deepcopy(model, known)
    known.clear()
    context = Context(model.context.seed, device, model.context.dtype)
    for module in twin.modules():
        if module.__dict__.get("carried") is not None:
            module.__dict__["carried"] = None
        module.__dict__["context"] = context
    twin._attach("", context)
    if not twin._is_built():
        with meta_init(), no_grad(), eval_mode(twin):
            twin(*(kind.new((1, *shape), context.dtype) for shape in shapes))
        for module in twin.modules():
            for parameter in module._parameters.values():
                parameter.array = cast(Array, kind.new(parameter.array.shape, parameter.array.dtype))
            for name, array in module._buffers.items():
                setattr(module, name, kind.new(array.shape, array.dtype))
    return twin.train()


def _numpy_dtype(array: Any) -> Any:
    return array.dtype if isinstance(array.dtype, np.dtype) else np.dtype(dtype_name(array))


def arrays_in(result: Any) -> list[Any]:
    """Return all arrays in a model's output, Tensors unchanged."""
    found: list[Any] = []
    map_structure(lambda part: found.append(part) if hasattr(part, "shape") else None, result)
    return found


def _loss(loss: Any, target: Any, outputs: list[Any], batch_size: int, kind: type[FakeArray]) -> tuple[Any, Any]:
    """Return the loss function and targets for it."""
    first = outputs[0]
    if loss is None and (len(outputs) > 1 or first.ndim < 2):
        return _sum_of_means, None
    function = losses.get(losses.softmax_cross_entropy if loss is None else loss)
    if target is not None:
        return function, kind.new((batch_size, *target[0]), target[1])
    if getattr(function, "__name__", "") in ("softmax_cross_entropy", "hinge", "squared_hinge", "negative_log_likelihood"):
        return function, kind.new(first.shape[:-1], np.int64)
    return function, kind.new(first.shape, first.dtype)


def _sum_of_means(prediction: Any, labels: Any) -> Any:
    total = None
    for part in arrays_in(prediction):
        if isinstance(part, Tensor):
            total = part.mean() if total is None else total + part.mean()
    return total


def _of_twin(recompute: Any, model: Module, twin: Module) -> Any:
    """Return the same choice of layers for the twin; a function is called with the layers of the model itself."""
    if not callable(recompute):
        return recompute
    return [path for path, module in model.named_modules() if path and recompute(path, module)]


__all__ = ["StepMemory", "step_memory"]
