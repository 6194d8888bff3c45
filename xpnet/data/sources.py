"""Sources of batches other than arrays: sequences and streams of examples."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, cast

import numpy as np

from xpnet import random
from xpnet.backend import Array, adopted, namespace
from xpnet.runtime.given import plain
from xpnet.runtime.messages import quoted

from .arrays import Arrays, adopted_tree, is_array, tree_map
from .dataset import DataError, Dataset, NumpyArray


class SkipExample(Exception):  # noqa: N818 - a request, not an error
    """Raised by `data[i]` of a sequence of examples to leave this example out.

    Args:
        name: of the example, such as a file name.
        reason: for the warning.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason


def not_an_end(who: Any) -> RuntimeError:
    """Return the error for a StopIteration of a user's code that makes an example or a batch: the epoch would end there."""
    name = getattr(who, "__qualname__", type(who).__qualname__)
    return RuntimeError(
        f"{name} raised StopIteration while it made a batch; only a stream ends so. Is a generator used up that it reads with "
        f"next()? It may raise another exception, or xn.data.SkipExample in data[i] to leave an example out"
    )


def collate(examples: list[Any], where: str, names: Sequence[object] = ()) -> Any:
    """Stack single examples of the same form into one batch, along a new first axis.

    Args:
        examples: at least one.
        where: their origin, for messages.
        names: of the examples, for messages.
    """
    first = examples[0]
    called = [str(name) for name in names] or [f"example {i} of its batch" for i in range(len(examples))]
    for name, example in zip(called, examples, strict=True):
        if _form(example) != _form(first):
            raise DataError(f"{where}: {name} has another form than {called[0]}")
    return tree_map(lambda *parts: _stack(parts, where, called), first, *examples[1:])


def _form(example: Any) -> tuple[Any, ...]:
    """Return the structure that examples of one batch have to share."""
    if isinstance(example, Mapping):
        return ("dict", *((name, _form(part)) for name, part in example.items()))
    return ("tuple", *map(_form, example)) if isinstance(example, tuple) else ()


def _stack(parts: tuple[Any, ...], where: str, names: list[str]) -> Array:
    if hasattr(parts[0], "to_numpy"):  # a row of a table
        parts = tuple(map(plain, parts))
    first = parts[0]
    shape = tuple(getattr(first, "shape", np.shape(first)))
    for name, part in zip(names, parts, strict=True):
        found = tuple(getattr(part, "shape", np.shape(part)))
        if found != shape:
            raise DataError(
                f"{where}: {name} has shape {found}, {names[0]} has {shape}; the examples of a batch must "
                f"have one shape (ImageFolder makes it with size=(H, W))"
            )
    if is_array(first) and not isinstance(first, (np.ndarray, np.generic)):
        return cast(Array, namespace(*parts).stack(parts, axis=0))
    stacked = np.stack([np.asarray(adopted(part)) for part in parts])
    # NumPy makes Python's floats float64; here they have no dtype of their own and become float32.
    python = isinstance(first, float) and not isinstance(first, np.generic)
    return stacked.astype(np.float32) if python else stacked


class Examples:
    """Examples fetched one by one by their index: a list, or anything with `len(data)` and `data[i]`."""

    def __init__(self, data: Any):
        self.data, self.count = data, len(data)

    def fetch(self, indices: NumpyArray) -> tuple[Any, list[SkipExample]]:
        """Return the batch of these examples, None if all were skipped, and the skipped ones."""
        found, names, skipped = [], [], []
        files = getattr(self.data, "paths", None)
        for i in indices.tolist():
            try:
                found.append(self.data[i])
                names.append(f"example {i}" if files is None else files[i])
            except SkipExample as skip:
                skipped.append(skip)
            except StopIteration as error:
                raise not_an_end(type(self.data).__getitem__) from error
        return (collate(found, type(self.data).__name__, names) if found else None), skipped


class Stream:
    """Examples in sequence, from any iterable or from a function that returns one."""

    count = None

    def __init__(self, data: Any, buffer: int):
        self.data, self.buffer = data, buffer
        self._once = not callable(data) and iter(data) is data
        self._begun = False

    def batches(self, size: int | None, seed: int, epoch: int, drop_last: bool) -> Generator[Any]:
        """Yield the batches of an epoch; with size None, the items of the stream are the batches."""
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
        return opened(self.data, epoch)


def opened(data: Any, epoch: int) -> Iterator[Any]:
    """Return an iterator over what an iterable holds, or over what a function returns for an epoch.

    A function may take `epoch`, by that name.

    Raises:
        TypeError: the function needs other arguments, or returns no iterable.
    """
    if not callable(data):
        return iter(data)
    import inspect

    takes = inspect.signature(data)
    arguments = {"epoch": epoch} if "epoch" in takes.parameters else {}
    name = getattr(data, "__name__", type(data).__name__)
    try:
        takes.bind(**arguments)
    except TypeError:
        raise TypeError(f"the data function {name}{takes} is called without arguments, or with epoch=") from None
    found = data(**arguments)
    if not hasattr(found, "__iter__") and not hasattr(found, "__getitem__"):
        raise TypeError(f"the data function {name} returned {quoted(found)}, expected an iterable, as a generator is")
    return iter(found)


def _shuffled(examples: Iterator[Any], size: int, rng: np.random.Generator) -> Iterator[Any]:
    """Shuffle within a buffer of `size` examples: each new one replaces a random one, which is yielded."""
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
    """Return the source for `data`."""
    if isinstance(data, Dataset):
        raise TypeError("got a Dataset; give one of its parts: dataset.train or dataset.test")
    if not isinstance(data, (tuple, Mapping)):
        data = adopted_tree(data, "Batches")
    if is_array(data) or isinstance(data, (tuple, Mapping)):
        return Arrays(data)
    if isinstance(data, (str, bytes, PathLike)):
        raise TypeError(f"data is {quoted(data)}, expected arrays; a file name is read by numpy.load, xn.data.ImageFolder, ...")
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return Examples(data)
    if callable(data) or hasattr(data, "__iter__"):
        return Stream(data, buffer)
    raise TypeError(
        f"data is {type(data).__name__}; expected arrays (one, or a tuple or dict of them), a sequence of "
        f"examples, an iterable of examples, or a function that returns one"
    )
