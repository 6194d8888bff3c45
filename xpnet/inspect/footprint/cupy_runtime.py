"""A runtime that runs nothing: for counting the memory of operations on arrays that have none (see xpnet.inspect.footprint)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet.accel.cupy.cublas import WORKSPACE
from xpnet.accel.cupy.source import Instance
from xpnet.inspect.footprint.fake_array import current_log

Array = Any


class PlanningRuntime:
    """Takes launches and does nothing. The device is the current one, or an H100 where there is none."""

    cudnn: Any = None  # its convolutions are chosen by measuring, which cannot be done here

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
        """None of the arrays is anywhere."""
        return [0] * len(arrays)

    def launch(self, instance: Instance, grid: Any, block: Any, arguments: Any) -> None:
        """Nothing."""

    def gemm(self, call: Any) -> None:
        """Count cuBLAS's workspace."""
        current_log().keep("cublas", WORKSPACE)

    def can_measure(self) -> bool:
        """Nothing runs that could be timed."""
        return False

    def milliseconds(self, function: Callable[[], object]) -> float:
        """Never asked for: see can_measure."""
        raise NotImplementedError("nothing runs here")
