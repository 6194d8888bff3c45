"""Launching kernels: arguments typed as the kernel declares them, and one object that runs them.

Everything that this package does on a device goes through :data:`runtime`: the launch of a kernel and a matrix product.
Tests put another runtime in its place (`use_runtime`) that runs the same kernels on NumPy arrays.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from xpnet.accel.cupy.source import Instance, dtype_of
from xpnet.backend import DeviceError

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

    def launch(self, instance: Instance, grid: Size3, block: Size3, shared: int, arguments: Any) -> None:
        """Run a kernel; `arguments` is a C array of pointers, one per parameter."""

    def gemm(self, call: Any) -> None:
        """Run a `gemm.Product`, a strided batch of products in cuBLAS's terms."""

    def can_measure(self) -> bool:
        """Whether `milliseconds` can be asked for now."""

    def milliseconds(self, function: Callable[[], object]) -> float:
        """How long the device takes for what `function` launches."""


class CudaRuntime:
    """Runs kernels on the current CUDA device, on CuPy's current stream."""

    def __init__(self, device: int) -> None:
        import cupy

        self.device = device
        self._cupy = cupy
        self._driver = cupy.cuda.driver
        attributes = cupy.cuda.Device(device).attributes
        self.multiprocessors = int(attributes["MultiProcessorCount"])
        # Half of the L2 cache; but a small cache must not cut products into pieces that leave the device idle.
        self.chunk_bytes = max(int(attributes["L2CacheSize"]) // 2, 16 << 20)
        self.architecture = int(cupy.cuda.Device(device).compute_capability)
        self.device_name = cupy.cuda.runtime.getDeviceProperties(device)["name"].decode()
        self._functions: dict[Instance, Any] = {}
        self._lock = threading.Lock()

    def addresses(self, instance: Instance, arrays: list[Array | None]) -> list[int]:
        """The address of each array's data; every array must be on this device."""
        found = []
        for array in arrays:
            if array is None:
                found.append(0)
                continue
            memory = array.data
            if memory.device_id != self.device:
                raise DeviceError(
                    f"{instance.name} runs on cuda:{self.device}, the current device, and got an array on "
                    f"cuda:{memory.device_id}; move it with xpnet.to_device, or work inside `with xpnet.device(...)`"
                )
            found.append(memory.ptr)
        return found

    def launch(self, instance: Instance, grid: Size3, block: Size3, shared: int, arguments: Any) -> None:
        """Launch; the kernel is compiled and loaded the first time."""
        function = self._functions.get(instance)
        if function is None:
            function = self._load(instance)
        stream = self._cupy.cuda.get_current_stream().ptr
        if shared > 48 * 1024:
            which = self._driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._driver.funcSetAttribute(function.ptr, which, shared)
        self._driver.launchKernel(function.ptr, *grid, *block, shared, stream, ctypes.addressof(arguments), 0)

    def _load(self, instance: Instance) -> Any:
        from xpnet.accel.cupy.compiler import cubin

        with self._lock:
            if instance not in self._functions:
                code, symbol = cubin(instance, self.architecture)
                module = self._cupy.cuda.function.Module()
                module.load(code)
                self._functions[instance] = module.get_function(symbol)
        return self._functions[instance]

    def gemm(self, call: Any) -> None:
        """Run a product with this package's own cuBLAS handle."""
        from xpnet.accel.cupy import cublas

        cublas.run(call, self.device, self._cupy.cuda.get_current_stream())

    @functools.cached_property
    def cudnn(self) -> Any:
        """cuDNN on this device, None where it is not installed."""
        from xpnet.accel.cupy import cudnn

        return cudnn.load(self._cupy.cuda.get_current_stream, self._cupy.cuda.alloc)

    def can_measure(self) -> bool:
        """Not while the current stream is recorded: recorded launches do not run."""
        return not self._cupy.cuda.get_current_stream().is_capturing()

    def milliseconds(self, function: Callable[[], object]) -> float:
        """The shortest of three measurements of four runs each, after one that compiles and warms up."""
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


_runtimes: dict[int, CudaRuntime] = {}
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
        found = _runtimes[device] = CudaRuntime(device)
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


class _Buffers(threading.local):
    """Per thread and kernel: the packed arguments and the pointers to them. The driver copies them at the launch."""

    def __init__(self) -> None:
        self.of: dict[Instance, tuple[Any, Any]] = {}


_buffers = _Buffers()


def launch(instance: Instance, grid: int | Size3, block: int | Size3, *arguments: Any, shared: int = 0) -> None:
    """Launch one kernel.

    Args:
        instance: the kernel with its template arguments.
        grid: number of blocks; nothing happens where it is 0.
        block: threads per block.
        arguments: one per parameter of the kernel: a C-contiguous array of the declared dtype (or None), or a number,
            which becomes the integer or float that the kernel declares; a Divisor takes an int.
        shared: dynamic shared memory in bytes.

    Raises:
        TypeError, ValueError: the arguments do not fit the kernel's parameters.
    """
    parameters = instance.parameters
    if len(arguments) != len(parameters):
        raise TypeError(f"{instance.expression} takes {len(parameters)} arguments, got {len(arguments)}")
    grid3 = (grid, 1, 1) if isinstance(grid, int) else grid
    block3 = (block, 1, 1) if isinstance(block, int) else block
    if 0 in grid3:
        return
    arrays = []
    for argument, parameter in zip(arguments, parameters):
        if parameter.dtype is not None:
            if argument is not None:
                _check(instance, parameter.name, parameter.dtype, argument)
            arrays.append(argument)
    runner = runtime()
    addresses = iter(runner.addresses(instance, arrays))
    values: list[Any] = []
    for argument, parameter in zip(arguments, parameters):
        if parameter.dtype is not None:
            values.append(next(addresses))
        elif parameter.is_divisor:
            values.extend(divisor(argument))
        else:
            values.append(float(argument) if parameter.is_float else argument)
    known = _buffers.of.get(instance)
    if known is None:
        packed = ctypes.create_string_buffer(instance.size)
        base = ctypes.addressof(packed)
        pointers = (ctypes.c_void_p * len(parameters))(*(base + offset for offset in instance.offsets))
        known = _buffers.of[instance] = packed, pointers
    packed, pointers = known
    instance.pack_into(packed, values)
    runner.launch(instance, grid3, block3, shared, pointers)


def _check(instance: Instance, name: str, dtype: str, array: Array) -> None:
    if dtype_of(array) != dtype and not (dtype == "bfloat16" and dtype_of(array) == "uint16"):
        raise TypeError(f"{instance.expression}: {name} must be {dtype}, got {dtype_of(array)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{instance.expression}: {name} must be C-contiguous, got strides {array.strides}")


@functools.lru_cache(maxsize=4096)
def divisor(d: int) -> tuple[int, int, int]:
    """(d, magic, shift) such that n // d == (((n * magic) >> 32) + n) >> shift for 0 <= n < 2^31.

    Source: T. Granlund, P. Montgomery, "Division by invariant integers using multiplication", PLDI 1994.
    """
    d = max(int(d), 1)  # an empty array has no element that would be divided
    if d >= 1 << 31:
        raise ValueError(f"a size of {d} is too large for 32-bit indices")
    shift = (d - 1).bit_length()
    magic = ((1 << 32) * ((1 << shift) - d)) // d + 1
    return d, magic, shift


THREADS = 256
"""Threads per block of the elementwise kernels."""

LIMIT = 1 << 31
"""Kernels that split indices with 32-bit arithmetic run over fewer elements than this in one launch."""


def blocks_for(work: int, threads: int = THREADS, waves: int = 16) -> int:
    """Blocks for a grid-stride loop over `work` items: enough to fill the device `waves` times over, not more."""
    return int(min(-(-work // threads), runtime().multiprocessors * waves))


def vector_width(items: int, *arrays: Array) -> int:
    """How many neighbours travel in one 16-byte access: 16 bytes' worth, or 1 where size or alignment forbid it.

    Args:
        items: the length of the contiguous runs; it must be divisible by the width.
        arrays: what is accessed. The widest dtype among them decides.
    """
    width = 16 // max(array.dtype.itemsize for array in arrays)
    if width < 2 or items % width:
        return 1
    return width if all(address(array) % (array.dtype.itemsize * width) == 0 for array in arrays) else 1


def address(array: Array) -> int:
    """The address of an array's data, of CuPy or NumPy."""
    try:
        return int(array.data.ptr)
    except (AttributeError, ValueError):  # NumPy's; it shows no memory of dtypes that are not its own
        return int(array.ctypes.data)
