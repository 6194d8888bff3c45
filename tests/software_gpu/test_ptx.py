"""The way by PTX: NVIDIA's compiler, the translation, memory, tensor cores, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.software_gpu import build, ptx
from tests.software_gpu.rules import program, refuses

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def kernel(body: str, before: str = "", directives: str = "") -> str:
    """Return the PTX of a kernel."""
    return f"{HEAD}{before}\n.visible .entry k(.param .u64 k_param_0) {directives}\n{{ .reg .b32 %r<9>; {body} ret; }}\n"


@pytest.mark.parametrize(
    "instruction",
    [
        "wgmma.fence.sync.aligned",
        "tex.1d.v4.f32.s32 {%r1, %r2, %r3, %r4}, [t, {%r5}]",
        "add.u3.s32 %r1, %r2, %r3",
        "add.rn.relu.f16 %r1, %r2, %r3",
        "add.s32 %r1, %r2",
        "bar.sync 1",
        "bar.sync 0, 64",
        "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%r1, %r2}, {%r3, %r4}, {%r5}, {%r1, %r2}",
        "cp.async.ca.shared.global [%r1], [%r2], 12",
        "cvt.rz.f32.u64 %r1, %r2",
        "cvt.s32.f32 %r1, %r2",
        "prmt.b32.f4e %r1, %r2, %r3, %r4",
        "st.async.shared::cluster.u32 [%r1], %r2, [%r3]",
        "shfl.bfly.b32 %r1, %r2, 1, 31",
        "brx.idx %r1, table",
    ],
)
def test_an_unknown_instruction_is_refused_by_name(instruction: str) -> None:
    with pytest.raises(ptx.RefusedError) as caught:
        ptx.translate(kernel(f"{instruction};"), False)
    assert str(caught.value) == f"the instruction `{instruction}` in the kernel k"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (kernel("add.s32 %r1, %r2, %q;"), "the name `%q` in the kernel k"),
        (kernel("mov.u32 %r1, %envreg3;"), "the name `%envreg3` in the kernel k"),
        (kernel("call nothing, ();"), "a call of nothing in the kernel k"),
        (kernel("", directives=".reqnctapercluster 2"), "the directive .reqnctapercluster of k"),
        (kernel("", directives=".reqntid 32"), "the directive .reqntid of k"),
        (kernel("", before=".global .texref t;"), "the declaration `.global .texref t`"),
        (kernel("", before=".global .align 8 .u64 p = q + 8;"), "the initialiser or the linkage of the variable p"),
        (kernel("", before=".extern .global .u32 x;"), "the initialiser or the linkage of the variable x"),
        (
            f"{HEAD}.shared .b8 s[4];\n.func f() {{ .reg .b32 %r1; ld.shared.u32 %r1, [s]; ret; }}",
            "the shared variable s of a function that is no kernel in the function f",
        ),
        (f"{HEAD}.visible .entry k() {{ exit", "a body without an end"),
    ],
)
def test_what_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(ptx.RefusedError) as caught:
        ptx.translate(text, False)
    assert str(caught.value) == said


def test_the_front_end_is_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTWARE_GPU_FRONT_END", "clang")
    with pytest.raises(ValueError, match=r"SOFTWARE_GPU_FRONT_END must be one of g\+\+, nvrtc, got 'clang'"):
        build.front_end()


on_device = [
    pytest.mark.cuda,
    pytest.mark.usefixtures("software_gpu"),
    pytest.mark.skipif(build.front_end() != "nvrtc", reason="tests the way by PTX; runs with SOFTWARE_GPU_FRONT_END=nvrtc"),
]


class TestCompilation:
    pytestmark = on_device

    def test_nvidias_compiler_reads_the_source(self) -> None:
        import cupy

        y = cupy.zeros(2, np.int32)
        source = 'extern "C" __global__ void k(int* y) { y[0] = __CUDACC_VER_MAJOR__; y[1] = __CUDA_ARCH__; }'
        cupy.RawKernel("#ifndef __NVCC__\n#ifndef __CUDACC_RTC__\n#error\n#endif\n#endif\n" + source, "k")((1,), (1,), (y,))
        assert y.get().tolist() == [build.cuda_major(), int(cupy.cuda.Device().compute_capability) * 10]

    def test_an_instruction_that_is_not_known_does_not_compile(self) -> None:
        import cupy

        source = 'extern "C" __global__ void strange() { asm volatile("tex.grad.nothing;"); }'
        said = "the software GPU does not know the instruction `tex.grad.nothing` in the kernel strange"
        with pytest.raises(cupy.cuda.compiler.CompileException, match=said):
            cupy.RawKernel(source, "strange").compile()

    def test_an_error_has_nvidias_text(self) -> None:
        import cupy

        with pytest.raises(cupy.cuda.compiler.CompileException, match='error: identifier "nothing" is undefined'):
            cupy.RawKernel('extern "C" __global__ void k() { nothing; }', "k").compile()

    def test_launch_bounds_that_are_expressions(self) -> None:
        import cupy

        source = """template <int N> __global__ void __launch_bounds__(2 * (N + 16)) k(int* x) {
          __shared__ int t[N]; t[0] = *x; *x = t[*x];
        }"""
        function = cupy.RawModule(code=source, name_expressions=["k<16>"]).get_function("k<16>")
        assert function.max_threads_per_block == 64
        assert function.shared_size_bytes == 64
        with refuses(701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "k<16>: a block of 65 threads"):
            function((1,), (65,), (cupy.zeros(1, np.int32),))

    def test_variables_functions_and_local_memory(self) -> None:
        import cupy

        source = """
        __constant__ float scale[2]; __device__ int counter = 7; __device__ const int squares[4] = {0, 1, 4, 9};
        __device__ int* const pointer = &counter;
        __device__ __noinline__ float deep(float v, int n) { return n ? deep(v * 2, n - 1) : v; }
        extern "C" __global__ void k(float* y, int n, float3 by_value) {
          int held[16];
          for (int i = 0; i < 16; ++i) held[i] = i * n;
          y[0] = scale[1]; y[1] = *pointer + squares[n]; y[2] = deep(3, n); y[3] = held[n * 5]; y[4] = by_value.z;
          atomicAdd(&counter, n); atomicMax(&counter, 8); y[5] = atomicCAS(&counter, 10, 1); y[6] = counter;
        }"""
        module = cupy.RawModule(code=source)
        cupy.ndarray((2,), "float32", module.get_global("scale"))[...] = cupy.asarray([0, 10], dtype="float32")
        y = cupy.zeros(7, np.float32)
        three = np.array([(1, 2, 3)], dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])
        module.get_function("k")((1,), (1,), (y, 3, three[0]))
        assert y.get().tolist() == [10, 16, 24, 45, 3, 10, 1]

    def test_branches_by_a_table(self) -> None:
        import cupy

        y = cupy.zeros(6, np.int32)
        source = """extern "C" __global__ void k(int* y) {
          int v;
          asm volatile("{ table: .branchtargets one, two, three; brx.idx %1, table; one: mov.u32 %0, 1; bra end;"
                       "two: mov.u32 %0, 20; bra end; three: mov.u32 %0, 300; end: }" : "=r"(v) : "r"(threadIdx.x % 3));
          y[threadIdx.x] = v;
        }"""
        cupy.RawKernel(source, "k")((1,), (6,), (y,))
        assert y.get().tolist() == [1, 20, 300] * 2

    @pytest.mark.parametrize("dynamic", ["", "extern "])
    def test_shared_memory_is_read_and_written_in_vectors(self, dynamic: str) -> None:
        import cupy

        y = cupy.zeros((32, 4), np.float32)
        source = f"""extern "C" __global__ void k(float4* y) {{
          {dynamic}__shared__ float4 s[{"" if dynamic else 32}]; const int t = threadIdx.x;
          s[t] = make_float4(t, t + 0.25f, t + 0.5f, t + 0.75f); __syncthreads(); y[t] = s[31 - t];
        }}"""
        cupy.RawKernel(source, "k")((1,), (32,), (y,), shared_mem=512 if dynamic else 0)
        assert np.array_equal(y.get(), np.arange(128, dtype=np.float32).reshape(32, 4)[::-1] / 4)

    def test_subnormal_numbers_are_flushed_by_the_instructions_that_say_so(self) -> None:
        import cupy

        small = np.array([1e-40, 1.0], np.float32)
        y = cupy.zeros((2, 2), np.float32)
        source = """extern "C" __global__ void k(const float* x, float* y) {
          const float v = x[threadIdx.x]; float twice;
          asm("add.f32 %0, %1, %1;" : "=f"(twice) : "f"(v));
          y[threadIdx.x] = v * 2; y[2 + threadIdx.x] = twice;
        }"""
        cupy.RawKernel(source, "k")((1,), (2,), (cupy.asarray(small), y))  # CuPy compiles with -ftz=true
        assert np.array_equal(y.get(), np.stack([small * [0, 2], small * 2]))

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("y[1] = *(int*)((char*)y + 2);", "716 CUDA_ERROR_MISALIGNED_ADDRESS: misaligned address: k: misaligned address"),
            (
                "__shared__ int s[8]; s[threadIdx.x] = 1; __syncthreads(); y[0] = s[y[2] + 8];",
                "700 CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered: k: no shared memory of this block",
            ),
            ("assert(y[0] == 5);", "710 CUDA_ERROR_ASSERT: device-side assert triggered: k: "),
            ("if (threadIdx.x < 8) __syncthreads();", "719 CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure: k: a barrier"),
            ("__trap();", "719 CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure: k: it ends itself"),
        ],
    )
    def test_faults(self, body: str, said: str) -> None:
        lines = program(f"""
kernel = cupy.RawKernel('''extern "C" __global__ void k(int* y) {{ {body} }}''', "k")
y = cupy.zeros(32, np.int32)
error(lambda: (kernel((1,), (16 if "sync" in {body!r} and "if" in {body!r} else 8,), (y,)), runtime.deviceSynchronize()))
""")
        assert lines[0].startswith(said), lines


# A product of (16, 32) by (32, 8), copied to shared memory in two groups.
PRODUCT = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>
__device__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ void copy(void* to, const void* from, int given) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(shared_address(to)), "l"(from), "r"(given) : "memory");
}
extern "C" __global__ void k(const unsigned short* a, const unsigned short* b, float* c, int given) {
  __shared__ __align__(16) unsigned short left[2][16][16], right[2][16][8];
  const int t = threadIdx.x;
  for (int part = 0; part < 2; ++part) {
    copy(&left[part][t / 2][t % 2 * 8], a + t / 2 * 32 + part * 16 + t % 2 * 8, given);
    if (t < 16) copy(&right[part][t][0], b + (part * 16 + t) * 8, 16);
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  float s[4] = {0, 0, 0, 0};
  for (int part = 0; part < 2; ++part) {
    if (part == 0) asm volatile("cp.async.wait_group FIRST;" ::: "memory"); else asm volatile("SECOND" ::: "memory");
    __syncthreads();
    unsigned x[4], y[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(&left[part][t % 8 + t / 8 % 2 * 8][t / 16 * 8])) : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x2TRANSPOSED.shared.b16 {%0, %1}, [%2];"
                 : "=r"(y[0]), "=r"(y[1]) : "r"(shared_address(&right[part][ROW][0])) : "memory");
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.TYPE.TYPE.f32 "
                 "{%0, %1, %2, %3}, {%4, ORDER, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
                 : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
  }
  for (int i = 0; i < 4; ++i) c[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = s[i];
}"""
RIGHT = {
    "FIRST": "1", "SECOND": "cp.async.wait_group 0;", "TRANSPOSED": ".trans", "ROW": "t % 16", "ORDER": "%5, %6", "TYPE": "f16",
}  # fmt: skip


class TestTensorCores:
    pytestmark = on_device

    def product(self, changes: dict[str, str], given: int = 16) -> tuple[Any, Any]:
        """Return what the kernel computes and what is right; sums of small whole numbers are exact in any order."""
        import cupy

        source, words = PRODUCT, RIGHT | changes
        for word, text in words.items():
            source = source.replace(word, text)
        a, b = np.random.default_rng(3).integers(-8, 9, (2, 32, 32))
        a, b = a[:16], b[:, :8].copy()

        def bits(v: Any) -> Any:
            if words["TYPE"] == "f16":
                return v.astype(np.float16).view(np.uint16)
            return (v.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

        c = cupy.zeros((16, 8), np.float32)
        cupy.RawKernel(source, "k")((1,), (32,), (cupy.asarray(bits(a)), cupy.asarray(bits(b)), c, np.int32(given)))
        kept = np.where(np.arange(32) % 8 < given // 2, a, 0)
        return c.get(), (kept.astype(np.float64) @ b).astype(np.float32)

    @pytest.mark.parametrize("kind", ["f16", "bf16"])
    @pytest.mark.parametrize("given", [16, 6, 0])
    def test_a_product_of_halves(self, kind: str, given: int) -> None:
        found, right = self.product({"TYPE": kind}, given)
        assert np.array_equal(found, right)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"FIRST": "2"}, {"SECOND": ""}, {"SECOND": "cp.async.wait_group 1;"}, {"TRANSPOSED": ""},
            {"ROW": "(t % 16 + 8) % 16"}, {"ROW": "t % 8"}, {"ORDER": "%6, %5"}, {"TYPE": "bf16", "FIRST": "2"},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_mistake_shows(self, wrong: dict[str, str]) -> None:
        found, right = self.product(wrong)
        assert not np.array_equal(found, right)

    def test_all_is_waited_for_at_once(self) -> None:
        found, right = self.product({"FIRST": "0", "SECOND": "cp.async.wait_all;"})
        assert np.array_equal(found, right)

    def test_a_product_of_tf32_forgets_thirteen_bits(self) -> None:
        import cupy

        source = """extern "C" __global__ void k(const float* a, const float* b, float* c) {
          const int t = threadIdx.x, g = t / 4, q = t % 4;
          float s[4] = {0, 0, 0, 0};
          const float *x = a + g * 8 + q, *y = b + q * 8 + g;
          asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]) : "r"(__float_as_uint(x[0])), "r"(__float_as_uint(x[64])),
              "r"(__float_as_uint(x[4])), "r"(__float_as_uint(x[68])), "r"(__float_as_uint(y[0])), "r"(__float_as_uint(y[32])));
          for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + q * 2 + i % 2] = s[i];
        }"""
        a = np.random.default_rng(1).integers(-8, 9, (16, 8)).astype(np.float32)
        b = np.random.default_rng(2).integers(-8, 9, (8, 8)).astype(np.float32)
        c = cupy.zeros((16, 8), np.float32)
        below = (a.view(np.uint32) | 0x1FFF).view(np.float32)  # bits that tensor cores do not look at
        cupy.RawKernel(source, "k")((1,), (32,), (cupy.asarray(below), cupy.asarray(b), c))
        kept = (below.view(np.uint32) & 0xFFFFE000).view(np.float32)
        assert np.array_equal(c.get(), kept @ b)

    def test_a_row_that_is_not_aligned_is_a_fault(self) -> None:
        lines = program("""
kernel = cupy.RawKernel('''extern "C" __global__ void k(unsigned* y) {
  __shared__ unsigned s[64]; unsigned v, at = (unsigned)__cvta_generic_to_shared(s) + 4;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(v) : "r"(at));
  y[0] = v;
}''', "k")
error(lambda: (kernel((1,), (32,), (cupy.zeros(1, np.uint32),)), runtime.deviceSynchronize()))
""")
        said = "716 CUDA_ERROR_MISALIGNED_ADDRESS: misaligned address: k: misaligned address in shared memory"
        assert lines[0].startswith(said)
