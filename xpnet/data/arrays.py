"""Examples in arrays of any library, also memory-mapped ones, and trees of such arrays."""

from __future__ import annotations

import mmap
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat
import numpy as np

from xpnet.autograd.tensor import bare
from xpnet.backend import Array, Namespace, describe, name_of, namespace
from xpnet.runtime.given import plain
from xpnet.runtime.overrides import is_own

from .dataset import NumpyArray

# Touched pages of a mapped file stay in this process's memory; they are released after this many bytes.
_RELEASE_AFTER = 1 << 26
_FAULT_AROUND = 1 << 16  # what the kernel maps at least around a touched page

_LIBRARIES = ("numpy", "cupy", "torch", "jax", "jaxlib", "array_api_strict", "h5py", "zarr")

_LONG_ROW = 1 << 14  # bytes from which copying row by row is cheaper than a second copy of the batch


# Trees: an array, or a tuple or dict of trees


def is_array(value: object) -> bool:
    """Return whether `value` is indexed like an array: of an array library, or a data set in an HDF5 file."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__getitem__")


def adopted_tree(tree: Any, who: str = "") -> Any:
    """Return a tree with the tables and labelled arrays among its leaves as NumPy arrays, by position, Tensors as their arrays.

    Raises:
        TypeError: as `plain`.
    """
    if type(tree) is np.ndarray:
        return tree
    if isinstance(tree, (tuple, Mapping)):
        return tree_map(lambda leaf: adopted_tree(leaf, who), tree)
    return plain(bare(tree), who)


def reads_plainly(array: Any) -> bool:
    """Return whether reading examples runs no code of a user's: of an array library's own class, or the package's."""
    library = type(array).__module__.partition(".")[0]
    return library in _LIBRARIES or (library == "xpnet" and is_own(array))


def tree_leaves(tree: Any) -> list[Any]:
    """Return the arrays in a tree, from left to right."""
    if isinstance(tree, Mapping):
        return [leaf for part in tree.values() for leaf in tree_leaves(part)]
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in tree_leaves(part)]
    return [tree]


def have_examples(leaves: list[Any]) -> bool:
    """Return whether all are arrays with at least one axis, whose first is that of the examples."""
    return all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves)


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Replace every leaf of a tree by `function(leaf, ...)`; `others` are trees of the same form."""
    if type(tree) is tuple and not others:  # the usual case, on the hot path
        return tuple([tree_map(function, p) if isinstance(p, (tuple, Mapping)) else function(p) for p in tree])
    if isinstance(tree, Mapping):
        return {name: tree_map(function, part, *(o[name] for o in others)) for name, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [tree_map(function, *several) for several in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return function(tree, *others)


def like(xp: Namespace, array: Array, values: NumpyArray) -> Array:
    """Convert `values` to the library and device of `array`, whose namespace is `xp`."""
    if xp is np:
        return values
    if name_of(xp) == "cupy":
        with array.device:
            converted: Array = xp.asarray(values)
    else:
        converted = xp.asarray(values, device=array_api_compat.device(array))
    return converted


class Order:
    """The indices of an epoch, on the host and, copied once for all batches, on other devices."""

    def __init__(self, indices: NumpyArray):
        self.host = indices
        self._moved: dict[tuple[int, str], Array] = {}

    def on(self, xp: Namespace, array: Array) -> Array:
        """Return all indices in the library (whose namespace is `xp`) and on the device of `array`."""
        where = id(xp), str(array_api_compat.device(array))
        if where not in self._moved:
            self._moved[where] = like(xp, array, self.host)
        return self._moved[where]


class _Reader(ABC):
    """Takes examples out of one array."""

    def __init__(self, array: Any):
        self.array = array

    @abstractmethod
    def take(self, order: Order, start: int, stop: int) -> Any:
        """Return the examples order[start:stop]."""

    def slice(self, start: int, stop: int) -> Any:
        """Return a copy of the examples from `start` to `stop`: changing a batch in place is not to change the data."""
        return self.array[start:stop].copy()


class _Numpy(_Reader):
    def take(self, order: Order, start: int, stop: int) -> Any:
        return self.array.take(order.host[start:stop], 0)


class _Native(_Reader):
    """For another library: one `take` there, on a GPU on the array's own."""

    def __init__(self, array: Array, xp: Namespace):
        super().__init__(array)
        self.xp = xp
        self.place: AbstractContextManager[Any] = array.device if name_of(xp) == "cupy" else nullcontext()

    def take(self, order: Order, start: int, stop: int) -> Any:
        with self.place:
            return self.xp.take(self.array, order.on(self.xp, self.array)[start:stop], axis=0)

    def slice(self, start: int, stop: int) -> Any:
        with self.place:
            return self.xp.asarray(self.array[start:stop, ...], copy=True)


class _InFile(_Reader):
    """For data sets of h5py and the like, which take increasing indices, each once."""

    def take(self, order: Order, start: int, stop: int) -> Any:
        unique, inverse = np.unique(order.host[start:stop], return_inverse=True)
        return np.asarray(self.array[unique])[inverse]

    def slice(self, start: int, stop: int) -> Any:
        return np.asarray(self.array[start:stop])


class _InByteImages(_Reader):
    """For ByteImages, which convert what they gather on their own device."""

    def take(self, order: Order, start: int, stop: int) -> Any:
        images = self.array.images
        return self.array[order.on(namespace(images), images)[start:stop]]

    def slice(self, start: int, stop: int) -> Any:
        return self.array[start:stop]


class _Mapped(_Reader):
    """For a memory-mapped file: batches are copies, and the file's pages are released from time to time."""

    def __init__(self, array: NumpyArray, memory: mmap.mmap):
        super().__init__(np.asarray(array))  # a memmap would make every row a memmap
        self.memory = memory

    def take(self, order: Order, start: int, stop: int) -> Any:
        indices = order.host[start:stop]
        out = np.empty((len(indices), *self.array.shape[1:]), self.array.dtype)
        along = np.argsort(indices, kind="stable")  # read the file front to back
        if out.nbytes >= _LONG_ROW * len(indices):
            for i in along.tolist():
                out[i] = self.array[indices[i]]
        else:
            out[along] = self.array[indices[along]]
        _release(self.memory, out.nbytes + len(indices) * _FAULT_AROUND)
        return out

    def slice(self, start: int, stop: int) -> Any:
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


def gather(array: Array, indices: NumpyArray) -> Any:
    """Gather the examples at `indices` (int64, on the host) of an array of any library."""
    return _reader(adopted_tree(array)).take(Order(indices), 0, len(indices))


def _file_memory(array: NumpyArray) -> mmap.mmap | None:
    """Return the mapped file that `array` is a view of, if any."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.mode == "c":
            return None  # copy-on-write: releasing the pages would lose the changes
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


_touched: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()


def _release(memory: mmap.mmap, size: int) -> None:
    """Count `size` bytes of a mapped file as touched, and release its pages when they are many."""
    touched = _touched.get(memory, 0) + size
    if touched >= _RELEASE_AFTER and hasattr(mmap, "MADV_DONTNEED"):
        # Only this process drops the pages; the file and the system's cache of it stay.
        memory.madvise(mmap.MADV_DONTNEED)
        touched = 0
    _touched[memory] = touched


class Arrays:
    """Examples in arrays with a common first axis: a tree of them."""

    def __init__(self, tree: Any):
        tree = adopted_tree(tree)
        sizes, parts = [], tree_leaves(tree)
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
        self.on_host = all(isinstance(part, np.ndarray) for part in parts)
        # Readers are chosen once, not for every batch.
        self._readers = tree_map(_reader, tree)

    def fetch(self, order: Order, start: int, stop: int) -> Any:
        """Return the batch order[start:stop], a copy."""
        indices = order.host[start:stop]
        n, first = len(indices), int(indices[0])
        if int(indices[-1]) - first == n - 1 and (n < 3 or bool((np.diff(indices) == 1).all())):
            return tree_map(lambda reader: reader.slice(first, first + n), self._readers)
        return tree_map(lambda reader: reader.take(order, start, stop), self._readers)
