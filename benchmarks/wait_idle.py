"""Wait between two turns until the workers are idle, so that the next library has the machine to itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from benchmarks.machine import seconds_of

IDLE = 0.05
"""Seconds without CPU time: a spinning thread would have used five ticks of the system's clock."""
FIXED = 0.2
"""The wait if the system does not report CPU time: OpenBLAS's threads spin for 0.1 s after a product."""
LONGEST = 1.0


def wait_until_idle(
    processes: Iterable[int],
    *,
    used: Callable[[int], float] = seconds_of,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> float:
    """Wait until none of the processes uses the CPU; return the seconds that took.

    The threads of a BLAS or of OpenMP spin for some time after their work, in case there is more: a library timed meanwhile
    shares the cores with them.
    """
    watched, start = list(processes), now()
    before, since = [used(process) for process in watched], start
    if not any(before):
        sleep(FIXED)
        return now() - start
    while now() - start < LONGEST:
        sleep(IDLE / 5)
        after = [used(process) for process in watched]
        if after != before:
            before, since = after, now()
        elif now() - since >= IDLE:
            break
    return now() - start
