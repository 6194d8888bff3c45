"""Prefetching through CuPy: the calls that its streams get, and whole runs."""

from __future__ import annotations

import itertools
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


@pytest.fixture
def gpu():
    skip_without_gpu()
    return "cuda"


def batches(count):
    for i in range(count):
        yield (np.full((4, 3), i, np.float32), np.full(4, i)), None


@pytest.fixture
def log(gpu, monkeypatch):
    """A log of the calls that streams get: (what, the stream's address, ...)."""
    import cupy

    calls: list[Any] = []
    cuda: Any = cupy.cuda

    class Event(cuda.Event):
        def __init__(self, block=False, disable_timing=False):
            super().__init__(block=block, disable_timing=disable_timing)
            self.settings = block, disable_timing
            self.stream: int | None = None

        def record(self, stream=None):
            stream = cuda.get_current_stream() if stream is None else stream
            super().record(stream)
            self.stream = stream.ptr
            calls.append(("record", stream.ptr, self))

        def synchronize(self):
            super().synchronize()
            calls.append(("host waits", self.stream, self))

    def logged(owner, name, entry):
        known = getattr(owner, name)

        def call(*arguments, **keywords):
            result = known(*arguments, **keywords)
            calls.append(entry(*arguments))
            return result

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(cuda, "Event", Event)
    logged(cuda.Stream, "wait_event", lambda stream, event: ("wait", stream.ptr, event))
    logged(cuda.Stream, "synchronize", lambda stream: ("synchronize", stream.ptr))
    logged(cuda.runtime, "memcpyAsync", lambda target, source, size, kind, stream: ("copy", stream, size, kind))
    logged(cupy, "empty", lambda size, dtype: ("empty", cuda.get_current_stream().ptr, size))
    return calls


@pytest.mark.cuda
def test_the_order_of_calls_on_the_streams(log):
    import cupy

    from xpnet.accel.cupy.transfers import CudaTransfers

    current = cupy.cuda.Stream(non_blocking=True)
    with current:
        transfers = CudaTransfers(Device("cuda"))
        copies = transfers._stream.ptr
        assert transfers._stream.is_non_blocking  # else it would wait for the default stream
        assert copies != current.ptr
        prefetcher = Prefetcher(transfers, thread=False, slots=2)
        for number, ((x, y), _) in enumerate(prefetcher.run(batches(5))):
            log.append(("step", number))
            np.testing.assert_array_equal(x.get(), np.full((4, 3), number, np.float32))
            np.testing.assert_array_equal(y.get(), np.full(4, number))
            log.append(("stepped", number))
        prefetcher.close()
    assert all(what[1] == copies for what in log if what[0] in ("copy", "empty"))
    assert [what[3] for what in log if what[0] == "copy"] == [cupy.cuda.runtime.memcpyHostToDevice] * 10
    events = [what[2] for what in log if what[0] == "record"]
    assert all(event.settings == (True, True) for event in events)  # the host does not spin, and nothing is timed
    for number in range(5):
        begun, ended = log.index(("step", number)), log.index(("stepped", number))
        wait, used = log[begun - 1], log[ended + 1]
        assert wait[:2] == ("wait", current.ptr)  # the current stream waits for a copy right before the step
        assert wait[2].stream == copies
        assert used[:2] == ("record", current.ptr)  # and records right after it that the buffer is free
        later = [what[2] for what in log if what[:2] == ("wait", copies)]
        assert (used[2] in later) == (number < 3)  # the copy into that buffer, two batches later, waits for it
        if number < 3:  # and the host for the copy that is in the pinned memory
            assert log.index(("host waits", copies, wait[2])) > ended
    assert log[-2:] == [("synchronize", copies), ("synchronize", current.ptr)]


@pytest.mark.cuda
def test_times_are_those_of_events(gpu):
    import cupy

    from xpnet.accel.cupy.transfers import CudaTransfers

    with Timeline() as line:
        before = line.now()
        transfers = CudaTransfers(Device("cuda"))
        prefetcher = Prefetcher(transfers)
        for _ in prefetcher.run(batches(3)):
            pass
        prefetcher.close()
        after = line.now()
    spans = line.lane("copies")
    assert len(spans) == 3
    assert all(before <= span.start <= span.end <= after for span in spans)
    assert all(first.end <= second.start for first, second in itertools.pairwise(spans))  # one stream
    untimed = CudaTransfers(Device("cuda"))
    with pytest.raises(RuntimeError, match="Timeline is recording"):
        untimed.seconds(untimed.copied())
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="InvalidResourceHandle"):  # its events have no times
        cupy.cuda.get_elapsed_time(untimed.copied(), untimed.copied())


# -- whole runs --


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
