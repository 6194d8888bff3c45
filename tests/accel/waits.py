"""The table of xpnet's waits on a GPU: why each is there, and a program that goes wrong without it.

``python -m tests.accel.waits`` prints docs/gpu-waits.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.accel import wait_programs as run
from tests.accel.wait_mutants import Place

UNRECORDED = "__import__('cupy').cuda.Event()"
LEGACY = "__import__('cupy').cuda.Stream.null"


class Wait(NamedTuple):
    """One row.

    Attributes:
        place: the call.
        why: what it orders, for the docs.
        schedule: of the software device, under which the program shows that the call is missing.
        program: what goes wrong; returns values that are compared with those of the eager device.
        instead: the expression in the place of the call.
    """

    place: Place
    why: str
    schedule: str
    program: Callable[[], Any]
    instead: str = "None"


def _rows(file: str, *rows: tuple[Any, ...]) -> list[Wait]:
    """Return rows of one file: (function, call, number, why, schedule, program[, instead])."""
    found = []
    for function, what, number, why, schedule, program, *instead in rows:
        default = LEGACY if what == "get_current_stream" else "None"
        found.append(Wait(Place(file, function, what, number), why, schedule, program, *(instead or [default])))
    return found


# fmt: off
WAITS: list[Wait] = [
    *_rows(
        "xpnet/accel/cupy/capturable.py",
        ("_capturing", "get_current_stream", 0, "another way is taken while the current stream is captured", "lazy",
         run.asking_whether_it_is_captured),
    ),
    *_rows(
        "xpnet/accel/cupy/cublas.py",
        ("_new_handle", "cublasSetStream_v2", 0, "products run on the current stream", "lazy", run.product, "0"),
    ),
    *_rows(
        "xpnet/accel/cupy/device.py",
        ("CudaRuntime.launch", "get_current_stream", 0, "kernels run on the current stream", "lazy", run.kernel),
        ("CudaRuntime.gemm", "get_current_stream", 0, "products run on the current stream", "lazy", run.product),
        ("CudaRuntime.can_measure", "get_current_stream", 0, "nothing is timed while the current stream is captured", "lazy",
         run.measuring_in_capture),
        ("CudaRuntime.milliseconds", "record", 0, "the time before the runs", "lazy", run.milliseconds),
        ("CudaRuntime.milliseconds", "record", 1, "the time after the runs", "lazy", run.milliseconds),
        ("CudaRuntime.milliseconds", "synchronize", 0, "the time is read when the runs are over", "lazy", run.milliseconds),
    ),
    *_rows(
        "xpnet/accel/cupy/transfers.py",
        ("Clock.__init__", "record", 0, "the event that times are relative to", "lazy", run.clock),
        ("Clock.__init__", "synchronize", 0, "the host's clock is read when the event is reached", "lazy", run.clock),
        ("Clock.mark", "record", 0, "the event that is timed", "lazy", run.clock),
        ("Clock.seconds", "synchronize", 0, "the time of an event is read when it is reached", "lazy", run.clock),
        ("CudaTransfers.buffer", "with self._stream", 0,
         "buffers are memory that only the copy stream has used: other memory may still be read", "early-copies",
         run.buffer_memory),
        ("CudaTransfers.used", "get_current_stream", 0, "the event after the computations on a batch", "early-copies",
         run.training),
        ("CudaTransfers._event", "record", 0, "the events after copies and computations", "lazy", run.training),
        ("CudaTransfers.copies_wait", "wait_event", 0, "no copy overwrites a batch that is still used", "early-copies",
         run.training),
        ("CudaTransfers.computations_wait", "wait_event", 0, "a batch is used after its copy", "lazy", run.training),
        ("CudaTransfers.computations_wait", "get_current_stream", 0, "a batch is used after its copy", "lazy", run.training),
        ("CudaTransfers.beside", "with self._stream", 0,
         "a thread that fills buffers does not get memory that the stream of graphs still reads", "lazy", run.memory_beside),
        ("CudaTransfers.finish", "synchronize", 0, "staging buffers are freed after the copies", "lazy", run.finish_copies),
        ("CudaTransfers.finish", "synchronize", 1, "buffers are freed after the computations", "lazy", run.finish_computations),
        ("CudaTransfers.finish", "get_current_stream", 0, "buffers are freed after the computations", "lazy",
         run.finish_computations),
        ("Lane.__init__", "wait_event", 0, "threads use what was computed before they began", "lazy", run.lane_begins),
        ("Lane.run", "with self._stream", 0, "threads do not get memory that the stream of graphs still reads", "lazy",
         run.memory_of_the_lane),
        ("Lane.close", "wait_event", 0, "what threads read is freed after they did", "lazy", run.lane_ends),
        ("Lane.close", "get_current_stream", 0, "what threads read is freed after they did", "lazy", run.lane_ends),
        ("_record", "record", 0, "the events of what threads have made", "lazy", run.handed_over),
        ("Handover._record", "get_current_stream", 0, "the event after what a thread has made", "lazy", run.handed_over),
        ("Handover._taken", "get_current_stream", 0, "what a thread made is used after it was computed", "lazy",
         run.handed_over),
        ("Handover._taken", "wait_event", 0, "what a thread made is used after it was computed", "lazy", run.handed_over),
        ("Handover._taken", "wait_event", 1, "a thread's memory is used again after it was read", "lazy", run.handed_memory),
    ),
    *_rows(
        "xpnet/autograd/flat_parameters.py",
        ("FlatParameters.__init__", "synchronize", 0,
         "arrays that are freed when parameters become flat were read, whichever stream's memory they are", "lazy",
         run.freed_parameters),
    ),
    *_rows(
        "xpnet/backend.py",
        ("Device.synchronize", "synchronize", 0, "the host waits for the current stream", "lazy", run.device_synchronize),
        ("Device.synchronize", "get_current_stream", 0, "the host waits for the current stream", "lazy",
         run.device_synchronize),
    ),
    *_rows(
        "xpnet/cli/bench.py",
        ("_median", "synchronize", 0, "the time of a call does not include the warm-up", "lazy", run.benchmark),
        ("_median", "synchronize", 1, "the time of a call includes its work on the GPU", "lazy", run.benchmark),
    ),
    *_rows(
        "xpnet/compiled/cuda_graph.py",
        ("CudaGraphs.stream", "get_current_stream", 0, "graphs are in order with the current stream", "lazy", run.prediction),
        ("CudaGraphs.stream", "wait_event", 0, "a graph runs after its inputs were computed", "lazy", run.prediction),
        ("CudaGraphs.stream", "record", 0, "a graph runs after its inputs were computed", "lazy", run.prediction, UNRECORDED),
        ("CudaGraphs.stream", "with self._stream", 0, "inputs are copied into a graph's buffers before it runs", "lazy",
         run.prediction),
        ("CudaGraphs.stream", "wait_event", 1, "a graph runs again after another stream has used its results", "lazy",
         run.prediction_on_two_streams),
        ("CudaGraphs.stream", "record", 1, "a graph runs again after another stream has used its results", "lazy",
         run.prediction_on_two_streams, UNRECORDED),
        ("CudaGraphs.stream", "wait_event", 2, "a graph's results are used after it ran", "lazy", run.prediction),
        ("CudaGraphs.stream", "record", 2, "a graph's results are used after it ran", "lazy", run.prediction, UNRECORDED),
        ("CudaGraphs.record", "with cupy.cuda.using_allocator(self._allocate)", 0,
         "nobody else gets the memory that a graph uses", "eager", run.memory_of_a_graph),
    ),
    *_rows(
        "xpnet/data/prefetch.py",
        ("Prefetcher._run", "computations_wait", 0, "a batch is used after its copy", "lazy", run.training),
        ("Prefetcher._stage", "synchronize", 0, "the host fills a staging buffer after the copy from it", "lazy", run.training),
        ("Prefetcher._stage", "copies_wait", 0, "no copy overwrites a batch that is still used", "early-copies", run.training),
        ("Prefetcher._stage", "copies_wait", 1, "a batch made on the GPU is copied after it was computed", "lazy",
         run.training_on_batches_made_there),
        ("Prefetcher.close", "finish", 0, "buffers are freed after copies and computations", "early-copies",
         run.buffers_used_again),
    ),
    *_rows(
        "xpnet/inspect/profile.py",
        ("_Clock.read", "record", 0, "the time before and after a layer", "lazy", run.profile),
        ("_Clock.between", "synchronize", 0, "the time is read when the layer is over", "lazy", run.profile),
    ),
    *_rows(
        "xpnet/optim/optimizer.py",
        ("Optimizer.bind", "synchronize", 0,
         "an optimizer's state that is freed when a layer is frozen was read, whichever stream's memory it is", "lazy",
         run.freed_state),
    ),
    *_rows(
        "xpnet/training/callbacks.py",
        ("Timing.on_epoch_end", "synchronize", 0, "the time of an epoch includes its work on the GPU", "lazy", run.timing),
    ),
]
# fmt: on

BETWEEN_GPUS: list[tuple[Place, str]] = [
    (Place("xpnet/backend.py", "_between_gpus", "get_current_stream", 0), LEGACY),
    (Place("xpnet/backend.py", "_between_gpus", "get_current_stream", 1), LEGACY),
    (Place("xpnet/backend.py", "_between_gpus", "record", 0), UNRECORDED),
    (Place("xpnet/backend.py", "_between_gpus", "record", 1), UNRECORDED),
    (Place("xpnet/backend.py", "_between_gpus", "wait_event", 0), "None"),
    (Place("xpnet/backend.py", "_between_gpus", "wait_event", 1), "None"),
]
"""What orders a copy from one GPU to another, and what is put in its place: tests.accel.two_gpus has the program."""

NOT_HERE: dict[Place, str] = {
    Place("xpnet/accel/cupy/cudnn.py", "Cudnn._stream_state", "set_stream"): (
        "cuDNN does not run on the software device; `test_each_stream_has_a_handle_and_workspaces_that_stay` holds it on a fake"
    ),
    Place("xpnet/accel/cupy/device.py", "CudaRuntime.counters", "get_current_stream"): (
        "reductions on two streams have counters of their own; on the software device no two kernels run at the same time"
    ),
    Place("xpnet/accel/cupy/device.py", "CudaRuntime.one", "get_current_stream"): (
        "the constant 1 is made outside of captures; `test_the_constant_one_is_made_outside_of_captures` holds it"
    ),
    Place("xpnet/accel/cupy/device.py", "CudaRuntime.one", "synchronize"): (
        "the constant 1 is there before other streams read it; `test_the_constant_one_is_there_for_all_streams` holds it"
    ),
    **dict.fromkeys(
        [
            Place("xpnet/compiled/graph.py", "Captured._record", "record"),
            Place("xpnet/cli/image_folders.py", "read_folder", "finish"),
            Place("xpnet/report/callback.py", "RunReport._write", "record"),
            Place("xpnet/report/measure.py", "summarize_predictions", "record"),
            Place("xpnet/training/trainer.py", "Trainer._epoch", "record"),
        ],
        "",
    ),
}
"""Calls of these names that are no waits (""), or cannot run on the software device: why."""


HEAD = """\
# What waits for what on a GPU

Work on a GPU is in order within a stream only. Every call of the package that orders more than that is in the table, with what
it orders. For each of them `tests/accel/test_cupy_waits.py` runs a program on the [software device](gpu.md#testing), under the
schedule in the last column: it gives the right values, and without that one call it gives wrong ones, or the device reports an
error. All programs also run under all schedules. A new call of this kind fails a test until it is in the table,
`tests/accel/waits.py`; `python -m tests.accel.waits > docs/gpu-waits.md` writes this page.

A schedule says when work runs, as far as streams, events and the host leave that open: *eager* at once, *lazy* when something
waits for it, *others-first* like lazy, but what other streams may do before what is awaited, *early-copies* like lazy, but
copies to and from the host as soon as they may, *early-kernels* the converse, *random:SEED* by turns.
`SOFTWARE_GPU_SCHEDULE=lazy python -m pytest -m cuda --software-gpu` runs any test under one.

| where | call | what it orders | shown by | schedule |
|---|---|---|---|---|
"""

FOOT = """
CuPy's own: `to_numpy`, `float` and `int` of an array wait for the current stream. Memory that the host frees is given out again
in the order of the stream that it was allocated on, so an array that another stream uses has to live until one of the waits
above: that is why the threads that prepare data have a stream of their own, and hand over copies of what they make.
"""


def page() -> str:
    """Return docs/gpu-waits.md."""
    lines = [*HEAD.splitlines()]
    for wait in WAITS:
        place, which = wait.place, f", number {wait.place.number + 1}" if _several(wait.place) else ""
        where = f"`{place.file.removeprefix('xpnet/')}` `{place.function}`"
        program = wait.program.__name__.replace("_", " ")
        lines.append(f"| {where} | `{place.what}`{which} | {wait.why} | {program} | {wait.schedule} |")
    for place, _ in BETWEEN_GPUS:
        which = f", number {place.number + 1}"
        where = f"`{place.file.removeprefix('xpnet/')}` `{place.function}`"
        why = "a copy between GPUs is made after the array is computed, and before its memory is used again"
        lines.append(f"| {where} | `{place.what}`{which} | {why} | two gpus | lazy |")
    lines += ["", "Not shown on the software device:", ""]
    lines += [f"* `{place.file.removeprefix('xpnet/')}` `{place.function}`: {why}." for place, why in NOT_HERE.items() if why]
    lines += [*FOOT.splitlines(), ""]
    return "\n".join(lines)


def _several(place: Place) -> bool:
    return sum(wait.place[:3] == place[:3] for wait in WAITS) > 1


if __name__ == "__main__":
    print(page(), end="")
