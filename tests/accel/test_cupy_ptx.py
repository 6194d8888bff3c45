"""Inline PTX of our kernels as NVIDIA's compiler takes it: a mistake in it is seen.

These run on the software device with SOFTWARE_GPU_FRONT_END=nvrtc, where instructions of PTX are executed, and asynchronous
copies as late as their waits permit. That the kernels are right there is for the other tests of kernels, run the same way.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.accel.test_cupy_implicit_gemm import every_pass
from xpnet.accel.cupy import compiler, source

pytestmark = pytest.mark.skipif(
    os.environ.get("SOFTWARE_GPU_FRONT_END") != "nvrtc",
    reason="inline PTX is executed on the software GPU only, with SOFTWARE_GPU_FRONT_END=nvrtc",
)


@pytest.fixture
def convolve(gpu, monkeypatch):
    """Compare a convolution on tensor cores with the reference, its sources changed by (file, old, new)."""

    def run(*changes):
        headers, text = dict(source.read_headers()), source.read_source("implicit_gemm")
        for file, old, new in changes:
            before = text if file == "implicit_gemm.cu" else headers[file]
            assert old in before
            if file == "implicit_gemm.cu":
                text = before.replace(old, new)
            else:
                headers[file] = before.replace(old, new)
        monkeypatch.setattr(compiler, "read_headers", lambda: headers)
        monkeypatch.setattr(compiler, "read_source", lambda file: text)
        monkeypatch.setattr(gpu.inner, "_functions", {})
        every_pass(gpu, (2, 7, 9, 64), (2, 2, 64, 40), {"padding": 1}, "float16")

    return run


def test_without_a_mistake(convolve):
    convolve()


@pytest.mark.parametrize(
    "change",
    [
        ("mma.cuh", '"n"(N)', '"n"(N + 1)'),  # one group of copies is not waited for
        ("mma.cuh", 'asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");', ""),
        ("mma.cuh", 'asm volatile("cp.async.commit_group;" ::: "memory");', ""),
        ("mma.cuh", '"r"(inside ? 16 : 0)', '"r"(inside ? 16 : 8)'),  # half of the chunk is read, outside the image
        ("mma.cuh", "m8n8.x4.trans.shared", "m8n8.x4.shared"),
        ("mma.cuh", '"r"(row)', '"r"(row ^ 16)'),
        ("implicit_gemm.cu", "(a_now ^ half * 32)", "(a_now + half * 32)"),  # a chunk is added, where it is to be flipped
        ("mma.cuh", "{%4, %5, %6, %7}, {%8, %9}", "{%4, %6, %5, %7}, {%8, %9}"),
        ("mma.cuh", "{%4, %5, %6, %7}, {%8, %9}", "{%4, %5, %6, %7}, {%9, %8}"),
        ("implicit_gemm.cu", "cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();"),
    ],
    ids=lambda change: f"{change[1]} is {change[2]}",
)
def test_a_mistake_shows(convolve, change):
    with pytest.raises(AssertionError, match="Not equal to tolerance"), np.errstate(all="ignore"):
        convolve(change)


def test_an_instruction_that_does_not_exist_is_named(convolve):
    with pytest.raises(
        compiler.CompileError, match=r"the instruction `cp\.async\.commit_groups` in the kernel _Z17implicit_gemm_mma"
    ):
        convolve(("mma.cuh", "cp.async.commit_group;", "cp.async.commit_groups;"))
