"""The thread pool for operations on the CPU.

NumPy runs matrix products on several cores but everything else on one. The operations that gain from it split their work
into chunks that stay in a core's cache and run them here, on a few threads that live as long as the process. BLAS is limited
to one thread meanwhile, as nested thread pools oversubscribe the cores.

The number of threads is, in this order: the argument of :func:`set_num_threads`; ``XPNET_NUM_THREADS``; ``OMP_NUM_THREADS``;
``OPENBLAS_NUM_THREADS``; the cores that this process may use. It is never more than the latter.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xpnet.runtime.environment import setting
from xpnet.runtime.messages import quoted

Body = Callable[[int], None]


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _of_others(name: str) -> int | None:
    """Return the number of threads in a variable of another library, if it holds one; what else it holds is theirs to judge."""
    # OMP_NUM_THREADS may be a list, one number per nesting level; the first one counts here.
    text = os.environ.get(name, "").partition(",")[0].strip()
    return int(text) if text.isdigit() and int(text) > 0 else None


def _from_environment() -> int:
    count = setting("XPNET_NUM_THREADS") or _of_others("OMP_NUM_THREADS") or _of_others("OPENBLAS_NUM_THREADS")
    return min(count or _cores(), _cores())


_threads = _from_environment()

FIXED_CHUNKS = 8
"""Chunks of an operation's work in deterministic mode, whatever the number of threads: it keeps up to so many cores busy."""

_fixed = False


def chunk_count() -> int:
    """Return how many chunks to split work into: the number of threads, or :data:`FIXED_CHUNKS` in deterministic mode.

    Where chunks are partial sums, their number decides the rounding: operations ask for this number, never for the threads.
    """
    return FIXED_CHUNKS if _fixed else _threads


def fix_chunking(on: bool) -> None:
    """Turn the fixed number of chunks, and BLAS on one thread, on or off; see xpnet.runtime.determinism."""
    global _fixed
    if on != _fixed:
        _fixed = on
        (_blas.limit if on else _blas.restore)()


def get_num_threads() -> int:
    """Return how many threads one operation on the CPU may use."""
    return _threads


def set_num_threads(count: int) -> None:
    """Use up to `count` threads for one operation on the CPU, in xpnet and in the BLAS that NumPy uses.

    The number is limited to the cores that this process may use. Results depend on it by rounding only, and not at all after
    :func:`xpnet.set_deterministic`.

    Raises:
        ValueError: `count` is not a positive integer.
    """
    global _threads
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"the number of threads must be a positive integer, got {quoted(count)}")
    _threads = min(count, _cores())
    _blas.set_default(_threads)


class _Preference(threading.local):
    own = False


preference = _Preference()


def prefer_own_threads(own: bool) -> None:
    """Set whether products called by this thread run on xpnet's own threads instead of BLAS's; every model call sets it.

    The threads of BLAS wait for the next product in a busy loop, on the cores that xpnet's threads need for convolutions. A
    network without convolutions has nothing else for those cores, and its products are faster on the threads of BLAS. The
    choice is fixed for a model, as the two may round differently.
    """
    preference.own = own


def own_threads_preferred() -> bool:
    """Return the last setting of :func:`prefer_own_threads` in this thread, or True in deterministic mode."""
    return _fixed or preference.own


class _BlasThreads:
    """Limits every BLAS library of the process to one thread while any thread is inside :func:`parallel`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._libraries: list[Any] | None = None
        self._saved: list[int] = []
        self._depth = 0

    def _find(self) -> list[Any]:
        if self._libraries is None:
            # Searching the loaded libraries takes milliseconds, setting their threads about a microsecond: search once.
            from threadpoolctl import ThreadpoolController

            self._libraries = list(ThreadpoolController().select(user_api="blas").lib_controllers)
        return self._libraries

    def limit(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                libraries = self._find()
                self._saved = [library.get_num_threads() for library in libraries]
                for library, number in zip(libraries, self._saved):
                    if number != 1:
                        library.set_num_threads(1)

    def restore(self) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._reset()

    def _reset(self) -> None:
        for library, number in zip(self._find(), self._saved):
            if number != 1:
                library.set_num_threads(number)

    def set_default(self, count: int) -> None:
        with self._lock:
            if self._depth:
                self._saved = [count] * len(self._saved)
            else:
                self._libraries = None  # others, such as that of SciPy, may have been loaded since
                for library in self._find():
                    library.set_num_threads(count)

    def after_fork(self) -> None:
        """Reset the limit in the child, where no other thread is left to restore it."""
        self._lock = threading.Lock()
        if self._depth:
            self._depth = 0
            self._reset()
        if _fixed:
            self.limit()


class _Job:
    """`count` calls of `body`, each claimed by the next free thread."""

    __slots__ = ("_claim", "_lock", "_remaining", "body", "count", "error", "finished")

    def __init__(self, body: Body, count: int) -> None:
        self.body = body
        self.count = count
        self.error: BaseException | None = None
        self.finished = threading.Lock()
        self.finished.acquire()
        self._claim = itertools.count().__next__  # atomic: no two threads get the same number
        self._remaining = count
        self._lock = threading.Lock()

    def work(self) -> None:
        """Claim and run parts until none is left."""
        _thread_state.busy = True
        try:
            while (part := self._claim()) < self.count:
                try:
                    if self.error is None:
                        self.body(part)
                except BaseException as error:  # raised by the caller
                    self.error = error
                finally:
                    with self._lock:
                        self._remaining -= 1
                        last = self._remaining == 0
                    if last:
                        self.finished.release()
        finally:
            _thread_state.busy = False


class _ThreadState(threading.local):
    """Whether the current thread runs a job, so that nested calls run inline."""

    busy = False


class _Pool:
    """Daemon threads that wait for jobs."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[_Job, contextvars.Context]] = queue.SimpleQueue()
        self._size = 0
        self._lock = threading.Lock()

    def submit(self, job: _Job, helpers: int) -> None:
        """Offer the job to `helpers` threads. Those still busy join late, or find nothing left to do."""
        if self._size < helpers:
            with self._lock:
                while self._size < helpers:
                    self._size += 1
                    threading.Thread(target=self._serve, name=f"xpnet-{self._size}", daemon=True).start()
        for _ in range(helpers):
            # The caller's context, so that numpy.errstate applies to the helpers; a context cannot be entered twice.
            self._jobs.put((job, contextvars.copy_context()))

    def _serve(self) -> None:
        jobs = self._jobs
        while True:
            job, context = jobs.get()
            context.run(job.work)
            del job, context  # keep no array alive while waiting


UFUNC_BUFFER = 1024
"""Elements of NumPy's ufunc buffers within `parallel`.

Operands with non-adjacent rows are copied to buffers when a row is shorter than the buffer, which doubles the time of cheap
arithmetic. NumPy's default of 8192 elements is more than a row of most images; with 1024, rows of a kilobyte and more are
used in place, and the copies of shorter ones stay in the L1 cache.
"""


_WAKE_SECONDS = 2e-4
_CALL_SECONDS = 1.5e-5
"""Overhead of several threads in seconds, once and for each NumPy call in a thread; measured with two threads.

A call releases and reacquires the GIL; while another thread runs, it often has to sleep until it gets it.
"""

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    _CALL_SECONDS = 0.0


def _worth_sharing(threads: int, count: int, seconds: float, calls: int) -> bool:
    """Return whether work of so many seconds, in `count` parts of so many calls, is expected to be faster on `threads`."""
    return seconds * (1 - 1 / threads) > _WAKE_SECONDS + _CALL_SECONDS * calls * count / threads


def parallel(body: Body, count: int, seconds: float = math.inf, calls: int = 1) -> None:
    """Call ``body(0)`` to ``body(count - 1)``, each once, on up to :func:`get_num_threads` threads, and wait for all.

    The parts run one after another in this thread if there is one thread or one part, if this call is nested in another, or
    if the work is too little for several threads. The first exception of a part is raised here once the running parts have
    ended; parts not yet started are skipped.

    Args:
        body: the work of a part.
        count: parts.
        seconds: estimate for all parts on one thread.
        calls: approximate NumPy calls a part.
    """
    if _thread_state.busy:
        for part in range(count):
            body(part)
        return
    threads = _threads if _threads < count else count
    if threads > 1 and not _worth_sharing(threads, count, seconds, calls):
        threads = 1
    before = np.setbufsize(UFUNC_BUFFER)  # of this context, and of the copies that the helpers get
    try:
        if threads > 1:
            _run_on_threads(body, count, threads)
        elif _threads > 1 and own_threads_preferred():
            # A single part would wake the threads of BLAS, which would keep the cores busy afterwards.
            with one_blas_thread():
                for part in range(count):
                    body(part)
        else:
            for part in range(count):
                body(part)
    finally:
        np.setbufsize(before)


def _run_on_threads(body: Body, count: int, threads: int) -> None:
    _blas.limit()
    try:
        job = _Job(body, count)
        _pool.submit(job, threads - 1)
        try:
            job.work()
            job.finished.acquire()
        except BaseException as interrupt:  # such as KeyboardInterrupt: stop the helpers at their next part
            job.error = interrupt
            raise
        if job.error is not None:
            raise job.error
    finally:
        _blas.restore()


_thread_state = _ThreadState()
_blas = _BlasThreads()

limit_blas_threads = _blas.limit
"""Limit BLAS to one thread until :func:`restore_blas_threads` has been called as often."""

restore_blas_threads = _blas.restore


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread within the block."""
    limit_blas_threads()
    try:
        yield
    finally:
        restore_blas_threads()


_pool = _Pool()


def _after_fork() -> None:
    global _pool
    _pool = _Pool()
    _thread_state.busy = False
    _blas.after_fork()


if setting("XPNET_NUM_THREADS"):  # BLAS reads the others itself
    _blas.set_default(_threads)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
