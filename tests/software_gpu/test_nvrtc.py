"""NVRTC's stand-in: how kernels may be written, what options mean, what a failure says."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cp = pytest.importorskip("cupy")
pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]


def _run(kernel: Any, count: int = 4, shared: int = 0, dtype: str = "float32") -> list[float]:
    y = cp.zeros(count, dtype=dtype)
    kernel((1,), (count,), (y,), shared_mem=shared)
    return y.get().tolist()


@pytest.mark.parametrize(
    "head",
    [
        'extern "C" __global__ void f(float* y)',
        'extern "C" __global__\n// a comment with f(\n__launch_bounds__(64) void f(float* y)',
        'extern "C" __launch_bounds__(32, 2) __global__ /* void g( */ void f(float* y)',
        'extern "C" __global__ void __launch_bounds__(2 * (16 + 16)) f(float* const __restrict__ y)',
        '__attribute__((unused)) static void nil() {}\nextern "C" __attribute__((unused)) __global__ void f(float* y)',
        '#define KERNEL(name) extern "C" __global__ void name\nKERNEL(f)(float* y)',
        '#ifdef NEVER\nextern "C" __global__ void hidden(float* y) {}\n#endif\nextern "C" __global__ void f(float* y)',
        'extern "C" __global__ void f(float* y);\nextern "C" __global__ void f(float* y)',
        'const char* text = "extern \\"C\\" __global__ void g(";\nextern "C" __global__ void f(float* y)',
    ],
)
def test_kernels_are_found(head: str) -> None:
    assert _run(cp.RawKernel(head + " { y[threadIdx.x] = threadIdx.x; }", "f")) == [0, 1, 2, 3]


def test_kernels_are_found_in_a_block_of_c_linkage() -> None:
    module = cp.RawModule(
        code='extern "C" {\n__global__ void f(float* y) { *y = 1; }\n__global__ void g(float* y) { *y = 2; }\n}'
    )
    assert _run(module.get_function("f"), 1) == [1]
    assert _run(module.get_function("g"), 1) == [2]


@pytest.mark.parametrize(
    "declaration",
    [
        "extern __shared__ float s[];",
        "extern __shared__ __align__(16) float s[];",
        "extern __align__(8) __shared__ float s[];",
        "extern\n  __shared__ float\n s [ ] ;",
        "extern volatile __shared__ float s[];",
        "extern __shared__ alignas(16) float s[];",
        "extern __shared__ unsigned char raw[]; float* s = reinterpret_cast<float*>(raw);",
    ],
)
def test_dynamic_shared_memory(declaration: str) -> None:
    body = "s[threadIdx.x] = threadIdx.x; __syncthreads(); y[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];"
    inside = cp.RawKernel(f'extern "C" __global__ void f(float* y) {{ {declaration} {body} }}', "f")
    assert _run(inside, shared=64) == [3, 2, 1, 0]
    if "raw" not in declaration:
        outside = cp.RawKernel(f'{declaration}\nextern "C" __global__ void f(float* y) {{ {body} }}', "f")
        assert _run(outside, shared=64) == [3, 2, 1, 0]


def test_headers_from_folders_with_dynamic_shared_memory(tmp_path: Path) -> None:
    folder = tmp_path / "a folder; with 'odd' characters $(touch x)"
    (folder / "inner").mkdir(parents=True)
    (folder / "outer.h").write_text('#pragma once\n#include "inner/deep.h"\n')
    (folder / "inner" / "deep.h").write_text(
        "#pragma once\n__device__ inline float turned(float v) { extern __shared__ float s[]; s[threadIdx.x] = v; "
        "__syncthreads(); return s[blockDim.x - 1 - threadIdx.x]; }\n"
    )
    code = '#include "outer.h"\nextern "C" __global__ void f(float* y) { y[threadIdx.x] = turned(threadIdx.x); }'
    assert _run(cp.RawKernel(code, "f", options=(f"-I{folder}",)), shared=64) == [3, 2, 1, 0]


@pytest.mark.parametrize("name", ["a", "b", "g", "n", "p", "kernel", "bound", "copy", "exp10_"])
def test_kernels_may_have_any_name(name: str) -> None:
    assert _run(cp.RawKernel(f'extern "C" __global__ void {name}(float* y) {{ *y = 3; }}', name), 1) == [3]


def test_name_expressions_and_variables() -> None:
    code = """
        __constant__ float scale[2];
        __device__ int counter = 7;
        template <typename T, int N> __global__ void f(T* y) { *y = N * scale[1] + counter; }
    """
    names = ["f<float, 2>", "&f<double, 3>", "counter"]
    module = cp.RawModule(code=code, name_expressions=names)
    cp.ndarray((2,), "float32", module.get_global("scale"))[...] = cp.asarray([0, 10], dtype="float32")
    assert _run(module.get_function("f<float, 2>"), 1) == [27]
    assert _run(module.get_function("&f<double, 3>"), 1, dtype="float64") == [37]


def test_macros_and_the_architecture() -> None:
    code = 'extern "C" __global__ void f(float* y) { y[0] = __CUDA_ARCH__; y[1] = VALUE; }'
    architecture = int(cp.cuda.Device().compute_capability) * 10
    assert _run(cp.RawKernel(code, "f", options=("-DVALUE=3", "--std=c++20"))) == [architecture, 3, 0, 0]
    assert _run(cp.RawKernel(code, "f", options=("--define-macro=VALUE=4", "-use_fast_math"))) == [architecture, 4, 0, 0]


def test_subnormal_numbers_are_flushed_in_float32_alone() -> None:
    small = np.array([1e-40, -1e-45, 1.0], dtype="float32")
    assert (cp.asarray(small) * 1).get().tolist() == [0, 0, 1]  # CuPy compiles its kernels with -ftz=true
    double = np.array([1e-310, 1.0])
    assert (cp.asarray(double) * 1).get().tolist() == double.tolist()
    assert np.float32(1e-40) * np.float32(1) > 0  # the host's arithmetic is as it was


def test_a_failure_has_the_compilers_message_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    code = '\nextern "C" __global__ void f(float* y) {\n  *y = no_such_thing;\n}'
    with pytest.raises(cp.cuda.compiler.CompileException, match=r":3:\d+: error: .no_such_thing. was not declared"):
        cp.RawKernel(code, "f").compile()
    assert _run(cp.RawKernel('extern "C" __global__ void f(float* y) { *y = 12; }', "f"), 1) == [12]
    assert list(tmp_path.iterdir()) == []
