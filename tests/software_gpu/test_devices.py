"""Two devices: to each its memory, streams and events."""

from __future__ import annotations

import pytest

from tests.software_gpu.rules import WRITE, program

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

TWO = f"""{WRITE}
def on(device, make):
    with cupy.cuda.Device(device):
        return make()
"""


def test_memory_belongs_to_a_device():
    lines = program(TWO + """
print(runtime.getDeviceCount())
before = [on(d, runtime.memGetInfo)[0] for d in (0, 1)]
x = on(1, lambda: cupy.zeros(1000, np.uint8))
print([b - on(d, runtime.memGetInfo)[0] for d, b in enumerate(before)])
y = cupy.zeros(1)
print(runtime.pointerGetAttributes(x.data.ptr + 999).device, runtime.pointerGetAttributes(y.data.ptr).device)
print(x.device.id, int(x.sum()))
""", COUNT="2")  # fmt: skip
    assert lines == ["2", "[0, 1000]", "1 0", "1 0"]


def test_a_kernel_has_no_access_to_another_devices_memory_unless_it_is_enabled():
    lines = program(TWO + """
x = on(1, lambda: cupy.zeros(8, np.int32))
print(runtime.deviceCanAccessPeer(0, 1), runtime.deviceCanAccessPeer(0, 0))
runtime.deviceEnablePeerAccess(1)
error(runtime.deviceEnablePeerAccess, 1)
error(runtime.deviceEnablePeerAccess, 0)
write((1,), (1,), (x, 3))
runtime.deviceSynchronize()
print(x.get().tolist())
driver.cudaDeviceDisablePeerAccess(1)
print(driver.cudaDeviceDisablePeerAccess(1), driver.cudaGetLastError())
print(hex(x.data.ptr))
error(lambda: (write((1,), (1,), (x, 3)), runtime.deviceSynchronize()))
""", COUNT="2")  # fmt: skip
    assert lines[0] == "1 0"
    assert lines[1] == "704 cudaErrorPeerAccessAlreadyEnabled: peer access is already enabled"
    assert lines[2].startswith("101 cudaErrorInvalidDevice: ")
    assert lines[3] == "[0, 0, 0, 7, 0, 0, 0, 0]"
    assert lines[4] == "705 705"
    said = f"write: illegal access, argument 0 is {lines[5]}, memory of device 1, which device 0 has no access to"
    assert lines[6] == "700 CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered: " + said


def test_managed_memory_is_every_devices():
    lines = program(TWO + """
x = cupy.ndarray(8, np.int32, cupy.cuda.malloc_managed(32))
x[...] = 0
runtime.deviceSynchronize()
def other():
    write((1,), (1,), (x, 3))
    runtime.deviceSynchronize()
on(1, other)
print(x.get().tolist())
print(runtime.getDeviceProperties(1)["managedMemory"], cupy.cuda.Device(1).attributes["ManagedMemory"])
""", COUNT="2")  # fmt: skip
    assert lines == ["[0, 0, 0, 7, 0, 0, 0, 0]", "1 1"]


def test_limits_are_kept():
    lines = program("""
print(runtime.deviceGetLimit(0))
runtime.deviceSetLimit(0, 16384)
print(runtime.deviceGetLimit(0), runtime.deviceGetLimit(2))
error(runtime.deviceSetLimit, 0, 1 << 20)
error(runtime.deviceGetLimit, 77)
print(runtime.deviceGetLimit(0))
""")
    assert lines[:2] == ["1024", f"16384 {8 << 20}"]
    assert lines[2].startswith("1 cudaErrorInvalidValue: ")
    assert lines[3].startswith("215 cudaErrorUnsupportedLimit: ")
    assert lines[4] == "16384"


@pytest.mark.parametrize(("name", "value"), [("MIB", "x"), ("MIB", "0"), ("ARCH", "banana"), ("ARCH", "8.0"), ("COUNT", "-1")])
def test_a_setting_that_is_no_number_is_an_error_that_names_it(name, value):
    with pytest.raises(AssertionError, match=rf"ValueError: SOFTWARE_GPU_{name} must be .*, got '{value}'"):
        program("", **{name: value})


def test_the_array_of_another_device_within_a_structure_is_seen_too():
    lines = program(TWO + """
peek = cupy.RawKernel('''struct A { const int* data; long long size; };
extern "C" __global__ void peek(A a, int* y) { y[0] = a.data[2]; }''', "peek")
x, y = on(1, lambda: cupy.ones(8, np.int32)), cupy.zeros(1, np.int32)
structure, result = np.array([x.data.ptr, 8]), np.array([y.data.ptr])
arguments = np.array([structure.ctypes.data, result.ctypes.data])
launch = lambda: cupy.cuda.driver.launchKernel(peek.kernel.ptr, 1, 1, 1, 1, 1, 1, 0, 0, arguments.ctypes.data, 0)
runtime.deviceEnablePeerAccess(1)
launch()
print(int(y[0]), driver.cudaDeviceDisablePeerAccess(1))
error(lambda: (launch(), runtime.deviceSynchronize()))
""", COUNT="2")  # fmt: skip
    assert lines[0] == "1 0"
    assert lines[1].startswith("700 ")
    assert "peek: illegal access, argument 0 is " in lines[1]
    assert lines[1].endswith("memory of device 1, which device 0 has no access to")


def test_copies_go_between_devices():
    lines = program(TWO + """
x = on(0, lambda: cupy.arange(8, dtype=np.int32))
y = on(1, lambda: cupy.asarray(x))
print(y.device.id, y.get().tolist())
z = on(1, lambda: cupy.zeros(8, np.int32))
runtime.memcpyPeer(z.data.ptr, 1, x.data.ptr, 0, 32)
print(z.get().tolist())
error(runtime.memcpyPeer, z.data.ptr, 0, x.data.ptr, 0, 32)
error(runtime.memcpyPeer, z.data.ptr, 1, x.data.ptr, 5, 32)
""", COUNT="2")  # fmt: skip
    assert lines[0] == "1 [0, 1, 2, 3, 4, 5, 6, 7]"
    assert lines[1] == "[0, 1, 2, 3, 4, 5, 6, 7]"
    assert lines[2] == "1 cudaErrorInvalidValue: invalid argument: the destination is not on that device"
    assert lines[3].startswith("101 cudaErrorInvalidDevice: ")


PEERS = """
from tests.software_gpu import device as software
size = 64
def case(copy, across, then=None):
    def run():
        with cupy.cuda.Device(0):
            x = cupy.full(size, 1.0); side = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.Device(1):
            y, z = cupy.zeros(size), cupy.zeros(size); other = cupy.cuda.Stream(non_blocking=True)
        for d in (0, 1):
            on(d, runtime.deviceSynchronize)
        with cupy.cuda.Device(0), side:
            x += 1
        with cupy.cuda.Device(1), other:
            y += 5  # before the copy, on the device that it writes
        on(across, lambda: copy(y.data.ptr, x.data.ptr))
        with cupy.cuda.Device(0), side:
            x += 50  # after it, on the device that it reads
        with cupy.cuda.Device(1), other:
            cupy.add(y, 1, out=z)
            return float(z.get(stream=other)[0])
    return run
CASES = [
    case(lambda y, x: runtime.memcpyPeer(y, 1, x, 0, 8 * size), 0),
    case(lambda y, x: runtime.memcpyPeer(y, 1, x, 0, 8 * size), 1),
    case(lambda y, x: runtime.memcpyPeerAsync(y, 1, x, 0, 8 * size, 0), 0),
    case(lambda y, x: runtime.memcpyPeerAsync(y, 1, x, 0, 8 * size, 0), 1),
    case(lambda y, x: runtime.memcpyAsync(y, x, 8 * size, 4, 0), 1), case(lambda y, x: runtime.memcpy(y, x, 8 * size, 3), 0),
]
"""


def test_a_copy_between_devices_in_the_null_stream_is_in_order_with_all_that_both_have():
    lines = program(TWO + PEERS + """
for schedule in (*software.SCHEDULES[:-1], *(f"random:{i}" for i in range(12))):
    with software.schedule(schedule):
        print(schedule, *(run() for run in CASES))
""", COUNT="2")  # fmt: skip
    assert len(lines) == 18
    assert [line.split()[1:] for line in lines] == [["3.0"] * 6] * 18


def test_a_copy_between_devices_in_another_stream_is_not():
    lines = program(TWO + PEERS + """
stream = on(1, lambda: cupy.cuda.Stream(non_blocking=True))
run = case(lambda y, x: runtime.memcpyPeerAsync(y, 1, x, 0, 8 * size, stream.ptr), 1)
found = set()
for i in range(12):
    with software.schedule(f"random:{i}"):
        found.add(run())
print(len(found - {3.0}) > 0)
""", COUNT="2")  # fmt: skip
    assert lines == ["True"]


def test_streams_events_and_functions_belong_to_a_device():
    lines = program(TWO + """
x = cupy.zeros(8, np.int32)
write((1,), (1,), (x, 0))
other = on(1, lambda: cupy.cuda.Stream(non_blocking=True))
event = on(1, lambda: cupy.cuda.Event())
mine = cupy.cuda.Stream(non_blocking=True)
args = np.array([x.data.ptr, 0])
def launch(function, stream):
    pointers = (ctypes.c_void_p * 2)(args.ctypes.data, args.ctypes.data + 8)
    cupy.cuda.driver.launchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, ctypes.addressof(pointers), 0)
launch(write.kernel.ptr, mine.ptr)
error(launch, write.kernel.ptr, other.ptr)
function = write.kernel.ptr
error(lambda: on(1, lambda: launch(function, other.ptr)))
error(runtime.eventRecord, event.ptr, mine.ptr)
on(1, lambda: event.record(other))
runtime.streamWaitEvent(mine.ptr, event.ptr)  # that is between devices
y = on(1, lambda: cupy.zeros(8, np.int32))
runtime.memcpyAsync(y.data.ptr, x.data.ptr, 32, runtime.memcpyDeviceToDevice, mine.ptr)  # and that
first = cupy.cuda.Event(); first.record(); on(1, lambda: event.record(other))
runtime.deviceSynchronize()
error(runtime.eventElapsedTime, first.ptr, event.ptr)
print(y.get().tolist())
""", COUNT="2")  # fmt: skip
    handle = "400 CUDA_ERROR_INVALID_HANDLE: invalid resource handle: "
    assert lines[0] == handle + "a stream of another device"
    assert lines[1] == handle + "a function of another device's module"
    assert lines[2] == "400 cudaErrorInvalidResourceHandle: invalid resource handle: an event and a stream of different devices"
    assert lines[3] == "400 cudaErrorInvalidResourceHandle: invalid resource handle: events of different devices"
    assert lines[4] == "[7, 0, 0, 0, 0, 0, 0, 0]"


def test_each_thread_has_its_current_device_and_synchronises_that_one():
    lines = program(TWO + """
runtime.setDevice(1)
seen = []
worker = threading.Thread(target=lambda: seen.append(runtime.getDevice()))
worker.start(); worker.join()
print(seen, runtime.getDevice())
error(runtime.setDevice, 2)
""", COUNT="2")  # fmt: skip
    assert lines == ["[0] 1", "101 cudaErrorInvalidDevice: invalid device ordinal"]


def test_no_device_at_all():
    assert program("error(runtime.getDeviceCount)", COUNT="0") == ["100 cudaErrorNoDevice: no CUDA-capable device is detected"]
