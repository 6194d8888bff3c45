"""The runtime of a CUDA device: kernel launches, GEMMs and timing."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

from xpnet.accel.cupy import cublas
from xpnet.accel.cupy.compiler import cubin
from xpnet.accel.cupy.cudnn import load as load_cudnn
from xpnet.accel.cupy.runtime import Array, Size3, set_factory
from xpnet.accel.cupy.source import Instance
from xpnet.backend import DeviceError

_COUNTERS = 4096  # of each stream
_PER_THREAD = 2  # the address by which CUDA names the default stream per thread


class CudaRuntime:
    """Runs kernels on the current CUDA device, on CuPy's current stream."""

    def __init__(self, device: int) -> None:
        import cupy

        self.device = device
        self._cupy = cupy
        self._driver = cupy.cuda.driver
        attributes = cupy.cuda.Device(device).attributes
        self.multiprocessors = int(attributes["MultiProcessorCount"])
        # Half of the L2 cache, but not so little that GEMMs leave multiprocessors idle.
        self.chunk_bytes = max(int(attributes["L2CacheSize"]) // 2, 16 << 20)
        self.architecture = int(cupy.cuda.Device(device).compute_capability)
        self.device_name = cupy.cuda.runtime.getDeviceProperties(device)["name"].decode()
        self._functions: dict[Instance, Any] = {}
        self._lock = threading.Lock()
        self._free_counters: list[Any] = []
        self._counters: dict[Any, Any] = {}
        self._ones: dict[Any, Any] = {}
        with self._lock:
            self._add_counters(_COUNTERS, 32)  # now, as memory cannot be cleared while a stream is captured

    def addresses(self, instance: Instance, arrays: list[Array | None]) -> list[int]:
        """Return the address of each array's data; every array must be on this device."""
        found = []
        for array in arrays:
            if array is None:
                found.append(0)
                continue
            memory = array.data
            if memory.device_id != self.device:
                raise DeviceError(
                    f"{instance.name} runs on cuda:{self.device}, the current device, and got an array on "
                    f"cuda:{memory.device_id}; move it with xpnet.to_device, or work inside "
                    f'`with xpnet.device("cuda:{memory.device_id}")`'
                )
            found.append(memory.ptr)
        return found

    def launch(self, instance: Instance, grid: Size3, block: Size3, arguments: Any) -> None:
        """Launch a kernel; the first launch compiles and loads it."""
        function = self._functions.get(instance)
        if function is None:
            function = self._load(instance)
        stream = self._cupy.cuda.get_current_stream().ptr
        self._driver.launchKernel(function.ptr, *grid, *block, 0, stream, ctypes.addressof(arguments), 0)

    def _load(self, instance: Instance) -> Any:
        with self._lock:
            if instance not in self._functions:
                code, symbol = cubin(instance, self.architecture)
                module = self._cupy.cuda.function.Module()
                module.load(code)
                self._functions[instance] = module.get_function(symbol)
        return self._functions[instance]

    def counters(self, count: int) -> Array:
        """Return so many counters of the current stream, which are 0."""
        stream = self._cupy.cuda.get_current_stream().ptr
        # Each thread has a stream of its own under the name of the default stream per thread.
        key = (stream, threading.get_ident()) if stream == _PER_THREAD else stream
        found = self._counters.get(key)
        if found is None or found[-1].size < count:
            with self._lock:
                if count > _COUNTERS or not self._free_counters:
                    self._add_counters(max(count, _COUNTERS), 1)
                # Recorded launches hold those that the stream had before.
                found = self._counters[key] = [*(found or ()), self._free_counters.pop()]
        return found[-1][:count]

    def release_counters(self, stream: int) -> None:
        """Take back the counters of a stream that is gone, and whose work is over."""
        with self._lock:
            # Larger ones than usual go: whoever takes counters expects the usual number.
            self._free_counters += [made for made in self._counters.pop(stream, ()) if made.size == _COUNTERS]

    def _add_counters(self, count: int, streams: int) -> None:
        """Make counters for some streams: in memory of their own, as that of a pool may belong to a graph."""
        cupy = self._cupy
        memory = cupy.cuda.MemoryPointer(cupy.cuda.Memory(4 * count * streams), 0)
        memory.memset(0, 4 * count * streams)
        cupy.cuda.runtime.streamSynchronize(cupy.cuda.Stream.null.ptr)
        self._free_counters += list(cupy.ndarray((streams, count), cupy.uint32, memory))

    def one(self, like: Any) -> Any:
        """Return the constant 1 in a dtype; None on another device, and while the current stream is captured.

        A replay of that would not write it.
        """
        cupy, dtype = self._cupy, like.dtype
        found = self._ones.get(dtype) if like.data.device_id == self.device else None
        if found is None and like.data.device_id == self.device and not cupy.cuda.get_current_stream().is_capturing():
            with self._lock, cupy.cuda.Stream.null as stream:
                # In memory of its own, as that of a pool may belong to a graph.
                found = cupy.ndarray((), dtype, cupy.cuda.MemoryPointer(cupy.cuda.Memory(dtype.itemsize), 0))
                found.fill(1)
                stream.synchronize()  # it is read on any stream
                found = self._ones.setdefault(dtype, found)
        return found

    def gemm(self, call: Any) -> None:
        """Run a GEMM with this package's own cuBLAS handle."""
        cublas.run(call, self.device, self._cupy.cuda.get_current_stream())

    @functools.cached_property
    def cudnn(self) -> Any:
        """cuDNN on this device, None if it is not installed."""
        return load_cudnn(self._cupy.cuda.get_current_stream, self._cupy.cuda.alloc)

    def can_measure(self) -> bool:
        """Return False while the current stream is captured: captured launches do not run."""
        return not self._cupy.cuda.get_current_stream().is_capturing()

    def milliseconds(self, function: Callable[[], object]) -> float:
        """Return the shortest of three measurements of four runs each, after one run that compiles and warms up."""
        runs = 4
        function()
        begin, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        times = []
        for _ in range(3):
            begin.record()
            for _ in range(runs):
                function()
            end.record()
            end.synchronize()
            times.append(self._cupy.cuda.get_elapsed_time(begin, end) / runs)
        return float(min(times))


set_factory(CudaRuntime)
