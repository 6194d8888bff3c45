"""What the CUDA driver and cuBLAS get from this package, and give: arguments, modules, handles, streams, times."""

from __future__ import annotations

import ctypes
import gc
import threading
import types
from typing import Any

import numpy as np
import pytest

from tests.graphs import counted_graphs
from xpnet.accel.cupy import cublas, device, source
from xpnet.accel.cupy import launch as launching
from xpnet.accel.cupy import runtime as runtime_module
from xpnet.accel.cupy.gemm import gemm
from xpnet.accel.cupy.im2col import _im2col
from xpnet.accel.cupy.launch import launch
from xpnet.accel.cupy.optimizers import _adam
from xpnet.accel.cupy.source import Kernel

pytestmark = pytest.mark.cuda

RANDOM = np.random.default_rng(2)


def spied(monkeypatch, owner, name, seen):
    """Let `seen` get the arguments of every call of a function, before it is called."""
    function = getattr(owner, name)

    def spy(*arguments):
        seen(*arguments)
        return function(*arguments)

    monkeypatch.setattr(owner, name, spy)


@pytest.fixture
def driver(monkeypatch):
    """A new runtime of the device, with a log of what it compiles, loads and launches."""
    import cupy

    record = types.SimpleNamespace(launches=[], compiled=[], loaded=[])
    monkeypatch.setattr(runtime_module, "_runtimes", {})
    spied(monkeypatch, cupy.cuda.driver, "launchKernel", lambda *arguments: record.launches.append(arguments))
    spied(monkeypatch, device, "cubin", lambda *arguments: record.compiled.append(arguments))
    spied(monkeypatch, cupy.cuda.function, "Module", lambda: record.loaded.append("module"))
    return record


ECHO = """
#include "common.cuh"

template <typename T, int V>
__global__ void __launch_bounds__(64)
echo(const T* in, const T* none, double* out, i64 count, int small, u32 word, u64 words, float narrow, double wide,
     acc_t<T> number, FastDivmod by) {
  if (blockIdx.x + 1 != gridDim.x || blockIdx.y + 1 != gridDim.y || blockIdx.z + 1 != gridDim.z) return;
  if (threadIdx.x + 1 != blockDim.x || threadIdx.y + 1 != blockDim.y || threadIdx.z + 1 != blockDim.z) return;
  u32 rest;
  const u32 whole = by.divmod(1000003u, rest);
  const double found[] = {static_cast<double>(widen(in[V])), none == nullptr ? 1.0 : 0.0, static_cast<double>(count),
                          static_cast<double>(small), static_cast<double>(word), static_cast<double>(words),
                          static_cast<double>(narrow), wide, static_cast<double>(number), static_cast<double>(whole),
                          static_cast<double>(rest),
                          static_cast<double>(blockIdx.x), static_cast<double>(blockIdx.y), static_cast<double>(blockIdx.z),
                          static_cast<double>(threadIdx.x), static_cast<double>(threadIdx.y),
                          static_cast<double>(threadIdx.z)};
  for (int i = 0; i < 17; ++i) out[i] = found[i];
}
"""


@pytest.mark.parametrize("kind", ["float", "double", "float16"])
def test_a_kernel_gets_its_arguments_as_it_declares_them(driver, monkeypatch, tmp_path, kind):
    """One that writes them to memory; the numbers have bits where another type would lose them."""
    import cupy

    (tmp_path / "echo.cu").write_text(ECHO)
    source.read_headers()  # those of the package
    monkeypatch.setattr(source, "kernel_folder", lambda: tmp_path)
    echo = Kernel("echo", "echo", ("float", "double", "float16"), (3,))
    dtype = {"float": "float32", "double": "float64", "float16": "float16"}[kind]
    data, out = cupy.arange(10, 20, dtype=dtype), cupy.empty(17)
    stream = cupy.cuda.Stream(non_blocking=True)
    stream.wait_event(cupy.cuda.get_current_stream().record())
    numbers = (-(2**40) - 3, -7, 2**32 - 2, 2**52 + 1, 0.1, 0.1, 0.1, 17)
    with stream:
        launch(echo[kind, 3], (2, 3, 4), (8, 4, 2), data, None, out, *numbers)
    stream.synchronize()
    narrow = float(np.float32(0.1))
    expected = [13, 1, *numbers[:4], narrow, 0.1, 0.1 if kind == "double" else narrow, *divmod(1000003, 17), 1, 2, 3, 7, 3, 1]
    assert out.get().tolist() == expected
    ((_, *sizes, shared, pointer, _, extra),) = driver.launches
    assert sizes == [2, 3, 4, 8, 4, 2]
    assert (shared, pointer, extra) == (0, stream.ptr, 0)


def test_an_update_gets_its_numbers_and_its_schedule(driver):
    import cupy

    w, g, m, v = (RANDOM.random(64).astype("float32") for _ in range(4))
    there = [cupy.asarray(a) for a in (w, g, m, v)]
    launch(_adam["float", 4, True], 3, 256, *there, None, None, None, None, None, 64, 32, 9, 0.5, 0.9, 0.99, 1e-3, 0.25)
    assert len(driver.launches) == 1
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    decay = np.where(np.arange(64) < 32, 0.5 * 0.25 * w, 0)
    w = w - decay - 0.5 * (m / (1 - 0.9**10)) / (np.sqrt(v / (1 - 0.99**10)) + 1e-3)
    for found, expected in zip(there, (w, g, m, v)):
        np.testing.assert_allclose(found.get(), expected, rtol=1e-5, atol=1e-6)


def test_a_kernel_is_compiled_and_loaded_once(driver, monkeypatch):
    import cupy

    x, y = cupy.zeros(16, "float32"), cupy.zeros(16, "float32")
    instance = _im2col["float", 1, 0, 0]
    arguments = (0, *range(2, len(instance.parameters) - 1))  # no vectors: it writes nothing
    together, factory = threading.Barrier(4), runtime_module._factory

    def make(index):
        together.wait(timeout=60)
        return factory(index)

    monkeypatch.setattr(runtime_module, "_factory", make)
    threads = [threading.Thread(target=lambda: launch(instance, 1, 32, x, y, *arguments)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    launch(instance, 0, 32, x, y, *arguments)  # an empty grid is not launched
    properties = cupy.cuda.Device().attributes
    assert driver.compiled == [(instance, int(cupy.cuda.Device().compute_capability))]
    assert len(driver.loaded) == 1
    assert len(driver.launches) == 4
    assert launching.runtime().chunk_bytes == max(properties["L2CacheSize"] // 2, 16 << 20)
    assert launching.runtime().multiprocessors == properties["MultiProcessorCount"]
    assert launching.runtime().device_name == cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()


# -- cuBLAS --


class Spied:
    """cuBLAS, with a log of the calls that succeeded. No two threads may use a handle at the same time."""

    def __init__(self, library):
        self.library = library
        self.calls = []
        self.busy = set()

    def __getattr__(self, name):
        function = getattr(self.library, name)

        def call(*arguments):
            used = {arguments[0].value} if name.startswith("cublasGemm") else set()
            assert not used & self.busy
            self.busy |= used
            status = function(*arguments)
            self.busy -= used
            assert status == 0, (name, status)
            self.calls.append((name, *arguments))
            return status

        return call

    def names(self):
        return [name for name, *_ in self.calls]


@pytest.fixture
def library(monkeypatch):
    """cuBLAS with a log, and no handles yet."""
    found = Spied(cublas._library())
    monkeypatch.setattr(cublas, "_library", lambda: found)
    monkeypatch.setattr(cublas, "_handles", cublas._Handles())
    return found


CREATED = ["cublasCreate_v2", "cublasSetAtomicsMode", "cublasSetStream_v2", "cublasSetWorkspace_v2"]


def transposed(array):
    """Return a CuPy array of the same elements whose columns are contiguous."""
    import cupy

    return cupy.asarray(np.ascontiguousarray(array.swapaxes(-1, -2))).swapaxes(-1, -2)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("dtype", "kind", "compute"), [("float32", 0, 68), ("float64", 1, 70), ("float16", 2, 68)])
def test_cublas_gets_its_arguments_in_order(library, batch, dtype, kind, compute):
    import cupy

    a, b, c = (RANDOM.standard_normal((*batch, *s)).astype(dtype) for s in ((4, 5), (5, 6), (4, 6)))
    expected = 2 * (a.astype("float64") @ b) + 3 * c
    tolerance = 1e-5 if dtype != "float16" else 1e-2
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for x, y in ((a, b), (transposed(a), b), (a, transposed(b))):
            out = cupy.asarray(c)
            gemm(cupy, cupy.asarray(x), cupy.asarray(y), out, alpha=2.0, beta=3.0)
            np.testing.assert_allclose(out.get(), expected, rtol=tolerance, atol=tolerance)
    name = "cublasGemmStridedBatchedEx" if batch else "cublasGemmEx"
    assert library.names() == [*CREATED, *[name] * 3]  # the handle is kept
    (_, _, allowed), (_, _, pointer), (_, _, _, size) = library.calls[1:4]
    assert (allowed, pointer, size) == (0, stream.ptr, 32 << 20)  # no atomics
    # Column-major, our b is cuBLAS's first matrix.
    assert [call[2:4] for call in library.calls[4:]] == [(0, 0), (0, 1), (1, 0)]
    for call in library.calls[4:]:
        assert call[-2:] == (compute, -1)
        assert [value for value in call if type(value) is int].count(kind) >= 3  # the types of a, b and c


def test_the_precision_is_that_of_the_call(library, request):
    import cupy

    import xpnet as xn

    x = RANDOM.standard_normal((64, 64)).astype("float32")
    exact, there = x.astype("float64") @ x, cupy.asarray(x)

    def error():
        return float(np.abs(gemm(cupy, there, there, cupy.empty((64, 64), "float32")).get() - exact).max())

    single = error()
    request.addfinalizer(lambda: xn.set_matmul_precision("float32"))
    xn.set_matmul_precision("tf32")
    rounded = error()
    assert [call[-2] for call in library.calls[4:]] == [68, 77]
    if int(cupy.cuda.Device().compute_capability) >= 80:
        assert rounded > 10 * single


def test_streams_share_no_workspace_and_threads_no_handle(library):
    import cupy

    x = cupy.asarray(RANDOM.standard_normal((4, 4)))
    expected = (x @ x).get()
    results = []

    def product():
        results.append(gemm(cupy, x, x, cupy.empty((4, 4))))

    first, second = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    for stream in (first, second, first):
        with stream:
            product()
    assert library.names().count("cublasCreate_v2") == 2
    assert {call[2] for call in library.calls if call[0] == "cublasSetStream_v2"} == {first.ptr, second.ptr}
    assert len({call[2] for call in library.calls if call[0] == "cublasSetWorkspace_v2"}) == 2

    def elsewhere():
        with first:
            for _ in range(50):
                product()

    threads = [threading.Thread(target=elsewhere) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cupy.cuda.Device().synchronize()
    assert len(results) == 3 + 150
    for result in results:
        np.testing.assert_array_equal(result.get(), expected)


def test_the_handle_of_a_deleted_stream_is_used_again(library):
    import cupy

    x = cupy.asarray(RANDOM.standard_normal((4, 4)))
    expected = (x @ x).get()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for stream in streams:
        stream.wait_event(cupy.cuda.get_current_stream().record())
        with stream:
            gemm(cupy, x, x, cupy.empty((4, 4)))
    kept = streams.pop()
    del stream
    streams.clear()
    gc.collect()
    assert list(cublas._handles.of) == [(0, kept.ptr)]
    assert len(cublas._handles.spare[0]) == 1
    another = cupy.cuda.Stream(non_blocking=True)
    with another:
        found = gemm(cupy, x, x, cupy.empty((4, 4)))
    another.synchronize()
    np.testing.assert_array_equal(found.get(), expected)
    assert library.names().count("cublasCreate_v2") == 2
    assert not cublas._handles.spare[0]


def test_a_stream_that_is_collected_while_another_is_captured_does_not_end_the_capture(library):
    """Destroying a handle would wait for the device, which a capture does not survive."""
    import cupy

    x = cupy.asarray(RANDOM.standard_normal((4, 4)))
    expected = (x @ x).get()
    old = [cupy.cuda.Stream(non_blocking=True)]
    with old[0]:
        gemm(cupy, x, x, cupy.empty((4, 4)))

    def step(y):
        z = gemm(cupy, y, y, cupy.empty((4, 4)))
        old.clear()
        gc.collect()
        return z

    graphs = counted_graphs()
    with graphs.stream():
        gemm(cupy, x, x, cupy.empty((4, 4)))  # makes the handle
        replay, result = graphs.record(lambda: step(x))
        replay()
    np.testing.assert_array_equal(result.get(), expected)
    assert len(cublas._handles.spare[0]) == 1
    # And where the program captures a stream itself.
    old.append(cupy.cuda.Stream(non_blocking=True))
    with old[0]:
        gemm(cupy, x, x, cupy.empty((4, 4)))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        gemm(cupy, x, x, out := cupy.empty((4, 4)))
        stream.begin_capture()
        gemm(cupy, x, x, out)
        old.clear()
        gc.collect()
        graph = stream.end_capture()
        graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(out.get(), expected)


def test_the_types_of_every_function_are_declared():
    found = cublas._library.__wrapped__()
    assert len(found.cublasGemmEx.argtypes) == 19
    assert len(found.cublasGemmStridedBatchedEx.argtypes) == 23
    assert [found.cublasGemmStridedBatchedEx.argtypes[i] for i in (10, 14, 19)] == [ctypes.c_longlong] * 3
    for name in CREATED:
        assert getattr(found, name).argtypes


# -- times --


def test_nothing_is_measured_while_a_stream_is_captured():
    import cupy

    runtime = launching.runtime()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        assert runtime.can_measure()
        stream.begin_capture()
        assert not runtime.can_measure()
        stream.end_capture()
        assert runtime.can_measure()


def test_the_time_is_the_shortest_of_three_after_a_run_that_compiles(monkeypatch):
    import cupy

    runtime, x = launching.runtime(), cupy.zeros(1 << 12)
    known: Any = cupy.cuda.get_elapsed_time
    runs: list[int] = []
    measured: list[tuple[int, float]] = []

    def elapsed(begin, end):
        assert end.done
        measured.append((len(runs), known(begin, end)))
        return measured[-1][1]

    def run():
        runs.append(1)
        cupy.sqrt(x, out=x)

    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", elapsed)
    found = runtime.milliseconds(run)
    assert [count for count, _ in measured] == [1 + 4, 1 + 8, 1 + 12]
    assert found == min(time for _, time in measured) / 4
    assert found > 0


def test_cudnn_gets_the_current_stream_and_memory_of_the_device(driver, monkeypatch):
    import cupy

    given: Any = []
    monkeypatch.setattr(device, "load_cudnn", lambda stream, allocate: given.append((stream, allocate)) or "the library")
    assert launching.runtime().cudnn == launching.runtime().cudnn == "the library"
    ((current, allocate),) = given  # once
    with cupy.cuda.Stream(non_blocking=True) as stream:
        assert current() == stream
    memory = allocate(1024)
    assert memory.device_id == 0
    memory.memset(7, 1024)
    back = np.empty(1024, np.uint8)
    memory.copy_to_host(back.ctypes.data, 1024)
    assert (back == 7).all()


# -- counters and constants --


@pytest.fixture
def fresh():
    """A runtime of the current device, with counters and constants of its own."""
    return device.CudaRuntime(0)


def test_streams_have_counters_of_their_own_which_go_back_when_they_are_gone(fresh):
    import cupy

    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    made = []
    for stream in streams:
        with stream:
            made.append(fresh.counters(8))
            assert fresh.counters(4).data.ptr == made[-1].data.ptr
    assert len({array.data.ptr for array in made}) == 3
    assert not any(array.any() for array in made)
    free = len(fresh._free_counters)
    for stream in streams:
        fresh.release_counters(stream.ptr)
        fresh.release_counters(stream.ptr)  # of a stream that has none
    assert len(fresh._free_counters) == free + 3


def test_recorded_launches_keep_the_counters_that_they_were_given(fresh):
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as stream:
        few, many = fresh.counters(8), fresh.counters(100_000)
        assert many.size == 100_000
        assert not many.any()
        assert any(kept.data.ptr == few.data.ptr for kept in fresh._counters[stream.ptr])
        assert fresh.counters(8).data.ptr == many.data.ptr
        free = len(fresh._free_counters)
        fresh.release_counters(stream.ptr)
        assert len(fresh._free_counters) == free + 1


def test_there_are_counters_for_any_number_of_streams(fresh):
    import cupy

    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(40)]
    pointers = set()
    for stream in streams:
        with stream:
            pointers.add(fresh.counters(1).data.ptr)
    assert len(pointers) == 40


def test_graphs_that_are_gone_give_their_counters_back():
    import cupy

    runtime: Any = runtime_module.runtime()
    graphs = counted_graphs()
    with graphs.stream():
        runtime.counters(1)
    pointer = graphs.graphs._stream.ptr
    assert pointer in runtime._counters
    del graphs
    gc.collect()
    cupy.cuda.Device().synchronize()
    assert pointer not in runtime._counters


def test_the_constant_one_is_made_outside_of_captures(fresh):
    import cupy

    x = cupy.zeros(3, np.float32)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            assert fresh.one(x) is None
        finally:
            stream.end_capture()
        assert fresh.one(x) == 1
        stream.begin_capture()
        try:
            assert fresh.one(x) is not None
        finally:
            stream.end_capture()


def test_the_constant_one_is_there_for_all_streams(fresh):
    import cupy

    from tests.graphs import scheduled

    with scheduled("lazy"):
        x = cupy.zeros((), np.float64)
        one = fresh.one(x)
        with cupy.cuda.Stream(non_blocking=True) as stream:
            y = one + 1
            stream.synchronize()
        assert y.get() == 2
    assert fresh.one(x) is one
