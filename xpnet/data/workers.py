"""Preparing batches ahead of time, in threads or in processes, in order."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from xpnet.backend import imported

from .arrays import tree_map
from .dataset import DataError, WorkerError

T = TypeVar("T")


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
    """Open a pool of threads for a `with` block; pending work is cancelled at its end."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="xpnet-data")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class SerialExecutor(Executor):
    """Runs work at once in the calling thread; an exception is kept in the future, as in a pool."""

    def submit(self, work: Callable[..., T], /, *arguments: Any, **named: Any) -> Future[T]:
        """Run the work and return its future."""
        future: Future[T] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:  # an interrupt is not deferred
            future.set_exception(error)
        return future


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
        # A fork of a process with threads, such as those of BLAS, can deadlock: spawn instead.
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(work,))

    def in_order(self, tasks: Iterable[tuple[Any, ...]], ahead: int) -> Iterator[Any]:
        """Yield the results of the tasks in order; see :func:`in_order`."""
        return in_order(self.pool, _run, tasks, ahead)

    def close(self) -> None:
        """Stop the processes."""
        self.pool.shutdown(wait=True, cancel_futures=True)
