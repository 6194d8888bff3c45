"""Preparing batches ahead of time, in threads or in processes, in order."""

from __future__ import annotations

import atexit
import pickle
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.reduction import ForkingPickler
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from xpnet.backend import imported

from .arrays import tree_map
from .dataset import DataError, WorkerError

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that a worker process has for its last batch when the pool is closed."""


def in_order(pool: Executor, work: Callable[..., T], tasks: Iterable[tuple[Any, ...]], ahead: int) -> Iterator[T]:
    """Yield `work(*task)` for every task in order, computed in `pool` up to `ahead` tasks early.

    An exception of `work` is raised here, in its turn. When the caller stops early, pending tasks are cancelled.
    """
    pending: deque[Future[T]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(work, *task))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process died while it made a batch: killed, out of memory, or crashed in a library; or "
            "the program's "
            'main module starts training when it is imported (put that under `if __name__ == "__main__":`). '
            "workers=0 makes the batches in the main process and shows an error where it happens"
        ) from error
    finally:
        for future in pending:
            future.cancel()


def in_threads(count: int, work: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], ahead: int) -> Generator[Any]:
    """As `in_order`, in threads of its own. What they leave on a GPU is in order with the caller's current stream."""
    if not _on_gpu():
        with threads(count) as pool:
            yield from in_order(pool, work, tasks, ahead)
        return
    from xpnet.accel.cupy.transfers import Lane

    lane = Lane()
    try:
        with threads(count) as pool:
            for made in in_order(pool, lambda *task: lane.run(partial(work, *task), tree_map), tasks, ahead):
                yield made.take()
    finally:
        lane.close()


def _on_gpu() -> bool:
    """Return whether this thread has used a GPU: otherwise its current stream is the one that every thread starts on."""
    cupy: Any = imported("cupy")
    try:
        return cupy is not None and cupy.cuda.driver.ctxGetCurrent() != 0
    except RuntimeError:  # there is no driver, or nothing has used it yet
        return False


@contextmanager
def threads(count: int) -> Iterator[Executor]:
    """Open a pool of threads for a `with` block; pending work is cancelled at its end.

    Work that is being done is waited for, unless the block ends by an interrupt: it may hang.
    """
    pool = DaemonThreads(count)
    try:
        yield pool
    except (KeyboardInterrupt, SystemExit):
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class DaemonThreads(Executor):
    """A pool of threads that do not keep the process alive: one that hangs must not hold up its end.

    Those of the standard library are waited for when the interpreter exits, whatever they do.
    """

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._serve, name=f"xpnet-data_{i}", daemon=True) for i in range(count)]
        self._open = True
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:
        """Put work into the queue and return its future."""
        if not self._open:
            raise RuntimeError("the pool of threads is closed")
        future: Future[T] = Future()
        self._tasks.put((future, partial(work, *arguments, **named)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end after the work in the queue, or with `cancel_futures` after what is being done.

        After a call that did not wait, a later one does not either.
        """
        if not self._open:
            return
        self._open = False
        while cancel_futures:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                break
            if task is not None:
                task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, work = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            del future, work, task  # a batch lives no longer than its user keeps it


_work: Callable[..., Any] | None = None


def _begin(work: Callable[..., Any]) -> None:
    global _work
    _work = work
    # Ctrl-C reaches every process of the terminal; only the main one handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(*task: Any) -> Any:
    if _work is None:
        raise RuntimeError("a worker process was not set up")
    return _work(*task)


class Processes:
    """A pool of worker processes, each with its own copy of `work`, that persists across epochs."""

    def __init__(self, count: int, work: Callable[..., Any]):
        try:
            ForkingPickler.dumps(work)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise DataError(
                f"the data or their transform cannot be sent to worker processes ({error}): use functions "
                f"and classes that are defined at the top of a module, or threads (processes=False)"
            ) from None
        self._context = _Spawn()
        self.pool = ProcessPoolExecutor(count, mp_context=self._context, initializer=_begin, initargs=(work,))
        _at_exit(weakref.WeakMethod(self.close))

    def in_order(self, tasks: Iterable[tuple[Any, ...]], ahead: int) -> Generator[Any]:
        """Yield the results of the tasks in order; see :func:`in_order`. An interrupt kills the processes: one may hang."""
        try:
            yield from in_order(self.pool, _run, tasks, ahead)
        except (KeyboardInterrupt, SystemExit):
            self.close(patience=0.0)
            raise

    def close(self, patience: float = PATIENCE) -> None:
        """Stop the processes, and kill those that have not ended after `patience` seconds."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + patience
        for process in self._context.made:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
        self.pool.shutdown(wait=True)


class _Spawn(SpawnContext):
    """Starts processes and keeps them. A fork of a process with threads, such as those of BLAS, can deadlock: spawn instead."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[SpawnProcess] = []

    def Process(self, *arguments: Any, **named: Any) -> SpawnProcess:  # type: ignore[override]
        """Make a process."""
        self.made.append(SpawnProcess(*arguments, **named))
        return self.made[-1]


def _at_exit(close: weakref.WeakMethod[Callable[..., None]]) -> None:
    """Close a pool of processes at exit, before the standard library waits for them without a limit."""

    def end() -> None:
        if (found := close()) is not None:
            found(patience=1.0)

    # The one place before that wait; the last to be registered is called first.
    register = getattr(threading, "_register_atexit", atexit.register)
    register(end)
