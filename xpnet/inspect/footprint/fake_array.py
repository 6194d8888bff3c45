"""Arrays without memory, and the log that counts what they would take."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from operator import attrgetter
from sys import getrefcount
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import as_strided

_NOWHERE = np.zeros(64, np.uint8)
"""The memory of all layouts, which are used for shapes and strides and never read."""

_BASE = 1 << 40


class AllocationLog:
    """Counts the bytes of fake arrays as they are allocated and freed.

    Args:
        unit: sizes are rounded up to multiples of it, as by CuPy's memory pool to 512.

    Attributes:
        now: bytes in use.
        peak: the maximum of `now` since the last `reset_peak`.
        kept: bytes of workspace, in use from the first call that needed it on.
    """

    def __init__(self, unit: int = 1) -> None:
        self.unit = unit
        self.now = 0
        self.peak = 0
        self.kept = 0
        self._slots: dict[Any, list[int]] = {}

    def rounded(self, size: int) -> int:
        """Return the bytes that an array of `size` bytes takes."""
        return -(-size // self.unit) * self.unit

    def allocate(self, size: int) -> None:
        """Count an allocation."""
        self.now += size
        self.peak = max(self.peak, self.now)

    def free(self, size: int) -> None:
        """Count that `size` bytes were freed."""
        self.now -= size

    def temporary(self, size: int) -> None:
        """Count an array that is allocated and freed within one operation."""
        self.peak = max(self.peak, self.now + size)

    def reset_peak(self) -> None:
        """Let the peak begin at the bytes in use now."""
        self.peak = self.now

    def workspace(self, slot: Any, size: int, copies: int = 1, limit: int | None = None) -> None:
        """Count workspace: it grows to the largest request and is kept, except for a request above `limit`."""
        if limit is not None and size > limit:
            self.temporary(size * copies)
            return
        sizes = self._slots.setdefault(slot, [])
        sizes.extend([0] * (copies - len(sizes)))
        for i in range(copies):
            if size > sizes[i]:
                self.temporary(size)  # the old one goes when the new one is there
                self.allocate(size - sizes[i])
                self.kept += size - sizes[i]
                sizes[i] = size


class _Current(threading.local):
    log: AllocationLog | None = None


_current = _Current()


@contextlib.contextmanager
def counting(log: AllocationLog) -> Iterator[AllocationLog]:
    """Count in `log`, until they are freed, the fake arrays that this thread creates within the block."""
    before, _current.log = _current.log, log
    try:
        yield log
    finally:
        _current.log = before


def current_log() -> AllocationLog:
    """Return the log of this thread.

    Raises:
        RuntimeError: there is none: see `counting`.
    """
    if _current.log is None:
        raise RuntimeError("a fake array was made outside of xpnet.inspect.footprint.counting(...)")
    return _current.log


class _Block:
    """An allocation, freed with its last view."""

    __slots__ = ("log", "size")

    def __init__(self, log: AllocationLog, size: int) -> None:
        self.log = log
        self.size = log.rounded(size)
        log.allocate(self.size)

    def __del__(self) -> None:
        self.log.free(self.size)


class _Address:
    """The address of a fake array's first element, like CuPy's `array.data`."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


def _layout(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a NumPy array with the strides of a contiguous array of this shape, whose elements do not exist."""
    dtype = np.dtype(dtype)
    strides = []
    step = dtype.itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    start = _NOWHERE[: dtype.itemsize].view(dtype)
    return as_strided(start, shape, strides[::-1])


class FakeArray:
    """An array of some library, without memory."""

    __array_ufunc__ = None
    __slots__ = ("block", "layout")
    xp: ClassVar[Any]

    def __init__(self, layout: Any, block: _Block) -> None:
        self.layout = layout
        self.block = block

    @classmethod
    def new(cls, shape: Any, dtype: Any) -> FakeArray:
        """Return a new array, counted."""
        shape = (int(shape),) if hasattr(shape, "__index__") else tuple(int(n) for n in shape)
        if any(n < 0 for n in shape):
            raise ValueError(f"negative dimensions are not allowed, got {shape}")
        layout = _layout(shape, dtype)
        return cls(layout, _Block(current_log(), math.prod(shape) * layout.itemsize))

    def _view(self, layout: Any) -> FakeArray:
        """Return a view of the same memory."""
        return type(self)(layout, self.block)

    # -- attributes --

    shape = property(attrgetter("layout.shape"), doc="The sizes of the axes.")
    dtype = property(attrgetter("layout.dtype"), doc="NumPy's dtype.")
    ndim = property(attrgetter("layout.ndim"), doc="The number of axes.")
    size = property(attrgetter("layout.size"), doc="The number of elements.")
    itemsize = property(attrgetter("layout.itemsize"), doc="Bytes of an element.")
    nbytes = property(attrgetter("layout.nbytes"), doc="Bytes of all elements.")
    strides = property(attrgetter("layout.strides"), doc="Bytes from one element to the next, along each axis.")
    flags = property(attrgetter("layout.flags"), doc="NumPy's flags of contiguity.")
    device = "fake"

    @property
    def data(self) -> _Address:
        """Its address, for questions of alignment."""
        start = self.layout.__array_interface__["data"][0] - _NOWHERE.ctypes.data
        return _Address(_BASE + start)

    @property
    def T(self) -> FakeArray:
        """A view with the axes reversed."""
        return self._view(self.layout.T)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.xp

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise TypeError("a fake array has no values: it replaces an array whose memory is to be counted")

    def __len__(self) -> int:
        return len(self.layout)

    def __iter__(self) -> Iterator[FakeArray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {self.dtype})"

    # A step reads some values, which must let it continue: a finite loss, labels within range.

    def __float__(self) -> float:
        return 1.0

    def __int__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return False

    def item(self) -> float:
        """Return some number."""
        return 1.0

    __hash__ = object.__hash__

    # -- views and copies --

    def __getitem__(self, index: Any) -> FakeArray:
        parts = index if isinstance(index, tuple) else (index,)
        if all(p is None or p is Ellipsis or isinstance(p, (int, slice, np.integer)) for p in parts):
            # With ... NumPy gives an array also for a single element, which it would otherwise read.
            return self._view(self.layout[parts if Ellipsis in parts else (*parts, ...)])
        places = tuple(np.zeros(p.shape, np.intp) if isinstance(p, FakeArray) else p for p in parts)
        picked = np.broadcast_to(np.False_, self.shape)[places]
        return self.new(picked.shape, self.dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Do nothing: there is no memory to write to."""

    def reshape(self, *shape: Any) -> FakeArray:
        """Return a view where that is possible, else a copy."""
        sizes = shape[0] if len(shape) == 1 and not hasattr(shape[0], "__index__") else shape
        sizes = (sizes,) if hasattr(sizes, "__index__") else tuple(sizes)
        if -1 in sizes:
            rest = math.prod(n for n in sizes if n != -1)
            sizes = tuple(self.size // max(rest, 1) if n == -1 else n for n in sizes)
        if math.prod(sizes) != self.size:
            raise ValueError(f"cannot reshape array of size {self.size} into shape {sizes}")
        try:
            return self._view(np.reshape(self.layout, sizes, copy=False))
        except ValueError:
            return self.new(sizes, self.dtype)

    def reusable(self, other: Any) -> bool:
        """Return whether the library would write the result of an operation with `other` to this array."""
        return False

    def view(self, dtype: Any) -> FakeArray:
        """Return a view as another dtype of the same size."""
        return self._view(self.layout.view(dtype))

    def copy(self) -> FakeArray:
        """Return a new array of the same shape and dtype."""
        return self.new(self.shape, self.dtype)

    def astype(self, dtype: Any, copy: bool = True) -> FakeArray:
        """Return a copy in another dtype; with copy=False itself if it has that already."""
        return self if not copy and np.dtype(dtype) == self.dtype else self.new(self.shape, dtype)

    def transpose(self, *axes: Any) -> FakeArray:
        """Return a view with the axes in another order."""
        return self._view(self.layout.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> FakeArray:
        """Return a view with two axes exchanged."""
        return self._view(self.layout.swapaxes(a, b))


_REUSED_FROM = 256 << 10
_temporary = 0  # the references to an operand without a name, as `_operator` counts them


def _operator(name: str, reuses: bool = False) -> Any:
    """Return a binary operator. NumPy reuses a large temporary on the left for the result."""

    def operate(self: Any, other: Any) -> Any:
        if reuses and getrefcount(self) <= _temporary and self.reusable(other):
            return self
        return getattr(self.xp, name)(self, other)

    return operate


_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "matmul": "matmul",
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "floordiv": "floor_divide", "mod": "remainder",
}  # fmt: skip
_COMPARED = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal"}
for _short, _name in {**_BINARY, **_COMPARED}.items():
    setattr(FakeArray, f"__{_short}__", _operator(_name, reuses=_short in ("add", "sub", "mul", "truediv")))
for _short, _name in _BINARY.items():
    setattr(FakeArray, f"__r{_short}__", lambda self, other, _name=_name: getattr(self.xp, _name)(other, self))
    setattr(FakeArray, f"__i{_short}__", lambda self, other: self)
for _short, _name in {"neg": "negative", "abs": "abs", "invert": "bitwise_invert"}.items():
    setattr(FakeArray, f"__{_short}__", lambda self, _name=_name: getattr(self.xp, _name)(self))
for _name in ("sum", "mean", "max", "min"):
    setattr(FakeArray, _name, lambda self, *args, _name=_name, **options: getattr(self.xp, _name)(self, *args, **options))


class FakeNumpyArray(FakeArray):
    """A NumPy array without memory."""

    __slots__ = ()

    def reusable(self, other: Any) -> bool:
        """Return whether NumPy would reuse this array for the result of an operation with `other`, if it is a temporary."""
        whole = self.block.size == self.block.log.rounded(self.nbytes)
        if self.nbytes < _REUSED_FROM or not whole or getrefcount(self.block) > 2:
            return False
        if isinstance(other, FakeArray):
            return other.shape in ((), self.shape) and bool(np.can_cast(other.dtype, self.dtype, "safe"))
        return isinstance(other, (int, float)) and self.dtype.kind == "f"


class FakeCupyArray(FakeArray):
    """A CuPy array without memory."""

    __slots__ = ()


class _Probe:
    """Returns the references to itself that an operator sees."""

    def __add__(self, other: Any) -> int:
        return getrefcount(self)


def _references() -> int:
    """Return the references that an operator sees to a temporary; 0 if they are as many as to an array with a name."""
    named = _Probe()
    temporary = _Probe() + 0
    return temporary if temporary < named + 0 else 0


_temporary = _references()
