"""A CUDA device under watch, for tests marked `cuda`: on a GPU and on the software device (``--software-gpu``) alike.

    with on_gpu() as gpu:
        y = ops.relu(gpu.array(x))
    assert gpu.launches == ["activation<double, 2, 1>"]
    np.testing.assert_allclose(gpu.numpy(y), expected)

Within the block everything that this package does on the device goes through `Watched`, which passes it on to the device and

* logs it: `launches` are the kernels with their template arguments, `products` the GEMMs;
* pretends that the device is small, so that grid-stride loops iterate and batches are split into chunks;
* refuses two arguments of a launch that share memory, as the kernels are compiled with --restrict;
* after each launch compares all memory beside the arguments with what it was: the guards around every array, and the rest of
  an array of which only a part was passed.

New arrays are full of the byte 0xff, which is NaN, until something is written into them. While a stream is captured nothing
runs, so nothing is compared.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.skipping import skipping
from xpnet.accel.cupy import launch as launching
from xpnet.accel.cupy.runtime import Runtime
from xpnet.accel.cupy.source import Instance
from xpnet.backend import namespace, to_numpy

GUARD = 1024
POISON = 0xFF  # NaN as a float, so that what is read out of bounds or before it is written shows in the result

_pools: list[Any] = []
_sizes: dict[int, int] = {}  # of what was asked for, by the address of the block


def _allocate(size: int) -> Any:
    """Return memory between two guards, all of it poisoned; an allocator for CuPy."""
    import cupy

    if os.environ.get("XPNET_TEST_NO_POOL"):  # memory checkers see the ends of a separate allocation themselves
        whole = memory = cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    else:
        if not _pools:
            _pools.append(cupy.cuda.MemoryPool())
        whole = _pools[0].malloc(size + 2 * GUARD)
        _sizes[whole.mem.ptr] = size
        memory = whole + GUARD
    if size and not _is_captured():
        whole.memset_async(POISON, size + (2 * GUARD if memory is not whole else 0), cupy.cuda.get_current_stream())
    return memory


def _is_captured() -> bool:
    import cupy

    stream = cupy.cuda.get_current_stream()
    return bool(stream.ptr > 2 and stream.is_capturing())  # 0, 1 and 2 are the default streams, which cannot be captured


class Region:
    """The block of memory that an array lies in, with a copy of all that is not the arrays'."""

    def __init__(self, array: Any) -> None:
        memory = array.data.mem
        self.array = array
        self.guarded = memory.ptr in _sizes
        self.start = int(memory.ptr)
        self.size = _sizes[memory.ptr] + 2 * GUARD if self.guarded else int(memory.size)
        self.outside = np.ones(self.size, bool)
        self.before = np.empty(0, np.uint8)

    def leave_out(self, array: Any) -> None:
        low, high = extent(array)
        self.outside[low - self.start : high - self.start] = False

    def read(self) -> Any:
        import cupy

        host = np.empty(self.size, np.uint8)
        stream = cupy.cuda.get_current_stream()
        cupy.cuda.runtime.memcpyAsync(host.ctypes.data, self.start, self.size, cupy.cuda.runtime.memcpyDeviceToHost, stream.ptr)
        stream.synchronize()
        return host

    def remember(self) -> None:
        self.before = self.read()

    def check(self, label: str) -> None:
        places = np.flatnonzero((self.read() != self.before) & self.outside)
        if len(places):
            low, high = extent(self.array)
            where = "before" if self.start + places[0] < low else "after" if self.start + places[0] >= high else "between"
            raise AssertionError(
                f"{label} wrote {where} the array {self.array.shape}, {self.start + places[0] - low} bytes from its start"
            )


def extent(array: Any) -> tuple[int, int]:
    """Return the addresses of the first byte of an array and of the one behind its last."""
    if not array.size:
        return int(array.data.ptr), int(array.data.ptr)
    reach = [(n - 1) * stride for n, stride in zip(array.shape, array.strides)]
    start = int(array.data.ptr)
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + array.itemsize


class Watched:
    """A runtime that passes on to the device, keeps a log and looks after every launch; see the module."""

    def __init__(
        self,
        *,
        multiprocessors: int | None = 1,
        chunk_bytes: int | None = 8 * 1024,
        architecture: int | None = 80,
        measures: bool = False,
        guards: bool = True,
        inner: Runtime | None = None,
    ) -> None:
        """Watch the current device.

        Args:
            multiprocessors: what launches take as their number; None: what the device has.
            chunk_bytes: the workspace of a convolution; None: as for the device.
            architecture: the compute capability times ten that launches choose kernels for, at most the device's.
            measures: whether timings may choose algorithms: launches then vary from run to run.
            guards: whether to compare memory after each launch, which waits for it.
            inner: what to pass on to, in place of the device.
        """
        self.inner = launching.runtime() if inner is None else inner
        self.multiprocessors = self.inner.multiprocessors if multiprocessors is None else multiprocessors
        self.chunk_bytes = self.inner.chunk_bytes if chunk_bytes is None else chunk_bytes
        self.architecture = min(self.inner.architecture, architecture or self.inner.architecture)
        self.device_name = self.inner.device_name
        self.cudnn: Any = None
        self.measures, self.guards = measures, guards
        self.launches: list[str] = []
        self.products: list[Any] = []
        self._thread = threading.local()

    @property
    def xp(self) -> Any:
        """The namespace of the device's arrays."""
        import cupy

        return namespace(cupy.empty(0))

    @staticmethod
    def array(value: Any) -> Any:
        """Copy a NumPy array to the device, with its strides; return anything else as it is."""
        import cupy

        if not isinstance(value, np.ndarray):
            return value
        if value.flags.c_contiguous or not value.size:
            return cupy.asarray(value)
        low, high = np.lib.array_utils.byte_bounds(value)
        span = np.ctypeslib.as_array((ctypes.c_uint8 * (high - low)).from_address(low))
        memory = cupy.asarray(span).data + (value.ctypes.data - low)
        return cupy.ndarray(value.shape, value.dtype, memory, value.strides)

    @staticmethod
    def numpy(value: Any) -> Any:
        """Copy an array, or each of a tuple or list, to main memory; return None as it is."""
        if isinstance(value, (tuple, list)):
            return type(value)(map(Watched.numpy, value))
        return None if value is None else to_numpy(value)

    def addresses(self, instance: Instance, arrays: Sequence[Any]) -> list[int]:
        """Return the addresses of the arguments of the next launch, and remember what lies beside them."""
        found = self.inner.addresses(instance, list(arrays))
        regions: dict[int, Region] = {}
        given = [a for a in arrays if a is not None and a.size]
        ends = sorted(extent(a) for a in given)
        for (_, end), (start, _) in itertools.pairwise(ends):
            assert end <= start, f"{instance}: two arguments share memory"
        if self.guards and not _is_captured():
            for array in given:
                regions.setdefault(array.data.mem.ptr, Region(array)).leave_out(array)
            for region in regions.values():
                region.remember()
        self._thread.regions = list(regions.values())
        return found

    def launch(self, instance: Instance, grid: Any, block: Any, arguments: Any) -> None:
        """Launch the kernel, and compare what lies beside its arguments."""
        self.inner.launch(instance, grid, block, arguments)
        self.launches.append(instance.expression)
        for region in self._thread.regions:
            region.check(instance.expression)

    def counters(self, count: int) -> Any:
        """Return counters of the current stream."""
        return self.inner.counters(count)

    def one(self, like: Any) -> Any:
        """Return the constant 1."""
        return self.inner.one(like)

    def gemm(self, call: Any) -> None:
        """Run a product, and compare what lies beside the result."""
        assert call.ldc >= call.m
        assert call.lda >= (call.k if call.transpose_a else call.m)
        assert call.ldb >= (call.n if call.transpose_b else call.k)
        self.products.append(call)
        watched = [Region(call.c)] if self.guards and call.c.size and not _is_captured() else []
        for region in watched:
            region.leave_out(call.c)
            region.remember()
        self.inner.gemm(call)
        for region in watched:
            region.check("gemm")

    def can_measure(self) -> bool:
        """Return whether timings may choose an algorithm now."""
        return self.measures and self.inner.can_measure()

    def milliseconds(self, function: Any) -> float:
        """Measure on the device."""
        return self.inner.milliseconds(function)


@contextlib.contextmanager
def on_gpu(*, skip: int = 0, **settings: Any) -> Iterator[Watched]:
    """Watch the current device within the block; yield what watches it.

    Args:
        skip: leave out the first so many accelerations of each operation that has more for CuPy.
        settings: as of `Watched`.
    """
    import cupy

    watched = Watched(**settings)
    allocator = cupy.cuda.using_allocator(_allocate) if watched.guards else contextlib.nullcontext()
    with allocator, skipping(watched.xp, "cupy", skip), launching.use_runtime(watched):
        yield watched
