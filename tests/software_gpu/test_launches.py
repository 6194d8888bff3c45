"""Limits of launches: threads, blocks, shared memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.software_gpu.rules import program, refuses

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

INVALID = (1, "CUDA_ERROR_INVALID_VALUE")
RESOURCES = (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")

SOURCE = """
#define BOUND 128
extern "C" __global__ void plain(int* x) { x[0] = blockDim.x; }
extern "C" __global__ void __launch_bounds__(64) bound(int* x) { x[0] = blockDim.x; }
extern "C" __global__ void __launch_bounds__(BOUND, 2) by_macro(int* x) { x[0] = blockDim.x; }
extern "C" __launch_bounds__(32, 4) __global__ void in_front(int* x) { x[0] = blockDim.x; }
template <typename T, int N> __global__ void __launch_bounds__(96) instance(T* x) {
  __shared__ T t[N];
  t[0] = blockDim.x; x[0] = t[0];
}
extern "C" __global__ void fixed(int* x) {
  __shared__ int a[1000]; __shared__ double b[100];
  a[threadIdx.x] = 3; b[0] = 1; __syncthreads(); x[0] = a[0] + (int)b[0];
}
extern "C" __global__ void dynamic(int* x, int n) {
  extern __shared__ int room[];
  for (int i = threadIdx.x; i < n; i += blockDim.x) room[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) x[0] = n ? room[n - 1] : 0;
}
extern "C" __global__ void unwritten(float* x) { extern __shared__ float floats[]; x[threadIdx.x] = floats[threadIdx.x]; }
"""


@pytest.fixture(scope="module")
def module():
    import cupy

    return cupy.RawModule(code=SOURCE, options=("-std=c++17",), name_expressions=["instance<int, 8>", "instance<double, 1000>"])


@pytest.fixture
def x():
    import cupy

    return cupy.zeros(1, np.int32)


@pytest.mark.parametrize(
    ("grid", "block", "said"),
    [
        ((1, 1, 1), (1025, 1, 1), "a block of 1025 threads in dimension x"),
        ((1, 1, 1), (1, 1025, 1), "a block of 1025 threads in dimension y"),
        ((1, 1, 1), (1, 1, 65), "a block of 65 threads in dimension z"),
        ((1, 1, 1), (33, 32, 1), "a block of 1056 threads"),
        ((1, 1, 1), (0, 1, 1), "a block of 0 threads"),
        ((0, 1, 1), (1, 1, 1), "a grid of 0 blocks in dimension x"),
        ((1, 65536, 1), (1, 1, 1), "a grid of 65536 blocks in dimension y"),
        ((1, 1, 65536), (1, 1, 1), "a grid of 65536 blocks in dimension z"),
        ((1 << 31, 1, 1), (1, 1, 1), "a grid of 2147483648 blocks in dimension x"),
    ],
)
def test_a_launch_beyond_the_limits_is_refused(module, x, grid, block, said):
    import cupy

    kernel = module.get_function("plain")
    address = np.array([x.data.ptr])
    arguments = np.array([address.ctypes.data])
    with refuses(*INVALID, f"plain: {said}"):  # CuPy's own call makes ones of zeros
        cupy.cuda.driver.launchKernel(kernel.kernel.ptr, *grid, *block, 0, 0, arguments.ctypes.data, 0)
    kernel((1, 1, 2), (32, 32, 1), (x,))
    cupy.cuda.runtime.deviceSynchronize()
    assert int(x[0]) == 32


@pytest.mark.parametrize(
    ("name", "most"), [("plain", 1024), ("bound", 64), ("by_macro", 128), ("in_front", 32), ("instance<int, 8>", 96)]
)
def test_launch_bounds_are_kept(module, x, name, most):
    kernel = module.get_function(name)
    assert kernel.max_threads_per_block == most
    kernel((1,), (most,), (x,))
    assert int(x[0]) == most
    if most < 1024:
        with refuses(*RESOURCES, f"{name}: a block of {most + 1} threads, its __launch_bounds__ are {most}"):
            kernel((1,), (most + 1,), (x,))


def test_shared_memory_that_a_kernel_declares_counts(module, x):
    fixed = module.get_function("fixed")
    assert fixed.shared_size_bytes == 4800
    assert module.get_function("instance<int, 8>").shared_size_bytes == 32
    assert module.get_function("instance<double, 1000>").shared_size_bytes == 8000
    assert module.get_function("plain").shared_size_bytes == 0
    most = 48 * 1024 - 4800
    assert fixed.max_dynamic_shared_size_bytes == most
    fixed((1,), (8,), (x,), shared_mem=most)
    assert int(x[0]) == 4
    with refuses(*INVALID, f"fixed: {most + 1} bytes of dynamic shared memory, {most} are allowed"):
        fixed((1,), (8,), (x,), shared_mem=most + 1)


@pytest.mark.parametrize("scope", ["function", "file", "template"])
def test_dynamic_shared_memory_is_no_static_one(x, scope):
    import cupy

    declared = "extern __shared__ int room[];"
    body = "room[threadIdx.x] = 5; __syncthreads(); x[0] = room[3];"
    if scope == "template":
        source = f"template <typename T> __global__ void k(T* x) {{ extern __shared__ T room[]; {body} }}"
        kernel = cupy.RawModule(code=source, name_expressions=["k<int>"]).get_function("k<int>")
    else:
        inside, before = (declared, "") if scope == "function" else ("", declared)
        kernel = cupy.RawKernel(f'{before} extern "C" __global__ void k(int* x) {{ {inside} {body} }}', "k")
    assert kernel.shared_size_bytes == 0
    kernel((1,), (32,), (x,), shared_mem=48 * 1024)
    assert int(x[0]) == 5
    kernel.max_dynamic_shared_size_bytes = 163 * 1024
    kernel((1,), (32,), (x,), shared_mem=163 * 1024)


def test_a_kernel_that_declares_more_than_48_kib_of_shared_memory_is_refused():
    import cupy

    source = """extern "C" __global__ void large(int* x) {
      __shared__ int a[12289];
      a[threadIdx.x] = 1; __syncthreads(); x[0] = a[0];
    }"""
    with refuses(200, "CUDA_ERROR_INVALID_IMAGE", "large uses too much shared data: 49156 bytes"):
        cupy.RawKernel(source, "large").compile()


def test_more_than_48_kib_of_shared_memory_need_the_attribute(module, x):
    kernel = module.get_function("dynamic")
    kernel.max_dynamic_shared_size_bytes = 48 * 1024
    kernel((1,), (32,), (x, 12288), shared_mem=48 * 1024)
    assert int(x[0]) == 12287
    with refuses(*INVALID, f"dynamic: {48 * 1024 + 4} bytes"):
        kernel((1,), (32,), (x, 1), shared_mem=48 * 1024 + 4)
    kernel.max_dynamic_shared_size_bytes = 64 * 1024
    kernel((1,), (32,), (x, 16384), shared_mem=64 * 1024)
    assert int(x[0]) == 16383
    with refuses(*INVALID, f"dynamic: {64 * 1024 + 4} bytes"):
        kernel((1,), (32,), (x, 1), shared_mem=64 * 1024 + 4)


@pytest.mark.parametrize(("arch", "kib"), [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)])
def test_the_most_shared_memory_is_the_architectures(arch, kib):
    lines = program(f"""
kernel = cupy.RawKernel('''extern "C" __global__ void k(int* x) {{
  __shared__ int t[256];
  t[threadIdx.x] = 1; __syncthreads(); x[0] = t[0];
}}''', "k")
kernel.max_dynamic_shared_size_bytes = {kib} * 1024 - 1024
x = cupy.zeros(1, np.int32)
kernel((1,), (1,), (x,), shared_mem={kib} * 1024 - 1024)
most = cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
print(int(x[0]), most, runtime.getDeviceProperties(0)["sharedMemPerBlockOptin"])
def more():
    kernel.max_dynamic_shared_size_bytes = {kib} * 1024 - 1023
error(more)
""", ARCH=str(arch))  # fmt: skip
    assert lines[0] == f"1 {kib * 1024} {kib * 1024}"
    said = f"{kib * 1024 - 1023} bytes of dynamic shared memory and 1024 static ones are more than {kib * 1024}"
    assert lines[1] == f"1 CUDA_ERROR_INVALID_VALUE: invalid argument: {said}"


def test_unwritten_shared_memory_is_nan(module):
    import cupy

    y = cupy.zeros(32, np.float32)
    module.get_function("unwritten")((1,), (32,), (y,), shared_mem=128)
    assert np.isnan(y.get()).all()


@pytest.mark.parametrize(
    ("count", "said"),
    [(101, "illegal write past the end of the 400 bytes of dynamic shared memory of the launch"),
     (2000, "3696 bytes past the end of the 400 bytes of dynamic shared memory of the launch"),
     (65536, "3696 bytes past the end of the 400 bytes of dynamic shared memory of the launch")],
)  # fmt: skip
def test_a_write_past_the_dynamic_shared_memory_is_a_fault(count, said):
    lines = program(f"""
kernel = cupy.RawKernel('''{SOURCE}''', "dynamic")
x = cupy.zeros(1, np.int32)
kernel((1,), (32,), (x, 16384 // 4), shared_mem=16384)
kernel((1,), (32,), (x, 100), shared_mem=400)
print(int(x[0]))
error(lambda: (kernel((1,), (1,), (x, {count}), shared_mem=400), runtime.deviceSynchronize()))
""")
    assert lines[0] == "99"
    assert lines[1].startswith("700 CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered: dynamic: illegal ")
    assert lines[1].endswith(said)


def test_functions_end_with_their_module():
    import cupy

    driver = cupy.cuda.driver
    module = cupy.cuda.function.Module()
    code = cupy.cuda.compiler.compile_using_nvrtc('extern "C" __global__ void one() {}', arch="80")[0]
    module.load(code)
    function = module.get_function("one")
    function((1,), (1,), ())
    with refuses(500, "CUDA_ERROR_NOT_FOUND", "two"):
        module.get_function("two")
    driver.moduleUnload(module.ptr)
    for call in (
        lambda: function((1,), (1,), ()),
        lambda: driver.funcGetAttribute(0, function.ptr),
        lambda: driver.moduleGetFunction(module.ptr, "one"),
        lambda: driver.moduleUnload(module.ptr),
    ):
        with refuses(400, "CUDA_ERROR_INVALID_HANDLE", "was"):
            call()
    module.ptr = 0


def test_what_was_not_compiled_for_the_device_is_no_module():
    import cupy

    with refuses(200, "CUDA_ERROR_INVALID_IMAGE", "not compiled for the software GPU"):
        cupy.cuda.function.Module().load(b"\x7fELF of a real GPU, and long enough to be looked at")
