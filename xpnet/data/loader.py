"""`Batches`: shuffled mini-batches from any source, as a pure function of seed and epoch."""

from __future__ import annotations

import contextlib
import functools
import itertools
import numbers
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from xpnet import backend
from xpnet.backend import Array, Device
from xpnet.runtime.deprecation import renamed_arguments
from xpnet.runtime.messages import quoted
from xpnet.runtime.peers import KEYWORDS, setting_hint
from xpnet.runtime.refused import refuse, refused_attribute
from xpnet.runtime.set_later import settings_of
from xpnet.runtime.settings import Checked

from . import sampling
from .arrays import Arrays, Order, is_array, tree_map
from .augment import Augmentation
from .dataset import NumpyArray, WorkerError
from .sources import Examples, SkipExample, Stream, not_an_end, source_of

if TYPE_CHECKING:
    from .workers import Processes

_Made: TypeAlias = tuple[Any, list[SkipExample]]
_Finish: TypeAlias = Callable[[Any, int, int], Any]
_END = object()
BatchSize: TypeAlias = int | None  # checked here, where an array instead gets the hint

_TWO_ARRAYS = "; give arrays as one argument: Batches((x, y), batch_size)"


def _examples_work(source: Examples, finish: _Finish, indices: NumpyArray, epoch: int, number: int) -> _Made:
    """Make batch `number` of an epoch, on the host: a worker's task."""
    batch, skipped = source.fetch(indices)
    return (None if batch is None else finish(batch, epoch, number)), skipped


def _arrays_work(source: Arrays, finish: _Finish | None, order: Order, start: int, stop: int, epoch: int, number: int) -> _Made:
    batch = source.fetch(order, start, stop)
    return (batch if finish is None else finish(batch, epoch, number)), []


def _finish(
    transform: Callable[[Any], Any] | None, augment: Augmentation | None, seed: int, batch: Any, epoch: int, number: int
) -> Any:
    if transform is not None:
        try:
            batch = transform(batch)
        except StopIteration as error:
            raise not_an_end(transform) from error
        if batch is None:
            raise TypeError("Batches: transform returned None, expected the batch to use: does it end with return?")
    return batch if augment is None else _augmented(augment, seed, batch, epoch, number)


def _augmented(augment: Augmentation, seed: int, batch: Any, epoch: int, number: int) -> Any:
    step = (epoch << 32) + number
    try:
        return _augmented_batch(augment, batch, seed, step)
    except StopIteration as error:
        raise not_an_end(augment) from error


def _augmented_batch(augment: Augmentation, batch: Any, seed: int, step: int) -> Any:
    if isinstance(batch, tuple) and len(batch) == 2:
        return augment(*batch, seed=seed, step=step)
    if isinstance(batch, (tuple, Mapping)):
        raise ValueError(
            f"augment works on batches (x, y) or x, this one is a {type(batch).__name__} of {len(batch)}; "
            f"use transform for batches of another form"
        )
    return augment(batch, seed=seed, step=step)


class Batches(Checked):
    """Mini-batches of a data set, epoch by epoch.

    ``for x, y in batches: ...`` is one epoch; the next such loop is the next one. ``batches.epoch(e)`` is epoch e. Which
    examples are in which batch depends on `seed` and the epoch alone, never on workers, timing or earlier batches.

    Args:
        data: one of

            * arrays with the examples along the first axis: one, or a tuple or dict of them, of NumPy, CuPy
              or another library; also memory-mapped files larger than memory, and data sets of h5py or Zarr.
              A batch has the same form, in the same library. Tables and series (of pandas and others) become NumPy arrays,
              in the order of their rows;
            * a sequence of examples, with ``len(data)`` and ``data[i]``: a list, an :class:`ImageFolder`, your own class.
              An example is an array, a number, or a tuple or dict of them;
            * a stream of examples: an iterable, or a function without arguments (or with one called `epoch`) that returns
              an iterable for each epoch, such as a generator function.
        batch_size: examples in a batch; the last one of an epoch may be smaller. None, for a stream of batches.
        shuffle: a new order each epoch. None: yes, except for a stream (see `buffer`).
        seed: any integer.
        drop_last: leave out a last batch that is not full.
        weights: (N,), sampling weight of each example (with replacement), see :func:`example_weights`.
        samples_per_epoch: examples in an epoch, instead of all; the cost of few out of many does not depend on N.
        transform: called with each batch, returns the batch to use; runs in the workers.
        augment: an augmentation of :mod:`xpnet.data.augment`, for batches `(x, y)` or x. Its random numbers depend on
            (seed, epoch, batch). It runs in the workers, or, with `device` on a GPU, there (in `Trainer.fit` as part of
            the recorded step, where possible).
        device: where each batch is moved to ("cuda"); None: it stays where it is.
        workers: how many threads (or processes) prepare batches ahead of time. 0: none, and code of yours that makes batches
            (a stream, a sequence of examples, a transform) runs in the loop's thread, when a batch is asked for: after the
            step on the one before, and its callbacks. Only plain arrays are read ahead, on a GPU.
        processes: worker processes instead of threads: for sequences of examples whose decoding holds Python's lock.
        prefetch: how many batches each worker is ahead.
        buffer: for a stream: the size of the shuffle buffer.

    Attributes:
        count: the number of examples of an epoch; None for a stream.
        source: where the examples come from.
        given: the data as given to `Trainer.fit` or to this class.
        digest: of the content of the data, once `xpnet.data.identity` has computed it.
        transform, augment, device, workers: as given.
        skipped: {name: reason} of the unreadable examples left out so far.
    """

    @renamed_arguments(samples="samples_per_epoch")
    def __init__(
        self,
        data: Any,
        batch_size: BatchSize = 32,
        *,
        shuffle: bool | None = None,
        seed: int = 0,
        drop_last: bool = False,
        weights: Array | None = None,
        samples_per_epoch: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        augment: Augmentation | None = None,
        device: str | Device | None = None,
        workers: int = 0,
        processes: bool = False,
        prefetch: int = 2,
        buffer: int = 0,
    ):
        if augment is not None and (isinstance(augment, type) or not callable(augment)):
            raise TypeError(
                f"Batches: augment must be an augmentation such as xn.data.augment.Flip(), or Compose(...) of several, got "
                f"{quoted(augment)}"
            )
        self.source = source_of(data, buffer)
        self.given: Any = data
        self.digest: tuple[str | None] | None = None
        self.transform, self.augment, self.device = (
            transform,
            augment,
            device if device is None or isinstance(device, Device) else backend.device(device),
        )
        stream = isinstance(self.source, Stream)
        if batch_size is None and not stream:
            raise ValueError("batch_size=None is for a stream that gives batches; give a number")
        _check(batch_size=(batch_size, 1), seed=(seed, None), workers=(workers, 0), prefetch=(prefetch, 1), buffer=(buffer, 0))
        if samples_per_epoch is not None:
            _check(samples_per_epoch=(samples_per_epoch, 1))
        self.batch_size, self.seed, self.drop_last = batch_size, int(seed), drop_last
        self.count: int | None = None
        self.shuffle = not stream if shuffle is None else shuffle
        self._weights: NumpyArray | None = None
        if isinstance(self.source, Stream):
            if shuffle or weights is not None or samples_per_epoch is not None:
                raise ValueError(
                    "a stream cannot be shuffled, weighted or sampled by index; buffer=1000 shuffles it within a buffer"
                )
            if processes:
                raise ValueError("a stream is read in one thread: leave out processes=True")
        else:
            n = self.source.count
            if buffer:
                raise ValueError("buffer is for streams; these data are shuffled as a whole")
            if weights is not None:
                self._weights = sampling.check_weights(weights, n)
            elif samples_per_epoch is not None and samples_per_epoch > n:
                raise ValueError(
                    f"samples_per_epoch={samples_per_epoch} of {n} examples: more than all needs weights (with replacement)"
                )
            self.count = n if samples_per_epoch is None else samples_per_epoch
            if processes and isinstance(self.source, Arrays):
                raise ValueError("arrays would be copied to every worker process: use threads (processes=False)")
        self._move: Callable[[Array], Array] | None = backend.to_numpy
        on_host = isinstance(self.source, Arrays) and self.source.on_host and transform is None and augment is None
        if self.device is None or (self.device.kind == "cpu" and on_host):
            self._move = None
        elif self.device.kind != "cpu":
            self._move = functools.partial(backend.to_device, where=self.device)
        late = augment is not None and self.device is not None and self.device.kind != "cpu"
        self._device_augment = augment if late else None
        self._finish = functools.partial(_finish, transform, None if late else augment, self.seed)
        self._finishes = transform is not None or (augment is not None and not late)
        self.workers, self._ahead = workers, workers * prefetch
        self._uses_processes = processes and workers > 0
        self._processes: Processes | None = None
        self.skipped: dict[str, str] = {}
        self._epoch = self._batch = self._start = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch; a TypeError for a stream."""
        if self.count is None or self.batch_size is None:
            raise TypeError("the number of batches of a stream is not known")
        return self.count // self.batch_size if self.drop_last else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches of the next epoch, or over the rest of it after :meth:`restore`."""
        start, self._start = self._start, 0
        return self.epoch(self._epoch, start)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Iterate over the batches of one epoch, from batch `start` on."""
        with contextlib.closing(self._numbered(epoch, start, self._made(epoch, start))) as made:
            for number, batch in made:
                if self._move is not None:
                    batch = tree_map(self._move, batch)
                    if self._device_augment is not None:
                        batch = _augmented(self._device_augment, self.seed, batch, epoch, number)
                yield batch

    def prefetched(
        self, epoch: int, start: int, run: Callable[[Generator[_Made]], Generator[_Made]], raw: Arrays | None = None
    ) -> Iterator[Any]:
        """Iterate over the batches of :meth:`epoch`, brought to their device by `run`.

        Args:
            epoch, start: as for :meth:`epoch`.
            run: maps the batches on the host, each with the skipped examples, to the same on the device, possibly ahead of
                time: `Prefetcher.run`.
            raw: arrays to take the examples from, without `transform` and `augment`.
        """
        augment = None if raw is not None else self._device_augment
        with contextlib.closing(self._numbered(epoch, start, run(self._made(epoch, start, raw)))) as made:
            for number, batch in made:
                yield batch if augment is None else _augmented(augment, self.seed, batch, epoch, number)

    def bounds(self, epoch: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """Iterate over (begin, end) of each batch in :meth:`order` instead of the batches of :meth:`epoch`."""
        made = (((begin, end), list[SkipExample]()) for _, begin, end in self._places(start))
        with contextlib.closing(self._numbered(epoch, start, made)) as counted:
            for _, bounds in counted:
                yield bounds

    def order(self, epoch: int) -> NumpyArray:
        """Return the indices of an epoch's examples, int64: a function of the seed and the epoch. A stream has none."""
        if self.source.count is None:
            raise TypeError("a stream has no indices")
        n = self.source.count
        return sampling.order(self.seed, epoch, n, shuffle=self.shuffle, weights=self._weights, samples=self.count)

    def _places(self, start: int) -> Iterator[tuple[int, int, int]]:
        """Iterate over the number, begin and end of every batch from `start` on."""
        size, count = self.batch_size, self.count
        if size is None or count is None:
            raise TypeError("a stream has no indices")
        return ((k, k * size, min((k + 1) * size, count)) for k in range(start, len(self)))

    def _made(self, epoch: int, start: int, raw: Arrays | None = None) -> Generator[_Made]:
        return self._streamed(epoch, start) if isinstance(self.source, Stream) else self._indexed(epoch, start, raw)

    def _numbered(self, epoch: int, start: int, made: Generator[_Made]) -> Generator[tuple[int, Any]]:
        """Yield the batches with their numbers; record skipped examples and the position in the data."""
        self._epoch, self._batch = epoch, start
        try:
            for number, (batch, skipped) in zip(itertools.count(start), made):
                if skipped:
                    self._note(skipped)
                # Counted before the yield: a state saved while a batch is in use resumes with the next one.
                self._epoch, self._batch = epoch, number + 1
                if batch is not None:
                    yield number, batch
            self._epoch, self._batch = epoch + 1, 0
        finally:
            made.close()

    def state(self) -> dict[str, int | None]:
        """Return the position in the data, for a checkpoint: numbers only. Prefetched batches do not count."""
        return {"epoch": self._epoch, "batch": self._batch, **self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a position from :meth:`state`: the next loop gives the rest of that epoch.

        A stream is read again from its beginning and its first batches are discarded.

        Raises:
            ValueError: the state is of other data, or of another seed or batch size.
        """
        ours = self._identity()
        if wrong := [f"{k} was {state.get(k)!r}, is {v!r}" for k, v in ours.items() if state.get(k) != v]:
            raise ValueError(f"the saved place is of other batches: {'; '.join(wrong)}")
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._start = self._batch

    def close(self) -> None:
        """Stop the worker processes, if any; the next epoch starts new ones."""
        if self._processes is not None:
            self._processes.close()
            self._processes = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _identity(self) -> dict[str, int | None]:
        return {"seed": self.seed, "batch_size": self.batch_size, "count": self.count}

    def _indexed(self, epoch: int, start: int, raw: Arrays | None = None) -> Generator[_Made]:
        source = self.source if raw is None else raw
        places, order = self._places(start), self.order(epoch)
        work: Callable[..., _Made]
        tasks: Iterator[tuple[Any, ...]]
        if isinstance(source, Arrays):
            whole = Order(order)
            work = functools.partial(_arrays_work, source, self._finish if self._finishes and raw is None else None)
            tasks = ((whole, begin, end, epoch, k) for k, begin, end in places)
        elif isinstance(source, Examples):
            work = functools.partial(_examples_work, source, self._finish)
            tasks = ((order[begin:end], epoch, k) for k, begin, end in places)
        else:
            raise TypeError("a stream has no indices")
        if self.workers == 0:
            for task in tasks:
                yield work(*task)
            return
        # Imported late: process pools load much of the standard library.
        from .workers import in_threads

        if self._uses_processes:
            try:
                yield from self._pool(work).in_order(tasks, self._ahead)
            except WorkerError:
                self.close()
                raise
        else:
            yield from in_threads(self.workers, work, tasks, self._ahead)

    def _pool(self, work: Callable[..., _Made]) -> Processes:
        from .workers import Processes

        if self._processes is None:
            self._processes = Processes(self.workers, work)
            weakref.finalize(self, self._processes.pool.shutdown, wait=False, cancel_futures=True)
        return self._processes

    def _streamed(self, epoch: int, start: int) -> Generator[_Made]:
        if not isinstance(self.source, Stream):
            raise TypeError("only a stream is read in order")
        raw = self.source.batches(self.batch_size, self.seed, epoch, self.drop_last)
        count = itertools.count(start)

        def work() -> Any:
            batch = next(raw, _END)
            return _END if batch is _END else self._finish(batch, epoch, next(count))

        try:
            for _ in range(start):
                next(raw, None)
            if self.workers:
                from .workers import in_threads

                # One thread, whatever `workers` is: a stream has one reader.
                with contextlib.closing(in_threads(1, work, itertools.repeat(()), self._ahead)) as batches:
                    for batch in batches:
                        if batch is _END:
                            break
                        yield batch, []
            else:
                while (batch := work()) is not _END:
                    yield batch, []
        finally:
            raw.close()

    def _note(self, skipped: list[SkipExample]) -> None:
        for skip in skipped:
            if skip.name not in self.skipped:
                self.skipped[skip.name] = skip.reason
                warnings.warn(f"left out {skip.name}: {skip.reason}", RuntimeWarning, stacklevel=4)


def _check(**values: tuple[int | None, int | None]) -> None:
    for name, (value, least) in values.items():
        if value is not None and (not isinstance(value, numbers.Integral) or (least is not None and value < least)):
            expected = "an integer" if least is None else f"an integer of at least {least}"
            raise ValueError(f"Batches: {name} must be {expected}, got {quoted(value)}{_TWO_ARRAYS if is_array(value) else ''}")


class _Fixed:
    """A name that is set once, when the instance is made, and refused from then on. Reading it costs nothing more."""

    def __init__(self, remedy: str, name: str) -> None:
        self.remedy, self.name = remedy, name

    def __set__(self, instance: Any, value: Any) -> None:
        if self.name in instance.__dict__:
            refuse(instance, self.name, self.remedy, type(instance).__name__, 1)
        instance.__dict__[self.name] = value


_KEPT = ("batch_size", "shuffle", "seed", "drop_last", "transform", "augment", "device", "workers")
for _name in (*settings_of(Batches), *KEYWORDS):
    _remedy = "make new Batches with it" if _name in settings_of(Batches) else ""
    _remedy = _remedy or setting_hint(_name, settings_of(Batches), of_layer=False)
    if _remedy:
        setattr(Batches, _name, (_Fixed if _name in _KEPT else refused_attribute)(_remedy, _name))
