"""Prefetching batches to a GPU: copies through pinned staging buffers on a second stream, overlapping with computation.

There are a few slots, each with a pinned staging buffer on the host, a buffer on the device, and two events. The host fills
a slot, the copy stream transfers it, the compute stream uses it; each waits only for the previous stage:

    fill slot k      after the copy from its staging buffer      (the host waits, ahead of time)
    copy slot k      after the computation on its buffer         (the copy stream waits)
    use slot k       after its copy                              (the compute stream waits)

An array that is on the device already is copied, too: it belongs to the stream of the thread that made it, which the copy
waits for. Its memory is used again after the copy: that stream is the one that then uses the batch, or with a thread the copy
stream itself.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

import numpy as np

from xpnet.backend import Array, to_numpy
from xpnet.runtime import events

from .arrays import tree_map
from .dataset import NumpyArray

SLOTS = 3
"""One in use, one ready, one being filled."""

_END = object()


class Event(Protocol):
    """An event in a stream."""

    def synchronize(self) -> None:
        """Block the host until the stream has reached it."""


class Transfers(Protocol):
    """The copy stream and the compute stream of a device: xpnet.accel.cupy.transfers; tests of the host alone have theirs.

    Attributes:
        xp: the namespace of the device's arrays.
    """

    xp: Any

    def pinned(self, size: int) -> NumpyArray:
        """Allocate pinned memory: (size,) uint8."""

    def buffer(self, size: int) -> Array:
        """Allocate memory on the device: (size,) uint8."""

    def copy(self, target: Array, source: Array) -> None:
        """Enqueue a copy of `source`, pinned or on the device, to `target` on the device, of the same size."""

    def copied(self) -> Event:
        """Record an event after all copies so far."""

    def used(self) -> Event:
        """Record an event after all computations so far of this thread's current stream."""

    def copies_wait(self, event: Event) -> None:
        """Let the copy stream wait for an event."""

    def computations_wait(self, event: Event) -> None:
        """Let this thread's current stream wait for an event: the compute stream, where the thread computes."""

    def beside(self, work: Callable[[], Any]) -> Any:
        """Do work of a thread of its own, in the order of the copy stream if it uses the device."""

    def is_there(self, array: Any) -> bool:
        """Return whether an array is of the device's own library and needs no staging."""

    def move(self, array: Any) -> Array:
        """Return such an array on this device, contiguous."""

    def seconds(self, event: Event) -> float:
        """Wait for an event and return when it was reached, on the clock of time.perf_counter."""

    def finish(self) -> None:
        """Wait for both streams."""


class Slot:
    """The buffers of one batch."""

    def __init__(self) -> None:
        self.memory: list[tuple[NumpyArray, Array]] = []  # for each array: staging buffer and device buffer
        self.copied: Event | None = None
        self.used: Event | None = None


class Prefetcher:
    """Copies batches to a device while earlier ones are used there.

    A batch is valid until the next one is requested.

    Args:
        transfers: the device's streams.
        thread: prepare batches and fill slots in a background thread, ahead; else in the caller's thread, each batch when it
            is asked for. Copies overlap with computation either way, as launches return before they have run.
        slots: batches in flight, including the one in use.
    """

    def __init__(self, transfers: Transfers, thread: bool = True, slots: int = SLOTS) -> None:
        self.transfers = transfers
        self.thread = thread
        self._slots = [Slot() for _ in range(slots)]
        self._running: Generator[Any] | None = None

    def run(self, made: Generator[tuple[Any, Any]]) -> Generator[tuple[Any, Any]]:
        """Yield the batches of `made`, on the device, each with its second part as it is; close `made` at the end."""
        self._running = self._run(made)
        return self._running

    def close(self) -> None:
        """Stop, wait for copies in flight, and free the buffers."""
        if self._running is not None:
            self._running.close()
            self._running = None
        self.transfers.finish()  # no copy may read a buffer that is freed
        self._slots = [Slot() for _ in self._slots]

    def _run(self, made: Generator[tuple[Any, Any]]) -> Generator[tuple[Any, Any]]:
        try:
            with contextlib.closing(self._ahead(made)) as ahead:
                for slot, batch, others in ahead:
                    if slot is None:
                        yield batch, others
                        continue
                    self.transfers.computations_wait(slot.copied)
                    try:
                        yield batch, others
                    finally:
                        slot.used = self.transfers.used()
        finally:
            made.close()

    def _ahead(self, made: Iterator[tuple[Any, Any]]) -> Generator[Any]:
        """Yield filled slots in turn; with a thread, up to `slots` - 1 of them are filled ahead of the one in use.

        The host may refill a slot: its last batch, `slots` batches ago, was released when the next one was requested.
        """
        from .workers import in_order, threads

        turns = itertools.cycle(self._slots)

        def work() -> Any:
            item: Any = next(made, _END)
            if item is _END:
                return _END
            batch, others = item
            if batch is None:
                return None, None, others
            slot = next(turns)
            return slot, self._stage(slot, batch), others

        if not self.thread:
            while (item := work()) is not _END:
                yield item
            return
        with threads(1) as pool:
            beside = functools.partial(self.transfers.beside, work)
            for item in in_order(pool, beside, itertools.repeat(()), len(self._slots) - 1):
                if item is _END:
                    return
                yield item

    def _stage(self, slot: Slot, batch: Any) -> Any:
        """Fill a slot with a batch and enqueue its copy."""
        transfers, line = self.transfers, events.active()
        if slot.copied is not None:
            slot.copied.synchronize()
        if slot.used is not None:
            transfers.copies_wait(slot.used)
        started = line.now() if line is not None else 0.0
        copies: list[tuple[Any, Any]] = []
        there = False

        def place(array: Any) -> Any:
            nonlocal there
            if transfers.is_there(array):
                # It is this thread's stream that makes it, and uses its memory again: the batch is a copy.
                there = True
                source: Any = transfers.move(array)
                target = self._memory(slot, len(copies), source.nbytes, staged=False)[1]
                copies.append((target, source))
                return target.view(source.dtype).reshape(source.shape)
            values = to_numpy(array)
            dtype = values.dtype.newbyteorder("=")
            source, target = self._memory(slot, len(copies), values.size * dtype.itemsize)
            np.copyto(source.view(dtype).reshape(values.shape), values)
            copies.append((target, source))
            return target.view(dtype).reshape(values.shape)

        placed = tree_map(place, batch)
        if there:
            transfers.copies_wait(transfers.used())
        begun = transfers.copied() if line is not None else None
        for target, source in copies:
            if source.nbytes:
                transfers.copy(target, source)
        slot.copied = transfers.copied()
        if line is not None:
            line.add("loading", "fill", started, line.now())
            line.add("copies", "copy", begun, slot.copied, transfers.seconds)
        return placed

    def _memory(self, slot: Slot, number: int, size: int, staged: bool = True) -> tuple[NumpyArray, Any]:
        """Return the first `size` bytes of a slot's two buffers for one array, larger ones if needed.

        staged: whether the staging buffer is needed as well.
        """
        while len(slot.memory) <= number:
            slot.memory.append((self.transfers.pinned(0), self.transfers.buffer(0)))
        source, target = slot.memory[number]
        if staged and len(source) < size:  # the old one is unused
            source = self.transfers.pinned(size)
        if len(target) < size:  # the old one is freed in stream order
            target = self.transfers.buffer(size)
        slot.memory[number] = source, target
        return source[:size], target[:size]
