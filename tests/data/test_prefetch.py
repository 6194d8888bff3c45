"""Batches on their way to a device, as far as the host makes them: slots, threads, errors and the ends of runs.

The order of copies and computations on a device is tested there: test_prefetch_cuda.py.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import Any

import numpy as np
import pytest

from xpnet.data import Batches, WorkerError
from xpnet.data.prefetch import Prefetcher
from xpnet.data.sources import SkipExample
from xpnet.inspect.timeline import Timeline

from ._helpers import Dies, Squares

X = np.random.default_rng(0).normal(size=(50, 4, 3)).astype(np.float32)
Y = np.arange(50)


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("xpnet-data")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not workers()


def made(count=9, fails_at=None):
    """Batches of two sizes, each with its number beside it."""
    for i in range(count):
        if i == fails_at:
            raise OSError("the disk is gone")
        n = 8 if i % 4 else 5 + i
        yield (np.full((n, 3), i, np.float32), np.arange(n) + i), [i]


class Moment:
    """An event that has been reached."""

    def __init__(self, time):
        self.time = time

    def synchronize(self):
        pass


class HostTransfers:
    """Copies at once, in main memory."""

    xp: Any = np

    def __init__(self):
        self.allocated = self.finished = 0

    def pinned(self, size):
        self.allocated += 1
        return np.full(size, 0xEE, np.uint8)

    def buffer(self, size):
        return np.full(size, 0xDD, np.uint8)

    def copy(self, target, source):
        target[...] = source

    def copied(self):
        return Moment(time.perf_counter())

    def used(self):
        return Moment(time.perf_counter())

    def copies_wait(self, event):
        assert isinstance(event, Moment)

    def computations_wait(self, event):
        assert isinstance(event, Moment)

    def beside(self, work):
        return work()

    def is_there(self, array):
        return False

    def move(self, array):
        raise AssertionError("no array is there")

    def seconds(self, event):
        return event.time

    def finish(self):
        self.finished += 1


def check(results, count=9):
    expected = [batch for batch, _ in itertools.islice(made(1000), count)]
    assert len(results) == len(expected)
    for found, wanted in zip(results, expected):
        for a, b in zip(found, wanted):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_every_step_sees_its_batch(thread, slots):
    device = HostTransfers()
    prefetcher = Prefetcher(device, thread, slots)
    for _ in range(2):
        results: list[Any] = []
        for number, ((x, y), others) in enumerate(prefetcher.run(made())):
            assert others == [number]
            results.append((x.copy(), y.copy()))
        prefetcher.close()
        check(results)
    assert device.finished == 2


def test_slots_are_used_again():
    device = HostTransfers()
    prefetcher = Prefetcher(device)
    same = ((item, None) for item in itertools.repeat((X[:8], Y[:8]), 20))
    assert len({x.ctypes.data for (x, _), _ in prefetcher.run(same)}) == 3
    assert device.allocated == 3 * 2 * 2  # each array of each slot: nothing, then what the first batch needs
    prefetcher.close()


@pytest.mark.parametrize(("thread", "most"), [(False, 1), (True, 3)])
def test_a_thread_makes_batches_ahead_and_no_further(thread, most):
    begun = []

    def source():
        for item in made():
            begun.append(item)
            yield item

    prefetcher = Prefetcher(HostTransfers(), thread)
    run = prefetcher.run(source())
    next(run)
    deadline = time.monotonic() + 5
    while len(begun) < most and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(begun) == most  # the one in use, and two more in the thread
    prefetcher.close()


@pytest.mark.parametrize("thread", [False, True])
def test_an_error_comes_in_its_turn(thread):
    seen: list[Any] = []
    prefetcher = Prefetcher(HostTransfers(), thread)

    def loop():
        for (x, y), _ in prefetcher.run(made(fails_at=4)):
            seen.append((x.copy(), y.copy()))

    with pytest.raises(OSError, match="the disk is gone"):
        loop()
    prefetcher.close()
    check(seen, 4)


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, None])
def test_stopping_early_leaves_nothing_running(thread, interrupt):
    closed = []

    def source():
        try:
            yield from made(1000)
        finally:
            closed.append(threading.current_thread())

    results: list[Any] = []
    prefetcher = Prefetcher(HostTransfers(), thread)

    def loop():
        for (x, y), _ in prefetcher.run(source()):
            results.append((x.copy(), y.copy()))
            if len(results) > 9:
                if interrupt is not None:
                    raise interrupt
                break

    if interrupt is None:
        loop()
    else:
        with pytest.raises(interrupt):
            loop()
    prefetcher.close()
    assert len(closed) == 1
    assert not workers()
    check(results, 10)
    # And the same slots serve again.
    results.clear()
    for (x, y), _ in prefetcher.run(made()):
        results.append((x.copy(), y.copy()))
    prefetcher.close()
    check(results)


def test_closing_while_a_batch_is_being_made():
    begun, go_on = threading.Event(), threading.Event()

    def source():
        yield from made(2)
        begun.set()
        go_on.wait(10)
        yield from made(2)

    prefetcher = Prefetcher(HostTransfers())
    run = prefetcher.run(source())
    next(run)
    assert begun.wait(10)
    threading.Timer(0.05, go_on.set).start()
    prefetcher.close()  # waits for the thread, which is inside the generator, and then closes that
    with pytest.raises(StopIteration):
        next(run)


@pytest.mark.parametrize(
    "settings",
    [{}, {"drop_last": True}, {"workers": 2}, {"samples_per_epoch": 20}, {"transform": lambda batch: (2 * batch[0], batch[1])}],
    ids=["plain", "drop_last", "workers", "samples_per_epoch", "transform"],
)
def test_batches_are_the_same_prefetched(settings):
    batches = Batches((X, Y), 8, seed=3, **settings)
    prefetcher = Prefetcher(HostTransfers())
    for epoch, start in ((0, 0), (1, 2)):
        staged = []
        for number, (x, y) in enumerate(batches.prefetched(epoch, start, prefetcher.run), start + 1):
            staged.append((x.copy(), y.copy()))
            assert batches.state()["batch"] == number  # what is made ahead does not count
        expected = list(batches.epoch(epoch, start))
        assert len(staged) == len(expected)
        for found, wanted in zip(staged, expected):
            for a, b in zip(found, wanted):
                np.testing.assert_array_equal(a, b)
    prefetcher.close()


def test_the_death_of_a_worker_process_is_an_error_and_no_hang():
    prefetcher = Prefetcher(HostTransfers())
    with Batches(Dies(), 4, shuffle=False, workers=1, processes=True) as batches, pytest.raises(WorkerError, match="died"):
        list(batches.prefetched(0, 0, prefetcher.run))
    prefetcher.close()


def test_what_a_worker_leaves_out_is_noted_in_its_turn():
    class Gaps(Squares):
        def __getitem__(self, i):
            if i in (4, 5, 6, 7, 9):
                raise SkipExample(f"file {i}", "it is empty")
            return super().__getitem__(i)

    batches, prefetcher = Batches(Gaps(), 4, shuffle=False, workers=1), Prefetcher(HostTransfers())
    with pytest.warns(RuntimeWarning, match="left out file"):
        found = [y.tolist() for _, y in batches.prefetched(0, 0, prefetcher.run)]
    prefetcher.close()
    assert found[:2] == [[0, 1, 4, 9], [64, 100, 121]]  # a batch that is skipped as a whole takes no slot
    assert len(batches.skipped) == 5


def test_other_byte_orders_empty_batches_and_dicts():
    device = HostTransfers()
    big = np.arange(6, dtype=">f4").reshape(2, 3)[:, ::-1]
    items = [({"a": big, "b": np.zeros((0, 3))}, None), (None, "skipped")]
    found = list(Prefetcher(device).run(item for item in items))
    batch, _ = found[0]
    assert batch["a"].dtype == np.dtype("=f4")
    np.testing.assert_array_equal(batch["a"], big)
    assert batch["b"].shape == (0, 3)
    assert found[1] == (None, "skipped")


def test_a_timeline_of_loading_copying_and_computing(tmp_path):
    device = HostTransfers()
    with Timeline() as line:
        prefetcher = Prefetcher(device)
        for (_, _), _ in prefetcher.run(made()):
            start = device.used()
            time.sleep(0.002)
            line.add("computation", "step", start, device.used(), device.seconds)
        prefetcher.close()
        with pytest.raises(RuntimeError, match="another one"):
            Timeline().__enter__()
    assert [len(line.lane(name)) for name in ("loading", "copies", "computation")] == [9, 9, 9]
    for spans in map(line.lane, ("loading", "copies", "computation")):
        assert all(span.start <= span.end for span in spans)
    assert line.seconds("computation") >= 9 * 0.002
    assert 0 <= line.hidden("copies") <= 1
    assert 0 < line.busy() <= 1
    assert "copies" in str(line)
    line.save(tmp_path / "line.json")
    events = json.loads((tmp_path / "line.json").read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 27
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {"computation", "copies", "loading"}


class Hours(HostTransfers):
    """Streams that take the time they are told to, on a clock of their own; the host goes on at once."""

    class Point:
        def __init__(self, device, time):
            self.device, self.time = device, time

        def synchronize(self):
            self.device.host = max(self.device.host, self.time)

    def __init__(self, copying):
        super().__init__()
        self.copying, self.host, self.until = copying, 0.0, {"copies": 0.0, "computations": 0.0}

    def works(self, stream, length):
        start = max(self.until[stream], self.host)
        self.until[stream] = start + length

    def copy(self, target, source):
        target[...] = source
        self.works("copies", self.copying / 2)  # of the two arrays of a batch

    def copied(self):
        return self.Point(self, max(self.until["copies"], self.host))

    def used(self):
        return self.Point(self, max(self.until["computations"], self.host))

    def copies_wait(self, event):
        self.until["copies"] = max(self.until["copies"], event.time)

    def computations_wait(self, event):
        self.until["computations"] = max(self.until["computations"], event.time)

    def finish(self):
        self.host = max(self.host, *self.until.values())

    def seconds(self, event):
        return event.time


def scheduled(loading, copying, computing, slots):
    """A timeline of 20 steps where each part takes so long."""
    device = Hours(copying)

    def source():
        for item in made(20):
            device.host += loading
            yield item

    with Timeline() as line:
        prefetcher = Prefetcher(device, thread=False, slots=slots)
        for _ in prefetcher.run(source()):
            start = device.used()
            device.works("computations", computing)
            line.add("computation", "step", start, device.used(), device.seconds)
        prefetcher.close()
    return line


@pytest.mark.parametrize(("loading", "copying", "computing"), [(1, 1, 1), (3, 4, 5), (0.1, 0.1, 1), (2, 5, 5)])
def test_steps_follow_each_other_where_loading_and_copying_take_no_longer(loading, copying, computing):
    line = scheduled(loading, copying, computing, slots=3)
    assert line.busy() == pytest.approx(1)
    assert line.seconds("computation") == pytest.approx(20 * computing)
    assert line.seconds("copies") == pytest.approx(20 * copying)
    # All copies but those before the first step run beside one.
    assert line.hidden("copies") >= 1 - 3 * copying / (20 * copying)


def test_one_slot_would_make_them_wait():
    line = scheduled(1, 1, 1, slots=1)
    assert line.busy() < 0.6
    assert line.hidden("copies") < 0.1


def test_what_takes_longest_is_never_idle():
    """With slow copies these follow each other, and with slow loading nothing else can be asked for."""
    copies = scheduled(1, 5, 2, slots=3).lane("copies")
    assert copies[-1].end - copies[0].start == pytest.approx(20 * 5)
