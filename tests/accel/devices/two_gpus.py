"""On two GPUs. tests/accel/test_cupy_devices.py runs it on the software device; on a machine with two, name this file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import backend
from xpnet.backend import Device, DeviceError
from xpnet.data.prefetch import Prefetcher

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def two_gpus():
    import cupy

    if cupy.cuda.runtime.getDeviceCount() != 2:
        pytest.skip("needs two GPUs")


def test_their_names():
    assert str(backend.device("cuda")) == "cuda"
    assert str(backend.device("cuda:1")) == "cuda:1"
    with pytest.raises(DeviceError, match=r'"cuda:2" does not exist; the GPUs of this machine are: cuda:0, cuda:1$'):
        backend.device("cuda:2")


@pytest.mark.parametrize("thread", [False, True])
def test_batches_for_the_second_gpu_are_copied_there(monkeypatch, thread):
    """The second GPU is current in whichever thread copies, and the first one again in the caller's."""
    import cupy

    from xpnet.accel.cupy.transfers import CudaTransfers

    current: list[int] = []
    copy: Any = cupy.cuda.runtime.memcpyAsync

    def logged(*arguments):
        current.append(cupy.cuda.runtime.getDevice())
        return copy(*arguments)

    monkeypatch.setattr(cupy.cuda.runtime, "memcpyAsync", logged)
    results = []
    source = ((np.full((4, 3), i, np.float32), i) for i in range(7))
    with cupy.cuda.Device(1):
        prefetcher = Prefetcher(CudaTransfers(Device("cuda", 1)), thread)
        for x, number in prefetcher.run((x, number) for x, number in source):
            assert x.device.id == 1
            results.append((x + number, 2 * number))
        prefetcher.close()
        for x, number in results:
            np.testing.assert_array_equal(x.get(), np.full((4, 3), number))
    assert current == [1] * 7
    assert cupy.cuda.runtime.getDevice() == 0


def test_a_launch_on_another_gpu_than_the_current_one_says_so():
    from xpnet.accel.cupy.activation import _forward
    from xpnet.accel.cupy.launch import launch

    x = xn.to_device(np.ones(8, np.float32), "cuda:1")
    message = "runs on cuda:0, the current device, and got an array on cuda:1; move it with xpnet.to_device"
    with pytest.raises(DeviceError, match=message):
        xn.ops.relu(x)
    with pytest.raises(DeviceError, match=message):
        launch(_forward["float", 1, 1], 1, 32, *[x if p.dtype else 1 for p in _forward["float", 1, 1].parameters])
    with backend.device("cuda:1"):
        np.testing.assert_array_equal(xn.to_numpy(xn.ops.relu(x)), np.ones(8))


def test_each_has_its_runtime_and_its_handle():
    from xpnet.accel.cupy import cublas
    from xpnet.accel.cupy.launch import runtime

    runtimes = []
    for index in (0, 1, 0):
        with backend.device(f"cuda:{index}"):
            x = xn.to_device(np.eye(4, dtype=np.float32), f"cuda:{index}")
            y = xn.ops.matmul(x, 2 * x)
            assert y.device.id == index
            np.testing.assert_array_equal(xn.to_numpy(y), 2 * np.eye(4))
            runtimes.append(runtime())
    assert [r.device for r in runtimes] == [0, 1, 0]  # type: ignore[attr-defined]
    assert runtimes[0] is runtimes[2]
    assert {device for device, _ in cublas._handles.of} == {0, 1}
    assert {memory.device_id for (device, _), (_, memory, *_) in cublas._handles.of.items() if device} == {1}


@pytest.mark.parametrize("capture", [False, True])
def test_a_network_trains_on_the_second_with_the_bits_of_the_first(capture):
    random = np.random.default_rng(0)
    x, y = random.standard_normal((40, 6)).astype(np.float32), random.integers(0, 3, 40)
    ends = []
    for device in ("cuda", "cuda:1"):
        model = xn.Sequential([xn.Dense(8, "relu"), xn.Dropout(0.2), xn.Dense(3)], input_shape=(6,), device=device, seed=1)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), seed=2, capture=capture)
        history = trainer.fit((x, y), epochs=3, batch_size=8, verbose=False)
        weights = model.state()
        assert {a.device.id for a in weights.values()} == {int(device == "cuda:1")}
        predicted = xn.to_numpy(model.predict(x)).tobytes()
        ends.append([history["loss"], {name: xn.to_numpy(a).tobytes() for name, a in weights.items()}, predicted])
    assert ends[0] == ends[1]
