"""Asynchronous copies to a GPU on a copy stream, for xpnet.data.prefetch."""

from __future__ import annotations

import time
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

    def copy(self, target: Array, source: np.ndarray[Any, Any]) -> None:
        """Copy a host array to a device array, asynchronously on the copy stream."""
        kind = cupy.cuda.runtime.memcpyHostToDevice
        with self._device:
            cupy.cuda.runtime.memcpyAsync(target.data.ptr, source.ctypes.data, source.nbytes, kind, self._stream.ptr)

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
        """Make the current stream wait for an event."""
        cupy.cuda.get_current_stream().wait_event(event)

    def is_there(self, array: Any) -> bool:
        """Return whether it is a CuPy array."""
        return isinstance(array, cupy.ndarray)

    def move(self, array: Any) -> Array:
        """Move a CuPy array to this device."""
        return to_device(array, self.device)

    def seconds(self, event: Any) -> float:
        """Wait for an event and return its time; only where a timeline was recording at the start."""
        if self._clock is None:
            raise RuntimeError("transfers are timed where a Timeline is recording when training begins")
        return self._clock.seconds(event)

    def finish(self) -> None:
        """Wait for the copies and for the current stream."""
        self._stream.synchronize()
        cupy.cuda.get_current_stream().synchronize()
