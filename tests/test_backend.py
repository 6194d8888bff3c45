"""Namespaces and devices: what an array is, where it lives, and what is said when something is missing."""

from __future__ import annotations

import subprocess
import sys
import types

import array_api_strict
import numpy as np
import pytest

import xpnet as xn
from xpnet import backend


def test_namespace_of_each_library(library):
    array = library.asarray(np.zeros(2))
    assert backend.namespace(array) is library.xp
    assert backend.namespace(None, 1.5, array, True) is library.xp
    assert backend.name_of(library.xp) in ("numpy", "array_api_strict", "torch", "cupy")
    assert backend.dtype_name(array) == "float64"
    assert "(2,) float64" in backend.describe(array)


def test_numpy_scalars_and_subclasses_are_numpys():
    assert backend.namespace(np.float32(1)) is np
    assert backend.namespace(np.rec.array(np.zeros(2, np.float32))) is np


@pytest.mark.parametrize(
    ("array", "says"), [(np.ma.masked_array([1.0]), "mask would be lost"), (np.ones((1, 1)).view(np.matrix), "numpy.asarray")]
)
def test_subclasses_that_mean_something_else_are_refused(array, says):
    for take in (backend.namespace, backend.to_numpy, lambda a: backend.to_device(a, "cpu")):
        with pytest.raises(TypeError, match=says):
            take(array)


def test_namespace_refuses_what_is_no_array():
    for bad in ([1.0], "text", object(), {"a": 1}):
        with pytest.raises(TypeError, match="expected an array of NumPy, CuPy"):
            backend.namespace(bad)
    for nothing in ((), (None,), (1.0, None)):
        with pytest.raises(TypeError, match="at least one array"):
            backend.namespace(*nothing)


def test_two_libraries_in_one_call_are_an_error():
    with pytest.raises(xn.DeviceError) as raised:
        xn.ops.add(np.zeros(2), array_api_strict.zeros(2))
    assert "numpy array (2,) float64" in str(raised.value)
    assert "array_api_strict array (2,) float64" in str(raised.value)


def test_devices_by_name():
    cpu = backend.device("cpu")
    assert str(cpu) == "cpu"
    assert cpu.xp is np
    assert backend.device(cpu) is cpu
    assert backend.Device("cuda", 1) == backend.Device("cuda", 1)
    assert (str(backend.Device("cuda")), str(backend.Device("cuda", 1))) == ("cuda", "cuda:1")
    cpu.synchronize()
    with cpu, backend.on("cpu") as xp:
        assert xp is np
    for bad in ("gpu", "cuda:x", "cpu:0", "cuda:-1", "", "CUDA", 3):
        with pytest.raises(ValueError, match="unknown device"):
            backend.device(bad)  # type: ignore[arg-type]


def test_to_device_and_to_numpy(library):
    values = np.arange(6.0).reshape(2, 3)
    array = library.asarray(values)
    moved = xn.to_numpy(array)
    assert type(moved) is np.ndarray
    np.testing.assert_array_equal(moved, values)
    np.testing.assert_array_equal(xn.to_device(array, "cpu"), values)
    assert xn.to_numpy(values) is values
    assert xn.to_device(values, "cpu") is values
    np.testing.assert_array_equal(xn.to_device([[1, 2]], "cpu"), [[1, 2]])


def test_device_of(library):
    place = backend.device_of(library.asarray(np.zeros(1)))
    assert place == {"numpy": backend.CPU, "numpy-readonly": backend.CPU, "torch": "cpu"}.get(library.name, place)
    assert isinstance(place, (str, backend.Device))


def test_cuda_without_cupy_says_what_to_install():
    """In a process where CuPy cannot be found."""
    code = (
        "import sys; sys.modules['cupy'] = None\n"
        "import xpnet as xn\n"
        "for call in (lambda: xn.Sequential([xn.Dense(2)], device='cuda'), lambda: xn.to_device([1.0], 'cuda:1')):\n"
        "    try: call()\n"
        "    except xn.DeviceError as error: print(error)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = output.strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "needs CuPy, which is not installed" in line
        assert 'pip install "xpnet[cuda12]"' in line


class CUDAError(RuntimeError):
    pass


def fake_cupy(monkeypatch, *, count=None, error=None, driver=0):
    """A module `cupy` whose runtime answers as told: here is a driver, or none. Real ones: tests/accel/test_cupy_devices.py."""

    def devices():
        if error:
            raise CUDAError(error)
        return count

    runtime = types.SimpleNamespace(getDeviceCount=devices, driverGetVersion=lambda: driver, CUDARuntimeError=CUDAError)
    cuda = types.SimpleNamespace(runtime=runtime, get_local_runtime_version=lambda: 12090)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda))


@pytest.mark.parametrize(
    ("name", "cupy", "says"),
    [
        (
            "cuda",
            {"error": "cudaErrorInsufficientDriver: ..."},
            'no NVIDIA driver was found; install one, or use device="cpu"',
        ),
        (
            "cuda",
            {"error": "cudaErrorInsufficientDriver: ...", "driver": 11080},
            "driver supports CUDA 11.8, this CuPy needs 12.9; update the driver",
        ),
        ("cuda", {"error": "cudaErrorUnknown: strange"}, "cannot be used: cudaErrorUnknown: strange"),
        ("cuda", {"count": 0}, "the GPUs of this machine are: none"),
    ],
)
def test_a_device_that_cannot_be_used_says_why(monkeypatch, name, cupy, says):
    fake_cupy(monkeypatch, **cupy)
    with pytest.raises(xn.DeviceError) as raised:
        backend.device(name)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_cupy_that_does_not_load_is_told_from_a_missing_one(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(xn.DeviceError, match=r"installed but does not load: libcuda\.so\.1"):
        backend.device("cuda")
