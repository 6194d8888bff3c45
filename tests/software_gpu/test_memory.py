"""Memory: what is outside of an allocation, or freed, is not accessible; copies go between memories that exist."""

from __future__ import annotations

import numpy as np
import pytest

from tests.software_gpu.rules import WRITE, program, refuses

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

ILLEGAL = "700 CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered: "


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("write((1,), (1,), (x, 1024))", "write: illegal access to {x+4096}, 0 bytes past the end of {all}"),
        ("read((1,), (1,), (x, 1500, y))", "read: illegal access to {x+6000}, 1904 bytes past the end of {all}"),
        ("read((1,), (1,), (x, -1, y))", "read: illegal access to {x-4}, 4 bytes before {all}"),
        ("write((1,), (1,), (np.uint64(0), 2))", "write: illegal access to 0x8, a null pointer"),
        ("write((1,), (1,), (np.uint64(host.ctypes.data), 0))", "write: illegal access, argument 0 is {host}, {none}"),
    ],
)  # fmt: skip
def test_a_kernel_outside_of_its_memory_is_an_illegal_access_that_stays(case, said):
    lines = program(f"""{WRITE}
host = np.zeros(8, np.int32)
x, y = cupy.zeros(1024, np.int32), cupy.zeros(1, np.int32)
def launch():
    {case}
    runtime.deviceSynchronize()
print(hex(x.data.ptr), hex(host.ctypes.data))
error(launch)
error(launch)
error(runtime.malloc, 8)
""")
    x, host = (int(word, 16) for word in lines[0].split())
    said = said.replace("{all}", f"the allocation of 4096 bytes at {hex(x)}")
    said = said.replace("{host}", hex(host)).replace("{none}", "which is no memory of the device")
    for offset in (4096, 6000, -4):
        said = said.replace(f"{{x{offset:+d}}}", hex(x + offset))
    assert lines[1] == lines[2] == ILLEGAL + said
    assert lines[3].startswith("700 cudaErrorIllegalAddress: ")


def test_use_after_free_is_found_and_names_the_allocation():
    lines = program(f"""{WRITE}
x = cupy.zeros(3000, np.int32)
address = x.data.ptr
del x
print(hex(address))
others = [cupy.zeros(3000, np.int32) for _ in range(50)]
print(address in [other.data.ptr for other in others])
error(lambda: (write((1,), (1,), (np.uint64(address), 5)), runtime.deviceSynchronize()))
""")
    address = int(lines[0], 16)
    assert lines[1] == "False"
    said = f"20 bytes into the allocation of 12000 bytes at {lines[0]}, which was freed"
    assert lines[2] == f"{ILLEGAL}write: illegal access to {hex(address + 20)}, {said}"


@pytest.mark.parametrize("waits", ["runtime.deviceSynchronize()", "runtime.free(p)", "x.get()"])
@pytest.mark.parametrize(("index", "place"), [(25, "0 bytes past the end of"), (-1, "4 bytes before")])
def test_a_write_within_the_slack_of_an_allocation_is_found_later(index, place, waits):
    lines = program(f"""{WRITE}
p = runtime.malloc(100)  # followed by 412 bytes up to the next page that nobody may access
x = cupy.zeros(1)
def late():
    write((1,), (1,), (np.uint64(p), {index}))
    {waits}
print(hex(p))
error(late)
""")
    said = f"illegal write {place} the allocation of 100 bytes at {lines[0]}, found later; what ran last is "
    assert lines[1].startswith("700 cudaErrorIllegalAddress: an illegal memory access was encountered: " + said)
    assert lines[1].endswith("a copy" if "get" in waits else "write")


def test_a_copy_of_memory_that_the_host_has_freed_is_a_fault_not_a_crash():
    lines = program("""
import mmap
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
ctypes.CDLL(None).munmap(ctypes.c_void_p(address), ctypes.c_size_t(4096))
x = cupy.zeros(16, np.uint8)
def copy():
    runtime.memcpy(x.data.ptr, address, 16, runtime.memcpyHostToDevice)
    runtime.deviceSynchronize()
print(hex(address))
error(copy)
import os
print(end="", flush=True)
os._exit(0)
""")
    assert lines[1].startswith("700 cudaErrorIllegalAddress: an illegal memory access was encountered: a copy of 16 bytes to ")
    assert f"from {lines[0]}: illegal access to {lines[0]}, which is no memory of the device" in lines[1]


def test_a_thread_that_overflows_its_stack_is_a_fault_that_says_so():
    lines = program("""
deep = cupy.RawKernel('''
__device__ __noinline__ int down(volatile int* x, int n) {
  volatile int room[64];
  room[n & 63] = n;
  return n ? down(x, n - 1) + room[n & 63] : x[0];
}
extern "C" __global__ void deep(int* x, int n) { __syncthreads(); x[0] = down(x, n); }''', "deep")
x = cupy.zeros(1, np.int32)
deep((1,), (1,), (x, 10)); print(int(x[0]))
error(lambda: (deep((1,), (1,), (x, 100000)), runtime.deviceSynchronize()))
""")
    assert lines[0] == "55"
    assert "deep: illegal access to " in lines[1]
    assert lines[1].endswith("local memory is more than 1024 KiB (on a GPU 512 KiB are the most)")


def test_unwritten_memory_is_nan():
    import cupy

    p = cupy.cuda.runtime.malloc(4000)
    back = np.zeros(1000, np.float32)
    cupy.cuda.runtime.memcpy(back.ctypes.data, p, 4000, cupy.cuda.runtime.memcpyDeviceToHost)
    cupy.cuda.runtime.free(p)
    assert np.isnan(back).all()


@pytest.mark.parametrize("size", [1, 511, 512, 513, 4096, 5000, 1 << 20])
def test_allocations_are_aligned_to_512_bytes_and_the_free_memory_comes_back(size):
    import cupy

    runtime = cupy.cuda.runtime
    runtime.deviceSynchronize()
    free, total = runtime.memGetInfo()
    p = runtime.malloc(size)
    assert p % 512 == 0
    assert runtime.memGetInfo() == (free - size, total)
    runtime.memset(p, 0, size)
    runtime.free(p)
    assert runtime.memGetInfo() == (free, total)
    with refuses(1, "cudaErrorInvalidValue", f"0 bytes into the allocation of {size} bytes at {hex(p)}, which was freed"):
        runtime.free(p)


def test_memory_is_freed_as_what_it_is():
    import cupy

    runtime = cupy.cuda.runtime
    device, host = runtime.malloc(64), runtime.hostAlloc(64, 0)
    with refuses(1, "cudaErrorInvalidValue", "which is no memory of the device"):
        runtime.free(host)
    with refuses(1, "cudaErrorInvalidValue", "cudaHostAlloc did not give out"):
        runtime.freeHost(device)
    with refuses(1, "cudaErrorInvalidValue", "cudaFree of an address"):
        runtime.free(device + 32)
    runtime.free(device)
    runtime.freeHost(host)
    with refuses(1, "cudaErrorInvalidValue"):
        runtime.freeHost(host)
    runtime.free(0)
    runtime.freeHost(0)


def test_host_memory_is_registered_once():
    import cupy

    runtime = cupy.cuda.runtime
    array = np.zeros(1000, np.uint8)
    runtime.hostRegister(array.ctypes.data, 1000, 0)
    with refuses(712, "cudaErrorHostMemoryAlreadyRegistered"):
        runtime.hostRegister(array.ctypes.data + 999, 1, 0)
    assert runtime.pointerGetAttributes(array.ctypes.data + 500).type == 1  # cudaMemoryTypeHost
    runtime.hostUnregister(array.ctypes.data)
    assert runtime.pointerGetAttributes(array.ctypes.data + 500).type == 0
    with refuses(713, "cudaErrorHostMemoryNotRegistered"):
        runtime.hostUnregister(array.ctypes.data)


@pytest.fixture
def places():
    """Return addresses of 64 bytes: device memory, pinned memory, other host memory, device memory that is freed."""
    import cupy

    runtime = cupy.cuda.runtime
    array = np.zeros(64, np.uint8)
    device, host, gone = runtime.malloc(64), runtime.hostAlloc(64, 0), runtime.malloc(64)
    runtime.free(gone)
    yield {"device": device, "pinned": host, "pageable": array.ctypes.data, "gone": gone, "past": device + 32}
    runtime.free(device)
    runtime.freeHost(host)


KINDS = {0: ("host", "host"), 1: ("device", "host"), 2: ("host", "device"), 3: ("device", "device")}


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("call", ["memcpy", "memcpyAsync", "memcpy2DAsync"])
def test_a_copy_is_between_memories_that_exist_and_of_their_kind(places, kind, call):
    import cupy

    runtime = cupy.cuda.runtime

    def copy(to, source):
        if call == "memcpy":
            runtime.memcpy(to, source, 64, kind)
        elif call == "memcpyAsync":
            runtime.memcpyAsync(to, source, 64, kind, 0)
        else:
            runtime.memcpy2DAsync(to, 16, source, 16, 16, 4, kind, 0)

    tried = 0
    for to in places:
        for source in places:
            legal = {to, source} <= {"device", "pinned", "pageable"}
            found = tuple("device" if place == "device" else "host" for place in (to, source))
            if legal and (kind == 4 or found == KINDS[kind]):
                copy(places[to], places[source])
                tried += 1
            else:
                with refuses(1, "cudaErrorInvalidValue"):
                    copy(places[to], places[source])
    assert tried == {0: 4, 1: 2, 2: 2, 3: 1, 4: 9}[kind]
    runtime.deviceSynchronize()


def test_other_rules_of_copies_and_fills(places):
    import cupy

    runtime = cupy.cuda.runtime
    with refuses(21, "cudaErrorInvalidMemcpyDirection"):
        runtime.memcpy(places["device"], places["pinned"], 8, 7)
    with refuses(12, "cudaErrorInvalidPitchValue"):
        runtime.memcpy2DAsync(places["device"], 8, places["pinned"], 16, 16, 2, 1, 0)
    with refuses(1, "cudaErrorInvalidValue", "the destination is not in one allocation"):
        runtime.memcpy2DAsync(places["device"], 32, places["pinned"], 16, 16, 3, 1, 0)
    for place in ("gone", "past", "pageable"):
        with refuses(1, "cudaErrorInvalidValue", "cudaMemset of what is not in one allocation"):
            runtime.memset(places[place], 0, 64)
    runtime.memcpy(places["gone"], places["past"], 0, 3)  # nothing is copied


def test_a_copy_in_two_dimensions_is_one_operation_of_its_stream():
    import cupy

    runtime = cupy.cuda.runtime
    source = np.arange(60, dtype=np.uint8).reshape(5, 12)
    p, back = runtime.malloc(5 * 16), np.zeros((5, 16), np.uint8)
    runtime.memset(p, 99, 5 * 16)
    runtime.memcpy2DAsync(p, 16, source.ctypes.data, 12, 12, 5, runtime.memcpyHostToDevice, 0)
    runtime.memcpy(back.ctypes.data, p, 80, runtime.memcpyDeviceToHost)
    runtime.free(p)
    assert (back[:, :12] == source).all()
    assert (back[:, 12:] == 99).all()


def test_a_variable_of_a_module_is_memory_of_the_device():
    import cupy

    module = cupy.RawModule(
        code="""
__device__ int table[4];
extern "C" __global__ void first(int* y) { y[0] = table[3]; }"""
    )
    pointer = module.get_global("table")
    array = cupy.ndarray((4,), np.int32, pointer)
    array[...] = cupy.arange(4) + 5
    y = cupy.zeros(1, np.int32)
    module.get_function("first")((1,), (1,), (y,))
    assert int(y[0]) == 8


def test_out_of_memory_on_a_small_device():
    lines = program("""
print(runtime.memGetInfo())
x = cupy.zeros(48 << 20, np.uint8)
error(runtime.malloc, 17 << 20)
error(runtime.malloc, 1 << 60)
y = cupy.ones(16 << 20, np.uint8)
print(int(y[-1]), runtime.memGetInfo()[0])
del x, y
print(runtime.memGetInfo()[0])
cupy.cuda.set_allocator(cupy.cuda.MemoryPool().malloc)
a = cupy.zeros(40 << 20, np.uint8)
del a
b = [cupy.zeros(20 << 20, np.uint8) for _ in range(3)]  # the pool gives blocks back when the device is full
print(len(b))
try:
    cupy.zeros(5 << 20, np.uint8)
except cupy.cuda.memory.OutOfMemoryError:
    print("out of memory")
""", MIB="64")  # fmt: skip
    total = 64 << 20
    assert lines[0] == str((total, total))
    said = "2 cudaErrorMemoryAllocation: out of memory: "
    assert lines[1] == f"{said}{17 << 20} bytes asked for, {16 << 20} of {total} free"
    assert lines[2].startswith(said)
    assert lines[3] == f"1 {0}"
    assert lines[4] == str(total)
    assert lines[5:] == ["3", "out of memory"]
