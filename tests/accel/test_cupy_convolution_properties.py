"""The implicit GEMM for any shape, stride, padding, dilation and groups, against PyTorch in float64.

The error of an element is bounded by a multiple of the sum of the absolute values of its terms, which is what rounding each
factor once (TF32), adding up in float32, and rounding the result once (16 bits) can do to it.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet.accel.cupy  # noqa: F401  (registers the implementations)
from xpnet.accel.cupy import implicit_gemm
from xpnet.ops.convolution import conv_geometry
from xpnet.runtime.precision import set_matmul_precision

pytestmark = pytest.mark.torch

# Factors of 24 bits and up to some hundred terms; of 11 bits, both rounded; results of 11 and of 8 bits.
BOUND = {"float64": 1e-13, "float32": 1e-5, "tf32": 2.1 * 2.0**-11, "float16": 1.1 * 2.0**-11, "bfloat16": 1.1 * 2.0**-8}
ALIGNED = {"tf32": 4, "float16": 8, "bfloat16": 8}


@st.composite
def convolutions(draw, kind, aligned):
    """Draw (x, kernel, bias, settings): float64 arrays whose elements the kind represents exactly, except TF32."""
    groups = draw(st.integers(1, 4), label="groups")
    unit = ALIGNED[kind] if aligned else 1
    Cg, Og = (unit * draw(st.integers(1, 2 if aligned else 5), label=name) for name in ("C/groups", "O/groups"))
    N = draw(st.integers(0, 3), label="N")
    lines = []
    for axis in "hw":
        window, stride, dilation = (
            draw(st.integers(1, n), label=f"{name} {axis}") for name, n in (("window", 3), ("stride", 3), ("dilation", 2))
        )
        before, after = (draw(st.integers(0, 2), label=f"padding {axis}") for _ in range(2))
        reach = (window - 1) * dilation + 1
        size = draw(st.integers(max(reach - before - after, 1), 8), label=f"size {axis}")
        lines.append((size, window, stride, dilation, (before, after)))
    (H, KH, SH, DH, PH), (W, KW, SW, DW, PW) = lines
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    shapes = (N, H, W, groups * Cg), (KH, KW, Cg, groups * Og), (groups * Og,)
    x, kernel, bias = (holdable(random.standard_normal(shape), kind) for shape in shapes)
    return x, kernel, bias, {"stride": (SH, SW), "padding": (PH, PW), "dilation": (DH, DW), "groups": groups}


def holdable(a, kind):
    if kind == "bfloat16":
        return (a.astype("float32").view(np.uint32) & 0xFFFF0000).view(np.float32).astype("float64")
    return a.astype("float32" if kind == "tf32" else kind).astype("float64")


def stored(a, kind):
    """Return the array in the kind's dtype; NumPy has no bfloat16: its bits."""
    if kind == "bfloat16":
        return (a.astype("float32").view(np.uint32) >> 16).astype(np.uint16)
    return a.astype("float32" if kind == "tf32" else kind)


def widened(a):
    return ((a.astype(np.uint32) << 16).view(np.float32) if a.dtype == np.uint16 else a).astype("float64")


def exact(x, kernel, bias, dy, settings):
    """Return y, dx and dkernel of PyTorch in float64, channels last."""
    import torch

    (top, bottom), (left, right) = settings["padding"]
    tx = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_(True)
    tk = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_(True)
    ty = torch.nn.functional.conv2d(
        torch.nn.functional.pad(tx, (left, right, top, bottom)), tk, torch.from_numpy(bias),
        settings["stride"], 0, settings["dilation"], settings["groups"],
    )  # fmt: skip
    ty.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()))
    y, dx = (t.detach().numpy().transpose(0, 2, 3, 1) for t in (ty, tx.grad))
    return y, dx, tk.grad.numpy().transpose(2, 3, 1, 0)


def within(found, expected, terms, kind):
    assert found.shape == expected.shape
    excess = np.abs(widened(found) - expected) - BOUND[kind] * terms - 1e-30
    assert found.size == 0 or excess.max() <= 0, f"error {np.abs(widened(found) - expected).max()}, {excess.max()} too much"


def check(gpu, case, kind, architecture, kernels):
    x, kernel, bias, options = case
    groups = options["groups"]
    g = conv_geometry(x, kernel, bias, options["stride"], options["padding"], options["dilation"], groups)
    shape = (x.shape[0], g.h.out, g.w.out, kernel.shape[3])
    dy = holdable(np.random.default_rng(x.size).standard_normal(shape), kind)
    expected = exact(x, kernel, bias, dy, options)
    terms = exact(np.abs(x), np.abs(kernel), np.abs(bias), np.abs(dy), options)
    X, K, B, DY = (gpu.array(stored(a, kind)) for a in (x, kernel, bias, dy))
    gpu.launches.clear()
    gpu.multiprocessors, gpu.architecture = 5, architecture
    set_matmul_precision("tf32" if kind == "tf32" else "float32")
    try:
        assert implicit_gemm.covers(X, K, g, groups)
        within(gpu.numpy(implicit_gemm.fprop(gpu.xp, X, K, B, None, g, groups)), expected[0], terms[0], kind)
        within(gpu.numpy(implicit_gemm.dgrad(gpu.xp, DY, K, g, groups)), expected[1], terms[1], kind)
        dkernel = gpu.numpy(implicit_gemm.wgrad(gpu.xp, X, DY, g, groups))
        assert dkernel.dtype == (np.float64 if kind == "float64" else np.float32)
        within(dkernel.reshape(kernel.shape), expected[2], terms[2], kind)
    finally:
        set_matmul_precision("float32")
    assert all(name.startswith(kernels) for name in gpu.launches), gpu.launches


@pytest.fixture
def bits(monkeypatch):
    known = implicit_gemm.c_name  # type: ignore[attr-defined]
    monkeypatch.setattr(implicit_gemm, "c_name", lambda a: "bfloat16" if a.dtype == np.uint16 else known(a))


PLAIN = ["float32", "float64", "float16", "bfloat16"]


@pytest.mark.usefixtures("bits")
@pytest.mark.parametrize("kind", PLAIN)
def test_any_convolution_on_any_architecture(gpu, kind):
    @settings(max_examples=30, deadline=None)
    @given(convolutions(kind, aligned=False))
    def holds(case):
        check(gpu, case, kind, 75, "implicit_gemm<")

    holds()


@pytest.mark.usefixtures("bits")
@pytest.mark.parametrize("kind", ALIGNED)
def test_any_convolution_with_aligned_channels_uses_tensor_cores(gpu, kind):
    if gpu.inner.architecture < 80:
        pytest.skip("needs tensor cores of compute capability 8.0")

    @settings(max_examples=30, deadline=None)
    @given(convolutions(kind, aligned=True))
    def holds(case):
        check(gpu, case, kind, 80, "implicit_gemm_mma<")

    holds()
