"""Autotuning of convolutions, with fake timings."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xpnet.accel.cupy  # noqa: F401  (registers the implementations)
from xpnet import cli, ops
from xpnet.accel.cupy import autotune
from xpnet.backend import to_numpy
from xpnet.ops.registry import reference_only, registry
from xpnet.runtime.precision import set_matmul_precision

RANDOM = np.random.default_rng(3)
X, KERNEL = (RANDOM.standard_normal(s).astype("float32") for s in ((2, 6, 7, 4), (3, 3, 4, 8)))
DY = RANDOM.standard_normal((2, 4, 5, 8)).astype("float32")


class FakeTimer:
    """Gives each candidate a time that depends on what it launches."""

    def __init__(self, gpu, implicit, others):
        self.gpu, self.implicit, self.others = gpu, implicit, others
        self.measured = []
        self.capturing = False

    def can_measure(self):
        return not self.capturing

    def milliseconds(self, function):
        before = len(self.gpu.launches)
        function()
        names = self.gpu.launches[before:]
        time = self.implicit if any(name.startswith("implicit_gemm") for name in names) else self.others
        self.measured.append(time)
        return time


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The file of the measurements, which is not there yet. Kernels stay in their usual folder."""
    monkeypatch.setattr(autotune, "cache_folder", lambda: tmp_path / "kernels")
    monkeypatch.delenv("XPNET_CONVOLUTION", raising=False)
    autotune._cache.reload()
    yield tmp_path / "convolutions.json"
    autotune._cache.reload()


@pytest.fixture
def timed(gpu, cache, monkeypatch):
    """A function that sets the times of a fake timer and returns that."""

    def with_times(implicit, others):
        clock = FakeTimer(gpu, implicit, others)
        monkeypatch.setattr(gpu, "can_measure", clock.can_measure)
        monkeypatch.setattr(gpu, "milliseconds", clock.milliseconds)
        return clock

    return with_times


def every_pass(gpu, x=X, kernel=KERNEL, dy=DY, **settings):
    """Run and compare all three passes; return for each whether it was an implicit GEMM."""
    op = registry["conv2d"]
    bound, full = op.bind((x, kernel, None), settings)
    with reference_only():
        y, saved, implementation = op.run(np, bound, full, True)
        expected = op.gradients(implementation, np, dy, saved, full, (True, True, False))
    gpu.launches.clear()
    bound, dy = tuple(map(gpu.array, bound)), gpu.array(dy)
    found, saved, implementation = op.run(gpu.xp, bound, full, True)
    used = [is_implicit(gpu)]
    np.testing.assert_allclose(gpu.numpy(found), y, rtol=1e-4, atol=1e-4)
    for i in range(2):
        gpu.launches.clear()
        needs = tuple(j == i for j in range(3))
        got = op.gradients(implementation, gpu.xp, dy, saved, full, needs)
        used.append(is_implicit(gpu))
        np.testing.assert_allclose(gpu.numpy(got[i]), to_numpy(expected[i]), rtol=1e-4, atol=1e-3)
    return used


def is_implicit(gpu):
    """Return whether the last pass was one; launches that were timed come before it."""
    last = [name for name in gpu.launches if not name.startswith("bias")][-1:]
    return bool(last) and last[0].startswith("implicit_gemm")


@pytest.mark.parametrize(("implicit", "others", "wins"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_the_fastest_is_measured_once_and_cached(gpu, timed, cache, implicit, others, wins):
    clock = timed(implicit, others)
    assert every_pass(gpu) == [wins] * 3
    assert sorted(clock.measured) == [1.0] * 3 + [2.0] * 3
    assert every_pass(gpu) == [wins] * 3
    assert len(clock.measured) == 6
    autotune._cache.reload()  # as in another process
    clock.capturing = True
    assert every_pass(gpu) == [wins] * 3
    assert len(clock.measured) == 6
    kept = json.loads(cache.read_text())["convolutions"]
    assert [item["pass_name"] for item in kept] == list(autotune.PASSES)
    assert {item["choice"] for item in kept} == {"implicit" if wins else "im2col"}
    assert list(cache.parent.glob("*.tmp")) == []


def test_other_shapes_settings_and_precisions_are_measured_again(gpu, timed):
    clock = timed(1.0, 2.0)
    every_pass(gpu)
    every_pass(gpu, np.concatenate([X, X]), dy=np.concatenate([DY, DY]))
    every_pass(gpu, dy=RANDOM.standard_normal((2, 3, 3, 8)).astype("float32"), stride=2, padding=((1, 0), (0, 0)))
    every_pass(gpu, X.astype("float64"), KERNEL.astype("float64"), DY.astype("float64"))
    assert len(clock.measured) == 4 * 6
    set_matmul_precision("tf32")
    try:
        keys = set(autotune._cache.entries())
        with pytest.raises(AssertionError, match="Not equal to tolerance"):  # 11 bits
            every_pass(gpu)
        assert len(set(autotune._cache.entries()) - keys) == 1
    finally:
        set_matmul_precision("float32")


def test_nothing_is_measured_during_capture(gpu, timed, cache):
    clock = timed(1.0, 2.0)
    clock.capturing = True
    assert every_pass(gpu) == [False] * 3
    assert clock.measured == []
    assert not cache.exists()
    clock.capturing = False
    assert every_pass(gpu) == [True] * 3


@pytest.mark.parametrize(("setting", "implicit"), [("implicit", True), ("im2col", False)])
def test_the_environment_variable_decides(gpu, timed, cache, monkeypatch, setting, implicit):
    monkeypatch.setenv("XPNET_CONVOLUTION", setting)
    clock = timed(2.0, 1.0)
    assert every_pass(gpu) == [implicit] * 3
    assert every_pass(gpu, kernel=KERNEL[:1, :1], dy=RANDOM.standard_normal((2, 6, 7, 8)).astype("float32")) == [implicit] * 3
    assert clock.measured == []
    monkeypatch.setenv("XPNET_CONVOLUTION", "fastest")
    with pytest.raises(ValueError, match="must be one of auto, im2col, implicit, cudnn, got 'fastest'"):
        ops.conv2d(gpu.array(X), gpu.array(KERNEL))


def test_groups_are_measured_like_the_rest(gpu, timed):
    clock = timed(1.0, 2.0)
    assert every_pass(gpu, kernel=KERNEL[:, :, :2], groups=2) == [True] * 3
    assert len(clock.measured) == 6


def test_small_dense_layers_are_measured_for_batches_of_about_one_size(gpu, timed, cache):
    gpu.multiprocessors = 132
    clock = timed(1.0, 2.0)
    kernel, bias = gpu.array(RANDOM.standard_normal((9, 5))), gpu.array(RANDOM.standard_normal(5))
    for rows, measured in ((5, 2), (8, 2), (9, 4), (16, 4)):
        x = RANDOM.standard_normal((rows, 9))
        y = ops.dense(gpu.array(x), kernel, bias)
        np.testing.assert_allclose(gpu.numpy(y), x @ gpu.numpy(kernel) + gpu.numpy(bias), rtol=1e-12, atol=1e-12)
        assert len(clock.measured) == measured
        assert gpu.launches[-1].startswith("implicit_gemm")


def test_empty_batches_are_not_measured(gpu, timed, monkeypatch):
    monkeypatch.setenv("XPNET_CONVOLUTION", "implicit")
    clock = timed(1.0, 2.0)
    assert every_pass(gpu, X[:0], dy=DY[:0]) == [False] * 3
    assert clock.measured == []


DAMAGES = [
    "",
    "[]",
    '{"kernels": "other", "convolutions": []}',
    lambda text: text[: len(text) // 2],
    lambda text: text.replace('"pass_name": "wgrad"', '"pass_name": "sideways"'),
    lambda text: text.replace('"pass_name": "fprop"', '"pass_name": "forward"'),  # as an earlier version wrote it
    lambda text: text.replace('"choice": "implicit"', '"choice": "guess"'),
    lambda text: text.replace('"milliseconds"', '"seconds"'),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_file_is_measured_again(gpu, timed, cache, damage):
    clock = timed(1.0, 2.0)
    every_pass(gpu)
    whole = cache.read_text()
    cache.write_text(damage(whole) if callable(damage) else damage)
    autotune._cache.reload()
    assert every_pass(gpu) == [True] * 3
    assert len(clock.measured) == 12
    assert cache.read_text() == whole


def test_measurements_of_other_processes_are_kept(gpu, timed, cache):
    timed(1.0, 2.0)
    every_pass(gpu)
    mine = json.loads(cache.read_text())
    theirs = {**mine["convolutions"][0], "device": "another"}
    cache.write_text(json.dumps({**mine, "convolutions": [theirs]}))
    every_pass(gpu, np.concatenate([X, X]), dy=np.concatenate([DY, DY]))
    assert len(json.loads(cache.read_text())["convolutions"]) == 7


def test_a_read_only_folder_is_no_error(gpu, timed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(autotune, "cache_folder", lambda: tmp_path / "file" / "kernels")
    clock = timed(1.0, 2.0)
    assert every_pass(gpu) == [True] * 3
    assert every_pass(gpu) == [True] * 3
    assert len(clock.measured) == 6


def test_info_shows_the_measurements(gpu, timed, capsys):
    assert cli.main(["info", "--convolutions"]) == 0
    assert "no convolution has been measured yet" in capsys.readouterr().out
    timed(1.0, 2.0)
    gpu.device_name = "watched"
    every_pass(gpu)
    assert cli.main(["info", "--convolutions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "cuDNN" in lines[-1]
    assert lines[2].split()[:10] == [
        "watched",
        "fprop",
        "2x6x7x4",
        "3x3x4x8",
        "1,1",
        "0+0,0+0",
        "1,1",
        "float32",
        "implicit",
        "im2col",
    ]
    assert lines[2].endswith("im2col 2.000, implicit 1.000")
