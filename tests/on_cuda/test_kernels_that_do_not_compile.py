"""Kernels that do not compile, and a cache of compiled ones that is broken, read-only or on a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.networks import IMAGES, bits, network, trainer
from xpnet.accel.cupy import compiler
from xpnet.accel.cupy.compiler import CompileError
from xpnet.accel.cupy.runtime import runtime

pytestmark = pytest.mark.cuda
X = np.linspace(-1, 1, 40, dtype=np.float32).reshape(8, 5)

BROKEN = """
import shutil, sys
from pathlib import Path
import xpnet as xn
from xpnet.accel.cupy import source

folder = Path(sys.argv[1]) / "cuda"
shutil.copytree(source.kernel_folder(), folder)
file = folder / "activation.cu"
file.write_text(file.read_text().replace("{", "{ this is not C++;", 1) if sys.argv[2] == "broken" else file.read_text())
source.kernel_folder = lambda: folder

import numpy as np
model = xn.Sequential([xn.Dense(3), xn.ReLU()], input_shape=(5,), device="cuda", seed=1)
x = xn.to_device(np.ones((4, 5), np.float32), "cuda")
try:
    print(xn.to_numpy(model(x)).shape)
except RuntimeError as error:
    print(type(error).__name__, str(error).splitlines()[0])
    print("log" if "error:" in str(error) else str(error))
trainer = xn.Trainer(model, loss="mse", optimizer=xn.optim.SGD(0.1))
try:
    trainer.fit((np.ones((8, 5), np.float32), np.ones((8, 3), np.float32)), batch_size=2, epochs=1, verbose=False)
    print("trained")
except RuntimeError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("state", ["whole", "broken"])
def test_a_source_that_does_not_compile_is_one_clear_error(tmp_path, state):
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "XPNET_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", BROKEN, str(tmp_path), state]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    if state == "whole":
        assert said == ["(4, 3)", "trained"]
        return
    assert said[0].startswith("CompileError kernels/cuda/activation.cu does not compile for "), done.stdout
    assert said[1] == "log"
    assert said[2] == "CompileError"


def test_a_raw_kernel_of_a_users_own_that_does_not_compile():
    import cupy

    kernel = cupy.RawKernel('extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2 }', "twice")
    x = cupy.ones(4, cupy.float32)
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r"error: expected"):
        kernel((1,), (4,), (x,))
    right = cupy.RawKernel('extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }', "twice")
    right((1,), (4,), (x,))
    np.testing.assert_array_equal(cupy.asnumpy(x), 2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a runtime that has loaded nothing."""
    monkeypatch.setenv("XPNET_CACHE", str(tmp_path))
    loaded = runtime()
    monkeypatch.setattr(loaded, "_functions", {})
    return tmp_path / "kernels"


@pytest.fixture
def compiled(monkeypatch):
    """The instances that are compiled from now on."""
    found: list[str] = []
    compile_instances = compiler.compile_instances

    def compile_and_note(file, instances, *rest):
        found.extend(instance.expression for instance in instances)
        return compile_instances(file, instances, *rest)

    monkeypatch.setattr(compiler, "compile_instances", compile_and_note)
    return found


def relu(monkeypatch):
    """Run one kernel, as the first one of a process."""
    monkeypatch.setattr(runtime(), "_functions", {})
    return xn.to_numpy(xn.ops.relu(xn.to_device(X, "cuda")))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_a_broken_file_is_compiled_again(cache, compiled, monkeypatch, damage):
    np.testing.assert_array_equal(relu(monkeypatch), np.maximum(X, 0))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    flipped = whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]
    broken = {"truncated": whole[:200], "flipped": flipped, "empty": b"", "other": b"x" * 99}
    file.write_bytes(broken[damage])
    np.testing.assert_array_equal(relu(monkeypatch), np.maximum(X, 0))
    assert len(compiled) == 2
    assert file.read_bytes() == whole
    np.testing.assert_array_equal(relu(monkeypatch), np.maximum(X, 0))
    assert len(compiled) == 2  # read


@pytest.mark.parametrize("trouble", ["a file in its place", "full", "unreadable"])
def test_a_cache_that_cannot_be_used_costs_only_time(cache, compiled, monkeypatch, trouble):
    if trouble == "a file in its place":
        cache.write_text("not a folder")
    elif trouble == "full":

        def no_space(*arguments, **settings):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fdopen", no_space)
    else:
        cache.mkdir()

        def refused(self):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", refused)
    for _ in range(2):
        np.testing.assert_array_equal(relu(monkeypatch), np.maximum(X, 0))
    assert len(compiled) == 2
    if trouble != "a file in its place":
        assert not list(cache.glob("*.tmp"))


def test_a_model_trains_after_a_kernel_did_not_compile(cache, monkeypatch):
    """The error names the kernel; after it the same model and trainer go on."""
    expected = trainer(network())
    expected.fit((IMAGES, np.zeros(40, int)), epochs=2, batch_size=16, verbose=False)
    run = trainer(network())

    def refuse(file, instances, *rest):
        raise CompileError(f"kernels/cuda/{file}.cu does not compile")

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "compile_instances", refuse)
        patch.setattr(compiler, "_read", lambda entry: None)
        patch.setattr(runtime(), "_functions", {})
        with pytest.raises(CompileError, match=r"kernels/cuda/\w+\.cu does not compile"):
            run.fit((IMAGES, np.zeros(40, int)), epochs=2, batch_size=16, verbose=False)
    run.fit((IMAGES, np.zeros(40, int)), epochs=2, batch_size=16, verbose=False)
    assert bits(run.model) == bits(expected.model)
