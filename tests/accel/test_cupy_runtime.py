"""The arguments that the CUDA driver and cuBLAS get, on fakes of both. No GPU is needed."""

from __future__ import annotations

import ctypes
import gc
import sys
import types
from collections import defaultdict, deque
from typing import Any

import numpy as np
import pytest

from tests.cuda_emulator.emulator import _columns, emulated
from xpnet.accel.cupy import cublas, device
from xpnet.accel.cupy import launch as launching
from xpnet.accel.cupy import runtime as runtime_module
from xpnet.accel.cupy.gemm import gemm
from xpnet.accel.cupy.im2col import _im2col
from xpnet.accel.cupy.launch import launch
from xpnet.accel.cupy.optimizers import _adam

RANDOM = np.random.default_rng(2)


class Memory:
    """As cupy.cuda.MemoryPointer."""

    def __init__(self, ptr, device_id=0):
        self.ptr, self.device_id = ptr, device_id


class Stream:
    """As cupy.cuda.Stream."""

    def __init__(self, ptr):
        self.ptr = ptr


class DeviceArray:
    """A NumPy array with the attributes of a CuPy array that launches look at."""

    def __init__(self, array):
        self.array = array
        self.dtype, self.flags, self.strides, self.shape = array.dtype, array.flags, array.strides, array.shape
        self.data = Memory(array.ctypes.data)


@pytest.fixture
def driver(monkeypatch):
    """Fake CuPy with a driver that records launches."""
    record = types.SimpleNamespace(launches=[], loaded=[], allocated=[])

    class Module:
        def load(self, code):
            record.loaded.append(code)

        def get_function(self, symbol):
            return types.SimpleNamespace(ptr=hash(symbol))

    def launch_kernel(function, *rest):
        *sizes, shared, stream, parameters, extra = rest
        record.launches.append((function, tuple(sizes), shared, stream, parameters, extra))

    class Device:
        compute_capability = "90"

        def __init__(self, index):
            self.attributes = {"MultiProcessorCount": 132, "L2CacheSize": 50 << 20}

    module: Any = types.ModuleType("cupy")
    module.cuda = types.ModuleType("cupy.cuda")
    module.cuda.runtime = types.ModuleType("cupy.cuda.runtime")
    module.cuda.runtime.getDevice = lambda: 0
    module.cuda.runtime.getDeviceProperties = lambda index: {"name": b"A GPU"}
    module.cuda.driver = types.SimpleNamespace(launchKernel=launch_kernel)
    module.cuda.function = types.SimpleNamespace(Module=Module)
    module.cuda.Device = Device
    module.cuda.get_current_stream = lambda: types.SimpleNamespace(ptr=77)
    module.cuda.alloc = lambda size: record.allocated.append(size) or Memory(4096)
    for name in ("cupy", "cupy.cuda", "cupy.cuda.runtime"):
        monkeypatch.setitem(sys.modules, name, module if name == "cupy" else getattr(module.cuda, name[10:], module.cuda))
    monkeypatch.setattr(runtime_module, "_runtimes", {})
    compiled: Any = []
    monkeypatch.setattr(
        device, "cubin", lambda instance, arch: compiled.append((instance, arch)) or (b"code", instance.expression)
    )
    record.compiled = compiled
    return record


def arguments_of(instance, parameters):
    """Return the values that the pointers to the arguments point to."""
    kinds: dict[str, Any] = {
        "P": ctypes.c_uint64,
        "i": ctypes.c_int,
        "q": ctypes.c_int64,
        "I": ctypes.c_uint32,
        "f": ctypes.c_float,
    }
    kinds |= {"d": ctypes.c_double, "3I": ctypes.c_uint32 * 3, "Q": ctypes.c_uint64}
    pointers = (ctypes.c_void_p * len(instance.parameters)).from_address(parameters)
    values = {}
    for pointer, parameter in zip(pointers, instance.parameters):
        value = kinds[parameter.format].from_address(pointer)
        values[parameter.name] = list(value) if parameter.format == "3I" else value.value
    return values


def test_the_driver_gets_the_arguments_as_the_kernel_declares_them(driver):
    w, g, m, v = (DeviceArray(np.zeros(64, "float32")) for _ in range(4))
    instance = _adam["float", 4, True]
    launch(instance, 3, 256, w, g, m, v, None, None, None, None, 64, 32, 9, 0.5, 0.9, 0.99, 1e-3, 0.25)
    ((function, sizes, shared, stream, parameters, extra),) = driver.launches
    assert driver.compiled == [(instance, 90)]
    assert driver.loaded == [b"code"]
    assert function == hash(instance.expression)
    assert sizes == (3, 1, 1, 256, 1, 1)
    assert (shared, stream, extra) == (0, 77, 0)
    values = arguments_of(instance, parameters)
    assert [values[n] for n in ("parameters", "gradients", "mean", "square")] == [a.data.ptr for a in (w, g, m, v)]
    assert [values[n] for n in ("device_rate", "device_step", "ticket", "skip")] == [0, 0, 0, 0]
    assert [values[n] for n in ("count", "decayed", "finished_steps")] == [64, 32, 9]
    assert [values[n] for n in ("rate", "weight_decay", "beta1", "beta2")] == [0.5, 0.25, 0.9, 0.99]
    assert values["epsilon"] == np.float32(1e-3)


def test_fast_divmod_arguments_and_a_grid_of_three_dimensions(driver):
    x, cols = DeviceArray(np.zeros(16, "float32")), DeviceArray(np.zeros(16, "float32"))
    instance = _im2col["float", 1, 0, 0]
    numbers = range(1, len(instance.parameters) - 1)
    launch(instance, (2, 3, 4), (32, 2, 1), x, cols, *numbers)
    ((_, sizes, shared, _, parameters, _),) = driver.launches
    assert sizes == (2, 3, 4, 32, 2, 1)
    assert shared == 0
    values = arguments_of(instance, parameters)
    assert values["vectors"] == 1
    assert values["by_channels"] == list(launching.fast_divmod(len(instance.parameters) - 7))


def test_a_kernel_is_compiled_and_loaded_once(driver):
    x, y = DeviceArray(np.zeros(16, "float32")), DeviceArray(np.zeros(16, "float32"))
    instance = _im2col["float", 1, 0, 0]
    for _ in range(3):
        launch(instance, 1, 32, x, y, *range(1, len(instance.parameters) - 1))
    launch(instance, 0, 32, x, y, *range(1, len(instance.parameters) - 1))  # an empty grid is not launched
    assert len(driver.compiled) == len(driver.loaded) == 1
    assert len(driver.launches) == 3
    assert launching.runtime().chunk_bytes == 25 << 20
    assert launching.runtime().multiprocessors == 132


class FakeLibrary:
    """cuBLAS's functions on NumPy arrays, with the argument order of cuBLAS's reference."""

    def __init__(self, arrays):
        self.arrays = {a.ctypes.data: a for a in arrays}
        self.calls = []

    def cublasCreate_v2(self, handle):
        self.calls.append("create")
        return 0

    def cublasSetAtomicsMode(self, handle, mode):
        self.calls.append("atomics")
        assert mode == 0  # not allowed
        return 0

    def cublasSetStream_v2(self, handle, stream):
        self.calls.append(("stream", stream))
        return 0

    def cublasSetWorkspace_v2(self, handle, pointer, size):
        self.calls.append(("workspace", size))
        return 0

    def cublasGemmEx(self, handle, ta, tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct, ldc, compute, algo):
        self.calls.append(("gemm", at, bt, ct, compute, algo))
        return self._product(ta, tb, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1)

    def cublasGemmStridedBatchedEx(
        self, handle, ta, tb, m, n, k, alpha, a, at, lda, sa, b, bt, ldb, sb, beta, c, ct, ldc, sc, batch, compute, algo
    ):
        self.calls.append(("batched", at, bt, ct, compute, algo))
        return self._product(ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta, c, ldc, sc, batch)

    def _product(self, ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta, c, ldc, sc, batch):
        left = _columns(self.arrays[a], m, k, lda, sa, batch, bool(ta))
        right = _columns(self.arrays[b], k, n, ldb, sb, batch, bool(tb))
        out = _columns(self.arrays[c], m, n, ldc, sc, batch)
        out[...] = alpha._obj.value * (left @ right) + (beta._obj.value * out if beta._obj.value else 0)
        return 0


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("dtype", "kind", "compute"), [("float32", 0, 68), ("float64", 1, 70)])
def test_cublas_gets_its_arguments_in_order(driver, monkeypatch, batch, dtype, kind, compute):
    a, b, c = (RANDOM.standard_normal((*batch, *s)).astype(dtype) for s in ((4, 5), (5, 6), (4, 6)))
    expected = 2 * (a @ b) + 3 * c
    library = FakeLibrary([a, b, c])
    monkeypatch.setattr(cublas, "_library", lambda: library)
    monkeypatch.setattr(cublas, "_handles", cublas._Handles())
    monkeypatch.setattr(cublas, "_spare", defaultdict(deque))
    with emulated() as recorder:
        gemm(np, a, b, c.copy(), alpha=2.0, beta=3.0)
    (product,) = recorder.products
    product = product._replace(a=DeviceArray(product.a), b=DeviceArray(product.b), c=DeviceArray(c))
    stream = Stream(77)
    cublas.run(product, 0, stream)
    np.testing.assert_allclose(c, expected, rtol=1e-5)
    assert library.calls == [
        "create", "atomics", ("stream", 77), ("workspace", 32 << 20),
        ("batched" if batch else "gemm", kind, kind, kind, compute, -1),
    ]  # fmt: skip
    cublas.run(product._replace(tf32=dtype == "float32"), 0, stream)  # the handle is kept
    assert len(library.calls) == 6
    assert library.calls[-1][4] == (77 if dtype == "float32" else 70)
    other = Stream(78)
    cublas.run(product, 0, other)  # another stream has a handle and a workspace of its own
    assert library.calls.count("create") == 2
    assert len(cublas._handles.of) == 2
    del stream
    gc.collect()
    assert list(cublas._handles.of) == [(0, 78)]
    third = Stream(79)
    cublas.run(product, 0, third)  # takes over the handle of the deleted stream, with a workspace of its own
    assert library.calls.count("create") == 2
    assert library.calls[-3:-1] == [("stream", 79), ("workspace", 32 << 20)]


def test_the_types_of_every_function_are_declared(monkeypatch):
    functions = (
        "cublasCreate_v2",
        "cublasSetAtomicsMode",
        "cublasSetStream_v2",
        "cublasSetWorkspace_v2",
        "cublasGemmEx",
        "cublasGemmStridedBatchedEx",
    )
    fake = types.SimpleNamespace(**{name: types.SimpleNamespace() for name in functions})
    monkeypatch.setattr(cublas, "_path", lambda: "cublas")
    monkeypatch.setattr(cublas, "ctypes", types.SimpleNamespace(**{**vars(ctypes), "CDLL": lambda path: fake}))
    assert cublas._library.__wrapped__() is fake
    assert len(fake.cublasGemmEx.argtypes) == 19
    assert len(fake.cublasGemmStridedBatchedEx.argtypes) == 23
    assert [fake.cublasGemmStridedBatchedEx.argtypes[i] for i in (10, 14, 19)] == [ctypes.c_longlong] * 3


def test_timing(driver, monkeypatch):
    runtime = launching.runtime()
    assert runtime.device_name == "A GPU"
    cuda = sys.modules["cupy"].cuda
    for capturing in (True, False):
        stream = types.SimpleNamespace(ptr=77, is_capturing=lambda capturing=capturing: capturing)
        monkeypatch.setattr(cuda, "get_current_stream", lambda stream=stream: stream)
        assert runtime.can_measure() is not capturing
    clock = [0.0]
    ran = []

    class Event:
        def record(self):
            self.time = clock[0]

        def synchronize(self):
            ran.append("waited")

    def run():
        clock[0] += 5.0 if len(ran) < 6 else 2.0  # milliseconds; slow at first
        ran.append("ran")

    cuda.Event = Event
    cuda.get_elapsed_time = lambda begin, end: end.time - begin.time
    assert runtime.milliseconds(run) == 2.0
    assert ran == ["ran"] * 5 + ["waited"] + (["ran"] * 4 + ["waited"]) * 2


def test_cudnn_gets_the_current_stream_and_memory_of_the_device(driver, monkeypatch):
    given: Any = []
    monkeypatch.setattr(device, "load_cudnn", lambda stream, allocate: given.append((stream, allocate)) or "the library")
    assert launching.runtime().cudnn == launching.runtime().cudnn == "the library"
    ((stream, allocate),) = given  # once
    assert stream().ptr == 77
    allocate(1024)
    assert driver.allocated == [1024]
