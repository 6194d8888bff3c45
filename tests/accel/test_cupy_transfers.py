"""Prefetching through CuPy: the calls that its streams get, on a fake; and all of it on a GPU."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import sys
import types
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from tests.accel.gpu import skip_without_gpu
from xpnet.backend import Device
from xpnet.data import Batches, ByteImages
from xpnet.data.augment import Compose, Crop, Cutout, Flip, Mixup, Normalise
from xpnet.data.prefetch import Prefetcher
from xpnet.inspect.timeline import Timeline

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 4, 70)
AUGMENT = Compose(Crop(2), Flip(), Cutout(3))


class Stream:
    """As cupy.cuda.Stream: executes everything at once and logs it."""

    current = None

    def __init__(self, log, ptr, **settings):
        self.log, self.ptr, self.settings = log, ptr, settings

    def wait_event(self, event):
        self.log.append(("wait", self.ptr, event))

    def synchronize(self):
        self.log.append(("synchronize", self.ptr))

    def __enter__(self):
        self.before, Stream.current = Stream.current, self

    def __exit__(self, *exception):
        Stream.current = self.before


class DeviceMemory(np.ndarray):
    """A NumPy array whose `data` is as CuPy's."""

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)


@pytest.fixture
def cuda(monkeypatch):
    """Return the module on a fake CuPy, and the log of calls."""
    log: list[Any] = []
    pointers, entered = itertools.count(100), []

    class Event:
        def __init__(self, block=False, disable_timing=False):
            self.block, self.disable_timing, self.stream = block, disable_timing, None
            self.number = len(log)

        def record(self, stream=None):
            stream = stream or Stream.current
            assert stream is not None
            self.stream = stream.ptr
            log.append(("record", self.stream, self))

        def synchronize(self):
            assert self.stream is not None
            log.append(("host waits", self))

    class GPU:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            entered.append(self.index)

        def __exit__(self, *exception):
            entered.pop()

    def copy(target, source, size, kind, stream):
        assert entered[-1] == 1  # the second GPU is current in the thread
        assert kind == "to the device"
        ctypes.memmove(target, source, size)
        log.append(("copy", stream, size))

    def empty(size, dtype):
        assert Stream.current is not None
        log.append(("empty", Stream.current.ptr, size))
        return np.full(size, 7, dtype).view(DeviceMemory)

    module: Any = types.ModuleType("cupy")
    module.ndarray, module.uint8, module.empty = DeviceMemory, np.uint8, empty
    module.cuda = types.SimpleNamespace(
        Device=GPU,
        Event=Event,
        Stream=lambda **settings: Stream(log, next(pointers), **settings),
        get_current_stream=lambda: Stream.current,
        alloc_pinned_memory=lambda size: bytearray(size),
        get_elapsed_time=lambda start, end: 1e3 * (end.number - start.number),
        runtime=types.SimpleNamespace(memcpyAsync=copy, memcpyHostToDevice="to the device"),
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    name = "xpnet.accel.cupy.transfers"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(Device, "xp", np)
    Stream.current = Stream(log, 1)
    yield importlib.import_module(name), log
    sys.modules.pop(name, None)


def batches(count):
    for i in range(count):
        yield (np.full((4, 3), i, np.float32), np.full(4, i)), None


def test_the_order_of_calls_on_the_streams(cuda):
    module, log = cuda
    transfers = module.CudaTransfers(Device("cuda", 1))
    copies = transfers._stream.ptr
    assert transfers._stream.settings == {"non_blocking": True}  # else it would wait for the default stream
    prefetcher = Prefetcher(transfers, thread=False, slots=2)
    for number, ((x, y), _) in enumerate(prefetcher.run(batches(5))):
        np.testing.assert_array_equal(x, np.full((4, 3), number, np.float32))
        np.testing.assert_array_equal(y, np.full(4, number))
        log.append(("step", number))
    prefetcher.close()
    assert all(what[1] == copies for what in log if what[0] in ("copy", "empty"))
    assert sum(what[0] == "copy" for what in log) == 10
    events = [what[2] for what in log if what[0] == "record"]
    assert all(event.block and event.disable_timing for event in events)
    for number in range(5):
        at = log.index(("step", number))
        wait, used = log[at - 1], log[at + 1]
        assert wait[:2] == ("wait", 1)  # the current stream waits for a copy right before the step
        assert wait[2].stream == copies
        assert used[:2] == ("record", 1)  # and records right after it that the buffer is free
        later = [what[2] for what in log if what[:2] == ("wait", copies)]
        assert (used[2] in later) == (number < 3)  # the copy into that buffer, two batches later, waits for it
    assert [what for what in log if what[0] == "synchronize"] == [("synchronize", copies), ("synchronize", 1)]


def test_times_are_those_of_events(cuda):
    module, _ = cuda
    with Timeline() as line:
        transfers = module.CudaTransfers(Device("cuda", 1))
        prefetcher = Prefetcher(transfers)
        for _ in prefetcher.run(batches(3)):
            pass
        prefetcher.close()
    assert len(line.lane("copies")) == 3
    assert all(span.end > span.start for span in line.lane("copies"))
    untimed = module.CudaTransfers(Device("cuda", 1))
    with pytest.raises(RuntimeError, match="Timeline is recording"):
        untimed.seconds(untimed.copied())


# -- on a GPU --


@pytest.fixture
def gpu():
    skip_without_gpu()
    return "cuda"


def learnt(data, capture, **settings):
    layers = [xn.Conv2D(8, 3, activation="relu"), xn.MaxPool2D(2), xn.Flatten(), xn.Dropout(0.2), xn.Dense(4)]
    model = xn.Sequential(layers, input_shape=(8, 8, 3), device="cuda", seed=1)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), seed=3, capture=capture)
    history = trainer.fit(Batches(data, 16, seed=3, device="cuda", **settings), epochs=4, verbose=False)
    return history["loss"], {name: xn.to_numpy(p.array) for name, p in model.parameters().items()}


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NORMALISE = Compose(AUGMENT, Normalise(MEAN, STD))


@pytest.mark.cuda
@pytest.mark.parametrize("augment", [None, AUGMENT, NORMALISE, Compose(AUGMENT, Mixup(classes=4))])
@pytest.mark.parametrize("kind", ["resident bytes", "resident floats", "bytes", "floats", "file"])
def test_recorded_steps_have_the_bits_of_plain_ones(gpu, augment, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("XPNET_CONVOLUTION", "im2col")  # not what autotune finds
    floats = ByteImages(IMAGES)[:]
    np.save(tmp_path / "x.npy", xn.to_numpy(floats))
    x = {
        "resident bytes": lambda: ByteImages(IMAGES, device=gpu),
        "resident floats": lambda: xn.to_device(floats, gpu),
        "bytes": lambda: ByteImages(IMAGES),
        "floats": lambda: floats,
        "file": lambda: np.load(tmp_path / "x.npy", mmap_mode="r"),
    }[kind]()
    plain = learnt((xn.to_device(floats, gpu), LABELS), False, augment=augment)
    found = learnt((x, LABELS), True, augment=augment)
    assert found[0] == plain[0]
    for name, values in plain[1].items():
        np.testing.assert_array_equal(found[1][name], values)


@pytest.mark.cuda
def test_batches_on_a_gpu_are_those_of_the_cpu(gpu):
    from xpnet.data.device_feed import ResidentFeed, choose_feed

    on_gpu = Batches((ByteImages(IMAGES, mean=MEAN, std=STD, device=gpu), LABELS), 16, seed=3, augment=AUGMENT, device=gpu)
    expected = Batches((ByteImages(IMAGES, mean=MEAN, std=STD), LABELS), 16, seed=3, augment=AUGMENT)
    feed = choose_feed(on_gpu, Device("cuda"), cast(Any, lambda: None))
    assert isinstance(feed, ResidentFeed)
    for (x, y), (u, v) in zip(feed.epoch(2), expected.epoch(2), strict=True):
        feed.prepare(size=len(x))
        np.testing.assert_array_equal(xn.to_numpy(x), u)
        np.testing.assert_array_equal(xn.to_numpy(y), v)


@pytest.mark.cuda
def test_a_timeline_on_a_gpu(gpu):
    with Timeline() as line:
        learnt((ByteImages(IMAGES)[:], LABELS), True)
    assert len(line.lane("computation")) == len(line.lane("copies")) == 4 * 5
    assert all(span.end >= span.start for span in line.spans)
