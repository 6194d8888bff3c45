"""Examples in arrays of any library, also memory-mapped ones, and trees of such arrays."""

from __future__ import annotations

import mmap
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import array_api_compat
import numpy as np

from xpnet.backend import Array, Namespace, describe, name_of, namespace

from .dataset import NumpyArray

# Pages of a file stay in this process's memory once they were touched. They are given back after this many bytes.
_RELEASE_AFTER = 1 << 26
_FAULT_AROUND = 1 << 16  # what the kernel maps at least around a page that is touched

_LONG_ROW = 1 << 14  # bytes from which a row is worth a copy of its own, rather than a second copy of the batch


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
    if type(tree) is tuple and not others:  # nearly always: kept quick, a small network's step is not longer
        return tuple([each(function, p) if isinstance(p, (tuple, Mapping)) else function(p) for p in tree])
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


class Order:
    """The indices of an epoch, on the host and, once for all batches, on whatever device asks for them."""

    def __init__(self, indices: NumpyArray):
        self.host = indices
        self._moved: dict[tuple[int, str], Array] = {}

    def on(self, xp: Namespace, array: Array) -> Array:
        """All indices, in the library (whose namespace is `xp`) and on the device of `array`."""
        where = id(xp), str(array_api_compat.device(array))
        if where not in self._moved:
            self._moved[where] = like(xp, array, self.host)
        return self._moved[where]


class _Reader(ABC):
    """How examples are taken out of one array."""

    def __init__(self, array: Array):
        self.array = array

    @abstractmethod
    def take(self, order: Order, start: int, stop: int) -> Array:
        """The examples order[start:stop]."""

    @abstractmethod
    def slice(self, start: int, stop: int) -> Array:
        """The examples from `start` to `stop`."""


class _Numpy(_Reader):
    def take(self, order: Order, start: int, stop: int) -> Array:
        return self.array.take(order.host[start:stop], 0)

    def slice(self, start: int, stop: int) -> Array:
        return self.array[start:stop]


class _Native(_Reader):
    """Of another library: one take there."""

    def __init__(self, array: Array, xp: Namespace):
        super().__init__(array)
        self.xp = xp

    def take(self, order: Order, start: int, stop: int) -> Array:
        return self.xp.take(self.array, order.on(self.xp, self.array)[start:stop], axis=0)

    def slice(self, start: int, stop: int) -> Array:
        return self.array[start:stop, ...]


class _InFile(_Reader):
    """Such as h5py's data sets: they want increasing indices, each once."""

    def take(self, order: Order, start: int, stop: int) -> Array:
        unique, inverse = np.unique(order.host[start:stop], return_inverse=True)
        return np.asarray(self.array[unique])[inverse]

    def slice(self, start: int, stop: int) -> Array:
        return np.asarray(self.array[start:stop])


class _InByteImages(_Reader):
    """Bytes that become numbers as they are gathered, where they are."""

    def take(self, order: Order, start: int, stop: int) -> Array:
        images = self.array.images
        return self.array[order.on(namespace(images), images)[start:stop]]

    def slice(self, start: int, stop: int) -> Array:
        return self.array[start:stop]


class _Mapped(_Reader):
    """Of a memory-mapped file: batches are copies, and the file's pages are given back from time to time."""

    def __init__(self, array: NumpyArray, memory: mmap.mmap):
        super().__init__(np.asarray(array))  # a memmap would make every row a memmap
        self.memory = memory

    def take(self, order: Order, start: int, stop: int) -> Array:
        indices = order.host[start:stop]
        out = np.empty((len(indices), *self.array.shape[1:]), self.array.dtype)
        along = np.argsort(indices, kind="stable")  # reads go forwards through the file
        if out.nbytes >= _LONG_ROW * len(indices):
            for i in along.tolist():
                out[i] = self.array[indices[i]]
        else:
            out[along] = self.array[indices[along]]
        _release(self.memory, out.nbytes + len(indices) * _FAULT_AROUND)
        return out

    def slice(self, start: int, stop: int) -> Array:
        out = np.array(self.array[start:stop])
        _release(self.memory, out.nbytes + _FAULT_AROUND)
        return out


def _reader(array: Array) -> _Reader:
    if getattr(array, "gathers", False):
        return _InByteImages(array)
    if isinstance(array, np.ndarray):
        memory = _file_memory(array)
        return _Numpy(array) if memory is None else _Mapped(array, memory)
    try:
        return _Native(array, namespace(array))
    except TypeError:
        return _InFile(array)


def gather(array: Array, indices: NumpyArray) -> Array:
    """The examples at `indices` (int64, on the host) of an array of any library, in one take."""
    return _reader(array).take(Order(indices), 0, len(indices))


def _file_memory(array: NumpyArray) -> mmap.mmap | None:
    """The mapping of a file that `array` is a view of, if any."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.mode == "c":
            return None  # changes live in this process's pages only: they must not be given back
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


_touched: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()


def _release(memory: mmap.mmap, size: int) -> None:
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
        sizes, parts = [], leaves(tree)
        for part in parts:
            if not is_array(part) or len(part.shape) == 0:
                raise TypeError(
                    f"data must be an array or a tuple or dict of arrays with the examples along the first axis; one "
                    f"of its parts is {describe(part) if is_array(part) else type(part).__name__}"
                )
            sizes.append(int(part.shape[0]))
        if not parts or len(set(sizes)) != 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"the arrays must have the same number of examples, got shapes {shapes or '(none)'}")
        self.count = sizes[0]
        self.tree = tree
        # What each array needs is found out once, not for every batch.
        self._readers = each(_reader, tree)

    def fetch(self, order: Order, start: int, stop: int) -> Any:
        """The batch order[start:stop]. Neighbours in the arrays are a view where the library can give one."""
        indices = order.host[start:stop]
        n, first = len(indices), int(indices[0])
        if int(indices[-1]) - first == n - 1 and (n < 3 or bool((np.diff(indices) == 1).all())):
            return each(lambda reader: reader.slice(first, first + n), self._readers)
        return each(lambda reader: reader.take(order, start, stop), self._readers)
