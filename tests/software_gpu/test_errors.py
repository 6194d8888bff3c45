"""Errors: numbers, names and descriptions, as CUDA's headers have them."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys

import pytest

from tests.software_gpu import build
from tests.software_gpu.rules import ROOT, program, refuses

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]


def in_header(name: str, pattern: str) -> dict[int, str]:
    for folder in build.include_folders():
        try:
            with open(f"{folder[2:]}/{name}") as file:
                return {int(number): word for word, number in re.findall(pattern, file.read())}
        except FileNotFoundError:
            continue
    raise AssertionError(f"{name} is not there")


def test_every_error_of_the_device_has_the_name_that_cudas_headers_give_its_number():
    import cupy

    cupy.cuda.runtime.getDeviceCount()
    library = ctypes.CDLL("libcuda.so.1")
    library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
    runtime = in_header("driver_types.h", r"\b(cuda(?:Success|Error\w+)) *= *(\d+)")
    driver = in_header("cuda.h", r"\b(CUDA_(?:SUCCESS|ERROR_\w+)) *= *(\d+)")
    known = [n for n in range(1000) if library.cudaGetErrorName(n) != b"unrecognized error code"]
    assert {0, 1, 2, 400, 700, 704, 719, *range(900, 909)} <= set(known)
    for number in known:
        assert library.cudaGetErrorName(number).decode() == runtime[number]
        assert library.cudaGetErrorString(number)
        name = ctypes.c_char_p()
        assert library.cuGetErrorName(number, ctypes.byref(name)) == 0
        assert name.value is not None
        assert name.value.decode() == driver.get(number, "CUDA_ERROR_UNKNOWN")
    assert library.cuGetErrorName(12345, ctypes.byref(name)) == 1


def test_an_error_says_why_and_is_the_last_one_of_its_thread_only():
    import threading

    import cupy

    runtime = cupy.cuda.runtime
    seen = []
    with refuses(1, "cudaErrorInvalidValue", "invalid argument: unknown flags of an event"):
        runtime.eventCreateWithFlags(64)
    library = ctypes.CDLL("libcuda.so.1")
    library.cudaSetDevice(99)
    other = threading.Thread(target=lambda: seen.append(library.cudaPeekAtLastError()))
    other.start()
    other.join()
    assert seen == [0]
    assert library.cudaGetLastError() == 101
    assert library.cudaGetLastError() == 0


def test_what_the_driver_refuses_is_not_the_runtimes_last_error():
    import cupy

    library = ctypes.CDLL("libcuda.so.1")
    kernel = cupy.RawKernel('extern "C" __global__ void nothing() {}', "nothing")
    with refuses(1, "CUDA_ERROR_INVALID_VALUE", "a block of 2000 threads in dimension x"):
        kernel((1,), (2000,), ())
    assert library.cudaGetLastError() == 0


def test_a_fault_of_a_kernel_stays_with_its_name():
    lines = program("""
kernel = cupy.RawKernel('extern "C" __global__ void stuck() { if (threadIdx.x < 16) __syncthreads(); }', "stuck")
error(lambda: (kernel((1,), (32,), ()), runtime.deviceSynchronize()))
error(runtime.deviceSynchronize)
error(runtime.malloc, 512)
error(runtime.streamCreate)
print(driver.cudaGetLastError(), driver.cudaGetLastError())
""")
    assert all(line.startswith("719 ") and "stuck: " in line and "barrier" in line for line in lines[:4]), lines
    assert lines[4] == "719 719"


def test_a_fault_within_a_kernel_is_no_crash_for_pythons_fault_handler():
    lines = program("""
import faulthandler
faulthandler.enable()
kernel = cupy.RawKernel('extern "C" __global__ void write(int* x, int i) { x[i] = 1; }', "write")
x = cupy.zeros(1, np.int32)
kernel((1,), (1,), (x, 0))
faulthandler.enable()
error(lambda: (kernel((1,), (1,), (x, 1 << 20)), runtime.deviceSynchronize()))
faulthandler.disable()
error(runtime.deviceSynchronize)
""")
    assert all(line.startswith("700 ") and "write: illegal access" in line for line in lines)
    assert len(lines) == 2


def test_a_fault_in_work_that_runs_later_is_found_by_who_waits():
    lines = program("""
kernel = cupy.RawKernel('extern "C" __global__ void write(int* x, int i) { x[i] = 1; }', "write")
x = cupy.zeros(1, np.int32)
error(kernel, (1,), (1,), (x, 1 << 20))
error(runtime.deviceSynchronize)
error(kernel, (1,), (1,), (x, 0))
""", SCHEDULE="lazy")  # fmt: skip
    assert lines[0] == "no error"
    assert lines[1].startswith("700 cudaErrorIllegalAddress: ")
    assert lines[2].startswith("700 CUDA_ERROR_ILLEGAL_ADDRESS: ")
    assert all("write: illegal access" in line for line in lines[1:])


def test_a_crash_outside_of_kernels_stays_one():
    lines = program("""
import os, signal
cupy.zeros(4)
if os.fork() == 0:
    import faulthandler
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    ctypes.string_at(8)
    os._exit(0)
print(os.WTERMSIG(os.wait()[1]) == signal.SIGSEGV)
""")
    assert lines == ["True"]


FORKED = """
import os
def child(*calls):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        for call in calls:
            error(call)
        sys.stdout.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
import sys
"""


def test_a_process_that_is_forked_from_one_that_used_the_device_cannot_use_it():
    lines = program(FORKED + """
x = cupy.arange(3)
double = lambda: x * 2
get = lambda: runtime.memcpy(np.zeros(3).ctypes.data, x.data.ptr, 24, 2)
child(lambda: runtime.malloc(8), runtime.getDeviceCount, runtime.getDevice, lambda: runtime.setDevice(0), double, get,
      runtime.deviceSynchronize, cupy.cuda.Stream)
print(int(double().sum()))
""")  # fmt: skip
    said = "3 cudaErrorInitializationError: initialization error: the process was forked from one that had used CUDA"
    assert [line.startswith(said) for line in lines[:8]] == [True] * 8
    assert lines[8:] == ["0", "6"]


def test_a_process_that_is_forked_before_the_device_is_used_can_use_it():
    lines = program(FORKED + "child(lambda: print(int(cupy.arange(3).sum())))")
    assert lines == ["3", "no error", "0"]


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("SOFTWARE_GPU", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, *arguments, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


DEVICE = """
import tests.software_gpu.device as device
{}
with device.schedule("lazy"):
    x = cupy.arange(4) + 1
    print(device.pending() > 0, int(x.sum()))
device.install()
"""


@pytest.mark.parametrize(
    "first", ["import cupy; cupy.arange(3)", "import cupy; device.install()", "device.install(); import cupy"]
)
def test_the_module_of_the_device_is_one_in_a_program_that_was_given_the_device(first):
    done = _python(DEVICE.format(first), "-m", "tests.software_gpu")
    assert (done.returncode, done.stdout) == (0, "True 10\n"), done.stderr


def test_what_asks_for_the_device_loads_it_where_it_is_installed():
    done = _python("from tests.software_gpu import device; device.install(); print(device.pending()); import cupy")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize("call", ["device.pending()", "device.schedule('lazy').__enter__()"])
def test_asking_a_device_that_is_not_in_use_says_so(call):
    done = _python(f"from tests.software_gpu import device; {call}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: the software GPU is not in use: ")
