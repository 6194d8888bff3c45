"""What a recorded training step is fed with: data that live on the GPU, or that are brought there ahead of time.

A recorded step repeats the same launches on the same memory, so its batch must come through fixed buffers. Where the whole
data set is on the device, not even the batch is made by the host: the order of the epoch and the place in it are on the
device, and gathering, augmenting and converting are part of the recording. Otherwise the batches are copied to the device
while earlier ones are computed with (`xpnet.data.prefetch`), bytes as bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from xpnet.backend import Array, Device, device_of, dtype_name, namespace, to_device
from xpnet.ops.registry import reference_is_forced

from .arrays import Arrays, is_array
from .augment.program import Program, program
from .byte_images import Bytes
from .loader import Batches
from .prefetch import Staging, Transfers

Pair = tuple[Array, Array]

_SHORT = 64  # bytes
_FLOATS = ("float16", "float32", "float64")


class DeviceFeed(Protocol):
    """Gives a recorded step its batches.

    Attributes:
        inputs: what the recorded step is given for the current batch.
    """

    inputs: tuple[Array, ...]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """One epoch's batches (x, y), from batch `start` on; their values are there once the step has been enqueued."""

    def prepare(self, *inputs: Array, size: int) -> Pair:
        """Within the recorded step: the batch (x, y) of `size` examples, out of `inputs`."""

    def close(self) -> None:
        """Give back what only this feed needs."""


class Maker:
    """Makes batches on the device by the kernels of a program, in buffers that stay.

    Args:
        made: the program.
        xp: of the arrays.
        size: of the largest batch.

    Attributes:
        step: (), uint64: which batch's random numbers come next.
    """

    def __init__(self, made: Program, xp: Any, size: int) -> None:
        def there(array: Any) -> Any:
            return None if array is None else xp.asarray(array)

        self.table, self.values, self.fills, self.stages = map(there, (made.table, made.values, made.fills, made.stages))
        self.x = xp.empty((size, *made.shape), dtype=made.dtype)
        self.index = xp.zeros(size, dtype=xp.int64)
        self.drawn = None if made.stages is None else xp.zeros(2 * size * len(made.stages), dtype=xp.int32)
        self.step = xp.zeros((), dtype=xp.uint64)

    def begin(self, epoch: int, batch: int) -> None:
        """The next batch is this one."""
        self.step[...] = (epoch << 32) + batch

    def make(self, data: Array, size: int, **dealt: Any) -> Pair:
        """The next `size` examples of an order, or (without one) the first of the data; and their numbers (size,).

        dealt: the `order`, the `position` in it and more for `xpnet.accel.cupy.batches.deal`.
        """
        from xpnet.accel.cupy.batches import deal, gather

        x, index = self.x[:size], self.index[:size] if dealt else None
        stages, drawn = self.stages, None
        if self.drawn is not None:
            drawn = self.drawn[: 2 * size * len(stages)].reshape(len(stages), 2, size)
        if drawn is not None or index is not None:
            deal(size, index, drawn, step=self.step, program=stages, **dealt)
        gather(
            data, index, x, table=self.table, values=self.values, fills=self.fills, program=stages, drawn=drawn
        )  # fmt: skip
        return x, index


class ResidentFeed:
    """Batches of data that live on the device: within the recorded step they are dealt, gathered, augmented and converted.

    Args:
        batches: of which data, in which order.
        made: from the data to a batch.
        data: (M, ...) on the device.
        labels: (M, ...) on the device.
    """

    inputs: tuple[Array, ...] = ()

    def __init__(self, batches: Batches, made: Program, data: Array, labels: Array) -> None:
        self.batches = batches
        self.xp = xp = namespace(data)
        size = min(batches.batch_size or 1, batches.count or 1)
        self.data, self.labels = xp.ascontiguousarray(data), xp.ascontiguousarray(labels)
        self.maker = Maker(made, xp, size)
        self.y = xp.empty((size, *labels.shape[1:]), dtype=labels.dtype)
        self.order = xp.zeros(batches.count or 1, dtype=xp.int64)
        self.position = xp.zeros((), dtype=xp.int64)
        # Short labels are taken along by the kernel that deals.
        length = labels.nbytes // max(len(labels), 1)
        short = length <= _SHORT and labels.dtype.itemsize % 4 == 0 and length > 0
        self.words = self.labels.reshape(len(labels), -1).view(xp.uint32) if short else None
        self._views: dict[int, Pair] = {}  # by batch size: making a view takes longer than all else that the host does

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """See DeviceFeed."""
        self.order[...] = self.xp.asarray(self.batches.order(epoch))
        self.position[...] = start * (self.batches.batch_size or 1)
        self.maker.begin(epoch, start)
        for begin, end in self.batches.bounds(epoch, start):
            size = end - begin
            if size not in self._views:
                self._views[size] = self.maker.x[:size], self.y[:size]
            yield self._views[size]

    def prepare(self, *inputs: Array, size: int) -> Pair:
        """See DeviceFeed."""
        y, dealt = self.y[:size], {}
        if self.words is not None:
            dealt = {"labels": self.words, "taken": y.reshape(size, -1).view(self.xp.uint32)}
        x, index = self.maker.make(self.data, size, order=self.order, position=self.position, **dealt)
        if self.words is None:
            y[...] = self.xp.take(self.labels, index, axis=0)
        return x, y

    def close(self) -> None:
        """See DeviceFeed."""


class PrefetchFeed:
    """Batches that are copied to the device ahead of time.

    Args:
        batches: of which data, in which order.
        transfers: what copies.
        made: from what is copied to a batch, within the recorded step; None: it is copied as it is to be.
        raw: the arrays that are copied from, where `made` is given.
    """

    def __init__(self, batches: Batches, transfers: Transfers, made: Program | None = None, raw: Arrays | None = None) -> None:
        self.batches, self.raw = batches, raw
        # What the user's own code does without workers, it does in the main thread.
        self.staging = Staging(transfers, thread=batches.workers > 0 or isinstance(batches.source, Arrays))
        self.maker = None if made is None else Maker(made, transfers.xp, min(batches.batch_size or 1, batches.count or 1))
        self.inputs: tuple[Array, ...] = ()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """See DeviceFeed."""
        if self.maker is not None:
            self.maker.begin(epoch, start)
        for batch in self.batches.staged(epoch, start, self.staging.run, self.raw):
            x, y = batch
            self.inputs = x, y
            yield (x if self.maker is None else self.maker.x[: len(x)]), y

    def prepare(self, *inputs: Array, size: int) -> Pair:
        """See DeviceFeed."""
        x, y = inputs
        return (x if self.maker is None else self.maker.make(x, size)[0]), y

    def close(self) -> None:
        """See DeviceFeed."""
        self.staging.close()


class PlainFeed:
    """Batches as they come."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.inputs: tuple[Array, ...] = ()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """See DeviceFeed."""
        for x, y in self.batches.epoch(epoch, start):
            self.inputs = x, y
            yield x, y

    def prepare(self, *inputs: Array, size: int) -> Pair:
        """See DeviceFeed."""
        x, y = inputs
        return x, y

    def close(self) -> None:
        """See DeviceFeed."""


class FedSteps(Protocol):
    """Recorded steps, which take their batches from a feed.

    Attributes:
        feed: where they are taken from; None: the arguments of a step are the batch.
    """

    feed: DeviceFeed | None


@contextlib.contextmanager
def device_feed(batches: Batches, device: Device, steps: FedSteps | None = None) -> Iterator[Batches | DeviceFeed]:
    """Open the best feed for these data: what it gives within the block has the `epoch` of Batches.

    Args:
        batches: of which data; on the CPU they are the feed themselves.
        device: the model's.
        steps: recorded steps, which are fed within the block; None: the steps take whole batches.
    """
    if device.kind == "cpu" and steps is None:
        yield batches
        return

    def transfers() -> Transfers:
        from xpnet.accel.cupy.transfers import CudaTransfers

        return CudaTransfers(device)

    feed = choose_feed(batches, device, transfers, recorded=steps is not None)
    if steps is not None:
        steps.feed = feed
    try:
        yield feed
    finally:
        feed.close()
        if steps is not None:
            steps.feed = None


def choose_feed(batches: Batches, device: Device, transfers: Callable[[], Transfers], recorded: bool = True) -> DeviceFeed:
    """The best feed for these data and a model on a GPU.

    Args:
        batches: of which data.
        device: the model's.
        transfers: called where something is copied.
        recorded: whether the steps call `prepare`; else the batches must be complete when they are given.
    """
    pair = batches.source.tree if isinstance(batches.source, Arrays) else None
    if type(pair) is not tuple or len(pair) != 2 or not all(isinstance(p, Bytes) or is_array(p) for p in pair):
        pair = None
    program = None
    if recorded and pair is not None and batches.transform is None and not reference_is_forced():
        program = _program(batches, pair[0])
    if pair is not None and _place(pair[0]) == device:
        labels = _labels(batches, pair, device)
        if program is not None and labels is not None:
            return ResidentFeed(batches, program, _array(pair[0]), labels)
        return PlainFeed(batches)
    if batches.device != device or (isinstance(batches.source, Arrays) and (pair is None or not _on_host(*pair))):
        return PlainFeed(batches)
    if program is None or (batches.augment is None and not isinstance(pair[0], Bytes)):  # type: ignore[index]
        return PrefetchFeed(batches, transfers())
    x, y = pair  # type: ignore[misc]
    return PrefetchFeed(batches, transfers(), program, Arrays((_array(x), y)))


def _array(x: Any) -> Any:
    return x.images if isinstance(x, Bytes) else x


def _place(x: Any) -> Any:
    """The device of an array or of Bytes, None for what is in a file."""
    try:
        return device_of(_array(x))
    except TypeError:
        return None


def _on_host(*parts: Any) -> bool:
    return all(isinstance(_array(part), np.ndarray) or _place(part) is None for part in parts)


def _program(batches: Batches, x: Any) -> Program | None:
    if isinstance(x, Bytes):
        return x.program(batches.augment, batches.seed)  # type: ignore[no-any-return]
    try:
        dtype = dtype_name(x)
    except TypeError:
        return None
    if dtype not in (*_FLOATS, "uint8"):
        return None
    return program(batches.augment, batches.seed, tuple(x.shape[1:]), dtype)


def _labels(batches: Batches, pair: tuple[Any, Any], device: Device) -> Array | None:
    """The labels beside the data; None where they are not arrays, or too large to be moved unasked."""
    x, y = _array(pair[0]), pair[1]
    if isinstance(y, Bytes) or _place(y) is None:
        return None
    if _place(y) == device:
        return y
    return to_device(y, device) if batches.device == device and y.nbytes <= x.nbytes else None
