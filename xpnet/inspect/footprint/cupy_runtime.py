"""A runtime that runs nothing, for the operations on fake CuPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet.accel.cupy.cublas import WORKSPACE
from xpnet.accel.cupy.source import Instance
from xpnet.inspect.footprint.fake_array import current_log

Array = Any


class PlanningRuntime:
    """Ignores launches. The device is the current one, or an H100 if there is none."""

    cudnn: Any = None  # its convolutions are chosen by autotuning, which is impossible here

    def __init__(self) -> None:
        from xpnet.accel.cupy import launch
        from xpnet.backend import DeviceError, device

        self.multiprocessors, self.chunk_bytes, self.architecture, self.device_name = 132, 25 << 20, 90, "H100 (assumed)"
        try:
            with device("cuda"):
                real = launch.runtime()
        except DeviceError:
            return
        self.multiprocessors, self.chunk_bytes = real.multiprocessors, real.chunk_bytes
        self.architecture, self.device_name = real.architecture, real.device_name

    def addresses(self, instance: Instance, arrays: list[Array | None]) -> list[int]:
        """Return no addresses: the arrays have none."""
        return [0] * len(arrays)

    def launch(self, instance: Instance, grid: Any, block: Any, arguments: Any) -> None:
        """Do nothing."""

    def counters(self, count: int) -> Any:
        """Return None: nothing is counted, and the memory is there once for all models."""

    def one(self, like: Any) -> Any:
        """Return None, as for counters."""

    def gemm(self, call: Any) -> None:
        """Count cuBLAS's workspace."""
        current_log().workspace("cublas", WORKSPACE)

    def can_measure(self) -> bool:
        """Return False: nothing runs that could be timed."""
        return False

    def milliseconds(self, function: Callable[[], object]) -> float:
        """Refuse: see can_measure."""
        raise NotImplementedError("nothing runs here")
