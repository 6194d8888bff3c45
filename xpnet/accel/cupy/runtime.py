"""What runs kernels and products now: a CUDA device, or what a test put in its place."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from xpnet.accel.cupy.source import Instance

Array = Any
Size3 = tuple[int, int, int]


class Runtime(Protocol):
    """What runs kernels and matrix products."""

    multiprocessors: int
    chunk_bytes: int  # of columns that a convolution makes at a time
    architecture: int  # the compute capability times ten
    device_name: str

    @property
    def cudnn(self) -> Any:
        """A `cudnn.Cudnn`, or None."""

    def addresses(self, instance: Instance, arrays: list[Array | None]) -> list[int]:
        """The address of each array's data, 0 for None."""

    def launch(self, instance: Instance, grid: Size3, block: Size3, arguments: Any) -> None:
        """Run a kernel; `arguments` is a C array of pointers, one per parameter."""

    def gemm(self, call: Any) -> None:
        """Run a `gemm.Product`, a strided batch of products in cuBLAS's terms."""

    def can_measure(self) -> bool:
        """Whether `milliseconds` can be asked for now."""

    def milliseconds(self, function: Callable[[], object]) -> float:
        """How long the device takes for what `function` launches."""


_runtimes: dict[int, Runtime] = {}
_factory: Any = None
_substitute: Runtime | None = None


class _Here(threading.local):
    """What this thread alone uses in the place of a device."""

    runtime: Runtime | None = None


_here = _Here()


def runtime() -> Runtime:
    """What runs kernels now: the current CUDA device, or what `use_runtime` put in its place."""
    if _here.runtime is not None:
        return _here.runtime
    if _substitute is not None:
        return _substitute
    from cupy.cuda.runtime import getDevice

    device = getDevice()
    found = _runtimes.get(device)
    if found is None:
        found = _runtimes[device] = _factory(device)
    return found


@contextlib.contextmanager
def use_runtime(substitute: Runtime) -> Iterator[None]:
    """Within the block everything runs on `substitute` instead of a CUDA device."""
    global _substitute
    before, _substitute = _substitute, substitute
    try:
        yield
    finally:
        _substitute = before


@contextlib.contextmanager
def use_runtime_here(substitute: Runtime) -> Iterator[None]:
    """Within the block everything that this thread launches runs on `substitute`; other threads go on as before."""
    before, _here.runtime = _here.runtime, substitute
    try:
        yield
    finally:
        _here.runtime = before


def set_factory(factory: Callable[[int], Runtime]) -> None:
    """Say what makes the runtime of a device: xpnet.accel.cupy.device does."""
    global _factory
    _factory = factory
