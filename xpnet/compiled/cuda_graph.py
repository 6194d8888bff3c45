"""CUDA graphs: the launches of a function, captured once and replayed as one.

While a stream is captured, CuPy refuses to read from the device and to call its own cuBLAS and cuRAND; xpnet's matrix
products use a cuBLAS handle of their own. Memory that captured launches use must not be reused between replays, so the
function allocates from a pool that belongs to the graph.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cupy

from xpnet.accel.cupy.runtime import release_counters
from xpnet.backend import Device

_retired: list[tuple[int, Any]] = []  # device and memory pool of graphs that are gone, while arrays of theirs are in use
_retiring = threading.RLock()


def _retire(device: int, pool: Any, stream: int) -> None:
    """Free the memory of graphs that are gone: CuPy does not free the blocks of a pool that nobody refers to any more.

    That waits for the device, so their stream's counters may serve another one.
    """
    with _retiring:
        _retired.append((device, pool))
        for entry in list(_retired):
            with cupy.cuda.Device(entry[0]):
                entry[1].free_all_blocks()
                if not entry[1].total_bytes() and entry in _retired:
                    _retired.remove(entry)
        release_counters(device, stream)


class CudaGraphs:
    """Captures and replays on one stream of one device.

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
        self._failed = False
        self._made: set[int] = set()  # the addresses of the memory that the last recording got
        weakref.finalize(self, _retire, device.index, self._pool, self._stream.ptr).atexit = False
        self._outer: Any = None  # the stream of the last block, which may still read what a replay wrote

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Run the block on the graphs' stream, after what is on the current one; what follows waits for the block."""
        with self._device:
            if self._failed:  # what the failed recording held is garbage by now
                self._pool.free_all_blocks()
                self._failed = False
            outer = cupy.cuda.get_current_stream()
            if outer == self._stream:
                yield
                return
            self._stream.wait_event(outer.record())
            if self._outer is not None and self._outer != outer:
                self._stream.wait_event(self._outer.record())
            self._outer = outer
            try:
                with self._stream:
                    yield
            finally:
                outer.wait_event(self._stream.record())

    def made(self, array: Any) -> bool:
        """Return whether an array is in memory of the recording that goes on, or in none of a device."""
        return not isinstance(array, cupy.ndarray) or array.data.mem.ptr in self._made

    def _allocate(self, size: int) -> Any:
        memory = self._pool.malloc(size)
        self._made.add(memory.mem.ptr)
        return memory

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Run `function` on the stream without executing its launches.

        Returns:
            A function that executes them, and what `function` returned: arrays that each replay overwrites.

        Raises:
            whatever `function` raises, also where CuPy refuses a call; the stream is usable again afterwards.
        """
        # The graph has memory of its own: free what the run before the recording left in the default pool.
        cupy.get_default_memory_pool().free_all_blocks()
        self._made.clear()
        with cupy.cuda.using_allocator(self._allocate):
            self._stream.begin_capture()
            try:
                result = function()
            except BaseException:
                self._failed = True
                # An invalid capture has to be ended, too; ending it raises the error that made it invalid once more.
                with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):
                    self._stream.end_capture()
                raise
            graph = self._stream.end_capture()
        graph.upload(self._stream)

        def replay() -> None:
            graph.launch(self._stream)

        return replay, result
