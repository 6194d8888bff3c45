"""Handles of streams and events, host functions, threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from tests.software_gpu import device
from tests.software_gpu.rules import program, refuses

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

HANDLE = (400, "cudaErrorInvalidResourceHandle")


def test_a_destroyed_stream_is_no_handle_any_more():
    import cupy

    runtime = cupy.cuda.runtime
    x = cupy.zeros(4, np.float32)
    event = cupy.cuda.Event()
    stream = runtime.streamCreate()
    runtime.memsetAsync(x.data.ptr, 0, 16, stream)
    runtime.eventRecord(event.ptr, stream)
    runtime.streamDestroy(stream)
    others = [runtime.streamCreate() for _ in range(20)]
    calls = [
        lambda: runtime.streamDestroy(stream),
        lambda: runtime.streamSynchronize(stream),
        lambda: runtime.check_status(runtime.streamQuery(stream)),
        lambda: runtime.streamWaitEvent(stream, event.ptr),
        lambda: runtime.eventRecord(event.ptr, stream),
        lambda: runtime.memsetAsync(x.data.ptr, 0, 16, stream),
        lambda: runtime.memcpyAsync(x.data.ptr, x.data.ptr, 8, 3, stream),
        lambda: runtime.streamBeginCapture(stream, 0),
        lambda: runtime.streamIsCapturing(stream),
    ]
    for call in calls:
        with refuses(*HANDLE, "no such stream"):
            call()
    event.synchronize()  # the event is still a point to wait for
    for other in others:
        runtime.streamDestroy(other)


def test_a_destroyed_event_is_no_handle_any_more_but_who_waits_for_it_does():
    import cupy

    runtime = cupy.cuda.runtime
    x = cupy.zeros(4, np.float32)
    first, second = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    runtime.deviceSynchronize()
    event = runtime.eventCreate()
    with first:
        x += 5
    runtime.eventRecord(event, first.ptr)
    runtime.streamWaitEvent(second.ptr, event)
    runtime.eventDestroy(event)
    others = [runtime.eventCreate() for _ in range(20)]
    with second:
        y = x * 2
    second.synchronize()
    assert float(y[0]) == 10
    for call in (
        lambda: runtime.eventDestroy(event),
        lambda: runtime.eventRecord(event, first.ptr),
        lambda: runtime.eventSynchronize(event),
        lambda: runtime.check_status(runtime.eventQuery(event)),
        lambda: runtime.streamWaitEvent(first.ptr, event),
        lambda: runtime.eventElapsedTime(event, others[0]),
    ):
        with refuses(*HANDLE, "no such event"):
            call()
    for other in others:
        runtime.eventDestroy(other)


def test_the_legacy_stream_cannot_be_destroyed_and_events_without_time_have_none():
    import cupy

    runtime = cupy.cuda.runtime
    with refuses(*HANDLE):
        runtime.streamDestroy(0)
    events = [runtime.eventCreateWithFlags(2), runtime.eventCreate()]  # 2: cudaEventDisableTiming
    with refuses(*HANDLE, "events that are not recorded, or take no time"):
        runtime.eventElapsedTime(events[1], events[1])
    for event in events:
        runtime.eventRecord(event, 0)
    with refuses(*HANDLE, "events that are not recorded, or take no time"):
        runtime.eventElapsedTime(*events)
    runtime.eventSynchronize(events[1])
    assert runtime.eventElapsedTime(events[1], events[1]) == 0
    for event in events:
        runtime.eventDestroy(event)


def test_a_host_function_must_not_call_cuda():
    import cupy

    runtime = cupy.cuda.runtime
    stream, seen = cupy.cuda.Stream(non_blocking=True), []

    def call(_: object) -> None:
        for one in (stream.synchronize, runtime.deviceSynchronize, lambda: runtime.malloc(8), lambda: runtime.memset(1, 0, 1)):
            try:
                one()
            except runtime.CUDARuntimeError as error:
                seen.append(error.status)

    stream.launch_host_func(call, None)
    stream.synchronize()
    assert seen == [800] * 4


def finishes(work, seconds: float = 60) -> None:
    """Assert that a thread ends."""
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(seconds)
    assert not worker.is_alive(), "the threads wait for each other"


def test_host_functions_that_need_python_do_not_stop_threads_that_hold_it():
    import cupy

    runtime = cupy.cuda.runtime
    x = [cupy.zeros(8, np.float32) for _ in range(3)]
    for array in x:
        array += 1  # compiled
    runtime.deviceSynchronize()
    counts = [0, 0, 0]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            stream = cupy.cuda.Stream(non_blocking=True)
            array = x[index]

            def count(_: object) -> None:
                time.sleep(0.0005)  # gives Python's lock to other threads
                counts[index] += 1

            for _ in range(40):
                with stream:
                    array += 1
                    stream.launch_host_func(count, None)
                event = cupy.cuda.Event()  # created and asked without leaving Python's lock
                event.record(stream)
                runtime.pointerGetAttributes(array.data.ptr)
                event.synchronize()
                assert event.done
                runtime.free(runtime.malloc(64))
            stream.synchronize()
        except BaseException as error:
            failures.append(error)

    def together() -> None:
        workers = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    finishes(together)
    assert not failures
    assert counts == [40, 40, 40]
    assert [float(array[0]) for array in x] == [41, 41, 41]


def test_waiting_for_a_stream_waits_for_a_host_function_that_another_thread_runs():
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    order, entered, leave = [], threading.Event(), threading.Event()

    def slow(_: object) -> None:
        entered.set()
        leave.wait(30)
        order.append("host function")

    def first() -> None:
        stream.launch_host_func(slow, None)
        stream.synchronize()

    def second() -> None:
        entered.wait(30)
        x = cupy.cuda.alloc_pinned_memory(64)  # the device's state is not locked meanwhile
        assert x.ptr
        assert not stream.done
        threading.Timer(0.2, leave.set).start()
        stream.synchronize()
        order.append("waited")

    workers = [threading.Thread(target=first, daemon=True), threading.Thread(target=second, daemon=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert order == ["host function", "waited"]


def test_a_fault_after_a_host_function_is_found_though_another_thread_copied_meanwhile():
    lines = program("""
kernel = cupy.RawKernel('extern "C" __global__ void write(int* x, int i) { x[i] = 1; }', "write")
x, y = cupy.zeros(1, np.int32), cupy.zeros(64)
kernel((1,), (1,), (x, 0))
entered, leave = threading.Event(), threading.Event()
stream, other = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
runtime.deviceSynchronize()
def wait(_):
    entered.set()
    leave.wait(30)
def record():
    with stream:
        stream.begin_capture()
        stream.launch_host_func(wait, None)
        kernel((1,), (1,), (x, 1 << 20))
        return stream.end_capture()
graph = record()
def copy():
    entered.wait(30)
    y.set(np.ones(64), stream=other)  # pageable: read at once
    leave.set()
worker = threading.Thread(target=copy)
worker.start()
error(lambda: (graph.launch(stream), stream.synchronize()))
worker.join()
""")
    assert lines[0].startswith("700 ")
    assert "write: illegal access" in lines[0]


@pytest.mark.parametrize("schedule", [*device.SCHEDULES[:-1], "random:0"])
def test_a_submission_never_waits_for_a_host_function(schedule):
    import cupy

    x, y = cupy.zeros(8), cupy.zeros(8)
    x += 1
    cupy.cuda.runtime.deviceSynchronize()
    with device.schedule(schedule):
        stream, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        lock, seen = threading.Lock(), []

        def back(_: object) -> None:
            with lock:
                seen.append(float(y.data.mem.size))

        def work() -> None:
            with lock:
                stream.launch_host_func(back, None)
                with stream:
                    y[...] = x
                    x[...] = 5
                event = stream.record()
                assert not event.done
                with other:
                    cupy.add(x, 1, out=x)  # another stream goes on meanwhile
                other.synchronize()
            stream.synchronize()
            assert event.done

        finishes(work)
        assert len(seen) == 1
        assert float(y[0]) == 2
        assert float(x[0]) == 5


@pytest.mark.parametrize("schedule", ["eager", "lazy"])
def test_the_device_waits_for_a_host_function_of_a_destroyed_stream(schedule):
    import cupy

    with device.schedule(schedule):
        stream, seen = cupy.cuda.Stream(non_blocking=True), []
        entered = threading.Event()

        def slow(_: object) -> None:
            entered.set()
            time.sleep(0.3)
            seen.append(1)

        stream.launch_host_func(slow, None)
        while not entered.is_set():
            assert not stream.done
        del stream
        cupy.cuda.runtime.deviceSynchronize()
        assert seen == [1]


def test_a_fault_in_one_thread_is_every_threads():
    lines = program("""
kernel = cupy.RawKernel('extern "C" __global__ void write(int* x) { x[1 << 20] = 1; }', "write")
x = cupy.zeros(1, np.int32)
def work():
    error(lambda: (kernel((1,), (1,), (x,)), runtime.deviceSynchronize()))
worker = threading.Thread(target=work)
worker.start(); worker.join()
error(runtime.deviceSynchronize)
""")
    assert all(line.startswith("700 ") and "write: illegal access" in line for line in lines)
    assert len(lines) == 2
