"""Error messages without CuPy, with no driver or an old one, without a GPU, and out of memory. No GPU is needed."""

from __future__ import annotations

import subprocess
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest

from xpnet import backend, ops
from xpnet.backend import Array, DeviceError, DeviceMemoryError
from xpnet.ops.registry import Op


class FakeRuntimeError(RuntimeError):
    pass


def fake_cupy(monkeypatch, *, count=1, failure="", driver=12040, built=12090):
    """Make a fake of the module cupy with a given runtime."""

    def get_device_count():
        if failure:
            raise FakeRuntimeError(failure)
        return count

    runtime = types.SimpleNamespace(
        getDeviceCount=get_device_count, driverGetVersion=lambda: driver, CUDARuntimeError=FakeRuntimeError
    )
    cuda = types.SimpleNamespace(runtime=runtime, get_local_runtime_version=lambda: built)
    module: Any = types.ModuleType("cupy")
    module.cuda = cuda
    monkeypatch.setitem(sys.modules, "cupy", module)


def test_a_usable_device_is_accepted(monkeypatch):
    fake_cupy(monkeypatch, count=2)
    assert str(backend.device("cuda")) == "cuda"
    assert str(backend.device("cuda:1")) == "cuda:1"


def test_no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # makes the import fail
    with pytest.raises(DeviceError, match=r"needs CuPy, which is not installed: pip install .*xpnet\[cuda12\]"):
        backend.device("cuda")


def test_cupy_that_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcudart.so.99: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DeviceError, match=r"installed but does not load: libcudart\.so\.99"):
        backend.device("cuda")


def test_no_driver(monkeypatch):
    fake_cupy(monkeypatch, failure="cudaErrorInsufficientDriver: CUDA driver version is insufficient", driver=0)
    with pytest.raises(DeviceError, match='no NVIDIA driver was found; install one, or use device="cpu"'):
        backend.device("cuda")


def test_a_driver_that_is_too_old(monkeypatch):
    fake_cupy(monkeypatch, failure="cudaErrorInsufficientDriver: CUDA driver version is insufficient", driver=11040)
    with pytest.raises(DeviceError, match=r"driver supports CUDA 11\.4, this CuPy needs 12\.9; update the driver"):
        backend.device("cuda")


def test_no_gpu(monkeypatch):
    fake_cupy(monkeypatch, failure="cudaErrorNoDevice: no CUDA-capable device is detected")
    with pytest.raises(DeviceError, match="reports no GPU"):
        backend.device("cuda")


def test_a_gpu_that_does_not_exist(monkeypatch):
    fake_cupy(monkeypatch, count=2)
    with pytest.raises(DeviceError, match=r'"cuda:2" does not exist; the GPUs of this machine are: cuda:0, cuda:1'):
        backend.device("cuda:2")


def test_another_failure_is_passed_on(monkeypatch):
    fake_cupy(monkeypatch, failure="cudaErrorUnknown: unknown error")
    with pytest.raises(DeviceError, match="cannot be used: cudaErrorUnknown"):
        backend.device("cuda")


def test_this_machine_without_a_driver_says_so():
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    try:
        if cupy.cuda.runtime.getDeviceCount():
            pytest.skip("this machine has a GPU")
    except cupy.cuda.runtime.CUDARuntimeError:
        pass
    with pytest.raises(DeviceError, match='device "cuda"'):
        backend.device("cuda")


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


def test_importing_xpnet_does_not_import_cupy():
    done = run("import sys, xpnet, xpnet.runtime.precision; print('cupy' in sys.modules, 'xpnet.accel.cupy' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_the_accelerated_operations_import_without_touching_a_device():
    pytest.importorskip("cupy", reason="needs CuPy")
    program = (
        "import cupy\n"
        "def touched(*_): raise SystemExit('a device was touched')\n"
        "cupy.cuda.runtime.getDevice = touched\n"
        "import xpnet.accel.cupy\n"
        "print('imported')\n"
    )
    done = run(program)
    assert done.stdout.split() == ["imported"], done.stderr


# -- out of memory --


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size, total, limit=0):
        super().__init__(f"Out of memory allocating {size:,} bytes")
        self._size, self._total, self._limit = size, total, limit


class CupyArray:
    """A fake CuPy array: its namespace is called cupy."""

    shape, dtype, ndim, size = (64, 32, 32, 3), np.dtype("float32"), 4, 64 * 32 * 32 * 3

    class device:  # noqa: N801  (an attribute of arrays)
        id = 0


@pytest.fixture
def full_gpu(monkeypatch):
    """Fake CuPy on a GPU with 1 GiB free of 80; return the namespace of its arrays."""
    fake_cupy(monkeypatch)
    module: Any = sys.modules["cupy"]
    module.ndarray = CupyArray
    module.cuda.runtime.getDevice = lambda: 0
    module.cuda.runtime.memGetInfo = lambda: (2**30, 80 * 2**30)
    pool = types.SimpleNamespace(used_bytes=lambda: 70 * 2**30, free_bytes=lambda: 3 * 2**20)
    module.get_default_memory_pool = lambda: pool
    monkeypatch.setitem(backend._namespaces, CupyArray, module)
    return module


def out_of_memory_op(limit=0):
    def wants_too_much(xp, x: Array):
        raise OutOfMemoryError(5 * 2**30, 70 * 2**30, limit)

    operation = Op(wants_too_much)
    operation.backward(lambda xp, dy, saved: wants_too_much(xp, dy))
    return operation


@pytest.mark.parametrize("backwards", [False, True])
def test_out_of_memory_explains_request_free_memory_and_remedies(full_gpu, backwards):
    operation = out_of_memory_op()
    arguments: Any = (operation.reference, full_gpu, CupyArray(), None, {}, (True,))
    with pytest.raises(DeviceMemoryError) as caught:
        operation.gradients(*arguments) if backwards else operation.run(full_gpu, (CupyArray(),), {}, True)
    message = str(caught.value)
    assert message.startswith(("the backward pass of " if backwards else "") + "wants_too_much: cuda:0 is out of memory")
    assert "Asked for: 5 GiB, working on cupy array (64, 32, 32, 3) float32 on cuda." in message
    assert "Free: 1 GiB of 80 GiB; arrays in use take 70 GiB, CuPy keeps 3 MiB" in message
    assert "smaller batch_size" in message
    assert "limited" not in message
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value.__cause__, OutOfMemoryError)


def test_a_limit_of_the_pool_is_named(full_gpu):
    with pytest.raises(DeviceMemoryError, match="is limited to 72 GiB"):
        out_of_memory_op(72 * 2**30).run(full_gpu, (CupyArray(),), {}, True)


def test_an_error_is_explained_once(full_gpu):
    from xpnet.backend import raise_explained

    raise_explained(DeviceMemoryError("explained"), "conv2d", ())


def test_moving_an_array_to_a_full_gpu(full_gpu, monkeypatch):
    def asarray(_):
        raise OutOfMemoryError(2**40, 0)

    full_gpu.asarray = asarray
    full_gpu.cuda.Device = lambda index: types.SimpleNamespace(__enter__=None)
    monkeypatch.setattr(backend.Device, "__enter__", lambda self: self)
    monkeypatch.setattr(backend.Device, "__exit__", lambda self, *_: None)
    with pytest.raises(DeviceMemoryError, match=r"to_device: .* Asked for: 1024 GiB, working on numpy array \(3,\)"):
        backend.to_device(np.zeros(3), "cuda")


def test_main_memory_is_not_explained_as_a_gpu():
    with pytest.raises(MemoryError) as caught:
        ops.multiply(ops.broadcast_to(np.zeros(1), (2**50,)), 2.0)
    assert not isinstance(caught.value, DeviceMemoryError)


def test_arrays_on_two_backends(full_gpu):
    with pytest.raises(DeviceError, match=r"numpy array \(2,\) float64 and cupy array .* on cuda"):
        ops.add(np.zeros(2), CupyArray())


def test_a_launch_on_another_gpu_than_the_current_one_says_so():
    from xpnet.accel.cupy.activation import _forward
    from xpnet.accel.cupy.device import CudaRuntime

    runtime = CudaRuntime.__new__(CudaRuntime)
    runtime.device = 0
    array = types.SimpleNamespace(data=types.SimpleNamespace(device_id=1, ptr=0))
    with pytest.raises(DeviceError, match="runs on cuda:0, the current device, and got an array on cuda:1"):
        runtime.addresses(_forward["float", 1, 1], [array])


def test_a_missing_cublas_says_what_to_install(monkeypatch):
    pytest.importorskip("cupy", reason="needs CuPy")
    from xpnet.accel.cupy import cublas

    def missing(name):
        raise OSError(f"{name}: cannot open")

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(cublas, "ctypes", types.SimpleNamespace(CDLL=missing))
    with pytest.raises(DeviceError, match=r"need cuBLAS 1\d, which was not found: pip install"):
        cublas._path()


def test_a_failing_product_says_its_shape(monkeypatch):
    from xpnet.accel.cupy import cublas
    from xpnet.accel.cupy.gemm import Product

    array = types.SimpleNamespace(data=types.SimpleNamespace(ptr=0))
    product = Product(
        False, False, 5, 3, 4, 1.0, array, 5, 0, array, 4, 0, 0.0, array, 5, 0, 1, "float16", "float16", False
    )  # fmt: skip
    library = types.SimpleNamespace(cublasGemmEx=lambda *_: 15)
    monkeypatch.setattr(cublas, "_library", lambda: library)
    monkeypatch.setattr(cublas, "_handle", lambda device, stream: cublas._Handle(0, None, threading.Lock()))
    with pytest.raises(RuntimeError, match=r"product \(3, 4\) @ \(4, 5\), batch 1, float16 failed with status 15 \(not supp"):
        cublas.run(product, 0, 0)
