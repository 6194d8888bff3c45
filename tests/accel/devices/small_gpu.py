"""On a GPU of 64 MiB, which is soon full: tests/accel/test_cupy_devices.py runs it on the software device."""

from __future__ import annotations

import gc
import re
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.backend import Array, DeviceMemoryError, raise_explained
from xpnet.ops.registry import Op

pytestmark = pytest.mark.cuda

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_is_left():
    import cupy

    yield
    gc.collect()
    cupy.get_default_memory_pool().set_limit(0)
    cupy.get_default_memory_pool().free_all_blocks()


def greedy():
    """An operation that wants 128 MiB forward, and where that is enough 5 GiB backward."""

    def wants_too_much(xp, x: Array, *, forward: int = 128 * MIB):
        return xp.empty(forward, dtype=xp.uint8), None

    operation = Op(wants_too_much)
    operation.backward(lambda xp, dy, saved, forward: xp.empty(5 << 30, dtype=xp.uint8))
    return operation


def numbers(message):
    """Return what was asked for, what is free and in all, in use and kept, in MiB."""
    pattern = r"Asked for: (.*), working on.*Free: (.*) of (.*); arrays in use take (.*), CuPy keeps (.*) for reuse"
    found = re.search(pattern, message)
    assert found is not None, message
    units = {"B": 1 / MIB, "KiB": 1 / 1024, "MiB": 1, "GiB": 1024}
    return [float(number) * units[unit] for number, unit in (group.split() for group in found.groups())]


@pytest.mark.parametrize("backwards", [False, True])
def test_out_of_memory_explains_request_free_memory_and_remedies(backwards):
    import cupy

    operation, xp = greedy(), xn.backend.namespace(cupy.empty(0))
    kept, x = cupy.empty(16 * MIB, cupy.uint8), cupy.zeros((64, 32, 3), cupy.float32)
    size = {"forward": 8 if backwards else 128 * MIB}

    def run():
        _, saved, implementation = operation.run(xp, (x,), size, True)
        operation.gradients(implementation, xp, x, saved, size, (True,))

    with pytest.raises(DeviceMemoryError) as caught:
        run()
    message = str(caught.value)
    assert message.startswith(("the backward pass of " if backwards else "") + "wants_too_much: cuda:0 is out of memory")
    assert "working on cupy array (64, 32, 3) float32 on cuda." in message
    asked, free, total, used, _ = numbers(message)
    assert asked == (5 * 1024 if backwards else 128)
    assert total == 64
    assert used == pytest.approx((kept.nbytes + x.nbytes) / MIB, abs=0.01)
    assert 0 < free < 48
    assert "smaller batch_size" in message
    assert "limited" not in message
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value.__cause__, cupy.cuda.memory.OutOfMemoryError)


def test_a_limit_of_the_pool_is_named():
    import cupy

    cupy.get_default_memory_pool().set_limit(32 * MIB)
    with pytest.raises(DeviceMemoryError, match="is limited to 32 MiB"):
        xn.ops.multiply(cupy.zeros((4, 1024, 1024), cupy.float32), cupy.zeros((1024, 1024), cupy.float32))


def test_an_error_is_explained_once():
    raise_explained(DeviceMemoryError("explained"), "conv2d", ())


def test_moving_an_array_there():
    with pytest.raises(DeviceMemoryError, match=r"to_device: .* Asked for: 128 MiB, working on numpy array \(128, 1048576\)"):
        xn.to_device(np.zeros((128, MIB), np.uint8), "cuda")


@pytest.mark.parametrize("capture", [True, False])
def test_a_smaller_batch_helps(capture):
    """A step that does not fit names the layer, and leaves the model and the device usable."""
    x, y = np.ones((4096, 64), np.float32), np.arange(4096) % 8
    model: Any = xn.Sequential([xn.Dense(1024, "relu"), xn.Dense(1024, "relu"), xn.Dense(8)], input_shape=(64,), device="cuda")
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.01), capture=capture)
    # An activation, or the workspace of cuBLAS for the stream of captured steps.
    with pytest.raises(DeviceMemoryError, match=r"layer '.' \(Dense\): .*is out of memory\. Asked for: (16|32) MiB"):
        trainer.fit((x, y), batch_size=4096, epochs=1, verbose=False)
    model.flat_parameters.zero_grad()
    history = trainer.fit((x[:64], y[:64]), batch_size=16, epochs=2, verbose=False)
    assert np.isfinite(history["loss"]).all()
