"""What a capture refuses, with CUDA's error for each."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.software_gpu.device import last_graph
from tests.software_gpu.rules import capture, refuses

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
UNSUPPORTED = (900, "cudaErrorStreamCaptureUnsupported")
INVALIDATED = (901, "cudaErrorStreamCaptureInvalidated")


class Recording:
    """A stream that records, in CuPy's terms, with an array to work on."""

    def __init__(self, mode: int = GLOBAL, non_blocking: bool = True) -> None:
        import cupy

        self.cupy, self.runtime = cupy, cupy.cuda.runtime
        self.x = cupy.zeros(16, np.float32)
        self.x += 1  # compiled
        self.events = [cupy.cuda.Event() for _ in range(3)]
        self.events[0].record()  # outside of the capture
        self.runtime.deviceSynchronize()
        self.stream = cupy.cuda.Stream(non_blocking=non_blocking)
        self.side = cupy.cuda.Stream(non_blocking=True)
        self.mode = mode

    def begin(self) -> None:
        self.stream.begin_capture(self.mode)

    def add(self, stream=None) -> None:
        with stream or self.stream:
            self.x += 1

    def end(self):
        return self.stream.end_capture()

    def ends_invalidated(self) -> None:
        """Assert that the capture takes no more, and that the stream works again once it has ended."""
        with refuses(*INVALIDATED):
            self.runtime.memsetAsync(self.x.data.ptr, 0, 4, self.stream.ptr)
        with refuses(*INVALIDATED):
            self.end()
        assert not self.stream.is_capturing()
        self.add()
        self.stream.synchronize()


@pytest.fixture
def recording():
    made = []

    def begin(*arguments, begins=True, **named):
        made.append(Recording(*arguments, **named))
        if begins:
            made[-1].begin()
        return made[-1]

    yield begin
    for one in made:  # of tests that failed: a stream that records can neither be destroyed nor let others work
        if one.stream.is_capturing():
            with contextlib.suppress(one.runtime.CUDARuntimeError):
                one.end()


CALLS = {
    "synchronising the stream": lambda r: r.stream.synchronize(),
    "synchronising the device": lambda r: r.runtime.deviceSynchronize(),
    "a query of the stream": lambda r: r.runtime.check_status(r.runtime.streamQuery(r.stream.ptr)),
    "a copy of pageable memory": lambda r: r.runtime.memcpyAsync(r.x.data.ptr, np.zeros(4).ctypes.data, 4, 1, r.stream.ptr),
    "a copy to pageable memory": lambda r: r.runtime.memcpyAsync(np.zeros(4).ctypes.data, r.x.data.ptr, 4, 2, r.stream.ptr),
    "a callback": lambda r: r.stream.add_callback(lambda *_: None, None),
    "destroying the stream": lambda r: r.runtime.streamDestroy(r.stream.ptr),
}
UNSAFE = {
    "cudaMalloc": lambda r: r.runtime.malloc(64),
    "cudaFree": lambda r: r.runtime.free(r.x.data.ptr),
    "cudaHostAlloc": lambda r: r.runtime.hostAlloc(64, 0),
    "cudaEventQuery": lambda r: r.runtime.check_status(r.runtime.eventQuery(r.events[0].ptr)),
    "cudaMemcpy": lambda r: r.runtime.memcpy(r.x.data.ptr, np.zeros(4).ctypes.data, 4, 1),
}


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL, RELAXED])
@pytest.mark.parametrize("call", CALLS)
def test_a_capture_refuses_what_cannot_be_recorded_in_every_mode(recording, call, mode):
    r = recording(mode)
    with refuses(*UNSUPPORTED):
        CALLS[call](r)
    r.ends_invalidated()


@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL])
@pytest.mark.parametrize("call", UNSAFE)
def test_a_thread_with_a_capture_may_not_make_unsafe_calls(recording, call, mode):
    r = recording(mode)
    with refuses(*UNSUPPORTED, call):
        UNSAFE[call](r)
    r.ends_invalidated()


def test_a_relaxed_capture_lets_its_thread_make_unsafe_calls(recording):
    r = recording(RELAXED)
    p = r.runtime.malloc(64)
    r.runtime.free(p)
    assert r.runtime.eventQuery(r.events[0].ptr) == 0
    r.add()
    assert r.end() is not None


@pytest.mark.parametrize(
    ("mode", "thread", "refused"),
    [
        (GLOBAL, GLOBAL, True), (GLOBAL, THREAD_LOCAL, False), (GLOBAL, RELAXED, False),
        (THREAD_LOCAL, GLOBAL, False), (RELAXED, GLOBAL, False),
    ],
)  # fmt: skip
def test_a_global_capture_stops_other_threads_too_unless_they_say_otherwise(recording, mode, thread, refused):
    r = recording(mode)
    results = []

    def other() -> None:
        library = ctypes.CDLL("libcuda.so.1")
        own, p = ctypes.c_int(thread), ctypes.c_void_p()
        assert library.cudaThreadExchangeStreamCaptureMode(ctypes.byref(own)) == 0
        assert own.value == GLOBAL  # what it was before
        results.append(library.cudaMalloc(ctypes.byref(p), ctypes.c_size_t(64)))
        if p.value:
            results.append(library.cudaFree(p))

    worker = threading.Thread(target=other)
    worker.start()
    worker.join()
    assert results == ([900] if refused else [0, 0])
    if refused:
        r.ends_invalidated()
    else:
        assert r.end() is not None


def test_the_legacy_stream_must_not_depend_on_a_blocking_stream_that_records(recording):
    for call in (
        lambda r: r.runtime.memsetAsync(r.x.data.ptr, 0, 4, 0),
        lambda r: r.runtime.memcpy(r.x.data.ptr, r.x.data.ptr, 4, 3),
        lambda r: r.runtime.streamSynchronize(0),
    ):
        r = recording(non_blocking=False)
        with refuses(906, "cudaErrorStreamCaptureImplicit"):
            call(r)
        r.ends_invalidated()
    r = recording(non_blocking=False)
    with refuses(906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"):  # a launch
        r.add(r.cupy.cuda.Stream.null)
    r.ends_invalidated()


def test_asking_whether_the_legacy_stream_records_is_refused_but_harmless(recording):
    r = recording(non_blocking=False)
    with refuses(906, "cudaErrorStreamCaptureImplicit"):
        r.runtime.streamIsCapturing(0)
    r.add()
    assert r.end() is not None


def test_the_legacy_stream_cannot_record_and_a_stream_records_once(recording):
    import cupy

    with refuses(*UNSUPPORTED, "the legacy stream cannot record"):
        cupy.cuda.runtime.streamBeginCapture(0, GLOBAL)
    r = recording()
    with refuses(401, "cudaErrorIllegalState"):
        r.runtime.streamBeginCapture(r.stream.ptr, GLOBAL)
    assert r.end() is not None
    with refuses(401, "cudaErrorIllegalState"):
        r.runtime.streamEndCapture(r.stream.ptr)


@pytest.mark.parametrize("call", ["eventSynchronize", "eventQuery", "eventElapsedTime"])
def test_a_captured_event_cannot_be_asked(recording, call):
    r = recording(RELAXED)
    r.events[1].record(r.stream)
    first, event = r.events[0].ptr, r.events[1].ptr
    calls = {
        "eventSynchronize": lambda: r.runtime.eventSynchronize(event),
        "eventQuery": lambda: r.runtime.check_status(r.runtime.eventQuery(event)),
        "eventElapsedTime": lambda: r.runtime.eventElapsedTime(first, event),
    }
    with refuses(907, "cudaErrorCapturedEvent", f"cudaE{call[1:]}"):
        calls[call]()
    r.ends_invalidated()
    with refuses(907, "cudaErrorCapturedEvent"):  # it stays one until it is recorded again
        r.runtime.eventSynchronize(r.events[1].ptr)
    r.events[1].record(r.stream)
    r.runtime.eventSynchronize(r.events[1].ptr)


def test_a_recording_stream_does_not_wait_for_what_is_outside(recording):
    r = recording()
    with refuses(905, "cudaErrorStreamCaptureIsolation", "an event recorded outside of the capture"):
        r.stream.wait_event(r.events[0])
    r.ends_invalidated()
    r = recording()
    r.stream.wait_event(r.events[1])  # never recorded: nothing to wait for
    assert r.end() is not None


def test_two_captures_do_not_merge(recording):
    first, second = recording(begins=False), recording(begins=False)
    first.begin()
    second.begin()
    first.add()
    first.events[1].record(first.stream)
    with refuses(902, "cudaErrorStreamCaptureMerge"):
        second.stream.wait_event(first.events[1])
    for one in (first, second):
        with refuses(*INVALIDATED):
            one.end()


def test_the_legacy_stream_does_not_join_a_capture(recording):
    r = recording()
    r.events[1].record(r.stream)
    with refuses(906, "cudaErrorStreamCaptureImplicit"):
        r.runtime.streamWaitEvent(0, r.events[1].ptr)
    r.ends_invalidated()


def fork(r, joins: bool, work_before_the_join: bool = True) -> None:
    r.add()
    r.events[1].record(r.stream)
    r.side.wait_event(r.events[1])
    assert r.side.is_capturing()
    if work_before_the_join:
        r.add(r.side)
    r.events[2].record(r.side)
    if joins:
        r.stream.wait_event(r.events[2])
    if not work_before_the_join:
        r.add(r.side)
    r.add()


@pytest.mark.parametrize(("joins", "before"), [(False, True), (True, False)])
def test_work_of_another_stream_has_to_be_joined(recording, joins, before):
    r = recording()
    fork(r, joins, before)
    with refuses(904, "cudaErrorStreamCaptureUnjoined"):
        r.end()
    assert not r.stream.is_capturing()
    assert not r.side.is_capturing()


def test_a_fork_that_joins_is_recorded_and_runs(recording):
    r = recording()
    fork(r, True)
    with refuses(903, "cudaErrorStreamCaptureUnmatched"):
        r.side.end_capture()
    with refuses(*INVALIDATED):
        r.end()
    r = recording()
    fork(r, True)
    graph = r.end()
    assert float(r.x[0]) == 1
    graph.launch(r.stream)
    r.stream.synchronize()
    assert float(r.x[0]) == 4


def test_an_event_of_a_capture_that_ended_cannot_be_waited_for(recording):
    r = recording()
    r.add()
    r.events[1].record(r.stream)
    assert r.end() is not None
    with refuses(907, "cudaErrorCapturedEvent", "a capture that has ended"):
        r.side.wait_event(r.events[1])


@pytest.mark.parametrize(("mode", "refused"), [(GLOBAL, True), (THREAD_LOCAL, True), (RELAXED, False)])
def test_a_capture_ends_in_the_thread_that_began_it_unless_it_is_relaxed(recording, mode, refused):
    r = recording(mode)
    results = []

    def other() -> None:
        try:
            results.append(r.runtime.streamEndCapture(r.stream.ptr))
        except r.runtime.CUDARuntimeError as error:
            results.append(str(error).split(":")[0])

    worker = threading.Thread(target=other)
    worker.start()
    worker.join()
    if refused:
        assert results == ["cudaErrorStreamCaptureWrongThread"]
        assert r.end() is not None
    else:
        assert isinstance(results[0], int)
        r.runtime.graphDestroy(results[0])


def test_graphs_that_are_destroyed_are_gone_but_their_instances_are_not():
    import cupy

    runtime = cupy.cuda.runtime
    x = cupy.zeros(16, np.float32)
    x += 1
    runtime.deviceSynchronize()
    stream = cupy.cuda.Stream(non_blocking=True)

    def add() -> None:
        nonlocal x
        x += 1

    graph = capture(stream, add)
    graph.launch(stream)
    stream.synchronize()
    assert float(x[0]) == 2
    stream.begin_capture()
    raw = runtime.streamEndCapture(stream.ptr)
    instance = runtime.graphInstantiate(raw)
    runtime.graphDestroy(raw)
    for call in (runtime.graphDestroy, runtime.graphInstantiate):
        with refuses(1, "cudaErrorInvalidValue", "no such graph"):
            call(raw)
    runtime.graphLaunch(instance, stream.ptr)
    runtime.graphExecDestroy(instance)
    with refuses(1, "cudaErrorInvalidValue", "no such graph"):
        runtime.graphLaunch(instance, stream.ptr)
    with refuses(1, "cudaErrorInvalidValue", "no such graph"):
        runtime.graphExecDestroy(instance)


def test_the_nodes_of_the_last_graph_are_listed(recording):
    made = recording(begins=False)
    target = made.cupy.zeros(16, np.float32)
    made.begin()
    made.add()
    made.runtime.memsetAsync(made.x.data.ptr, 0, 8, made.stream.ptr)
    made.runtime.memcpyAsync(target.data.ptr, made.x.data.ptr, 12, made.runtime.memcpyDeviceToDevice, made.stream.ptr)
    graph = made.end()
    kernel, *others = last_graph()
    assert re.fullmatch(r"kernel \d+,1,1 \d+,1,1 0 cupy_add__float32_.*", kernel)
    assert others == ["fill 8", "copy 12"]
    graph.launch(made.stream)


@pytest.mark.parametrize(("multiprocessors", "counts_only"), [("2", "0"), ("132", "1")])
def test_graphs_are_counted_without_being_run(tmp_path, multiprocessors, counts_only):
    program = tmp_path / "program.py"
    program.write_text(
        "import cupy\nx = cupy.zeros(3)\nx += 1\nprint(x.sum(), cupy.cuda.Device().attributes['MultiProcessorCount'])\n"
    )
    settings = {"SOFTWARE_GPU_MULTIPROCESSORS": multiprocessors, "SOFTWARE_GPU_COUNTS_ONLY": counts_only}
    command = [sys.executable, "-m", "tests.software_gpu", str(program)]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300, check=True)
    total, count = done.stdout.split()
    assert count == multiprocessors
    assert (total == "3.0") == (counts_only == "0")
