"""The executor of GPUs: a model's forward pass, or a Trainer's steps, as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet.autograd.tape import no_grad
from xpnet.backend import Device, imported, working_on
from xpnet.compiled.captured_steps import CapturedSteps
from xpnet.compiled.dependencies import Loop
from xpnet.compiled.graph import CapturedModel
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module


class CudaExecutor:
    """See xpnet.layers.execution.Executor."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._predictions: CapturedModel | None = None

    def predict(self, model: Module, x: Any, whole: bool) -> Any:
        """Return the output by a CUDA graph, if `x` is on this GPU and every layer can be captured."""
        cupy: Any = imported("cupy")
        if cupy is None or not isinstance(x, cupy.ndarray) or x.device.id != self.device.index or not _capturable(model):
            return None
        if self._predictions is None:
            from xpnet.compiled.cuda_graph import CudaGraphs

            self._predictions = CapturedModel(model, CudaGraphs(self.device))
        with no_grad(), eval_mode(model), working_on(self.device, "predict"):
            return self._predictions(x)

    def step(self, model: Module, loss: Callable[..., Any], x: Any, y: Any) -> None:
        """Return None: steps are captured together with the update."""

    def capture(self, loop: Loop) -> CapturedSteps | None:
        """Return the loop's steps as CUDA graphs, if every layer can be captured."""
        if not _capturable(loop.model):
            return None
        import cupy

        from xpnet.accel.cupy.optimizers import DeviceSchedule
        from xpnet.compiled.cuda_graph import CudaGraphs

        return CapturedSteps(loop, CudaGraphs(self.device), lambda values: DeviceSchedule.new(cupy, values))


def _capturable(model: Module) -> bool:
    return all(module.capturable for module in model.modules())
