"""CUDA graphs: the launches of a function, recorded once and replayed as one.

CuPy refuses to read from the device, and to call its own cuBLAS and cuRAND, while a stream is recorded; our products have
a cuBLAS handle of their own. Memory that the recorded launches use must not be given to anybody else between replays, so
the function allocates from a pool that belongs to the graph and lives as long as it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import cupy

from xpnet.backend import Device


class CudaGraphs:
    """Records and replays on one stream of one device.

    Attributes:
        xp: the namespace of the arrays.
        device: the GPU.
    """

    xp = cupy

    def __init__(self, device: Device) -> None:
        self.device = device
        with cupy.cuda.Device(device.index):
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self._device = cupy.cuda.Device(device.index)
        self._pool = cupy.cuda.MemoryPool()

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Within the block everything runs on the graphs' stream, after what was on the current one; and the reverse."""
        with self._device:
            outer = cupy.cuda.get_current_stream()
            if outer == self._stream:
                yield
                return
            self._stream.wait_event(outer.record())
            try:
                with self._stream:
                    yield
            finally:
                outer.wait_event(self._stream.record())

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Run `function` on the stream without executing its launches.

        Returns:
            A function that executes them, and what `function` returned: arrays that each replay fills.

        Raises:
            whatever `function` raises, also where CuPy refuses a call; the stream is usable again afterwards.
        """
        # What the run before the recording left in the usual pool would lie idle: the graph has memory of its own.
        cupy.get_default_memory_pool().free_all_blocks()
        with cupy.cuda.using_allocator(self._pool.malloc):
            self._stream.begin_capture()
            try:
                result = function()
            except BaseException:
                # An invalid recording has to be ended, too; ending it raises the error that made it invalid again.
                with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
                    self._stream.end_capture()
                raise
            graph = self._stream.end_capture()
        graph.upload(self._stream)

        def replay() -> None:
            graph.launch(self._stream)

        return replay, result
