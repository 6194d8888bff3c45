"""Timeline of `fit`: when batches are loaded, copied and trained on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from xpnet.backend import Device
from xpnet.io.archive import write_atomically
from xpnet.runtime import events

T = TypeVar("T")


class Span(NamedTuple):
    """A span of time.

    Attributes:
        lane: "computation", "copies", "loading" or "waiting".
        name: of the activity.
        start, end: seconds.
    """

    lane: str
    name: str
    start: float
    end: float


class Timeline:
    """A recording of when a Trainer's batches are loaded, copied and trained on, within the block.

    ``with xn.inspect.Timeline() as line: trainer.fit(...)``, then ``print(line)`` or ``line.save("timeline.json")``. On a GPU
    computations and copies are timed by events in their streams, without synchronisation. Lanes:

        computation   steps, on the model's device
        copies        of batches to the GPU, on a separate stream
        loading       by a thread that makes batches and fills pinned memory
        waiting       of the training loop for the next batch

    Attributes:
        spans: the result, once the block has ended.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._marks: list[tuple[str, str, Any, Any, Callable[[Any], float] | None]] = []

    def __enter__(self) -> Self:
        if events.active() is not None:
            raise RuntimeError("Timeline: another one is recording")
        events.listen(self)
        return self

    def __exit__(self, *exception: object) -> None:
        events.listen(None)
        found = []
        for lane, name, start, end, seconds in self._marks:
            found.append(Span(lane, name, *((start, end) if seconds is None else (seconds(start), seconds(end)))))
        self.spans = sorted(found, key=lambda span: span.start)
        self._marks.clear()

    def watch(self, batches: Iterator[T], device: Device) -> Iterator[T]:
        """Yield from `batches`, and record the time between them as steps."""
        mark, seconds = time.perf_counter, None
        if device.kind == "cuda":
            from xpnet.accel.cupy.transfers import Clock

            clock = Clock(device)
            mark, seconds = clock.mark, clock.seconds
        asked = self.now()
        for batch in batches:
            self.add("waiting", "next batch", asked, self.now())
            start = mark()
            yield batch
            self.add("computation", "step", start, mark(), seconds)
            asked = self.now()

    def now(self) -> float:
        """Return the time on the host."""
        return time.perf_counter()

    def add(self, lane: str, name: str, start: Any, end: Any, seconds: Callable[[Any], float] | None = None) -> None:
        """Record a span, from any thread: two times, or two marks that `seconds` converts to times when the block ends."""
        self._marks.append((lane, name, start, end, seconds))

    def lane(self, name: str) -> list[Span]:
        """Return the spans of one lane, in order."""
        return [span for span in self.spans if span.lane == name]

    def seconds(self, lane: str) -> float:
        """Return how many seconds a lane was busy."""
        return sum(end - start for start, end in _merged(self.lane(lane)))

    def hidden(self, lane: str, behind: str = "computation") -> float:
        """Return the fraction of a lane's time during which the other lane was busy as well; 1 for no time at all."""
        others = _merged(self.lane(behind))
        total = common = 0.0
        for start, end in _merged(self.lane(lane)):
            total += end - start
            common += sum(max(0.0, min(end, e) - max(start, s)) for s, e in others)
        return common / total if total else 1.0

    def busy(self) -> float:
        """Return the fraction of the time from the start of the first step to the end of the last in which a step ran."""
        steps = self.lane("computation")
        if not steps:
            return 0.0
        length = max(span.end for span in steps) - steps[0].start
        return self.seconds("computation") / length if length else 1.0

    def __str__(self) -> str:
        lines = [f"{'lane':<14}{'spans':>7}{'ms':>11}{'during steps':>15}"]
        for lane in dict.fromkeys(span.lane for span in self.spans):
            share = "" if lane == "computation" else f"{self.hidden(lane):.1%}"
            lines.append(f"{lane:<14}{len(self.lane(lane)):>7}{1e3 * self.seconds(lane):>11.2f}{share:>15}")
        return "\n".join([*lines, f"a step was running {self.busy():.1%} of the time from the first to the last"])

    def save(self, path: str | Path) -> None:
        """Write a Chrome trace (open it at chrome://tracing or ui.perfetto.dev)."""
        lanes = list(dict.fromkeys(("computation", "copies", "loading", *(span.lane for span in self.spans))))
        first = min((span.start for span in self.spans), default=0.0)
        events: list[dict[str, Any]] = [
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": i, "args": {"name": lane}} for i, lane in enumerate(lanes)
        ]
        for lane, name, start, end in self.spans:
            times = {"ts": 1e6 * (start - first), "dur": 1e6 * (end - start)}
            events.append({"name": name, "cat": lane, "ph": "X", **times, "pid": 0, "tid": lanes.index(lane)})
        write_trace(path, events)


def write_trace(path: str | Path, events: list[dict[str, Any]]) -> None:
    """Write events as a Chrome trace, atomically."""
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()
    write_atomically(path, lambda file: file.write(text))


def _merged(spans: list[Span]) -> list[tuple[float, float]]:
    """Merge spans into intervals that do not overlap."""
    found: list[tuple[float, float]] = []
    for span in spans:
        if found and span.start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], span.end)
        else:
            found.append((span.start, span.end))
    return found
