"""Where batches come from: arrays (also memory-mapped ones), sequences of examples, streams of examples."""

from __future__ import annotations

import inspect
import mmap
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import array_api_compat
import numpy as np

from xpnet import random
from xpnet.backend import Array, Namespace, describe, name_of, namespace

from .dataset import DataError, Dataset, NumpyArray

# Pages of a file stay in this process's memory once they were touched. They are given back after this many
# bytes.
_RELEASE_AFTER = 1 << 26
_FAULT_AROUND = 1 << 16  # what the kernel maps at least around a page that is touched


class SkipExample(Exception):  # noqa: N818 - a request, not an error
    """Raised by a sequence of examples (by `data[i]`) to say: leave this one out and go on.

    Args:
        name: which one, such as a file name.
        reason: why.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason


# Trees: an array, or a tuple or dict of trees


def is_array(value: object) -> bool:
    """Whether `value` is indexed like an array: of an array library, or a data set in an HDF5 file."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")


def leaves(tree: Any) -> list[Any]:
    """The arrays in a tree, from left to right."""
    if isinstance(tree, Mapping):
        return [leaf for part in tree.values() for leaf in leaves(part)]
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]


def each(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The tree with every leaf replaced by `function(leaf, ...)`; `others` are trees of the same form."""
    if isinstance(tree, Mapping):
        return {name: each(function, part, *(o[name] for o in others)) for name, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [each(function, *several) for several in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return function(tree, *others)


def like(xp: Namespace, array: Array, values: NumpyArray) -> Array:
    """`values` in the library and on the device of `array`, whose namespace is `xp`."""
    if xp is np:
        return values
    if name_of(xp) == "cupy":
        with array.device:
            return xp.asarray(values)
    return xp.asarray(values, device=array_api_compat.device(array))


# Arrays


def gather(array: Array, indices: NumpyArray) -> Array:
    """The examples at `indices` (int64, on the host) of an array of any library, in one take."""
    if isinstance(array, np.ndarray):
        memory = _file_memory(array)
        return array.take(indices, axis=0) if memory is None else _gather_mapped(array, memory, indices)
    try:
        xp = namespace(array)
    except TypeError:
        # A data set in a file, such as h5py's: it wants increasing indices, each once.
        unique, inverse = np.unique(indices, return_inverse=True)
        return np.asarray(array[unique])[inverse]
    return xp.take(array, like(xp, array, indices), axis=0)


def _file_memory(array: NumpyArray) -> mmap.mmap | None:
    """The mapping of a file that `array` is a view of, if any."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.mode == "c":
            return None  # changes live in this process's pages only: they must not be given back
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


_touched: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()


def _gather_mapped(array: NumpyArray, memory: mmap.mmap, indices: NumpyArray) -> NumpyArray:
    """Copy rows out of a mapped file in the order of the file, and give its pages back from time to time."""
    out = np.empty((len(indices), *array.shape[1:]), array.dtype)
    along = np.argsort(indices, kind="stable")
    out[along] = array[indices[along]]
    release(memory, len(indices) * (out.nbytes // max(len(indices), 1) + _FAULT_AROUND))
    return out


def release(memory: mmap.mmap, size: int) -> None:
    """Count `size` bytes of a mapped file as touched; give its pages back when they are many."""
    touched = _touched.get(memory, 0) + size
    if touched >= _RELEASE_AFTER and hasattr(mmap, "MADV_DONTNEED"):
        # The file keeps its content (and the system its cache of it): only this process lets go of the pages.
        memory.madvise(mmap.MADV_DONTNEED)
        touched = 0
    _touched[memory] = touched


class Arrays:
    """Examples in arrays with a common first axis: a tree of them."""

    def __init__(self, tree: Any):
        parts = leaves(tree)
        sizes = []
        for part in parts:
            if not is_array(part) or len(part.shape) == 0:
                raise TypeError(
                    f"data must be an array or a tuple or dict of arrays with the examples along the first "
                    f"axis; one "
                    f"of its parts is {describe(part) if is_array(part) else type(part).__name__}"
                )
            sizes.append(int(part.shape[0]))
        if not parts or len(set(sizes)) != 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"the arrays must have the same number of examples, got shapes {shapes or '(none)'}")
        self.tree, self.count = tree, sizes[0]

    def fetch(self, indices: NumpyArray) -> tuple[Any, list[SkipExample]]:
        """The batch of these examples. Neighbours in the arrays are a view where the library can give one."""
        first, n = int(indices[0]), len(indices)
        if int(indices[-1]) - first == n - 1 and (n < 3 or bool((np.diff(indices) == 1).all())):
            return each(lambda a: _slice(a, first, first + n), self.tree), []
        return each(lambda a: gather(a, indices), self.tree), []


def _slice(array: Array, start: int, stop: int) -> Array:
    if isinstance(array, np.ndarray) and (memory := _file_memory(array)) is not None:
        copied = np.array(array[start:stop])  # a view would pin the file's pages
        release(memory, copied.nbytes + _FAULT_AROUND)
        return copied
    part = array[start:stop]
    return part if hasattr(part, "shape") else np.asarray(part)


# Examples


def collate(examples: list[Any], where: str, names: Sequence[object] = ()) -> Any:
    """One batch out of single examples of the same form: every part is stacked along a new first axis.

    Args:
        examples: at least one.
        where: what they come from, for messages.
        names: what to call each one in messages.
    """
    first = examples[0]
    called = [str(name) for name in names] or [f"example {i} of its batch" for i in range(len(examples))]
    for name, example in zip(called, examples, strict=True):
        if _form(example) != _form(first):
            raise DataError(f"{where}: {name} has another form than {called[0]}")
    return each(lambda *parts: _stack(parts, where, called), first, *examples[1:])


def _form(example: Any) -> tuple[Any, ...]:
    """What has to agree before the parts of two examples can be put together."""
    if isinstance(example, Mapping):
        return ("dict", *((name, _form(part)) for name, part in example.items()))
    return ("tuple", *map(_form, example)) if isinstance(example, tuple) else ()


def _stack(parts: tuple[Any, ...], where: str, names: list[str]) -> Array:
    first = parts[0]
    shape = tuple(getattr(first, "shape", np.shape(first)))
    for name, part in zip(names, parts, strict=True):
        found = tuple(getattr(part, "shape", np.shape(part)))
        if found != shape:
            raise DataError(
                f"{where}: {name} has shape {found}, {names[0]} has {shape}; the examples of a batch must "
                f"have one "
                f"shape (ImageFolder makes it with size=(H, W))"
            )
    if is_array(first) and not isinstance(first, (np.ndarray, np.generic)):
        return namespace(*parts).stack(parts, axis=0)
    stacked = np.stack([np.asarray(part) for part in parts])
    # Python's floats are float64 for NumPy; here they are numbers without a wish for a width.
    python = isinstance(first, float) and not isinstance(first, np.generic)
    return stacked.astype(np.float32) if python else stacked


class Examples:
    """Examples fetched one by one by their index: a list, or anything with `len(data)` and `data[i]`."""

    def __init__(self, data: Any):
        self.data, self.count = data, len(data)

    def fetch(self, indices: NumpyArray) -> tuple[Any, list[SkipExample]]:
        """The batch of these examples (None if every one was skipped), and those that were skipped."""
        found, names, skipped = [], [], []
        files = getattr(self.data, "paths", None)
        for i in indices.tolist():
            try:
                found.append(self.data[i])
                names.append(f"example {i}" if files is None else files[i])
            except SkipExample as skip:
                skipped.append(skip)
        return (collate(found, type(self.data).__name__, names) if found else None), skipped


class Stream:
    """Examples that come one after the other, from any iterable or from a function that makes one."""

    count = None

    def __init__(self, data: Any, buffer: int):
        self.data, self.buffer = data, buffer
        self._once = not callable(data) and iter(data) is data
        self._begun = False

    def batches(self, size: int | None, seed: int, epoch: int, drop_last: bool) -> Generator[Any]:
        """The batches of an epoch; with size None, what the stream gives is taken as batches."""
        examples = self._examples(epoch)
        if self.buffer:
            examples = _shuffled(examples, self.buffer, random.generator(random.key(seed, "buffer"), epoch))
        if size is None:
            yield from examples
            return
        waiting: list[Any] = []
        for example in examples:
            waiting.append(example)
            if len(waiting) == size:
                yield collate(waiting, "stream")
                waiting = []
        if waiting and not drop_last:
            yield collate(waiting, "stream")

    def _examples(self, epoch: int) -> Iterator[Any]:
        if self._once:
            if self._begun:
                raise ValueError(
                    "this iterator was used up by an earlier epoch: give a function that returns a new one each time"
                )
            self._begun = True
        if not callable(self.data):
            return iter(cast("Iterable[Any]", self.data))
        takes_epoch = "epoch" in inspect.signature(self.data).parameters
        return iter(self.data(epoch=epoch) if takes_epoch else self.data())


def _shuffled(examples: Iterator[Any], size: int, rng: np.random.Generator) -> Iterator[Any]:
    """Keep `size` examples waiting, and give a random one of them for each that comes."""
    waiting: list[Any] = []
    for example in examples:
        if len(waiting) < size:
            waiting.append(example)
            continue
        i = int(rng.integers(size))
        yield waiting[i]
        waiting[i] = example
    for i in rng.permutation(len(waiting)).tolist():
        yield waiting[i]


def source_of(data: Any, buffer: int) -> Arrays | Examples | Stream:
    """The source that `data` is."""
    if isinstance(data, Dataset):
        raise TypeError("got a Dataset; give one of its parts: dataset.train or dataset.test")
    if is_array(data) or isinstance(data, (tuple, Mapping)):
        return Arrays(data)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return Examples(data)
    if callable(data) or hasattr(data, "__iter__"):
        return Stream(data, buffer)
    raise TypeError(
        f"data is {type(data).__name__}; expected arrays (one, or a tuple or dict of them), a sequence of "
        f"examples, an "
        f"iterable of examples, or a function that returns one"
    )
