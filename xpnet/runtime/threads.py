"""Threads for the work of one operation on the CPU.

NumPy runs a product on several cores but everything else on one. The operations that are worth it split their work
into chunks that stay in a core's cache and share them out here, over a few threads that live as long as the process.
BLAS is held to one thread meanwhile: two layers of threads on the same cores only get in each other's way.

The number of threads is, in this order: what :func:`set_num_threads` was given; ``XPNET_NUM_THREADS``;
``OMP_NUM_THREADS``; ``OPENBLAS_NUM_THREADS``; the cores that this process may use. It is never more than the latter.
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

Body = Callable[[int], None]


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _given(name: str) -> int | None:
    """The number of threads in an environment variable, if it holds one."""
    # OMP_NUM_THREADS may be a list, one number per nesting level; the first is ours.
    text = os.environ.get(name, "").partition(",")[0].strip()
    return min(int(text), _cores()) if text.isdigit() and int(text) > 0 else None


def _from_environment() -> int:
    names = ("XPNET_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return next((count for name in names if (count := _given(name))), _cores())


_threads = _from_environment()

FIXED_CHUNKS = 8
"""Into how many pieces work is cut where results are not to depend on the number of threads: so many cores it keeps busy."""

_fixed = False


def chunk_count() -> int:
    """Return how many chunks an operation should cut its work into: the threads, or :data:`FIXED_CHUNKS` in deterministic mode.

    Where the pieces are also partial sums, their number decides how the result is rounded: an operation asks for this number,
    and never for that of the threads.
    """
    return FIXED_CHUNKS if _fixed else _threads


def fix_chunking(on: bool) -> None:
    """Cut work into a fixed number of pieces and hold BLAS to one thread, or no longer: see xpnet.runtime.determinism."""
    global _fixed
    if on != _fixed:
        _fixed = on
        if on:
            _blas.enter()
        else:
            _blas.leave()


def get_num_threads() -> int:
    """How many threads one operation on the CPU may use."""
    return _threads


def set_num_threads(count: int) -> None:
    """Use up to `count` threads for one operation on the CPU, in xpnet and in the BLAS that NumPy uses.

    More than the cores that this process may use counts as that many. Results do not depend on the number beyond
    rounding, and not at all after :func:`xpnet.set_deterministic`.

    Raises:
        ValueError: `count` is not a positive integer.
    """
    global _threads
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"the number of threads must be a positive integer, got {count!r}")
    _threads = min(count, _cores())
    _blas.set_default(_threads)


class _Preference(threading.local):
    own = False


preference = _Preference()


def prefer_own_threads(own: bool) -> None:
    """Say whether products of this thread should leave BLAS's threads asleep; a model says it whenever it is called.

    BLAS's threads wait for the next product in a busy loop, on the cores that xpnet's threads want for convolutions. A network
    without convolutions has nothing else for those cores, and BLAS's threads are the faster ones for its products. It is a
    property of the model, not of the moment: the two ways may round differently.
    """
    preference.own = own


def own_threads_preferred() -> bool:
    """What :func:`prefer_own_threads` said last in this thread; in deterministic mode, where BLAS has one thread, True."""
    return _fixed or preference.own


class _BlasThreads:
    """Holds every BLAS library of the process to one thread while any thread is inside :func:`parallel`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._libraries: list[Any] | None = None
        self._before: list[int] = []
        self._inside = 0

    def _find(self) -> list[Any]:
        if self._libraries is None:
            # Searching the loaded libraries takes milliseconds, setting a number about a microsecond: search once.
            from threadpoolctl import ThreadpoolController

            self._libraries = list(ThreadpoolController().select(user_api="blas").lib_controllers)
        return self._libraries

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                libraries = self._find()
                self._before = [library.get_num_threads() for library in libraries]
                for library, number in zip(libraries, self._before):
                    if number != 1:
                        library.set_num_threads(1)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore()

    def _restore(self) -> None:
        for library, number in zip(self._find(), self._before):
            if number != 1:
                library.set_num_threads(number)

    def set_default(self, count: int) -> None:
        with self._lock:
            if self._inside:
                self._before = [count] * len(self._before)
            else:
                self._libraries = None  # others, such as SciPy's, may have been loaded since
                for library in self._find():
                    library.set_num_threads(count)

    def after_fork(self) -> None:
        """In the child only the forking thread lives on: nobody is left who would leave."""
        self._lock = threading.Lock()
        if self._inside:
            self._inside = 0
            self._restore()
        if _fixed:
            self.enter()


class _Job:
    """`count` calls of `body`, claimed one by one by whichever thread is free."""

    __slots__ = ("_claim", "_left", "_lock", "body", "count", "error", "finished")

    def __init__(self, body: Body, count: int) -> None:
        self.body = body
        self.count = count
        self.error: BaseException | None = None
        self.finished = threading.Lock()
        self.finished.acquire()
        self._claim = itertools.count().__next__  # one bytecode in C: no two threads get the same number
        self._left = count
        self._lock = threading.Lock()

    def work(self) -> None:
        """Claim and do parts until none is left."""
        _thread_state.busy = True
        try:
            while (part := self._claim()) < self.count:
                try:
                    if self.error is None:
                        self.body(part)
                except BaseException as error:  # goes to the caller, which raises it
                    self.error = error
                finally:
                    with self._lock:
                        self._left -= 1
                        last = self._left == 0
                    if last:
                        self.finished.release()
        finally:
            _thread_state.busy = False


class _ThreadState(threading.local):
    """What the current thread is doing: whether it works for a job, so that a nested call runs inline."""

    busy = False


class _Pool:
    """Threads that wait for jobs. They are daemons: they never keep the process from ending."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[_Job, contextvars.Context]] = queue.SimpleQueue()
        self._size = 0
        self._lock = threading.Lock()

    def offer(self, job: _Job, helpers: int) -> None:
        """Ask `helpers` threads to join in. Those that are busy come late and find nothing left to do."""
        if self._size < helpers:
            with self._lock:
                while self._size < helpers:
                    self._size += 1
                    threading.Thread(target=self._serve, name=f"xpnet-{self._size}", daemon=True).start()
        for _ in range(helpers):
            # The caller's context, so that numpy.errstate holds in the helpers too. One cannot be entered twice.
            self._jobs.put((job, contextvars.copy_context()))

    def _serve(self) -> None:
        jobs = self._jobs
        while True:
            job, context = jobs.get()
            context.run(job.work)
            del job, context  # keep no array alive while waiting


UFUNC_BUFFER = 1024
"""Elements of NumPy's ufunc buffers within `parallel`.

Operands whose rows are not adjacent are copied to buffers when a row is shorter than the buffer, which doubles the time
of cheap arithmetic. NumPy's usual 8192 elements are more than a row of most images; with 1024, rows of a kilobyte and
more are used in place, and the copies of shorter ones stay in the first-level cache.
"""


_WAKE_SECONDS = 2e-4
_CALL_SECONDS = 1.5e-5
"""Seconds that sharing work out costs, once and for each call of NumPy in a thread; measured with two threads.

A call gives Python's lock away and takes it back; with another thread about, it often has to wait for it, asleep.
"""

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    _CALL_SECONDS = 0.0


def _worth_sharing(threads: int, count: int, seconds: float, calls: int) -> bool:
    """Whether sharing out work of so many seconds, in `count` parts of so many calls, is expected to be faster."""
    return seconds * (1 - 1 / threads) > _WAKE_SECONDS + _CALL_SECONDS * calls * count / threads


def parallel(body: Body, count: int, seconds: float = math.inf, calls: int = 1) -> None:
    """Call ``body(0)`` to ``body(count - 1)``, each once, on up to :func:`get_num_threads` threads, and wait for all.

    With one thread, one part, or inside another parallel call, the parts run one after another in this thread; so they do
    where the work is too little to be shared out. The first exception of a part is raised here, after the running parts
    have ended; parts not yet begun are left out.

    Args:
        body: what a part does.
        count: parts.
        seconds: how long one thread takes for all parts, roughly.
        calls: how often a part calls NumPy, roughly.
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
            _share(body, count, threads)
        elif _threads > 1 and own_threads_preferred():
            # A single part would wake BLAS's threads, and they would keep the cores busy for what comes next.
            with one_blas_thread():
                for part in range(count):
                    body(part)
        else:
            for part in range(count):
                body(part)
    finally:
        np.setbufsize(before)


def _share(body: Body, count: int, threads: int) -> None:
    _blas.enter()
    try:
        job = _Job(body, count)
        _pool.offer(job, threads - 1)
        try:
            job.work()
            job.finished.acquire()
        except BaseException as interrupt:  # such as KeyboardInterrupt: let the helpers stop at the next part
            job.error = interrupt
            raise
        if job.error is not None:
            raise job.error
    finally:
        _blas.leave()


_thread_state = _ThreadState()
_blas = _BlasThreads()

limit_blas_threads = _blas.enter
"""From now on BLAS uses one thread, until :func:`restore_blas_threads` has been called as often."""

restore_blas_threads = _blas.leave


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the block BLAS uses one thread."""
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


if _given("XPNET_NUM_THREADS"):  # the others BLAS reads itself
    _blas.set_default(_threads)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
