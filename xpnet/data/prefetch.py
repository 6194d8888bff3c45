"""Batches on their way to a GPU: copied through page-locked memory on a stream of their own, ahead of the computation.

There are a few slots, each with page-locked memory, memory on the device, and two events. The host fills a slot, the
stream of copies moves it, the stream of computations uses it; each waits for the one before it and nobody else:

    fill slot k      after the copy out of its page-locked memory is done         (the host waits, ahead of time)
    copy slot k      after the computation on its memory on the device is done    (the stream of copies waits)
    use slot k       after its copy is done                                       (the stream of computations waits)
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from typing import Any, Protocol

import numpy as np

from xpnet.backend import Array, to_numpy
from xpnet.runtime import events

from .arrays import each
from .dataset import NumpyArray

SLOTS = 3
"""One that is used, one that is ready, one that is filled."""

_END = object()


class Event(Protocol):
    """A point in the work of a stream."""

    def synchronize(self) -> None:
        """Let the host wait until the stream has come to it."""


class Transfers(Protocol):
    """Two streams of a device, one that copies and one that computes: xpnet.accel.cupy.transfers, or a test's own.

    Attributes:
        xp: the namespace of the device's arrays.
    """

    xp: Any

    def pinned(self, size: int) -> NumpyArray:
        """Page-locked memory: (size,) uint8."""

    def buffer(self, size: int) -> Array:
        """Memory on the device: (size,) uint8."""

    def copy(self, target: Array, source: NumpyArray) -> None:
        """Let the stream of copies copy `source`, page-locked, to `target`, on the device: as many bytes."""

    def copied(self) -> Event:
        """A new event after all copies so far."""

    def used(self) -> Event:
        """A new event after all computations so far."""

    def copies_wait(self, event: Event) -> None:
        """Let the stream of copies wait for an event."""

    def computations_wait(self, event: Event) -> None:
        """Let the stream of computations wait for an event."""

    def is_there(self, array: Any) -> bool:
        """Whether this is an array of the device's own library, which need not be copied this way."""

    def move(self, array: Any) -> Array:
        """Such an array on this very device."""

    def seconds(self, event: Event) -> float:
        """When the stream came to an event, on the clock of time.perf_counter; waits for it."""

    def finish(self) -> None:
        """Wait until both streams have done their work."""


class Slot:
    """One batch's memory."""

    def __init__(self) -> None:
        self.memory: list[tuple[NumpyArray, Array]] = []  # for each array: on the host and on the device
        self.copied: Event | None = None
        self.used: Event | None = None


class Prefetcher:
    """Copies batches to a device while earlier ones are used there.

    A batch that is given stays as it is until the next one is asked for.

    Args:
        transfers: the device's streams.
        thread: make and fill in a thread of its own; else in the caller's, ahead all the same.
        slots: how many batches are on their way, the one in use included.
    """

    def __init__(self, transfers: Transfers, thread: bool = True, slots: int = SLOTS) -> None:
        self.transfers = transfers
        self.thread = thread
        self._slots = [Slot() for _ in range(slots)]
        self._running: Generator[Any] | None = None

    def run(self, made: Generator[tuple[Any, Any]]) -> Generator[tuple[Any, Any]]:
        """The batches of `made`, on the device, each with what came with it; closes `made` at the end, however it comes."""
        self._running = self._run(made)
        return self._running

    def close(self) -> None:
        """Stop, wait for what is under way, and give back the memory."""
        if self._running is not None:
            self._running.close()
            self._running = None
        self.transfers.finish()  # no copy may still read memory that others get now
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
        """The slots in turn, up to all but one of them ahead of the one that is in use.

        The slot of a new batch is free for the host: the batch that was in it, `slots` batches ago, has been used, for its
        successor was asked for.
        """
        from .workers import here, in_order, threads

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

        with threads(1) if self.thread else here() as pool:
            for item in in_order(pool, work, itertools.repeat(()), len(self._slots) - 1):
                if item is _END:
                    return
                yield item

    def _stage(self, slot: Slot, batch: Any) -> Any:
        """Bring a batch into a slot: filled now, copied when the device comes to it."""
        transfers, line = self.transfers, events.active()
        if slot.copied is not None:
            slot.copied.synchronize()
        if slot.used is not None:
            transfers.copies_wait(slot.used)
        started = line.now() if line is not None else 0.0
        copies: list[tuple[Array, NumpyArray]] = []

        def place(array: Any) -> Array:
            if transfers.is_there(array):
                return transfers.move(array)
            values = to_numpy(array)
            dtype = values.dtype.newbyteorder("=")
            source, target = self._memory(slot, len(copies), values.size * dtype.itemsize)
            np.copyto(source.view(dtype).reshape(values.shape), values)
            copies.append((target, source))
            return target.view(dtype).reshape(values.shape)

        placed = each(place, batch)
        begun = transfers.copied() if line is not None else None
        for target, source in copies:
            if len(source):
                transfers.copy(target, source)
        slot.copied = transfers.copied()
        if line is not None:
            line.add("loading", "fill", started, line.now())
            line.add("copies", "copy", begun, slot.copied, transfers.seconds)
        return placed

    def _memory(self, slot: Slot, number: int, size: int) -> tuple[NumpyArray, Array]:
        """The first `size` bytes of a slot's memory for one array, on the host and on the device; grown where it must be."""
        while len(slot.memory) <= number:
            slot.memory.append((self.transfers.pinned(0), self.transfers.buffer(0)))
        source, target = slot.memory[number]
        if len(source) < size:
            # Nothing uses the old memory on the host any more; what the device still reads keeps its place in its queue.
            source, target = slot.memory[number] = self.transfers.pinned(size), self.transfers.buffer(size)
        return source[:size], target[:size]
