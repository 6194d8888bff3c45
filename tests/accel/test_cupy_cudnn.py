"""Convolution by cuDNN: how graphs are built, planned and executed, on a fake of the library."""

from __future__ import annotations

import gc
import importlib.metadata
import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import xpnet.accel.cupy  # noqa: F401  (registers the implementations)
from tests.accel.test_cupy_convolution_properties import convolutions, exact, holdable, stored, within
from tests.fake_cudnn import FakeCudnn
from xpnet import cli, ops
from xpnet.accel.cupy import autotune, cudnn
from xpnet.backend import DeviceError
from xpnet.ops.convolution import conv_geometry
from xpnet.runtime.determinism import deterministic
from xpnet.runtime.precision import set_matmul_precision

pytestmark = pytest.mark.torch

RANDOM = np.random.default_rng(5)
X, KERNEL, BIAS = (RANDOM.standard_normal(s).astype("float32") for s in ((2, 6, 7, 4), (3, 3, 4, 8), (8,)))
DY = RANDOM.standard_normal((2, 4, 5, 8)).astype("float32")


class Stream:
    """As cupy.cuda.Stream."""

    def __init__(self, ptr):
        self.ptr = ptr


class Workspace:
    """As cupy.cuda.MemoryPointer."""

    def __init__(self, size):
        self.array = np.empty(size, np.uint8)
        self.ptr = self.array.ctypes.data


class Place:
    """A device with a current stream."""

    def __init__(self):
        self.stream = Stream(7)
        self.allocated = []

    def allocate(self, size):
        self.allocated.append(size)
        return Workspace(size)


@pytest.fixture
def on_cudnn(gpu, monkeypatch):
    """A function that gives the device a cuDNN, and returns where that allocates and on which stream it works."""

    def with_cudnn(frontend):
        place = Place()
        gpu.cudnn = cudnn.Cudnn(frontend, lambda: place.stream, place.allocate)
        monkeypatch.setattr(gpu, "can_measure", lambda: True)
        return place

    return with_cudnn


def every_pass(gpu, x=X, kernel=KERNEL, bias=BIAS, dy=DY, activation="relu"):
    """Compute the three passes with cuDNN, without padding and stride."""
    x, kernel, bias, dy = map(gpu.array, (x, kernel, bias, dy))
    g = conv_geometry(x, kernel, bias, 1, 0, 1, 1)
    assert cudnn.covers("fprop", x, kernel, g, bias, activation)
    y = cudnn.fprop(gpu.xp, x, kernel, bias, activation, g)
    assert cudnn.covers("dgrad", x, kernel, g)
    assert cudnn.covers("wgrad", x, kernel, g)
    return gpu.numpy((y, cudnn.dgrad(gpu.xp, x, dy, kernel, g), cudnn.wgrad(gpu.xp, x, dy, kernel, g)))


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_any_convolution(gpu, on_cudnn, kind, monkeypatch):
    known = cudnn.dtype_of  # type: ignore[attr-defined]
    monkeypatch.setattr(cudnn, "dtype_of", lambda a: "bfloat16" if a.dtype == np.uint16 else known(a))

    @settings(max_examples=30, deadline=None)
    @given(convolutions(kind, aligned=False))
    def holds(case):
        x, kernel, bias, options = case
        g = conv_geometry(x, kernel, bias, options["stride"], options["padding"], options["dilation"], options["groups"])
        dy = holdable(RANDOM.standard_normal((x.shape[0], g.h.out, g.w.out, kernel.shape[3])), kind)
        expected = exact(x, kernel, bias, dy, options)
        terms = exact(np.abs(x), np.abs(kernel), np.abs(bias), np.abs(dy), options)
        arrays = [stored(a, kind) for a in (x, kernel, bias, dy)]
        X, K, B, DY = map(gpu.array, arrays)
        on_cudnn(FakeCudnn())
        if x.shape[0] == 0:
            assert not cudnn.covers("fprop", X, K, g, B)
            return
        for pass_name in autotune.PASSES:
            assert cudnn.covers(pass_name, X, K, g, B if pass_name == "fprop" else None)
        within(gpu.numpy(cudnn.fprop(gpu.xp, X, K, B, None, g)), expected[0], terms[0], kind)
        within(gpu.numpy(cudnn.dgrad(gpu.xp, X, DY, K, g)), expected[1], terms[1], kind)
        within(gpu.numpy(cudnn.wgrad(gpu.xp, X, DY, K, g)).reshape(kernel.shape), expected[2], terms[2], kind)
        assert gpu.launches == []

    holds()


@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("bias", [BIAS, None], ids=["bias", "no bias"])
def test_bias_and_activation_are_fused_or_follow(gpu, on_cudnn, fuses, activation, bias):
    g = conv_geometry(X, KERNEL, bias, 1, 0, 1, 1)
    frontend = FakeCudnn(fuses=fuses)
    on_cudnn(frontend)
    x, kernel, there = map(gpu.array, (X, KERNEL, bias))
    assert cudnn.covers("fprop", x, kernel, g, there, activation)
    y = gpu.numpy(cudnn.fprop(gpu.xp, x, kernel, there, activation, g))
    expected = ops.conv2d(X, KERNEL, bias)
    expected = expected if activation is None else getattr(ops, activation)(expected)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    anything = bias is not None or activation is not None
    assert len(gpu.launches) == (1 if anything and not fuses else 0)
    assert frontend.plans[0].pointwise == ((bias is not None) + (activation is not None) if fuses else 0)


def test_a_plan_is_built_once_for_each_shape_and_setting(gpu, on_cudnn):
    frontend = FakeCudnn()
    on_cudnn(frontend)
    first = every_pass(gpu)
    for again, before in zip(every_pass(gpu), first):
        np.testing.assert_array_equal(again, before)
    assert len(frontend.plans) == 3
    every_pass(gpu, activation=None)
    assert len(frontend.plans) == 4
    every_pass(gpu, x=np.concatenate([X, X]), dy=np.concatenate([DY, DY]))
    assert len(frontend.plans) == 7


def test_float32_keeps_its_bits_unless_tf32_is_allowed_and_order_is_fixed(gpu, on_cudnn):
    frontend = FakeCudnn()
    try:
        on_cudnn(frontend)
        every_pass(gpu)
        set_matmul_precision("tf32")
        every_pass(gpu)
        every_pass(gpu, *(a.astype("float16") for a in (X, KERNEL, BIAS, DY)))
    finally:
        set_matmul_precision("float32")
    exact_ones, tf32, half = frontend.plans[:3], frontend.plans[3:6], frontend.plans[6:]
    for plan in exact_ones:
        assert set(plan.excluded) == {"NONDETERMINISTIC", "TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION"}
    for plan in (*tf32, *half):
        assert plan.excluded == ["NONDETERMINISTIC"]
    assert {plan.io for plan in half} == {"HALF"}


def test_unaligned_views(gpu, on_cudnn):
    def moved(a):
        shifted = gpu.xp.zeros(a.size + 1, dtype=a.dtype)
        shifted[1:] = gpu.array(a.reshape(-1))
        return shifted[1:].reshape(a.shape)

    on_cudnn(FakeCudnn())
    for found, expected in zip(every_pass(gpu, *map(moved, (X, KERNEL, BIAS, DY))), every_pass(gpu)):
        np.testing.assert_array_equal(found, expected)


def test_each_stream_has_a_handle_and_workspaces_that_stay(gpu, on_cudnn):
    frontend = FakeCudnn(workspace=1000)
    place = on_cudnn(frontend)
    every_pass(gpu)
    assert frontend.handles == {1: 7}
    assert place.allocated == [1024]
    frontend.workspace = 5000
    every_pass(gpu, activation=None)
    assert place.allocated == [1024, 8192]
    first, second = (w.ptr for w in gpu.cudnn._streams.of[7].workspaces)
    assert {workspace for _, workspace, _ in frontend.executed} == {first, second}
    outer, place.stream = place.stream, Stream(9)
    every_pass(gpu, activation=None)
    assert frontend.handles == {1: 7, 2: 9}
    assert {handle for _, _, handle in frontend.executed} == {1, 2}
    place.stream = outer
    gc.collect()
    assert list(gpu.cudnn._streams.of) == [7]
    every_pass(gpu)
    assert place.allocated == [1024, 8192, 8192]
    outer, place.stream = place.stream, Stream(11)  # takes over the handle of the deleted stream
    every_pass(gpu)
    assert frontend.handles == {1: 7, 2: 11}
    assert place.allocated == [1024, 8192, 8192, 1024]


def test_nothing_is_planned_during_capture(gpu, on_cudnn):
    frontend = FakeCudnn(workspace=64)
    place = on_cudnn(frontend)
    g = conv_geometry(X, KERNEL, None, 1, 0, 1, 1)
    gpu.can_measure = lambda: False
    assert not cudnn.covers("fprop", X, KERNEL, g)
    assert frontend.plans == []
    gpu.can_measure = lambda: True
    assert cudnn.covers("fprop", X, KERNEL, g)
    cudnn.fprop(gpu.xp, gpu.array(X), gpu.array(KERNEL), None, None, g)
    gpu.can_measure = lambda: False
    assert cudnn.covers("fprop", X, KERNEL, g)
    cudnn.fprop(gpu.xp, gpu.array(X), gpu.array(KERNEL), None, None, g)
    assert len(frontend.plans) == 1
    assert place.allocated == [64]


@pytest.mark.parametrize("reason", ["unsupported", "workspace", "dtype", "absent"])
def test_what_cudnn_does_not_cover(gpu, on_cudnn, reason):
    frontend = FakeCudnn(workspace=1 << 30 if reason == "workspace" else 0)
    frontend.unsupported = reason == "unsupported"
    x, kernel = (X.astype("float64"), KERNEL.astype("float64")) if reason == "dtype" else (X, KERNEL)
    on_cudnn(frontend)
    if reason == "absent":
        gpu.cudnn = None
    x, kernel = gpu.array(x), gpu.array(kernel)
    assert not cudnn.covers("fprop", x, kernel, conv_geometry(x, kernel, None, 1, 0, 1, 1), None, "relu")
    assert not cudnn.covers("wgrad", x, kernel, conv_geometry(x, kernel, None, 1, 0, 1, 1))


def test_a_library_that_fails_is_not_tried_again(on_cudnn):
    frontend = FakeCudnn()
    g = conv_geometry(X, KERNEL, None, 1, 0, 1, 1)
    on_cudnn(frontend)
    assert cudnn.covers("fprop", X, KERNEL, g)
    frontend.fails = True
    with pytest.warns(RuntimeWarning, match=r"cuDNN fails to plan the dgrad pass .* \(Multiple libcudart libraries"):
        assert not cudnn.covers("dgrad", X, KERNEL, g)
    frontend.fails = False
    assert not cudnn.covers("wgrad", X, KERNEL, g)
    assert cudnn.covers("fprop", X, KERNEL, g)  # planned before


# ---- autotune


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(autotune, "cache_folder", lambda: tmp_path / "kernels")
    monkeypatch.delenv("XPNET_CONVOLUTION", raising=False)
    autotune._cache.reload()
    yield autotune._cache
    autotune._cache.reload()


def timed(gpu, frontend, cudnn_time):
    """Make the device report this time for cuDNN, and a second for anything else."""
    measured = []

    def milliseconds(function):
        before = len(frontend.executed)
        function()
        measured.append(cudnn_time if len(frontend.executed) > before else 1.0)
        return measured[-1]

    gpu.milliseconds = milliseconds
    return measured


def convolve(gpu, x=X, kernel=KERNEL, bias=BIAS):
    return gpu.numpy(ops.conv2d(*map(gpu.array, (x, kernel, bias)), groups=1))


def test_it_is_a_candidate_of_autotune(gpu, on_cudnn, table):
    for time, wins in ((0.5, True), (2.0, False)):
        frontend = FakeCudnn()
        autotune._cache.reload()
        on_cudnn(frontend)
        measured = timed(gpu, frontend, time)
        x = X if wins else np.concatenate([X, X])
        y = convolve(gpu, x)
        assert sorted(measured) == sorted([1.0, 1.0, time])
        before = len(frontend.executed)
        np.testing.assert_array_equal(convolve(gpu, x), y)
        assert len(frontend.executed) == before + wins
    assert {m.choice for m in table.entries().values()} >= {"cudnn"}


def test_a_shape_is_measured_again_with_cudnn_and_falls_back_without(gpu, on_cudnn, table):
    on_cudnn(FakeCudnn())
    library, frontend = gpu.cudnn, gpu.cudnn.frontend
    measured = timed(gpu, frontend, 0.5)
    gpu.cudnn = None
    convolve(gpu)
    assert measured == [1.0, 1.0]
    gpu.cudnn = library
    convolve(gpu)
    assert measured == [1.0, 1.0, 1.0, 1.0, 0.5]
    (known,) = table.entries().values()
    assert known.choice == "cudnn"
    gpu.cudnn = None
    y = convolve(gpu)
    assert len(measured) == 5
    np.testing.assert_allclose(y, ops.conv2d(X, KERNEL, BIAS), rtol=1e-4, atol=1e-4)


def test_the_environment_variable_selects_it(gpu, on_cudnn, table, monkeypatch):
    monkeypatch.setenv("XPNET_CONVOLUTION", "cudnn")
    frontend = FakeCudnn()
    on_cudnn(frontend)
    y = convolve(gpu)
    assert len(frontend.executed) == 1
    assert not any(name.startswith("implicit") for name in gpu.launches)
    frontend.unsupported = True
    convolve(gpu, X, KERNEL[:1], None)  # falls back to im2col
    assert len(frontend.executed) == 1
    gpu.cudnn = None
    with pytest.raises(DeviceError, match=r'XPNET_CONVOLUTION is cudnn.*pip install "xpnet\[cudnn\]"'):
        convolve(gpu)
    monkeypatch.setenv("XPNET_CONVOLUTION", "im2col")
    np.testing.assert_allclose(convolve(gpu), y, rtol=1e-4, atol=1e-4)
    assert len(frontend.plans) == 1


def test_deterministic_mode_does_not_use_it(gpu, on_cudnn, table):
    frontend = FakeCudnn()
    on_cudnn(frontend)
    with deterministic():
        gpu.milliseconds = None
        convolve(gpu)
        assert frontend.plans == []
        assert not any(name.startswith("implicit") for name in gpu.launches)


def test_info_says_whether_cudnn_takes_part(table, monkeypatch, capsys):
    installed: dict[Any, Any] = {}

    def version(package):
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(cudnn, "version", version)
    assert cli.main(["info", "--convolutions"]) == 0
    assert 'cuDNN is not installed and does not take part: pip install "xpnet[cudnn]"' in capsys.readouterr().out
    installed |= {"nvidia-cudnn-frontend": "1.23.0", "nvidia-cudnn-cu12": "9.10.0"}
    assert cli.main(["info", "--convolutions"]) == 0
    assert "cuDNN takes part: nvidia-cudnn-frontend 1.23.0, nvidia-cudnn-cu12 9.10.0" in capsys.readouterr().out


# ---- the library


def test_loading(monkeypatch):
    place = Place()
    monkeypatch.setattr(cudnn, "_load_cudart", lambda: None)

    def load():
        return cudnn.load(lambda: place.stream, place.allocate)

    def absent(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(cudnn, "version", absent)
    assert load() is None
    monkeypatch.setattr(cudnn, "version", lambda package: "1.23.0")
    frontend = FakeCudnn()
    monkeypatch.setitem(sys.modules, "cudnn", frontend)
    assert load().frontend is frontend
    frontend.backend_version = lambda: 8907
    with pytest.warns(RuntimeWarning, match=r"cannot be used: it is version 9\.10\.0; 9\.0 or later is needed"):
        assert load() is None
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with pytest.warns(RuntimeWarning, match="cuDNN is installed but cannot be used"):
        assert load() is None


def test_the_cuda_runtime_of_pip_is_loaded(monkeypatch):
    asked: list[Any] = []
    pathfinder: Any = types.ModuleType("cuda.pathfinder")
    pathfinder.DynamicLibNotFoundError = type("DynamicLibNotFoundError", (RuntimeError,), {})
    pathfinder.load_nvidia_dynamic_lib = asked.append
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    cudnn._load_cudart()
    assert asked == ["cudart"]

    def nowhere(name):
        raise pathfinder.DynamicLibNotFoundError(name)

    pathfinder.load_nvidia_dynamic_lib = nowhere
    cudnn._load_cudart()  # the system may have one
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    cudnn._load_cudart()


@pytest.mark.parametrize("pass_name", autotune.PASSES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_real_frontend_accepts_the_graphs(pass_name, dtype):
    """Without a GPU the frontend checks names, arguments, shapes and strides; it cannot build plans."""
    real = pytest.importorskip("cudnn", reason="needs nvidia-cudnn-frontend")
    try:
        real.backend_version()
    except RuntimeError as error:
        pytest.skip(f"needs the cuDNN library: {error}")
    g = conv_geometry(np.empty((2, 7, 8, 16)), np.empty((3, 2, 8, 32)), None, (2, 1), ((1, 0), (0, 2)), (1, 2), 2)
    fused = pass_name == "fprop"
    key = cudnn._PlanKey(pass_name, (2, 7, 8, 16), (3, 2, 8, 32), g, dtype, False, fused, "tanh" if fused else None)
    kind, wide = getattr(real.data_type, cudnn._TYPES[dtype]), real.data_type.FLOAT
    graph = real.pygraph(io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide)
    cudnn._add_operations(graph, key, kind, fused)
    graph.validate()
    assert all(hasattr(real.numerical_note, name) for name in cudnn._excluded_notes(key))
    assert issubclass(real.cudnnGraphNotSupportedError, Exception)
