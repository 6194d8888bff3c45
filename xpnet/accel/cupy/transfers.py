"""Asynchronous copies to a GPU on a copy stream, for xpnet.data.prefetch; arrays that one thread makes and another one uses."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from xpnet.backend import Device, to_device
from xpnet.runtime import events

Array = Any


class Clock:
    """Converts events of a device's streams to times of time.perf_counter, to within about the time of a CUDA call."""

    def __init__(self, device: Device) -> None:
        self._device = cupy.cuda.Device(device.index)
        with self._device:
            self._origin = cupy.cuda.Event()
            self._origin.record()
            self._origin.synchronize()
        self._start = time.perf_counter()

    def mark(self) -> Any:
        """Record an event in the current stream."""
        event = cupy.cuda.Event()
        event.record()
        return event

    def seconds(self, event: Any) -> float:
        """Wait for an event and return its time."""
        event.synchronize()
        return self._start + float(cupy.cuda.get_elapsed_time(self._origin, event)) / 1e3


class CudaTransfers:
    """A copy stream of one GPU; computations are on the stream that is current when they are waited for."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.xp = device.xp
        self._device = cupy.cuda.Device(device.index)
        with self._device:
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self._clock = None if events.active() is None else Clock(device)

    def pinned(self, size: int) -> np.ndarray[Any, Any]:
        """Allocate page-locked (pinned) memory: (size,) uint8."""
        with self._device:
            return np.frombuffer(cupy.cuda.alloc_pinned_memory(max(size, 1)), np.uint8, size)

    def buffer(self, size: int) -> Array:
        """Allocate (size,) uint8 on the device, from memory that only the copy stream has used."""
        with self._device, self._stream:
            return cupy.empty(size, cupy.uint8)

    def copy(self, target: Array, source: Any) -> None:
        """Copy an array in pinned memory, or one on this device, to a device array, asynchronously on the copy stream."""
        runtime = cupy.cuda.runtime
        if isinstance(source, cupy.ndarray):
            address, kind = source.data.ptr, runtime.memcpyDeviceToDevice
        else:
            address, kind = source.ctypes.data, runtime.memcpyHostToDevice
        with self._device:
            runtime.memcpyAsync(target.data.ptr, address, source.nbytes, kind, self._stream.ptr)

    def copied(self) -> Any:
        """Record an event after all copies so far."""
        with self._device:
            return self._event(self._stream)

    def used(self) -> Any:
        """Record an event after all computations so far."""
        with self._device:
            return self._event(cupy.cuda.get_current_stream())

    def _event(self, stream: Any) -> Any:
        event = cupy.cuda.Event(block=True, disable_timing=self._clock is None)  # the host waits without spinning
        event.record(stream)
        return event

    def copies_wait(self, event: Any) -> None:
        """Make later copies wait for an event."""
        self._stream.wait_event(event)

    def computations_wait(self, event: Any) -> None:
        """Make the current stream of this thread wait for an event."""
        with self._device:
            cupy.cuda.get_current_stream().wait_event(event)

    def beside(self, work: Callable[[], Any]) -> Any:
        """Do the work of a thread that fills buffers, with the copy stream as its current one: see Lane."""
        with self._device, self._stream:
            return work()

    def is_there(self, array: Any) -> bool:
        """Return whether it is a CuPy array."""
        return isinstance(array, cupy.ndarray)

    def move(self, array: Any) -> Array:
        """Return a CuPy array on this device, C-contiguous, in the order of the current stream."""
        with self._device:
            return cupy.ascontiguousarray(to_device(array, self.device))

    def seconds(self, event: Any) -> float:
        """Wait for an event and return its time; only where a timeline was recording at the start."""
        if self._clock is None:
            raise RuntimeError("transfers are timed where a Timeline is recording when training begins")
        return self._clock.seconds(event)

    def finish(self) -> None:
        """Wait for the copies and for the current stream."""
        self._stream.synchronize()
        with self._device:
            cupy.cuda.get_current_stream().synchronize()


class Lane:
    """The stream of the threads that prepare data on a GPU.

    Every thread starts on the legacy stream, whose order the streams of CUDA graphs do not keep: memory that such a stream
    still reads, freed by the host, would be given to what a thread allocates on the legacy stream. So these threads have a
    stream, and with it memory, of their own; what they leave is handed over.
    """

    def __init__(self) -> None:
        self._device = cupy.cuda.Device()
        self._stream = _lane_stream(self._device.id)
        self._stream.wait_event(_record())

    def run(self, work: Callable[[], Any], tree_map: Callable[..., Any]) -> Handover:
        """Do work in this thread, with the device that was the current one where the lane was made."""
        with self._device, self._stream:
            return Handover(work(), tree_map)

    def close(self) -> None:
        """Make the current stream wait for all work so far, which may still read what is freed next."""
        cupy.cuda.get_current_stream().wait_event(_record(self._stream))


@functools.cache
def _lane_stream(device: int) -> Any:
    return cupy.cuda.Stream(non_blocking=True)


def _record(stream: Any = None) -> Any:
    """Return an event after what is on a stream, by default the current one."""
    event = cupy.cuda.Event(disable_timing=True)
    event.record(stream)
    return event


class Handover:
    """What a thread has made, on its way to another thread whose current stream may be another one.

    An array that is used on another stream than its own is in danger twice: it may not be computed yet, and its memory, which
    CuPy's pool gives out again in the order of the first stream, may be overwritten while the second one still reads it. So the
    taker waits and copies.

    Args:
        arrays: CuPy arrays, nested in whatever `tree_map` goes through.
        tree_map: calls a function for each leaf of such a structure.
    """

    def __init__(self, arrays: Any, tree_map: Callable[..., Any]) -> None:
        self._arrays, self._tree_map = arrays, tree_map
        self._made: dict[int, tuple[Any, Any]] = {}  # by device: this thread's stream, and an event after the arrays
        tree_map(self._record, arrays)

    def _record(self, array: Any) -> Any:
        if isinstance(array, cupy.ndarray) and array.device.id not in self._made:
            with array.device:
                stream = cupy.cuda.get_current_stream()
                self._made[array.device.id] = stream, _record(stream)
        return array

    def take(self) -> Any:
        """Return the arrays for use on the current stream of this thread: themselves where it is the one that made them."""
        arrays, self._arrays = self._tree_map(self._taken, self._arrays), None
        return arrays

    def _taken(self, array: Any) -> Any:
        if not isinstance(array, cupy.ndarray):
            return array
        made, event = self._made[array.device.id]
        with array.device:
            stream = cupy.cuda.get_current_stream()
            if stream == made and stream != cupy.cuda.Stream.ptds:  # of that name each thread has its own
                return array
            stream.wait_event(event)
            taken = array.copy()
            made.wait_event(_record(stream))  # before the memory is given out again
            return taken
