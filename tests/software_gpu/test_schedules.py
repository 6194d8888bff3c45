"""Schedules of the software device: every order that streams, events and the host's waiting allow, and no other one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.software_gpu import device

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

SIZE = 64
OUT_OF_ORDER = (*device.SCHEDULES[1:-1], *(f"random:{seed}" for seed in range(8)))
EVERY = ("eager", *OUT_OF_ORDER)


@pytest.fixture
def cupy() -> Any:
    import cupy

    x = cupy.zeros(SIZE)
    x += 1  # compiled before a schedule begins
    x.copy()
    return cupy


def pinned(cupy: Any, value: float) -> np.ndarray[Any, Any]:
    """Return a pinned array of a value."""
    array = np.frombuffer(cupy.cuda.alloc_pinned_memory(8 * SIZE), np.float64, SIZE)
    array[...] = value
    return array


class Program:
    """Two streams, an array on the device, and pinned memory: what the cases below are made of."""

    def __init__(self, cupy: Any, blocking: bool = False) -> None:
        self.cupy = cupy
        self.first = cupy.cuda.Stream(non_blocking=not blocking)
        self.second = cupy.cuda.Stream(non_blocking=not blocking)
        self.x, self.y = cupy.zeros(SIZE), cupy.zeros(SIZE)
        self.host, self.back = pinned(cupy, 7.0), pinned(cupy, -1.0)
        cupy.cuda.runtime.deviceSynchronize()

    def upload(self, stream: Any, target: Any = None, source: Any = None) -> None:
        """Enqueue a copy from the host to the device."""
        source = self.host if source is None else source
        target = self.x if target is None else target
        runtime = self.cupy.cuda.runtime
        runtime.memcpyAsync(target.data.ptr, source.ctypes.data, target.nbytes, runtime.memcpyHostToDevice, stream.ptr)

    def download(self, stream: Any, source: Any = None) -> None:
        """Enqueue a copy from the device to the host."""
        runtime, source = self.cupy.cuda.runtime, self.x if source is None else source
        runtime.memcpyAsync(self.back.ctypes.data, source.data.ptr, source.nbytes, runtime.memcpyDeviceToHost, stream.ptr)

    def add(self, stream: Any, x: Any = None, to: Any = None) -> None:
        """Enqueue a kernel: `to` = x + 1."""
        with stream:
            x = self.x if x is None else x
            self.cupy.add(x, 1.0, out=x if to is None else to)


def upload_then_kernel(p: Program, wait: bool) -> float:
    """A kernel reads what a copy on another stream writes."""
    p.upload(p.first)
    if wait:
        p.second.wait_event(p.first.record())
    p.add(p.second, to=p.y)
    p.second.synchronize()
    return float(p.y.get(stream=p.second)[0])  # 8


def kernel_then_upload(p: Program, wait: bool) -> float:
    """A copy overwrites what a kernel on another stream still reads."""
    p.add(p.first, to=p.y)
    if wait:
        p.second.wait_event(p.first.record())
    p.upload(p.second)
    p.first.synchronize()
    p.second.synchronize()
    return float(p.y.get(stream=p.first)[0]) + 7  # 1 + 7


def download_then_kernel(p: Program, wait: bool) -> float:
    """A kernel overwrites what a copy to the host on another stream still reads."""
    p.upload(p.first)
    p.first.synchronize()
    p.download(p.first)
    if wait:
        p.second.wait_event(p.first.record())
    p.add(p.second)
    p.second.synchronize()
    p.first.synchronize()
    return float(p.back[0]) + 1  # 7 + 1


def refill_pinned(p: Program, wait: bool) -> float:
    """The host writes pinned memory that a copy still reads."""
    p.upload(p.first)
    if wait:
        p.first.record().synchronize()
    p.host[...] = 100
    p.first.synchronize()
    return float(p.x.get(stream=p.first)[0]) + 1  # 7 + 1


def read_pinned(p: Program, wait: bool) -> float:
    """The host reads pinned memory that a copy has yet to write."""
    p.upload(p.first)
    p.add(p.first)
    p.download(p.first)
    if wait:
        p.first.synchronize()
    return float(p.back[0])  # 8


def replay_then_read(p: Program, wait: bool) -> float:
    """A stream reads what a graph writes on another one."""
    p.upload(p.first)
    p.first.begin_capture()
    p.add(p.first, to=p.y)
    graph = p.first.end_capture()
    graph.launch(p.first)
    if wait:
        p.second.wait_event(p.first.record())
    return float(p.y.get(stream=p.second)[0])  # 8


HAZARDS: dict[str, tuple[Callable[[Program, bool], float], set[str]]] = {
    "upload, kernel": (upload_then_kernel, {"lazy", "early-kernels"}),
    "kernel, upload": (kernel_then_upload, {"early-copies"}),
    "download, kernel": (download_then_kernel, {"early-kernels", "lazy"}),
    "refill pinned memory": (refill_pinned, {"lazy", "early-kernels"}),
    "read pinned memory": (read_pinned, {"lazy", "early-copies", "early-kernels"}),
    "replay, read": (replay_then_read, {"lazy", "early-copies", "early-kernels"}),
}


@pytest.mark.parametrize("schedule", EVERY)
@pytest.mark.parametrize("name", HAZARDS)
def test_work_that_waits_is_right_in_every_order(cupy, name, schedule):
    with device.schedule(schedule):
        assert HAZARDS[name][0](Program(cupy), True) == 8


@pytest.mark.parametrize("name", HAZARDS)
def test_a_missing_wait_shows(cupy, name):
    program, shown_by = HAZARDS[name]

    def wrong(schedule: str) -> bool:
        with device.schedule(schedule):
            return program(Program(cupy), False) != 8

    assert {schedule for schedule in ("lazy", "early-copies", "early-kernels") if wrong(schedule)} == shown_by
    assert any(wrong(f"random:{seed}") for seed in range(40))
    assert not wrong("eager")


def test_pageable_memory_is_read_before_the_call_returns(cupy):
    for schedule in EVERY:
        with device.schedule(schedule):
            p = Program(cupy)
            source = np.full(SIZE, 3.0)
            p.upload(p.first, source=source)
            source[...] = 9
            assert p.x.get(stream=p.first)[0] == 3
            cupy.cuda.runtime.memcpy(p.x.data.ptr, source.ctypes.data, source.nbytes, cupy.cuda.runtime.memcpyHostToDevice)
            source[...] = 11
            assert p.x.get(stream=cupy.cuda.Stream.null)[0] == 9


@pytest.mark.parametrize("schedule", EVERY)
def test_the_legacy_stream_and_blocking_ones_wait_for_each_other(cupy, schedule):
    with device.schedule(schedule):
        p = Program(cupy, blocking=True)
        null = cupy.cuda.Stream.null
        p.upload(p.first)
        p.add(null)
        p.add(p.second)
        assert p.x.get(stream=p.second)[0] == 9
        p.add(p.second, to=p.y)
        p.upload(null, p.x, pinned(cupy, 50.0))
        null.synchronize()
        assert p.y.get(stream=null)[0] == 10


def test_the_legacy_stream_does_not_wait_for_others(cupy):
    with device.schedule("lazy"):
        p = Program(cupy)
        p.upload(p.first)
        assert p.x.get(stream=cupy.cuda.Stream.null)[0] == 0
        p = Program(cupy)
        p.add(cupy.cuda.Stream.null)
        assert p.x.get(stream=p.first)[0] == 0


def test_a_wait_is_for_what_the_event_stood_for_then(cupy):
    with device.schedule("lazy"):
        p = Program(cupy)
        event = cupy.cuda.Event()
        p.upload(p.first)
        event.record(p.first)
        p.second.wait_event(event)
        p.add(p.first)
        event.record(p.first)
        assert p.x.get(stream=p.second)[0] == 7
        p.second.wait_event(event)
        assert p.x.get(stream=p.second)[0] == 8


@pytest.mark.parametrize("schedule", EVERY)
def test_freeing_memory_waits_for_all_work(cupy, schedule):
    runtime = cupy.cuda.runtime
    with device.schedule(schedule):
        p = Program(cupy)
        pointer = runtime.malloc(8 * SIZE)
        runtime.memcpyAsync(pointer, p.host.ctypes.data, 8 * SIZE, runtime.memcpyHostToDevice, p.first.ptr)
        runtime.memcpyAsync(p.back.ctypes.data, pointer, 8 * SIZE, runtime.memcpyDeviceToHost, p.first.ptr)
        runtime.free(pointer)
        assert p.back[0] == 7


@pytest.mark.parametrize("schedule", EVERY)
def test_work_of_a_destroyed_stream_runs(cupy, schedule):
    with device.schedule(schedule):
        p = Program(cupy)
        p.upload(p.first)
        p.add(p.first)
        event = p.first.record()
        p.first = None
        p.second.wait_event(event)
        assert p.x.get(stream=p.second)[0] == 8
        third = cupy.cuda.Stream(non_blocking=True)
        p.upload(third)
        del third
        cupy.cuda.runtime.deviceSynchronize()
        assert p.x.get(stream=p.second)[0] == 7


@pytest.mark.parametrize("schedule", EVERY)
def test_a_destroyed_graph_still_runs_where_it_was_launched(cupy, schedule):
    with device.schedule(schedule):
        p = Program(cupy)
        p.upload(p.first)
        p.first.begin_capture()
        p.add(p.first)
        graph = p.first.end_capture()
        graph.launch(p.first)
        graph.launch(p.first)
        del graph
        assert p.x.get(stream=p.first)[0] == 9


def test_asking_whether_work_is_done_does_not_make_it_done_but_ends(cupy):
    with device.schedule("lazy"):
        p = Program(cupy)
        p.upload(p.first)
        event = p.first.record()
        assert not event.done
        assert not p.first.done
        asked = 0
        while not event.done:
            asked += 1
            assert asked < 1000
        assert p.x.get(stream=p.second)[0] == 7


def test_a_stream_that_only_waits_for_an_event_is_not_done_before(cupy):
    with device.schedule("lazy"):
        p = Program(cupy)
        p.upload(p.first)
        p.second.wait_event(p.first.record())
        assert not p.second.done
        while not p.second.done:
            pass
        p.first = None  # nothing else makes it run
        p.download(p.second)
        p.second.synchronize()
        assert p.back[0] == 7


@pytest.mark.parametrize("destroyed", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_the_legacy_stream_answers_for_blocking_ones(cupy, asked, destroyed):
    with device.schedule("lazy"):
        p = Program(cupy, blocking=True)
        null = cupy.cuda.Stream.null
        p.upload(p.first)
        p.download(p.first)
        if destroyed:
            p.first = None
        if asked:
            assert not null.done
            while not null.done:
                pass
        else:
            null.synchronize()
        assert p.back[0] == 7


def test_asking_rarely_ends_too(cupy):
    with device.schedule("lazy"):
        p = Program(cupy)
        p.upload(p.first)
        event = p.first.record()
        asked = 0
        while not event.done:
            asked += 1
            assert asked < 90  # before so many questions alone would end it
            time.sleep(0.02)


def test_the_host_may_wait_for_a_host_function_or_for_memory(cupy):
    with device.schedule("lazy"):
        p = Program(cupy)
        ran = threading.Event()
        p.upload(p.first)
        p.first.launch_host_func(lambda _: ran.set(), None)
        assert ran.wait(60)
        p.download(p.first)
        until = time.monotonic() + 60
        while p.back[0] != 7 and time.monotonic() < until:
            pass
        assert p.back[0] == 7


def test_the_host_may_wait_for_memory_and_go_on_giving_the_device_work(cupy):
    with device.schedule("lazy"):
        p = Program(cupy)
        p.upload(p.first)
        p.download(p.first)
        until = time.monotonic() + 60
        while p.back[0] != 7 and time.monotonic() < until:
            p.add(p.second, p.y)
            time.sleep(0.001)
        assert p.back[0] == 7


@pytest.mark.parametrize("schedule", EVERY)
def test_copies_within_the_host_are_done_when_the_call_returns(cupy, schedule):
    runtime = cupy.cuda.runtime
    with device.schedule(schedule):
        p = Program(cupy)
        for source in (np.full(SIZE, 3.0), pinned(cupy, 4.0)):
            for kind in (runtime.memcpyHostToHost, runtime.memcpyDefault):
                p.back[...] = -1
                runtime.memcpyAsync(p.back.ctypes.data, source.ctypes.data, source.nbytes, kind, p.first.ptr)
                assert p.back[0] == source[0]


def test_a_missing_wait_for_the_second_of_two_shows_where_the_first_is_awaited(cupy):
    with device.schedule("others-first"):
        p = Program(cupy)
        third = cupy.cuda.Stream(non_blocking=True)
        p.add(p.first)
        p.second.wait_event(p.first.record())
        p.add(p.second)
        third.wait_event(p.first.record())  # not for the second one's
        p.add(third, to=p.y)
        for stream in (p.first, p.second, third):
            stream.synchronize()
        assert p.y.get()[0] == 2  # 3 with the right wait


@pytest.mark.parametrize("schedule", EVERY)
def test_launches_of_a_graph_are_in_order_on_any_stream(cupy, schedule):
    with device.schedule(schedule):
        p = Program(cupy)
        p.first.begin_capture()
        p.add(p.first)
        graph = p.first.end_capture()
        p.upload(p.first)
        graph.launch(p.first)
        graph.launch(p.second)
        p.second.synchronize()
        p.download(p.second)
        p.second.synchronize()
        assert p.back[0] == 9


def branches(p: Program, wait: bool) -> float:
    """A branch of a graph reads what another one, recorded before it, writes."""
    fork, join = p.cupy.cuda.Event(), p.cupy.cuda.Event()
    p.first.begin_capture()
    fork.record(p.first)
    p.second.wait_event(fork)
    p.add(p.first)
    if wait:
        fork.record(p.first)
        p.second.wait_event(fork)
    p.add(p.second, to=p.y)
    join.record(p.second)
    p.first.wait_event(join)
    graph = p.first.end_capture()
    graph.launch(p.first)
    return float(p.y.get(stream=p.first)[0])  # 2


@pytest.mark.parametrize("schedule", EVERY)
def test_branches_of_a_graph_wait_where_it_says_so(cupy, schedule):
    with device.schedule(schedule):
        assert branches(Program(cupy), True) == 2
        if schedule in ("eager", "lazy"):
            assert branches(Program(cupy), False) == (2 if schedule == "eager" else 1)


def second_branch(p: Program, wait: bool) -> float:
    """A node reads what another branch of its graph writes, and comes after a third node only."""
    a, b = p.cupy.zeros(SIZE), p.cupy.zeros(SIZE)
    p.cupy.cuda.runtime.deviceSynchronize()
    p.first.begin_capture()
    p.second.wait_event(p.first.record())
    p.add(p.second, a)
    p.add(p.first, p.x, to=b)
    if wait:
        p.second.wait_event(p.first.record())
    p.add(p.second, b, to=p.y)
    p.first.wait_event(p.second.record())
    graph = p.first.end_capture()
    graph.launch(p.first)
    return float(p.y.get(stream=p.first)[0])  # 2


def twice(p: Program, stream: Any, source: Any, scratch: Any, to: Any) -> None:
    """Enqueue two kernels that use a scratch array: `to` = `source` + 2."""
    p.add(stream, source, to=scratch)
    p.add(stream, scratch, to=to)


def recorded(p: Program, stream: Any, *arrays: Any) -> Any:
    stream.begin_capture()
    twice(p, stream, *arrays)
    return stream.end_capture()


def two_graphs(p: Program, wait: bool) -> float:
    """Two graphs share a scratch array and run on two streams."""
    scratch, a, b = (p.cupy.full(SIZE, v) for v in (0.0, 10.0, 20.0))
    p.cupy.cuda.runtime.deviceSynchronize()
    graphs = recorded(p, p.first, a, scratch, p.x), recorded(p, p.second, b, scratch, p.y)
    graphs[0].launch(p.first)
    if wait:
        p.second.wait_event(p.first.record())
    graphs[1].launch(p.second)
    y = float(p.y.get(stream=p.second)[0])
    return y + float(p.x.get(stream=p.first)[0]) - 32  # 22 + 12


def graph_and_stream(p: Program, wait: bool) -> float:
    """A kernel of another stream overwrites what a graph uses."""
    scratch, a = (p.cupy.full(SIZE, v) for v in (0.0, 10.0))
    p.cupy.cuda.runtime.deviceSynchronize()
    recorded(p, p.first, a, scratch, p.x).launch(p.first)
    if wait:
        p.second.wait_event(p.first.record())
    p.add(p.second, p.y, to=scratch)
    return float(p.x.get(stream=p.first)[0]) - 10  # 2


def graph_within_a_graph(p: Program, wait: bool) -> float:
    """A kernel on a branch beside a graph that is launched within a graph."""
    scratch, a = (p.cupy.full(SIZE, v) for v in (0.0, 10.0))
    p.cupy.cuda.runtime.deviceSynchronize()
    inner = recorded(p, p.first, a, scratch, p.x)
    p.first.begin_capture()
    fork = p.first.record()
    inner.launch(p.first)
    p.second.wait_event(p.first.record() if wait else fork)
    p.add(p.second, p.y, to=scratch)
    p.first.wait_event(p.second.record())
    graph = p.first.end_capture()
    graph.launch(p.first)
    return float(p.x.get(stream=p.first)[0]) - 10  # 2


GRAPHS = {f.__name__: f for f in (second_branch, two_graphs, graph_and_stream, graph_within_a_graph)}


@pytest.mark.parametrize("name", GRAPHS)
def test_nodes_of_a_graph_run_in_every_order_that_their_edges_allow(cupy, name):
    shown = set()
    for schedule in (*EVERY, *(f"random:{seed}" for seed in range(8, 40))):
        with device.schedule(schedule):
            assert GRAPHS[name](Program(cupy), True) == 2, schedule
            if GRAPHS[name](Program(cupy), False) != 2:
                shown.add(schedule)
    assert "eager" not in shown
    assert len(shown) >= 3
    if name == "second_branch":
        assert "lazy" in shown


@pytest.mark.parametrize("schedule", EVERY)
def test_what_follows_a_graph_in_its_stream_comes_after_all_of_its_nodes(cupy, schedule):
    with device.schedule(schedule):
        p = Program(cupy)
        p.first.begin_capture()
        p.second.wait_event(p.first.record())
        p.add(p.second, to=p.y)  # y = x + 1
        p.add(p.second, p.y)
        p.first.wait_event(p.second.record())
        graph = p.first.end_capture()
        p.upload(p.first)  # x = 7
        for _ in range(3):
            graph.launch(p.first)  # y = 9
            p.add(p.first, p.y, to=p.x)  # x = 10, 13, 16
        p.download(p.first)
        p.first.synchronize()
        assert p.back[0] == 16


@pytest.mark.parametrize("reader_first", [False, True])
def test_a_wait_that_is_missing_between_kernels_shows_in_one_of_two_schedules(cupy, reader_first):
    """Where the host awaits two streams in turn, which one it awaits first is the difference between them."""

    def found(schedule: str) -> float:
        with device.schedule(schedule):
            p = Program(cupy)
            p.add(p.first)  # x = 1
            p.add(p.second, to=p.y)  # y = 2
            for stream in (p.second, p.first) if reader_first else (p.first, p.second):
                stream.synchronize()
            return float(p.y.get()[0])

    assert found("eager") == 2
    assert found("lazy") == (1 if reader_first else 2)
    assert found("others-first") == (2 if reader_first else 1)


@pytest.mark.parametrize("producer", ["first", "second"])
def test_a_wait_that_is_missing_between_streams_shows_when_the_device_is_awaited(cupy, producer):
    """Which of two streams runs first is the difference between the lazy schedules."""

    def found(schedule: str) -> float:
        with device.schedule(schedule):
            p = Program(cupy)
            streams = (p.first, p.second) if producer == "first" else (p.second, p.first)
            p.upload(streams[0])
            p.add(streams[1], to=p.y)
            cupy.cuda.runtime.deviceSynchronize()
            return float(p.y.get()[0])

    assert {found("lazy"), found("lazy-forwards")} == {1, 8}


@pytest.mark.parametrize("schedule", EVERY)
def test_host_functions_run_in_the_order_of_their_stream(cupy, schedule):
    with device.schedule(schedule):
        p = Program(cupy)
        seen: list[float] = []
        p.upload(p.first)
        p.download(p.first)
        p.first.launch_host_func(lambda _: seen.append(float(p.back[0])), None)
        p.add(p.first)
        p.download(p.first)
        p.first.launch_host_func(lambda _: seen.append(float(p.back[0])), None)
        if schedule == "lazy":
            assert seen == []
        p.first.synchronize()
        assert seen == [7, 8]


def test_times_of_events_are_those_of_the_work(cupy):
    for schedule in EVERY:
        with device.schedule(schedule):
            p = Program(cupy)
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record(p.first)
            p.add(p.first)
            end.record(p.first)
            end.synchronize()
            assert cupy.cuda.get_elapsed_time(begin, end) >= 0


def test_a_random_order_is_that_of_its_seed(cupy):
    def orders(schedule: str) -> list[float]:
        with device.schedule(schedule):
            found = []
            for _ in range(20):
                p = Program(cupy)
                for stream in (p.first, p.second, p.first, p.second):
                    p.upload(stream)
                    p.add(stream)
                p.download(p.first)
                p.first.synchronize()
                found.append(float(p.back[0]))
            return found

    assert orders("random:1") == orders("random:1")
    assert len({tuple(orders(f"random:{seed}")) for seed in range(4)}) > 1


def test_a_name_that_is_no_schedule():
    for name in ("", "early", "random", "random:", "random:x"):
        with pytest.raises(ValueError, match="early-copies"), device.schedule(name):
            pass
