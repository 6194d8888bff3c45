"""What a kernel may do within a block and a warp, and how it ends when it fails."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.software_gpu.rules import program

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]


def run(body: str, threads: int = 64, before: str = "", dtype: Any = np.float64, **named: Any) -> np.ndarray[Any, Any]:
    """Run a kernel with an array `x`, one element a thread; return the array."""
    import cupy

    x = cupy.zeros(threads, dtype)
    kind = {"d": "double", "f": "float", "i": "int", "I": "unsigned"}[x.dtype.char]
    source = before + f'extern "C" __global__ void k({kind}* x) {{ const int t = threadIdx.x, lane = t & 31; {body} }}'
    cupy.RawKernel(source, "k", **named)((1,), (threads,), (x,))
    return x.get()


def test_large_local_arrays_do_not_meet_another_threads():
    x = run(
        "volatile double keep[64]; for (int i = 0; i < 64; ++i) keep[i] = t;"
        "__syncthreads(); double s = t & 1 ? g(8, t) : 8 * t; __syncthreads();"
        "for (int i = 0; i < 64; ++i) s += keep[i]; x[t] = s;",
        before="__device__ __noinline__ double g(int n, int t) { double b[16384 * 3]; for (int i = 0; i < n; ++i) b[i] = t;"
        "__syncwarp(0xaaaaaaaau); double s = 0; for (int i = 0; i < n; ++i) s += b[i]; return s; }",
    )
    assert np.array_equal(x, 72 * np.arange(64.0))


@pytest.mark.parametrize("barrier", ["", "__syncthreads();"])
def test_a_frame_that_is_larger_than_the_stack_is_a_fault(barrier):
    lines = program(f"""
kernel = cupy.RawKernel('''
__device__ __noinline__ float g(int n) {{ float b[400000]; for (int i = 0; i < n; ++i) b[i] = i; return b[n / 2]; }}
extern "C" __global__ void large(float* x, int n) {{ {barrier} if (threadIdx.x == 5) x[0] = g(n); {barrier} }}''', "large")
x = cupy.zeros(1, np.float32)
error(lambda: (kernel((1,), (64,), (x, 8)), runtime.deviceSynchronize()))
""")
    assert lines[0].startswith(
        "700 CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered: large: illegal access"
    )
    assert lines[0].endswith("local memory is more than 1024 KiB (on a GPU 512 KiB are the most)")


@pytest.mark.parametrize("dtype", ["b", "h", "i", "l", "B", "H", "I", "L"])
def test_division_of_integers_never_traps(dtype):
    import cupy

    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    a = np.array([least, least, 7, 5, 0, least, most], dtype)
    b = np.array([-1 if least else most, 1, 2, 0, 0, 0, 0], dtype)
    with np.errstate(all="ignore"):
        quotient, remainder = a // b, a % b
    assert np.array_equal((cupy.asarray(a) // cupy.asarray(b)).get(), quotient)
    assert np.array_equal((cupy.asarray(a) % cupy.asarray(b)).get(), remainder)


@pytest.mark.parametrize(
    "kind", ["signed char", "unsigned char", "short", "unsigned short", "int", "unsigned", "long long", "unsigned long long"]
)
def test_kernels_divide_by_zero_and_by_minus_one(kind):
    """With the divisor in a register and in memory, in all forms of addresses that g++ makes."""
    import cupy

    source = f"""extern "C" __global__ void k(const {kind}* a, const {kind}* b, {kind}* q, int n, int stride) {{
      volatile {kind} local[300]; static {kind} shared[4];
      for (int i = 0; i < n; ++i) {{
        local[0] = local[i] = local[299] = shared[i & 3] = b[i];
        q[i] = a[i] / b[i]; q[n + i] = a[i] % b[i]; q[2 * n + i] = a[i] / local[i]; q[3 * n + i] = a[i] % local[299];
        q[4 * n + i] = a[i] / shared[i & 3]; q[5 * n + i] = a[i] / b[i * stride]; q[6 * n + i] = a[i] / local[0];
      }}
    }}"""
    sizes = {"char": 1, "short": 2, "int": 4, "unsigned": 4, "long": 8}
    signed = not kind.startswith("unsigned")
    dtype = np.dtype(f"{'i' if signed else 'u'}{sizes[kind.removeprefix('unsigned ').removeprefix('signed ').split()[0]]}")
    a = np.array([np.iinfo(dtype).min if signed else 9, 9, 7, 0], dtype)
    b = np.array([-1 if signed else 1, 0, 2, 0], dtype)
    q = cupy.zeros((7, 4), dtype)
    cupy.RawKernel(source, "k")((1,), (1,), (cupy.asarray(a), cupy.asarray(b), q, np.int32(4), np.int32(1)))
    ones = np.array(-1).astype(dtype)
    quotient, remainder = [a[0], ones, 3, ones], [0, 9, 1, 0]
    for row, found in enumerate(q.get()):
        assert found.tolist() == [int(v) for v in (remainder if row in (1, 3) else quotient)], row


DIVISIONS = {  # x86's instructions, by the form of their operand
    "ch": "divb %%ch", "cl": "divb %%cl", "r9b": "divb %%r9b", "sil": "divb %%sil", "memory": "divb (%%rbx)",
    "signed": "idivb 3(%%rbx)", "far": "divb 4096(%%rbx)", "sib": "divb 1(%%rbx,%%r9,2)", "r12": "divb (%%r12)",
    "r13": "divb (%%r13)", "absolute": "divb zeros(%%rip)", "32 bits": "divb (%%ebx)", "segment": "ds divb (%%rbx)",
    "thread": "divb %%fs:(%%r8)", "16": "divw %%cx", "16 memory": "divw 2(%%rbx)", "32": "divl %%r9d",
    "32 short": "divl 2(%%ebx)", "64": "divq %%r9", "64 signed": "idivq (%%r12,%%r9,8)", "64 thread": "divq %%fs:(%%r8)",
}  # fmt: skip


@pytest.mark.parametrize("form", DIVISIONS)
def test_every_form_of_a_division_by_zero_is_finished(form):
    """The registers hold zero or the address of zeros; below 4 GiB, so that addresses of 32 bits lead there too."""
    bits = {"b": 8, "w": 16, "l": 32, "q": 64}[DIVISIONS[form].split("div")[1][0]]
    x = run(
        f"""static char* const low = (char*)mmap(nullptr, 8192, 3, 0x62, -1, 0);
        long before; asm volatile("movq %%fs:0, %0" : "=r"(before));
        unsigned long a = 0x1122334455660000 + (sizeof(char) == {bits} / 8 ? 7 : 0x2b07), d = 0;
        register long zero asm("r9") = 0;
        register char* base asm("rbx") = low; register char* base12 asm("r12") = low; register char* base13 asm("r13") = low;
        register long thread asm("r8") = (long)low - before;
        asm volatile("xorl %%ecx, %%ecx; xorl %%esi, %%esi; {DIVISIONS[form]}"
          : "+a"(a), "+d"(d) : "r"(zero), "r"(base), "r"(base12), "r"(base13), "r"(thread) : "rcx", "rsi", "cc", "memory");
        unsigned long want, rest;
        if ({bits} == 8) want = 0x11223344556607ff, rest = 0;
        else if ({bits} == 16) want = 0x112233445566ffff, rest = 0x2b07;
        else if ({bits} == 32) want = 0xffffffff, rest = 0x55662b07;
        else want = ~0ul, rest = 0x1122334455662b07;
        x[t] = a == want && d == rest;""",
        8,
        before='#include <sys/mman.h>\nextern "C" { __attribute__((used)) char zeros[64]; }\n',
    )
    assert x.all()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("assert(x[0] == 1 && n > 0);", "710 CUDA_ERROR_ASSERT: device-side assert triggered: k: k.cu:3: void k(int*, int): "
         "block: [1,0,0], thread: [3,0,0] Assertion `x[0] == 1 && n > 0` failed"),
        ("__trap();", "719 CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure: k: it ends itself (__trap)"),
        ("__builtin_trap();", "719 CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure: k: it ends itself (__trap)"),
        ("abort();", "719 CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure: k: it ends itself (abort)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("barrier", ["", "__syncthreads();"])
def test_a_kernel_that_ends_itself_is_a_fault_that_stays(statement, said, barrier):
    lines = program(f"""
kernel = cupy.RawKernel('''#include <cassert>
extern "C" __global__ void k(int* x, int n) {{
  {barrier} if (blockIdx.x && threadIdx.x == 3) {{ {statement} }} {barrier} }}''', "k")
x = cupy.zeros(1, np.int32)
error(lambda: (kernel((2,), (8,), (x, 1)), runtime.deviceSynchronize()))
error(runtime.deviceSynchronize)
""")
    assert re.sub(r"k: /[^ ]*\.cu:", "k: k.cu:", lines[0]) == said
    assert len(lines) == 2
    assert said.split()[0] in lines[1]


def test_assertions_that_hold_or_are_turned_off():
    assert run("assert(t >= 0); x[t] = 1;", before="#include <assert.h>\n").all()
    assert run("assert(t < 0); x[t] = 1;", before="#define NDEBUG\n#include <assert.h>\n").all()


def test_exceptions_do_not_compile():
    import cupy

    with pytest.raises(cupy.cuda.compiler.CompileException, match="exception"):
        cupy.RawKernel('extern "C" __global__ void k() { throw 1; }', "k").compile()


@pytest.mark.parametrize(("waits", "sets"), [(63, 5), (5, 63), (0, 1)])
def test_a_thread_that_sleeps_lets_the_others_of_its_block_go_on(waits, sets):
    x = run(f"""__shared__ volatile int flag; if (t == 0) flag = 0; __syncthreads();
        if (t == {waits}) {{ while (flag == 0) __nanosleep(10); x[t] = flag; }} else if (t == {sets}) flag = 5;""")
    assert x[waits] == 5


def test_only_some_warps_shuffle():
    x = run("double v = t; if (t >= 32) v = __shfl_xor_sync(0xffffffffu, v, 1); x[t] = v;")
    assert np.array_equal(x, np.r_[np.arange(32), np.arange(32, 64) ^ 1])


def test_only_some_lanes_shuffle():
    x = run("double v = t; if (lane >= 20) { v = __shfl_down_sync(0xfff00000u, v, 1); v = __shfl_sync(0xfff00000u, v, 20); }"
            "x[t] = v + __shfl_sync(0xffffffffu, v, 3);", 64)  # fmt: skip
    lane, base = np.arange(64) & 31, np.arange(64) & 32
    assert np.array_equal(x, np.where(lane < 20, lane, 21) + base + base + 3)


def test_two_groups_of_a_warp_shuffle_apart():
    x = run("double v = t; if (lane & 1) for (int i = 2; i < 32; i *= 2) v += __shfl_xor_sync(0xaaaaaaaau, v, i);"
            "else v = __shfl_sync(0x55555555u, v, 6); x[t] = v;", 32)  # fmt: skip
    assert np.array_equal(x, np.where(np.arange(32) % 2, 256, 6))


def test_votes():
    x = run(
        "int any = __any_sync(0xffffffffu, t == 40), all = __all_sync(0xffffffffu, t >= 32);"
        "int count = __syncthreads_count(t % 5 == 0);"
        "int either = __syncthreads_or(t == 9), both = __syncthreads_and(t < 64), not_both = __syncthreads_and(t < 63);"
        "unsigned odd = 0; if (lane & 1) odd = __activemask();"
        "x[t] = any == (t >= 32) && all == (t >= 32) && count == 13 && either && both && !not_both"
        "       && odd == (lane & 1 ? 0xaaaaaaaau : 0u);"
    )
    assert x.all()
    y = run("x[t] = __ballot_sync(0xffffffffu, t % 3 == 0);", dtype=np.uint32)
    assert [f"{v:08x}" for v in (y[0], y[63])] == [f"{sum(1 << i for i in range(32) if (i + w) % 3 == 0):08x}" for w in (0, 32)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("if (t != 3) __syncwarp();", "a barrier that threads which have left will never reach"),
        ("if (t & 1) __syncwarp(0x55555555u);", "a thread that is not in the mask of its own instruction"),
        ("if (t & 1) __syncthreads(); else __syncwarp();", "threads wait at different barriers"),
    ],
)
def test_lanes_that_a_mask_names_have_to_come(body, said):
    lines = program(f"""
kernel = cupy.RawKernel('extern "C" __global__ void k() {{ const int t = threadIdx.x; {body} }}', "k")
error(lambda: (kernel((1,), (32,), ()), runtime.deviceSynchronize()))
""")
    assert lines[0].startswith(f"719 CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure: k: {said}")


CASES = {
    "float2 a = make_float2(1, 2); float4 b = make_float4(1, 2, 3, 4); x[t] = 3 + b.w + sizeof b + alignof(float4);": 39,
    "int2 a = make_int2(1, 2); int4 b = {1, 2, 3, 4}; uint4 c = make_uint4(1, 2, 3, 4); x[t] = a.y + b.z + c.w;": 9,
    "double2 a = make_double2(1, 2.5); float3 b = make_float3(1, 2, 3); x[t] = a.y + b.z + sizeof(b) + alignof(double2);": 33.5,
    "dim3 a(7), b = blockDim; uint3 c = threadIdx; x[t] = a.x + a.y + a.z + b.x + c.y;": 73,
    "__shared__ float s; s = 2; float old = atomicExch(&s, 5.0f); x[t] = old + s;": 7,
    "unsigned u = 3; atomicInc(&u, 3); unsigned v = 0; atomicDec(&v, 9); x[t] = u + v; atomicInc(&u, 9); x[t] += u;": 10,
    "x[t] = __saturatef(2.5f) + __saturatef(-1) + __saturatef(0.25f) + __saturatef(0.0f / 0.0f);": 1.25,
    "x[t] = __fsqrt_rn(9) + __frcp_rn(4) + fdividef(1, 2) + __fdiv_rn(3, 4) + __fsub_rn(2, 1);": 5.5,
    "x[t] = __float2int_rn(2.5f) + 10 * __float2int_rd(-1.5f) + 100 * __float2int_ru(1.5f) + __float2int_rz(-1.5f);": 181,
    "x[t] = __float2int_rn(1e20f) == 2147483647 && __float2int_rz(-1e20f) == -2147483647 - 1 && __float2uint_rn(-3) == 0;": 1,
    "x[t] = __float2int_rn(0.0f / 0.0f) == 0 && __float2uint_rz(1e20f) == 0xffffffffu && __double2int_rn(-7.5) == -8;": 1,
    "x[t] = __int2float_rn(7) + __uint2float_rn(3u);": 10,
    "x[t] = __byte_perm(0x33221100u, 0x77665544u, 0x7410u) == 0x77441100u && __byte_perm(0x80u, 0, 0x8888u) == 0x80808080u;": 1,
    "float a = 3; __stcs(&a, 4.0f); x[t] = __ldcs(&a) + __ldcg(&a);": 8,
    "x[t] = __ffsll(1ll << 40) + __ffsll(0);": 41,
    "long long a = clock64(); __nanosleep(10); x[t] = clock64() >= a && clock() != 0;": 1,
    "x[t] = min(3, 5u) + max(2, 7ll) + min(2.5f, 1) + max((short)1, (char)4) + min(1.5, 2.5f);": 16.5,
    "x[t] = fabsf(__sinf(1) - sinf(1)) < 1e-6f && fabsf(__cosf(1) - cosf(1)) < 1e-6f && fabsf(__exp10f(2) - 100) < 1e-3f;": 1,
    "x[t] = __log2f(8) + __log10f(100.0f);": 5,
    "x[t] = __popc(__match_any_sync(~0u, t % 4)) + __reduce_add_sync(~0u, 2) + __reduce_max_sync(~0u, lane);": 103,
    "x[t] = umin(3u, 5u) + umax(7u, 1u) + llmin(-4ll, 2) + ullmax(1, 2);": 8,
    "float s, c; sincospif(0.5f, &s, &c); double e, f; sincospi(1, &e, &f); x[t] = s + c * 1e-9f - f + (fabs(e) < 1e-9);": 3,
    "int v = 3; atomicAdd_block(&v, 4); atomicMax_system(&v, 20); int w = atomicCAS_system(&v, 20, 1); x[t] = v + w;": 21,
    "__builtin_assume(t < 1024); const double M_PI = 3, M_PI_2 = 4; float M_E = 5; x[t] = M_PI + M_PI_2 + M_E;": 12,
    "x[t] = fabs(erfcinv(erfc(0.3)) - 0.3) < 1e-15 && fabs(erfinv(erf(1e-9)) / 1e-9 - 1) < 1e-15 && isinf(erfcinv(0.0));": 1,
    "x[t] = fabs(normcdfinv(0.975) - 1.959963984540054) < 1e-14 && isnan(normcdfinv(1.5)) && normcdfinvf(0.5f) == 0;": 1,
    "x[t] = fabs(erfcx(10.0) / 0.05614099274382259 - 1) < 1e-14 && fabs(erfcxf(1) - 0.4275836f) < 1e-7f;": 1,
    "x[t] = isinf(erfcx(-HUGE_VAL)) && erfcx(-1e200) == HUGE_VAL && erfcx(-30.0) == HUGE_VAL && erfcx(HUGE_VAL) == 0;": 1,
    "x[t] = erfcx(-26.0) < HUGE_VAL && erfcx(NAN) != erfcx(NAN);": 1,
    "x[t] = sinpi(1e15 + 0.5) == 1 && sinpi(1e300) == 0 && cospi(1e300) == 1 && cospi(1e15 + 0.5) == 0;": 1,
    "x[t] = fabs(sinpi(1e10 + 0.25) - sqrt(0.5)) < 1e-15 && sinpi(-0.5) == -1 && sinpif(8388607.0f) == 0;": 1,
    "x[t] = fabs(sinpi(1.0 / 3) - sin(3.14159265358979323846 / 3)) < 1e-15 && cospi(1) == -1 && sinpi(1.5) == -1;": 1,
    "x[t] = signbit(sinpi(-0.0)) && !signbit(sinpi(1)) && isnan(sinpi(HUGE_VAL)) && cospi(0.75) < 0 && sinpi(-0.75) < 0;": 1,
    "x[t] = fabs(erfcx(-2.0) / 108.9409043899780 - 1) < 1e-13 && fabs(erfcx(4.9999999) / erfcx(5.0) - 1) < 1e-7;": 1,
    "x[t] = __funnelshift_l(0x80000000u, 1u, 1) + __hadd(3, 6) + __mul24(3, 4);": 19,
}


@pytest.mark.parametrize("body", CASES)
def test_functions_of_cuda(body):
    assert np.array_equal(run(body), np.full(64, CASES[body]))


def test_arithmetic_of_half():
    import cupy

    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 1000)).astype(np.float16)
    out = cupy.zeros((8, 1000), np.float16)
    source = """#include <cuda_fp16.h>
    extern "C" __global__ void k(const half* a, const half* b, const half* c, half* out) {
      const int i = threadIdx.x, n = blockDim.x;
      out[i] = a[i] + b[i]; out[n + i] = __hsub(a[i], b[i]); out[2 * n + i] = __hmul(a[i], b[i]); out[3 * n + i] = a[i] / b[i];
      half v = a[i]; v += b[i]; v *= c[i]; out[4 * n + i] = v;
      out[5 * n + i] = __hfma(a[i], b[i], c[i]); out[6 * n + i] = __float2half(__half2float(a[i]) * 2.0f);
      out[7 * n + i] = __hgt(a[i], b[i]) ? -a[i] : __hmax(a[i], c[i]);
    }"""
    cupy.RawKernel(source, "k")((1,), (1000,), (*map(cupy.asarray, (a, b, c)), out))
    fused = (a.astype(np.float64) * b + c).astype(np.float16)
    right = [a + b, a - b, a * b, a / b, (a + b) * c, fused, a * np.float16(2), np.where(a > b, -a, np.maximum(a, c))]
    for row, (found, wanted) in enumerate(zip(out.get(), right, strict=True)):
        assert np.array_equal(found, wanted), row


def test_conversions_of_bfloat16():
    x = run(
        "__nv_bfloat16 v = __float2bfloat16(1.00390625f), w = __float2bfloat16_rn(2.5f);"
        "x[t] = __bfloat162float(v) + __bfloat162float(w);",
        before="#include <cuda_bf16.h>\n",
    )
    assert np.array_equal(x, np.full(64, 3.5))  # to even


@pytest.mark.parametrize("header", ["", "#include <time.h>\n", "#include <ctime>\n#include <complex>\n"])
def test_a_clock_beside_the_headers_of_the_c_library(header):
    x = run("clock_t a = clock(); long long b = clock64(); x[t] = clock() >= a && a != 0 && clock64() >= b;", before=header)
    assert x.all()


@pytest.mark.parametrize("name", ["round", "index", "select", "random", "remove", "free", "min", "gamma", "y1", "exp", "clock"])
def test_kernels_and_variables_may_have_names_of_the_c_library(name):
    import cupy

    code = f'extern "C" __global__ void {name}(float* out) {{ out[threadIdx.x] = threadIdx.x + sqrtf(9); }}'
    module = cupy.RawModule(code=code)
    out = cupy.zeros(3, np.float32)
    module.get_function(name)((1,), (3,), (out,))
    assert out.get().tolist() == [3, 4, 5]
    module = cupy.RawModule(
        code=f'__constant__ float {name}[2]; extern "C" __global__ void k(float* out) {{ out[0] = {name}[1]; }}'
    )
    cupy.ndarray(2, np.float32, module.get_global(name))[:] = cupy.asarray([1, 2], np.float32)
    module.get_function("k")((1,), (1,), (out,))
    assert out.get().tolist() == [2, 4, 5]


LEAVING = 'extern "C" __global__ void k(int* x, int n) { if (threadIdx.x >= n) return; __syncthreads(); x[threadIdx.x] = 1; }'


def test_threads_that_have_left_are_missed_at_a_barrier_unless_the_kernel_is_cupys_or_asks_for_them():
    lines = program(f"""
x = cupy.zeros(64, np.int32)
kernel = cupy.RawKernel({LEAVING!r}, "k", options=("-DSOFTWARE_GPU_LEAVING_ARRIVES",))
kernel((1,), (64,), (x, 40))
print(int(x.sum()))
import cupyx.profiler
kernel = cupy.RawKernel({LEAVING!r}, "k")
def launch(): kernel((1,), (64,), (x, 40))
error(lambda: (cupyx.profiler.benchmark(launch, n_repeat=1, n_warmup=0), runtime.deviceSynchronize()))
""")
    assert lines[0] == "40"
    assert "a barrier that threads which have left will never reach" in lines[1]


@pytest.mark.filterwarnings("ignore:cupyx.jit.rawkernel is experimental")
@pytest.mark.parametrize("name", ["lfilter", "sosfilt"])
def test_cupys_own_kernels_may_rely_on_threads_that_have_left(name):
    import cupy
    from cupyx.scipy import signal

    rng = np.random.default_rng(0)
    x = rng.standard_normal(3000)
    b, a = [0.2, 0.3, 0.2], [1.0, -0.5, 0.25]
    y = np.zeros_like(x)
    for i in range(len(x)):
        y[i] = sum(b[j] * x[i - j] for j in range(3) if i >= j) - sum(a[j] * y[i - j] for j in (1, 2) if i >= j)
    if name == "sosfilt":
        found = signal.sosfilt(cupy.asarray([[*b, *a]]), cupy.asarray(x))
    else:
        found = signal.lfilter(cupy.asarray(b), cupy.asarray(a), cupy.asarray(x))
    assert np.allclose(found.get(), y)


def test_special_functions_of_cupy_that_include_complex():
    import cupy
    from cupyx.scipy import special

    x = cupy.asarray([1.0, 2.5])
    assert np.allclose(special.digamma(x).get(), [-0.5772156649015329, 0.7031566406452432])
    assert np.allclose(special.polygamma(cupy.asarray(1), x).get(), [1.6449340668482264, 0.4903577561002347])
    assert np.allclose(special.sici(x)[0].get(), [0.946083070367183, 1.778520173443827])
    assert np.allclose(special.ellipkinc(x, cupy.asarray(0.5)).get(), [1.0832167728451687, 3.0444084774872615])
    assert np.allclose(special.erfcinv(cupy.asarray([0.5])).get(), [0.4769362762044699])
