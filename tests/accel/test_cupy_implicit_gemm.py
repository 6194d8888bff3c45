"""Convolution as an implicit GEMM: all three passes against the reference, tensor cores included.

On the software device the tensor-core kernel is the same source with its instructions replaced by functions that move the same
elements between the same lanes, so that every index is tested; see tests/software_gpu/csrc/include/cuda_emulator.hpp. With
SOFTWARE_GPU_FRONT_END=nvrtc the instructions themselves run.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

import xpnet.accel.cupy  # noqa: F401  (registers the implementations)
from tests.accel.gpu import skip_without_gpu
from tests.gpu import Watched
from xpnet import ops
from xpnet.accel.cupy import implicit_gemm
from xpnet.accel.cupy.launch import use_runtime
from xpnet.inspect.footprint.cupy_runtime import PlanningRuntime
from xpnet.ops.convolution import conv_geometry
from xpnet.ops.registry import reference_only, registry
from xpnet.runtime.precision import get_matmul_precision, set_matmul_precision

RANDOM = np.random.default_rng(7)
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 1.5e-2}


@contextlib.contextmanager
def precision(name):
    before = get_matmul_precision()
    set_matmul_precision(name)
    try:
        yield
    finally:
        set_matmul_precision(before)


def reference(x, kernel, bias, dy, settings):
    """Return y before the activation, and the gradients for dy, in float64."""
    op = registry["conv2d"]
    bound, full = op.bind((x, kernel, bias), dict(settings))
    with reference_only():
        y, saved, implementation = op.run(np, bound, full, True)
        dx, dkernel, _ = op.gradients(implementation, np, dy, saved, full, (True, True, True))
    return y, dx, dkernel


def rounded(a, kind):
    """Return the array rounded to the kind, as float64."""
    if kind == "bfloat16":
        return (np.asarray(a, "float32").view(np.uint32) & 0xFFFF0000).view(np.float32).astype("float64")
    return np.asarray(a).astype("float32" if kind == "tf32" else kind).astype("float64")


def narrow(a, dtype):
    """Return the array in the dtype, bfloat16 as its bits."""
    return (a.astype("float32").view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else a.astype(dtype)


def wide(a):
    return ((a.astype(np.uint32) << 16).view(np.float32) if a.dtype == np.uint16 else a).astype("float64")


def close(found, expected, kind, terms):
    assert found.shape == expected.shape
    scale = max(float(np.abs(expected).max(initial=0)), terms**0.5, 1.0)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[kind], atol=TOLERANCE[kind] * scale)


def every_pass(
    gpu, shape, kernel_shape, settings, kind, *, activation=None, with_bias=True, multiprocessors=1, architecture=80
):
    """Run fprop, dgrad and wgrad of one convolution and compare; return the launches.

    The device is taken for one with these numbers; an older one keeps its own architecture.
    """
    gpu.launches.clear()
    gpu.multiprocessors, gpu.architecture = multiprocessors, min(architecture, gpu.inner.architecture)
    x, kernel = (rounded(RANDOM.standard_normal(s), kind) for s in (shape, kernel_shape))
    O = kernel_shape[3]
    bias = rounded(RANDOM.standard_normal(O), kind)
    padding, groups = settings.get("padding", 0), settings.get("groups", 1)
    g = conv_geometry(x, kernel, bias, settings.get("stride", 1), padding, settings.get("dilation", 1), groups)
    dz = rounded(RANDOM.standard_normal((shape[0], g.h.out, g.w.out, O)), kind)
    y, dx, dkernel = reference(x, kernel, bias if with_bias else None, dz, settings)
    functions: dict[str | None, Any] = {
        "relu": lambda v: np.maximum(v, 0),
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
        "tanh": np.tanh,
        None: lambda v: v,
    }
    y = functions[activation](y)
    dtype = "float32" if kind == "tf32" else kind
    with precision("tf32" if kind == "tf32" else "float32"):
        X, K, B, DZ = (gpu.array(narrow(a, dtype)) for a in (x, kernel, bias, dz))
        assert implicit_gemm.covers(X, K, g, groups)
        found = implicit_gemm.fprop(gpu.xp, X, K, B if with_bias else None, activation, g, groups)
        assert found.dtype == X.dtype
        close(wide(gpu.numpy(found)), y, kind, kernel[..., 0].size)
        found = implicit_gemm.dgrad(gpu.xp, DZ, K, g, groups)
        assert found.dtype == X.dtype
        close(wide(gpu.numpy(found)), dx, kind, kernel[:, :, 0].size)
        found = implicit_gemm.wgrad(gpu.xp, X, DZ, g, groups)
        again = implicit_gemm.wgrad(gpu.xp, X, DZ, g, groups)
        assert found.dtype == np.dtype("float64" if kind == "float64" else "float32")
        np.testing.assert_array_equal(gpu.numpy(found), gpu.numpy(again))
        close(gpu.numpy(found).astype("float64"), dkernel.reshape(-1, O), kind, dz[..., 0].size)
    return list(gpu.launches)


def has_tensor_cores(gpu):
    """Return whether the kernels for tensor cores run on this device, as they do from compute capability 8.0 on."""
    return gpu.inner.architecture >= 80


SETTINGS = [
    {},
    {"padding": 1},
    {"stride": 2, "padding": "same"},
    {"stride": (2, 3), "padding": ((1, 0), (0, 2)), "dilation": (1, 2)},
    {"dilation": 2, "padding": 2},
    {"stride": 3},
]
WINDOWS = [(3, 3), (2, 3), (1, 1)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_every_pass(gpu, kind, window, settings):
    for shape, O in (((2, 7, 9, 4), 8), ((1, 9, 8, 3), 5), ((3, 7, 7, 1), 67)):
        launched = every_pass(gpu, shape, (*window, shape[3], O), settings, kind)
        instance = "double, 1, 64" if kind == "float64" else "float, 4, 128" if O == 8 else "float, 1, 128"
        assert f"implicit_gemm<{instance}, 0>" in launched


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["tf32", "float16"])
def test_every_pass_uses_tensor_cores(gpu, kind, settings):
    for window, shape, O in (((3, 3), (2, 7, 9, 8), 24), ((2, 3), (1, 8, 7, 24), 8)):
        launched = every_pass(gpu, shape, (*window, shape[3], O), settings, kind)
        name = "implicit_gemm_mma" if has_tensor_cores(gpu) else "implicit_gemm<"
        assert all(called.startswith(name) for called in launched), launched


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["float32", "tf32", "float16", "bfloat16"])
def test_groups(gpu, kind, settings, monkeypatch):
    """Two and three groups, with and without channels in multiples of 16 bytes."""
    as_bits(monkeypatch)
    for groups, C, O in ((2, 8, 16), (3, 2, 5)):
        shape = (2, 7, 8, groups * C)
        launched = every_pass(gpu, shape, (3, 2, C, groups * O), {**settings, "groups": groups}, kind, activation="relu")
        name = "implicit_gemm_mma" if C == 8 and kind != "float32" and has_tensor_cores(gpu) else "implicit_gemm<"
        assert all(called.startswith(name) for called in launched), launched


@pytest.mark.parametrize("kind", ["float32", "float16", "tf32"])
def test_groups_of_several_tiles_and_split_k(gpu, kind):
    every_pass(gpu, (2, 13, 13, 144), (2, 1, 72, 144), {"groups": 2}, kind, multiprocessors=64)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_without_tensor_cores(gpu, kind, monkeypatch):
    """On older devices, and where channels are no multiples of 16 bytes; accumulation is float32 as well."""
    as_bits(monkeypatch)
    launched = every_pass(gpu, (2, 7, 6, 8), (3, 3, 8, 16), {"padding": 1}, kind, architecture=75)
    assert all(name.startswith(f"implicit_gemm<{kind}, 1,") for name in launched), launched
    every_pass(gpu, (2, 7, 6, 3), (3, 3, 3, 10), {"stride": 2}, kind, activation="tanh")


@pytest.mark.parametrize("kind", ["tf32", "bfloat16", "float16"])
def test_every_tile_and_split_k_on_tensor_cores(gpu, kind, monkeypatch):
    """Sizes beyond a tile that are no multiples of it, every tile size, and several splits."""
    as_bits(monkeypatch)
    wide = every_pass(gpu, (3, 10, 11, 72), (2, 1, 72, 136), {"padding": 1}, kind, activation="relu")
    narrow = every_pass(gpu, (3, 10, 11, 40), (2, 1, 40, 24), {}, kind, multiprocessors=16)
    middle = every_pass(gpu, (2, 7, 8, 16), (2, 1, 16, 40), {}, kind, multiprocessors=64)
    tall = every_pass(gpu, (2, 9, 10, 40), (3, 1, 40, 56), {"stride": (2, 1)}, kind)
    name = {"tf32": "float"}.get(kind, kind)
    instances = {i.expression for i in implicit_gemm._mma.instances() if i.expression.startswith(f"implicit_gemm_mma<{name},")}
    assert instances <= {*wide, *narrow, *middle, *tall} or not has_tensor_cores(gpu)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_many_tiles_and_split_k(gpu, kind):
    every_pass(gpu, (6, 17, 11, 12), (3, 3, 12, 68), {"stride": (1, 2)}, kind, multiprocessors=16, activation="tanh")


@pytest.mark.parametrize("kind", ["float32", "float64", "tf32", "float16"])
@pytest.mark.parametrize("fan_in", [1, 2, 3, 7])
def test_split_k_in_one_and_two_levels(gpu, kind, fan_in, monkeypatch):
    """Seven splits, added by teams of the size `fan_in`, of which the last may be smaller."""

    def split(length, *_):
        size = max(-(-length // 224) * 32, 32)
        return implicit_gemm._Splits(-(-length // size), size, fan_in)

    monkeypatch.setattr(implicit_gemm, "_split_k", split)
    for C, O in ((8, 16), (40, 72), (3, 5)):
        launched = every_pass(gpu, (2, 9, 8, 2 * C), (2, 3, C, 2 * O), {"groups": 2, "padding": 1}, kind, activation="relu")
        assert len(launched) == 4  # fprop, dgrad, and wgrad twice


@pytest.mark.parametrize("kind", ["float32", "float64", "float16"])
def test_wgrad_of_a_kernel_with_few_inputs_uses_low_tiles(gpu, kind):
    name = {"float32": "float", "float64": "double"}.get(kind, kind)
    for C, O in ((1, 6), (3, 70)):
        launched = every_pass(gpu, (3, 9, 8, C), (3, 3, C, O), {}, kind, multiprocessors=132)
        assert f"implicit_gemm<{name}, 1, 32, 2>" in launched


def test_splits_cover_the_inner_dimension_and_do_not_exceed_the_device():
    for tile in (implicit_gemm._Tile(128, 128, True), implicit_gemm._Tile(64, 64, True), implicit_gemm._Tile(32, 64, False)):
        for length in (0, 1, 63, 784, 15488, 1 << 20):
            for rows, outer in ((9, 32), (288, 64), (4608, 512)):
                splits, size, fan_in = implicit_gemm._split_k(length, rows, outer, tile, 1, 4, 132)
                tiles = -(-rows // tile.rows) * -(-outer // tile.columns)
                assert splits == 1 or (size % 32 == 0 and tiles * splits <= 2 * 132)
                assert (splits - 1) * size < max(length, 1) <= max(splits * size, 1)
                assert 1 <= fan_in <= splits


def test_wgrad_is_written_into_the_given_buffer(gpu):
    x, dz = (gpu.array(RANDOM.standard_normal(s).astype("float32")) for s in ((2, 6, 6, 8), (2, 5, 6, 24)))
    g = conv_geometry(x, np.empty((2, 1, 8, 24)), None, 1, 0, 1, 1)
    into = gpu.xp.zeros((2, 1, 8, 24), dtype="float32")
    assert implicit_gemm.wgrad(gpu.xp, x, dz, g, 1, into) is into
    np.testing.assert_array_equal(gpu.numpy(into).reshape(-1, 24), gpu.numpy(implicit_gemm.wgrad(gpu.xp, x, dz, g)))


@pytest.mark.parametrize("kind", ["float32", "float64", "tf32", "float16"])
def test_dgrad_is_one_launch_for_all_classes_of_pixels(gpu, kind):
    """Also where a class has no taps, where it has as many as there are, and where the image is smaller than the stride."""
    for settings, shape in (
        ({"stride": 2}, (2, 8, 7, 8)),
        ({"stride": (5, 4)}, (2, 9, 8, 8)),
        ({"stride": 3, "dilation": (3, 2), "padding": 4}, (1, 7, 8, 8)),
        ({"stride": 9, "padding": 1}, (2, 3, 4, 8)),
        ({"stride": (4, 6), "dilation": (2, 3)}, (1, 9, 11, 8)),
    ):
        for window in ((1, 1), (2, 3), (3, 2)):
            launched = every_pass(gpu, shape, (*window, 8, 24), settings, kind)
            assert len(launched) == 4


@pytest.mark.parametrize("kind", ["float32", "float64", "tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
def test_bias_and_activation(gpu, kind, activation, monkeypatch):
    as_bits(monkeypatch)
    for with_bias in (True, False):
        every_pass(gpu, (1, 4, 5, 8), (2, 2, 8, 8), {}, kind, activation=activation, with_bias=with_bias)


@pytest.mark.parametrize("kind", ["float32", "float64", "tf32", "float16"])
def test_one_image_and_none(gpu, kind):
    for N in (0, 1):
        every_pass(gpu, (N, 5, 6, 8), (3, 2, 8, 16), {"padding": 1, "stride": 2}, kind)


@pytest.mark.parametrize("kind", ["float32", "float64", "tf32", "float16"])
def test_unaligned_views(gpu, kind):
    dtype = "float32" if kind == "tf32" else kind
    x, kernel, bias, dz = (RANDOM.integers(-3, 4, s).astype(dtype) for s in ((2, 5, 6, 8), (3, 2, 8, 8), (8,), (2, 3, 5, 8)))
    g = conv_geometry(x, kernel, bias, 1, 0, 1, 1)
    wide: Any = [a.astype("float64") for a in (x, kernel, bias, dz)]
    y, dx, dkernel = reference(wide[0], wide[1], wide[2], wide[3], {})
    with precision("tf32" if kind == "tf32" else "float32"):
        views = []
        for a in (x, kernel, bias, dz):
            shifted = gpu.xp.zeros((a.size + 1,), dtype=a.dtype)
            shifted[1:] = gpu.array(a.reshape(-1))
            views.append(shifted[1:].reshape(a.shape))
        X, K, B, DZ = views
        np.testing.assert_array_equal(gpu.numpy(implicit_gemm.fprop(gpu.xp, X, K, B, None, g)), y)
        np.testing.assert_array_equal(gpu.numpy(implicit_gemm.dgrad(gpu.xp, DZ, K, g)), dx)
        np.testing.assert_array_equal(gpu.numpy(implicit_gemm.wgrad(gpu.xp, X, DZ, g)), dkernel.reshape(-1, 8))


def as_bits(monkeypatch):
    """Take uint16 arrays for bfloat16, which NumPy does not have."""
    known = implicit_gemm.c_name  # type: ignore[attr-defined]
    monkeypatch.setattr(implicit_gemm, "c_name", lambda a: "bfloat16" if a.dtype == np.uint16 else known(a))


def test_infinities_and_nans_do_not_spread(gpu):
    """Elements outside an image or a tile are zeros, not products with zero."""
    x, kernel = np.ones((1, 5, 5, 8), "float32"), np.ones((3, 3, 8, 8), "float32")
    x[0, 0, 0, 0], x[0, 4, 4, 3] = np.nan, np.inf
    g = conv_geometry(x, kernel, None, 1, 1, 1, 1)
    for name in ("float32", "tf32"):
        with precision(name):
            y = gpu.numpy(implicit_gemm.fprop(gpu.xp, gpu.array(x), gpu.array(kernel), None, None, g))
        assert np.isnan(y[0, :2, :2]).all()
        assert np.isinf(y[0, 3:, 3:]).all()
        y[0, :2, :2] = y[0, 3:, 3:] = 0
        assert np.isfinite(y).all()


def test_what_it_does_not_cover():
    def architecture(number):  # nothing is launched: no device is needed
        return use_runtime(Watched(architecture=number, inner=PlanningRuntime()))

    def covered(shape, kernel, dtype="float32", groups=1):
        x, k = np.empty(shape, dtype), np.empty(kernel, dtype)
        with architecture(80 if dtype == "float32" else 75):
            return implicit_gemm.covers(x, k, conv_geometry(x, k, None, 1, 0, 1, groups), groups)

    assert covered((2, 5, 5, 3), (3, 3, 3, 5))
    assert covered((2, 5, 5, 4), (3, 3, 2, 4), groups=2)
    assert covered((2, 5, 5, 8), (3, 3, 8, 12), "float16")
    assert not covered((1, 3, 3, 1 << 16), (1, 1, 1, 1 << 16), groups=1 << 16)  # beyond the height of a grid
    many = np.broadcast_to(np.float32(0), (1 << 17, 128, 128, 1))
    g = conv_geometry(many, np.empty((1, 1, 1, 1)), None, 1, 0, 1, 1)
    assert not implicit_gemm.covers(many, np.empty((1, 1, 1, 1), "float32"), g, 1)
    with precision("tf32"), architecture(75):
        assert not implicit_gemm.uses_tensor_cores(np.empty(0, "float32"), 8, 8)


@pytest.mark.cuda
def test_a_gpu_measures_once_and_not_during_capture(tmp_path, monkeypatch):
    skip_without_gpu()
    import cupy

    from xpnet.accel.cupy import autotune
    from xpnet.accel.cupy.launch import runtime

    monkeypatch.setenv("XPNET_CACHE", str(tmp_path))
    monkeypatch.delenv("XPNET_CONVOLUTION", raising=False)
    autotune._cache.reload()
    try:
        x, kernel = cupy.ones((4, 9, 9, 16), "float32"), cupy.ones((3, 3, 16, 32), "float32")
        first = ops.conv2d(x, kernel)
        (measured,) = autotune._cache.entries().values()
        assert set(measured.milliseconds) == {"im2col", "implicit"}
        assert min(measured.milliseconds.values()) > 0
        assert (tmp_path / "convolutions.json").is_file()
        cupy.testing.assert_array_equal(ops.conv2d(x, kernel), first)
        assert len(autotune._cache.entries()) == 1
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            assert runtime().can_measure()
            stream.begin_capture()
            assert not runtime().can_measure()
            stream.end_capture()
    finally:
        autotune._cache.reload()
