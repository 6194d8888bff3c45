"""Error messages without CuPy or cuBLAS, and of wrong devices. A driver that is missing or too old: tests/test_backend.py."""

from __future__ import annotations

import subprocess
import sys
import types

import numpy as np
import pytest

from xpnet import backend, ops
from xpnet.backend import DeviceError, DeviceMemoryError


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


def test_main_memory_is_not_explained_as_a_gpu():
    with pytest.raises(MemoryError) as caught:
        ops.multiply(ops.broadcast_to(np.zeros(1), (2**50,)), 2.0)
    assert not isinstance(caught.value, DeviceMemoryError)


# -- on a GPU; two of them, a full one, and none: test_cupy_devices.py --


@pytest.mark.cuda
def test_a_usable_device_is_accepted():
    import cupy

    assert str(backend.device("cuda")) == "cuda"
    count = cupy.cuda.runtime.getDeviceCount()
    known = ", ".join(f"cuda:{i}" for i in range(count))
    with pytest.raises(DeviceError, match=rf'"cuda:{count}" does not exist; the GPUs of this machine are: {known}$'):
        backend.device(f"cuda:{count}")


@pytest.mark.cuda
def test_arrays_on_two_backends():
    import cupy

    with pytest.raises(DeviceError, match=r"numpy array \(2,\) float64 and cupy array \(2, 3\) float32 on cuda; move one"):
        ops.add(np.zeros(2), cupy.zeros((2, 3), cupy.float32))


def test_a_missing_cublas_says_what_to_install(monkeypatch):
    pytest.importorskip("cupy", reason="needs CuPy")
    from xpnet.accel.cupy import cublas

    def missing(name):
        raise OSError(f"{name}: cannot open")

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(cublas, "ctypes", types.SimpleNamespace(CDLL=missing))
    with pytest.raises(DeviceError, match=r"need cuBLAS 1\d, which was not found: pip install"):
        cublas._path()


@pytest.mark.cuda
def test_a_failing_product_says_its_shape():
    import cupy

    from xpnet.accel.cupy.gemm import Product
    from xpnet.accel.cupy.launch import runtime

    array = cupy.zeros(64)
    product = Product(
        False, False, 5, 3, 4, 1.0, array, 5, 0, array, 4, 0, 0.0, array, 5, 0, 1, "float16", "float64", False
    )  # fmt: skip
    message = r"product \(3, 4\) @ \(4, 5\), batch 1, float16 failed with status 15 \(not supported\)"
    with pytest.raises(RuntimeError, match=message):
        runtime().gemm(product)
    with pytest.raises(
        RuntimeError, match=r"product \(3, 4\) @ \(4, 5\), batch 2, float32 failed with status 7 \(invalid value"
    ):
        runtime().gemm(product._replace(dtype="float32", c_dtype="float32", lda=2, batch=2))
    runtime().gemm(product._replace(dtype="float64"))
    assert not array.any()  # the device is usable
