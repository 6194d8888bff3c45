"""How batches reach the device: made there, prefetched through staging buffers, or as they are.

`device_feed` is the one place where a feed is chosen, opened and closed. On the CPU the Batches themselves are the feed.
On a GPU a recorded step repeats the same launches on the same memory, so its batch has to come through fixed buffers:

    ResidentFeed   the data are on the device: selecting, gathering, augmenting and converting are part of the recorded step
    PrefetchFeed   batches are copied to the device while earlier ones are used (`xpnet.data.prefetch`), bytes as bytes
    PlainFeed      batches as the loader gives them

What makes batches and is a user's own (streams, transforms, sequences of examples, subclasses) runs when it does on the CPU:
batch k + 1 is asked for after step k and its callbacks, unless there are workers. Only plain arrays are read ahead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from xpnet.backend import Array, Device, device_of, dtype_name, namespace, to_device
from xpnet.ops.registry import reference_is_forced
from xpnet.runtime.given import as_pair
from xpnet.runtime.overrides import is_own

from .arrays import Arrays, is_array, reads_plainly, tree_leaves
from .augment.program import AugmentProgram, augment_program
from .byte_images import ByteImages
from .loader import Batches
from .prefetch import Prefetcher, Transfers

Pair = tuple[Array, Array]

_SHORT = 64  # bytes
_FLOATS = ("float16", "float32", "float64")


class DeviceFeed(Protocol):
    """Gives the steps of a model on a device their batches.

    Attributes:
        inputs: the arguments of the recorded step for the current batch.
    """

    inputs: tuple[Array, ...]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Iterate over one epoch's batches (x, y) from `start` on; one that a step prepares is valid once it is enqueued."""

    def prepare(self, *inputs: Array, size: int) -> Pair:
        """Make the batch (x, y) of `size` examples out of `inputs`; called within the recorded step."""

    def close(self) -> None:
        """Release the feed's own memory and threads."""


class FedSteps(Protocol):
    """Recorded steps, which call `prepare` of a feed.

    Attributes:
        feed: the feed in use; None: a step's arguments are its batch.
    """

    feed: DeviceFeed | None


@contextlib.contextmanager
def device_feed(batches: Batches, device: Device, steps: FedSteps | None = None) -> Iterator[Batches | DeviceFeed]:
    """Open the feed that suits the data for a `with` block, and give it to `steps`.

    Args:
        batches: data in batches.
        device: the model's.
        steps: recorded steps; None: the steps are not recorded and need complete batches.
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
    """Return the fastest feed that these data allow; without `recorded` steps, which call `prepare`, one of complete batches.

    `transfers` is called if batches have to be copied.
    """
    if not is_own(batches) or not is_own(batches.source):
        return PlainFeed(batches)  # which calls what a subclass overrides
    pair = batches.source.tree if isinstance(batches.source, Arrays) else None
    if type(pair) is not tuple or len(pair) != 2 or not all(isinstance(p, ByteImages) or is_array(p) for p in pair):
        pair = None
    program = None
    if recorded and pair is not None and _are_plain(batches) and not reference_is_forced():
        program = _program(batches, pair[0])
    if pair is not None and _device_of(pair[0]) == device:
        labels = _labels(batches, pair, device)
        if program is not None and labels is not None:
            return ResidentFeed(batches, program, _array(pair[0]), labels)
        return PlainFeed(batches)
    if batches.device != device or (isinstance(batches.source, Arrays) and (pair is None or not _on_host(*pair))):
        return PlainFeed(batches)
    if program is None or (batches.augment is None and not isinstance(pair[0], ByteImages)):  # type: ignore[index]
        return PrefetchFeed(batches, transfers())
    x, y = pair  # type: ignore[misc]
    return PrefetchFeed(batches, transfers(), program, Arrays((_array(x), y)))


class BatchBuilder:
    """Builds batches on the device in fixed buffers, by the kernels that run an augmentation program.

    Args:
        program: from the data to a batch.
        xp: the arrays' namespace.
        size: of the largest batch.

    Attributes:
        step: (), uint64: the number of the next batch, for its random numbers.
    """

    def __init__(self, program: AugmentProgram, xp: Any, size: int) -> None:
        def on_device(array: Any) -> Any:
            return None if array is None else xp.asarray(array)

        parts = program.table, program.values, program.fills, program.stages
        self.table, self.values, self.fills, self.stages = map(on_device, parts)
        self.x = xp.empty((size, *program.shape), dtype=program.dtype)
        self.index = xp.zeros(size, dtype=xp.int64)
        self.drawn = None if program.stages is None else xp.zeros(2 * size * len(program.stages), dtype=xp.int32)
        self.step = xp.zeros((), dtype=xp.uint64)

    def begin(self, epoch: int, batch: int) -> None:
        """Make this the next batch."""
        self.step[...] = (epoch << 32) + batch

    def build(self, data: Array, size: int, **selection: Any) -> tuple[Array, Array | None]:
        """Build a batch; return it and the indices (size,) of its examples.

        selection: `order`, `position` and more for `xpnet.accel.cupy.batches.select`; none: the first `size` examples.
        """
        from xpnet.accel.cupy.batches import gather, select

        x, index = self.x[:size], self.index[:size] if selection else None
        stages, drawn = self.stages, None
        if self.drawn is not None:
            drawn = self.drawn[: 2 * size * len(stages)].reshape(len(stages), 2, size)
        found = {}
        if drawn is None and x.size:
            found = selection  # in one launch
        elif drawn is not None or index is not None:
            select(size, index, drawn, step=self.step, program=stages, **selection)
        parts = {"table": self.table, "values": self.values, "fills": self.fills, "program": stages, "drawn": drawn}
        gather(data, index, x, **parts, **found)
        return x, index


class PlainFeed:
    """A feed that passes on the batches of the loader."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.inputs: tuple[Array, ...] = ()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """See DeviceFeed."""
        for batch in self.batches.epoch(epoch, start):
            self.inputs = pair = as_pair(batch)
            yield pair

    def prepare(self, *inputs: Array, size: int) -> Pair:
        """See DeviceFeed."""
        x, y = inputs
        return x, y

    def close(self) -> None:
        """See DeviceFeed."""


class ResidentFeed(PlainFeed):
    """A feed for data on the device: the recorded step selects, gathers, augments and converts its own batch.

    Args:
        batches: data in batches.
        program: from the data to a batch.
        data: (M, ...) on the device.
        labels: (M, ...) on the device or on the host.
    """

    def __init__(self, batches: Batches, program: AugmentProgram, data: Array, labels: Any) -> None:
        super().__init__(batches)
        self.xp = xp = namespace(data)
        self.device: Any = device_of(data)
        size = _largest(batches)
        # What the kernels cannot read where it is has a copy, which every epoch makes anew: the data may have changed.
        self._copies: list[tuple[Array, Any]] = []
        self.data, self.labels = self._readable(data), self._readable(labels)
        self.builder = BatchBuilder(program, xp, size)
        self.y = xp.empty((size, *labels.shape[1:]), dtype=labels.dtype)
        self.order = xp.zeros(batches.count or 1, dtype=xp.int64)
        self.position = xp.zeros((), dtype=xp.int64)
        # Short labels are copied by the `select` kernel, as 32-bit words.
        length = labels.nbytes // max(len(labels), 1)
        short = length <= _SHORT and labels.dtype.itemsize % 4 == 0 and length > 0
        self.words = self.labels.reshape(len(labels), -1).view(xp.uint32) if short else None
        self._views: dict[int, Pair] = {}  # by batch size: making a view is the largest part of the host's work

    def _readable(self, array: Any) -> Any:
        """Return an array itself where it is contiguous on the device, else memory that its copies go to."""
        there: Any = to_device(array, self.device)
        if there is array and array.flags.c_contiguous:
            return array
        copy = self.xp.empty(there.shape, dtype=there.dtype)
        self._copies.append((copy, array))
        return copy

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """See DeviceFeed."""
        for copy, array in self._copies:  # in the order of the stream that the steps run on
            copy[...] = to_device(array, self.device)
        self.order[...] = self.xp.asarray(self.batches.order(epoch))
        self.position[...] = start * (self.batches.batch_size or 1)
        self.builder.begin(epoch, start)
        for begin, end in self.batches.bounds(epoch, start):
            size = end - begin
            if size not in self._views:
                self._views[size] = self.builder.x[:size], self.y[:size]
            yield self._views[size]

    def prepare(self, *inputs: Array, size: int) -> Pair:
        """See DeviceFeed."""
        y, taken = self.y[:size], {}
        if self.words is not None:
            taken = {"labels": self.words, "taken": y.reshape(size, -1).view(self.xp.uint32)}
        x, index = self.builder.build(self.data, size, order=self.order, position=self.position, **taken)
        if self.words is None:
            y[...] = self.xp.take(self.labels, index, axis=0)
        return x, y


class PrefetchFeed(PlainFeed):
    """A feed that copies batches to the device while earlier ones are used.

    Args:
        batches: data in batches.
        transfers: performs the copies.
        program: from the copied arrays to a batch, run within the recorded step; None: the copies are the batch.
        raw: the arrays to copy from, given together with `program`.
    """

    def __init__(
        self, batches: Batches, transfers: Transfers, program: AugmentProgram | None = None, raw: Arrays | None = None
    ) -> None:
        super().__init__(batches)
        self.raw = raw
        # Without workers, the user's own code runs in the main thread, and when it does on the CPU.
        self.prefetcher = Prefetcher(transfers, thread=batches.workers > 0 or _are_plain(batches))
        self.builder = None if program is None else BatchBuilder(program, transfers.xp, _largest(batches))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        """See DeviceFeed."""
        if self.builder is not None:
            self.builder.begin(epoch, start)
        for batch in self.batches.prefetched(epoch, start, self.prefetcher.run, self.raw):
            self.inputs = x, y = as_pair(batch)
            yield (x if self.builder is None else self.builder.x[: len(x)]), y

    def prepare(self, *inputs: Array, size: int) -> Pair:
        """See DeviceFeed."""
        x, y = inputs
        return (x if self.builder is None else self.builder.build(x, size)[0]), y

    def close(self) -> None:
        """See DeviceFeed."""
        self.prefetcher.close()


def _largest(batches: Batches) -> int:
    """Return the size of the largest batch."""
    return min(batches.batch_size or 1, batches.count or 1)


def _array(x: Any) -> Any:
    return x.images if isinstance(x, ByteImages) else x


def _are_plain(batches: Batches) -> bool:
    """Return whether batches are slices of arrays, and none of the user's code makes them."""
    source = batches.source
    return isinstance(source, Arrays) and batches.transform is None and all(map(reads_plainly, tree_leaves(source.tree)))


def _device_of(x: Any) -> Any:
    """Return the device of an array or of ByteImages, None for data in a file."""
    try:
        return device_of(_array(x))
    except TypeError:
        return None


def _on_host(*parts: Any) -> bool:
    return all(isinstance(_array(part), np.ndarray) or _device_of(part) is None for part in parts)


def _program(batches: Batches, x: Any) -> AugmentProgram | None:
    if isinstance(x, ByteImages):
        return x.augment_program(batches.augment, batches.seed)
    try:
        dtype = dtype_name(x)
    except TypeError:
        return None
    if dtype not in (*_FLOATS, "uint8"):
        return None
    return augment_program(batches.augment, batches.seed, tuple(x.shape[1:]), dtype)


def _labels(batches: Batches, pair: tuple[Any, Any], device: Device) -> Any:
    """Return the labels; None where they are not arrays, or on another device and too large to be moved unasked."""
    x, y = _array(pair[0]), pair[1]
    if isinstance(y, ByteImages) or _device_of(y) is None:
        return None
    if _device_of(y) == device:
        return y
    return y if batches.device == device and y.nbytes <= x.nbytes else None
