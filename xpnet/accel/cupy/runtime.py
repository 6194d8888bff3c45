"""The current runtime, which runs kernels and GEMMs: a CUDA device, or a substitute."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from xpnet.accel.cupy.source import Instance

Array = Any
Size3 = tuple[int, int, int]


class Runtime(Protocol):
    """Runs kernels and GEMMs."""

    multiprocessors: int
    chunk_bytes: int  # the im2col workspace of a convolution
    architecture: int  # the compute capability times ten
    device_name: str

    @property
    def cudnn(self) -> Any:
        """A `cudnn.Cudnn`, or None."""

    def addresses(self, instance: Instance, arrays: list[Array | None]) -> list[int]:
        """Return the address of each array's data, 0 for None."""

    def launch(self, instance: Instance, grid: Size3, block: Size3, arguments: Any) -> None:
        """Run a kernel; `arguments` is a C array of pointers, one per parameter."""

    def counters(self, count: int) -> Array:
        """Return so many counters (uint32) of the current stream, which are 0."""

    def one(self, like: Any) -> Array | None:
        """Return a constant 1, without axes, in the dtype and on the device of an array; None where it cannot be made now."""

    def gemm(self, call: Any) -> None:
        """Run a `gemm.Product`, a strided batched GEMM of cuBLAS."""

    def can_measure(self) -> bool:
        """Return whether `milliseconds` can be called now."""

    def milliseconds(self, function: Callable[[], object]) -> float:
        """Return how long the device takes for the launches of `function`."""


_runtimes: dict[int, Runtime] = {}
_factory: Any = None
_substitute: Runtime | None = None


class _ThreadState(threading.local):
    """The substitute for a device in this thread alone."""

    runtime: Runtime | None = None


_thread_state = _ThreadState()


def runtime() -> Runtime:
    """Return the runtime of the current CUDA device, or the substitute of `use_runtime`."""
    if _thread_state.runtime is not None:
        return _thread_state.runtime
    if _substitute is not None:
        return _substitute
    from cupy.cuda.runtime import getDevice

    device = getDevice()
    found = _runtimes.get(device)
    if found is None:
        found = _runtimes.setdefault(device, _factory(device))  # one for all threads: it holds the loaded kernels
    return found


def release_counters(device: int, stream: int) -> None:
    """Take back the counters of a stream of a device that is gone, and whose work is over."""
    found: Any = _runtimes.get(device)
    if found is not None:
        found.release_counters(stream)


@contextlib.contextmanager
def use_runtime(substitute: Runtime) -> Iterator[None]:
    """Run everything within the block on `substitute` instead of a CUDA device."""
    global _substitute
    before, _substitute = _substitute, substitute
    try:
        yield
    finally:
        _substitute = before


@contextlib.contextmanager
def use_thread_runtime(substitute: Runtime) -> Iterator[None]:
    """Run everything that this thread launches within the block on `substitute`."""
    before, _thread_state.runtime = _thread_state.runtime, substitute
    try:
        yield
    finally:
        _thread_state.runtime = before


def set_factory(factory: Callable[[int], Runtime]) -> None:
    """Set the function that makes the runtime of a device; xpnet.accel.cupy.device calls it."""
    global _factory
    _factory = factory
