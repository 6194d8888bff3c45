"""The arrays without memory, and the log that counts what they would take."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from sys import getrefcount
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import as_strided

_NOWHERE = np.zeros(64, np.uint8)
"""What all layouts point to. They are looked at for shapes and strides and never read."""

_BASE = 1 << 40


class AllocationLog:
    """Counts bytes as fake arrays come and go.

    Args:
        unit: sizes are rounded up to multiples of it, as CuPy's memory pool does with 512.

    Attributes:
        now: bytes in use.
        peak: the most that `now` has been since the last `mark`.
        kept: bytes of working memory that is in use from the first call that needed it on.
    """

    def __init__(self, unit: int = 1) -> None:
        self.unit = unit
        self.now = 0
        self.peak = 0
        self.kept = 0
        self._slots: dict[Any, list[int]] = {}

    def rounded(self, size: int) -> int:
        """What an array of `size` bytes takes."""
        return -(-size // self.unit) * self.unit

    def take(self, size: int) -> None:
        """Count an allocation."""
        self.now += size
        self.peak = max(self.peak, self.now)

    def give(self, size: int) -> None:
        """Count that it was freed."""
        self.now -= size

    def temporary(self, size: int) -> None:
        """Count what is allocated and freed within one operation."""
        self.peak = max(self.peak, self.now + size)

    def mark(self) -> None:
        """Forget the peak until now."""
        self.peak = self.now

    def keep(self, slot: Any, size: int, copies: int = 1, limit: int | None = None) -> None:
        """Working memory that grows to the largest request and stays; a request above `limit` lasts for one operation."""
        if limit is not None and size > limit:
            self.temporary(size * copies)
            return
        sizes = self._slots.setdefault(slot, [])
        sizes.extend([0] * (copies - len(sizes)))
        for i in range(copies):
            if size > sizes[i]:
                self.temporary(size)  # the old one goes when the new one is there
                self.take(size - sizes[i])
                self.kept += size - sizes[i]
                sizes[i] = size


class _Current(threading.local):
    log: AllocationLog | None = None


_current = _Current()


@contextlib.contextmanager
def counting(log: AllocationLog) -> Iterator[AllocationLog]:
    """Within the block new fake arrays of this thread are counted by `log`, and until they go."""
    before, _current.log = _current.log, log
    try:
        yield log
    finally:
        _current.log = before


def current_log() -> AllocationLog:
    """What counts in this thread now.

    Raises:
        RuntimeError: nothing does.
    """
    if _current.log is None:
        raise RuntimeError("a fake array was made outside of xpnet.inspect.footprint.counting(...)")
    return _current.log


class _Block:
    """One allocation; freed when the last view of it goes."""

    __slots__ = ("log", "size")

    def __init__(self, log: AllocationLog, size: int) -> None:
        self.log = log
        self.size = log.rounded(size)
        log.take(self.size)

    def __del__(self) -> None:
        self.log.give(self.size)


class _Address:
    """Where a fake array's first element would be, as CuPy's `array.data`."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


def _layout(shape: tuple[int, ...], dtype: Any) -> Any:
    """A NumPy array of this shape, as if its elements lay one after another; they do not exist."""
    dtype = np.dtype(dtype)
    strides = []
    step = dtype.itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    start = _NOWHERE[: dtype.itemsize].view(dtype)
    return as_strided(start, shape, strides[::-1])


class FakeArray:
    """An array of some library, without its memory."""

    __array_ufunc__ = None
    __slots__ = ("block", "layout")
    xp: ClassVar[Any]

    def __init__(self, layout: Any, block: _Block) -> None:
        self.layout = layout
        self.block = block

    @classmethod
    def new(cls, shape: Any, dtype: Any) -> FakeArray:
        """A new one, counted."""
        shape = (int(shape),) if hasattr(shape, "__index__") else tuple(int(n) for n in shape)
        if any(n < 0 for n in shape):
            raise ValueError(f"negative dimensions are not allowed, got {shape}")
        layout = _layout(shape, dtype)
        return cls(layout, _Block(current_log(), math.prod(shape) * layout.itemsize))

    def _look(self, layout: Any) -> FakeArray:
        """Another look at the same memory."""
        return type(self)(layout, self.block)

    def same(self) -> FakeArray:
        """A new one of the same shape and dtype."""
        return self.new(self.layout.shape, self.layout.dtype)

    # -- what an array says of itself --

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return self.layout.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> Any:
        """NumPy's dtype."""
        return self.layout.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return int(self.layout.ndim)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(self.layout.size)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.layout.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(self.layout.nbytes)

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, along each axis."""
        return self.layout.strides  # type: ignore[no-any-return]

    @property
    def flags(self) -> Any:
        """Whether it is contiguous, as NumPy says it."""
        return self.layout.flags

    @property
    def device(self) -> str:
        """A name."""
        return "fake"

    @property
    def data(self) -> _Address:
        """Where it would begin, for questions of alignment."""
        start = self.layout.__array_interface__["data"][0] - _NOWHERE.ctypes.data
        return _Address(_BASE + start)

    @property
    def T(self) -> FakeArray:
        """A view with the axes reversed."""
        return self._look(self.layout.T)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.xp

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise TypeError("a fake array has no values: it stands for an array whose memory is to be counted")

    def __len__(self) -> int:
        return len(self.layout)

    def __iter__(self) -> Iterator[FakeArray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape}, {self.dtype})"

    # What a step looks at on its way must let it go on: a finite loss, labels within range.

    def __float__(self) -> float:
        return 1.0

    def __int__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return False

    def item(self) -> float:
        """Some number."""
        return 1.0

    __hash__ = object.__hash__

    # -- views and copies --

    def __getitem__(self, index: Any) -> FakeArray:
        parts = index if isinstance(index, tuple) else (index,)
        if all(p is None or p is Ellipsis or isinstance(p, (int, slice, np.integer)) for p in parts):
            # With ... NumPy gives an array also for a single element, which it would otherwise read.
            return self._look(self.layout[parts if Ellipsis in parts else (*parts, ...)])
        places = tuple(np.zeros(p.shape, np.intp) if isinstance(p, FakeArray) else p for p in parts)
        picked = np.broadcast_to(np.False_, self.shape)[places]
        return self.new(picked.shape, self.dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Nothing is written: there is nothing to write to."""

    def reshape(self, *shape: Any) -> FakeArray:
        """A view where that is possible, else a copy."""
        sizes = shape[0] if len(shape) == 1 and not hasattr(shape[0], "__index__") else shape
        sizes = (sizes,) if hasattr(sizes, "__index__") else tuple(sizes)
        if -1 in sizes:
            rest = math.prod(n for n in sizes if n != -1)
            sizes = tuple(self.size // max(rest, 1) if n == -1 else n for n in sizes)
        if math.prod(sizes) != self.size:
            raise ValueError(f"cannot reshape array of size {self.size} into shape {sizes}")
        try:
            return self._look(np.reshape(self.layout, sizes, copy=False))
        except ValueError:
            return self.new(sizes, self.dtype)

    def reusable(self, other: Any) -> bool:
        """Whether the library would write the result of an operation with `other` here."""
        return False

    def view(self, dtype: Any) -> FakeArray:
        """The same memory, read as another dtype of the same size."""
        return self._look(self.layout.view(dtype))

    def copy(self) -> FakeArray:
        """A copy."""
        return self.same()

    def astype(self, dtype: Any, copy: bool = True) -> FakeArray:
        """A copy in another dtype; with copy=False itself where it has that already."""
        return self if not copy and np.dtype(dtype) == self.dtype else self.new(self.shape, dtype)

    def transpose(self, *axes: Any) -> FakeArray:
        """A view with the axes in another order."""
        return self._look(self.layout.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> FakeArray:
        """A view with two axes exchanged."""
        return self._look(self.layout.swapaxes(a, b))

    def sum(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        """As the namespace's."""
        return self.xp.sum(self, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Any:
        """As the namespace's."""
        return self.xp.mean(self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Any:
        """As the namespace's."""
        return self.xp.max(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Any:
        """As the namespace's."""
        return self.xp.min(self, axis=axis, keepdims=keepdims)


_REUSED_FROM = 256 << 10
_temporary = 0  # the references to an operand that nobody has a name for, as `_operator` counts them


def _operator(name: str, reuses: bool = False) -> Any:
    """A binary operator. NumPy writes the result of one with a large temporary to the left into that temporary."""

    def operate(self: Any, other: Any) -> Any:
        if reuses and getrefcount(self) <= _temporary and self.reusable(other):
            return self
        return getattr(self.xp, name)(self, other)

    return operate


def _reflected(name: str) -> Any:
    return lambda self, other: getattr(self.xp, name)(other, self)


def _in_place(self: FakeArray, other: Any) -> FakeArray:
    return self


_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "matmul": "matmul",
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "floordiv": "floor_divide", "mod": "remainder",
}  # fmt: skip
_COMPARED = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal"}
for _short, _name in {**_BINARY, **_COMPARED}.items():
    setattr(FakeArray, f"__{_short}__", _operator(_name, reuses=_short in ("add", "sub", "mul", "truediv")))
for _short, _name in _BINARY.items():
    setattr(FakeArray, f"__r{_short}__", _reflected(_name))
    setattr(FakeArray, f"__i{_short}__", _in_place)
for _short, _name in {"neg": "negative", "abs": "abs", "invert": "bitwise_invert"}.items():
    setattr(FakeArray, f"__{_short}__", lambda self, _name=_name: getattr(self.xp, _name)(self))


class FakeNumpyArray(FakeArray):
    """In the place of a NumPy array."""

    __slots__ = ()

    def reusable(self, other: Any) -> bool:
        """Whether NumPy would write the result of an operation with `other` here, if nobody else has this array."""
        whole = self.block.size == self.block.log.rounded(self.nbytes)
        if self.nbytes < _REUSED_FROM or not whole or getrefcount(self.block) > 2:
            return False
        if isinstance(other, FakeArray):
            return other.shape in ((), self.shape) and bool(np.can_cast(other.dtype, self.dtype, "safe"))
        return isinstance(other, (int, float)) and self.dtype.kind == "f"


class FakeCupyArray(FakeArray):
    """In the place of a CuPy array."""

    __slots__ = ()


class _Probe:
    """Counts its references as an operator sees them."""

    def __add__(self, other: Any) -> int:
        return getrefcount(self)


def _references() -> int:
    """How many references an operator sees to a temporary; 0 where it sees no more to an array with a name."""
    named = _Probe()
    temporary = _Probe() + 0
    return temporary if temporary < named + 0 else 0


_temporary = _references()
