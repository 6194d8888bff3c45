"""A stand-in for a device with two streams: it runs what it is given as late, or as early, as the order allows.

A stream is a queue of actions. `eager` says which streams run an action as soon as everything before it has run; the other
ones run only when somebody waits for them. What CUDA would silently get wrong is refused: memory on the host that is written
before it was copied, an event that is waited for and that nobody has recorded, two streams that wait for each other.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np


class HazardError(AssertionError):
    """An order of copies and computations that a device would turn into wrong numbers."""


class Event:
    def __init__(self, device, stream, place):
        self.device, self.stream, self.place, self.time = device, stream, place, None

    def synchronize(self):
        with self.device.lock:
            self.device.reach(self)


class Stream:
    def __init__(self, name):
        self.name, self.actions, self.done, self.running = name, [], 0, False


class TwoStreams:
    """As xpnet.accel.cupy.transfers.CudaTransfers.

    Args:
        eager: the names of the streams that run ahead: "copies", "computations".
        at_once: computations are done by the host itself, as it comes to them: they wait for copies there and then.
    """

    xp: Any = np

    def __init__(self, *eager, at_once=False):
        self.eager, self.at_once = eager, at_once
        self.lock = threading.RLock()
        self.copies, self.computations = Stream("copies"), Stream("computations")
        self.streams = (self.copies, self.computations)
        self.pending = []  # (copy of the source at the time it was enqueued, the source)
        self.log, self.finished, self.allocated = [], 0, 0

    # what xpnet.data.prefetch asks for

    def pinned(self, size):
        self.allocated += 1
        return np.full(size, 0xEE, np.uint8)

    def buffer(self, size):
        return np.full(size, 0xDD, np.uint8)

    def copy(self, target, source):
        kept = source.copy()

        def run():
            if not np.array_equal(kept, source):
                raise HazardError("page-locked memory was written before it was copied")
            target[...] = source
            self.log.append("copy")

        self.enqueue(self.copies, run)

    def copied(self):
        return self.record(self.copies)

    def used(self):
        return self.record(self.computations)

    def copies_wait(self, event):
        self.enqueue(self.copies, event)

    def computations_wait(self, event):
        self.enqueue(self.computations, event)

    def beside(self, work):
        return work()

    def is_there(self, array):
        return False

    def move(self, array):
        raise AssertionError("no array is there")

    def seconds(self, event):
        event.synchronize()
        return event.time

    def finish(self):
        self.finished += 1
        with self.lock:
            for stream in self.streams:
                self.advance(stream, len(stream.actions))

    # the streams

    def enqueue(self, stream, action):
        with self.lock:
            stream.actions.append(action)
            self.go_on()
            if self.at_once:
                self.advance(self.computations, len(self.computations.actions))

    def record(self, stream):
        with self.lock:
            event = Event(self, stream, len(stream.actions) + 1)

            def run():
                event.time = time.perf_counter()

            stream.actions.append(run)
            self.go_on()
            if self.at_once:
                self.advance(self.computations, len(self.computations.actions))
            return event

    def go_on(self):
        """Let the eager streams do what they can without another one's being forced."""
        moved = True
        while moved:
            moved = False
            for stream in self.streams:
                while stream.name in self.eager and stream.done < len(stream.actions):
                    action = stream.actions[stream.done]
                    if isinstance(action, Event) and action.stream.done < action.place:
                        break
                    self.step(stream)
                    moved = True

    def reach(self, event):
        self.advance(event.stream, event.place)

    def advance(self, stream, place):
        """Run a stream up to a place, and others as far as it waits for them."""
        if stream.done >= place:
            return
        if stream.running or place > len(stream.actions):
            raise HazardError(f"the stream of {stream.name} would wait for ever")
        stream.running = True
        try:
            while stream.done < place:
                action = stream.actions[stream.done]
                if isinstance(action, Event):
                    self.reach(action)
                self.step(stream)
        finally:
            stream.running = False

    def step(self, stream):
        action = stream.actions[stream.done]
        stream.done += 1
        if not isinstance(action, Event):
            action()
