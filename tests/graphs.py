"""CUDA graphs that count, a log of launches, and schedules of the software device: for tests of captured and fed steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from tests.gpu import Watched, on_gpu
from tests.software_gpu import device as software
from xpnet.compiled.captured_steps import CapturedSteps
from xpnet.layers.execution import executor_of


class CountedGraphs:
    """CUDA graphs, with a count of the recordings that succeeded and of the replays.

    Args:
        graphs: xpnet.compiled.cuda_graph.CudaGraphs.
    """

    def __init__(self, graphs: Any) -> None:
        self.graphs = graphs
        self.xp = graphs.xp
        self.recorded = self.replayed = 0

    def stream(self) -> AbstractContextManager[None]:
        stream: AbstractContextManager[None] = self.graphs.stream()
        return stream

    def made(self, array: Any) -> bool:
        made: bool = self.graphs.made(array)
        return made

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        replay, result = self.graphs.record(function)
        self.recorded += 1

        def counted() -> None:
            replay()
            self.replayed += 1

        return counted, result


def counted_graphs(device: str = "cuda") -> CountedGraphs:
    """Return the graphs of a device, counted."""
    from xpnet.backend import device as device_called
    from xpnet.compiled.cuda_graph import CudaGraphs

    return CountedGraphs(CudaGraphs(device_called(device)))


def count_graphs(captured: Any) -> CountedGraphs:
    """Count the graphs of CapturedSteps, or of a Captured function, from now on."""
    graphs = CountedGraphs(captured.graphs)
    captured.graphs = graphs
    if isinstance(captured, CapturedSteps):
        captured._captured.graphs = graphs
    return graphs


def captured_steps(trainer: Any) -> tuple[CapturedSteps, CountedGraphs]:
    """Return the steps of a Trainer as its model's executor captures them, and the graphs."""
    steps = executor_of(trainer.model).capture(trainer)
    assert isinstance(steps, CapturedSteps)
    return steps, count_graphs(steps)


def logged() -> AbstractContextManager[Watched]:
    """Log what is launched on the device within the block, and change nothing else: nothing waits for the device."""
    return on_gpu(guards=False, multiprocessors=None, chunk_bytes=None, architecture=None, measures=True)


SCHEDULES = ["eager", "lazy", "early-copies", "early-kernels", "random:1", "random:2"]
"""When the software device runs submitted work, as far as streams, events and the host's waiting leave it open."""


def scheduled(name: str) -> AbstractContextManager[None]:
    """Run the work of a `with` block by one of SCHEDULES; a GPU keeps its own."""
    return software.schedule(name) if software.LIBRARIES else contextlib.nullcontext()
