"""The functions of the Array API on fake arrays: NumPy's shapes and dtypes, without values."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpnet import backend
from xpnet.accel.numpy.workspace import ALIGNMENT, WORKSPACE_LIMIT
from xpnet.backend import Device
from xpnet.inspect.footprint.fake_array import FakeArray, FakeCupyArray, FakeNumpyArray, current_log
from xpnet.ops.shapes import normalize_axes
from xpnet.runtime.threads import get_num_threads

_CONSTANTS = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
    "bool_", "inf", "nan", "pi", "e", "newaxis", "isdtype", "finfo", "iinfo", "result_type",
)  # fmt: skip
_ELEMENTWISE = (
    "abs", "add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "sqrt", "exp", "log", "log1p", "expm1",
    "log2", "log10", "sin", "cos", "tan", "tanh", "sinh", "cosh", "sign", "negative", "positive", "square", "floor", "ceil",
    "round", "trunc", "reciprocal", "isnan", "isfinite", "isinf", "logical_and", "logical_or", "logical_not", "logical_xor",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert", "floor_divide", "remainder", "less", "less_equal",
    "greater", "greater_equal", "equal", "not_equal", "where", "clip", "hypot", "atan2", "logaddexp",
)  # fmt: skip
_REDUCTIONS = ("sum", "mean", "max", "min", "prod", "any", "all", "var", "std")
_VIEWS = (
    "permute_dims", "transpose", "matrix_transpose", "swapaxes", "moveaxis", "expand_dims", "squeeze", "broadcast_to", "flip",
)  # fmt: skip


class FakeNamespace:
    """Replaces ``numpy`` or ``cupy`` for fake arrays."""

    def __init__(self, name: str, kind: type[FakeArray]) -> None:
        self.__name__ = name
        self.kind = kind
        for constant in _CONSTANTS:
            setattr(self, constant, getattr(np, constant))
        for function in _ELEMENTWISE:
            setattr(self, function, functools.partial(self._elementwise, function))
        for function in _REDUCTIONS:
            setattr(self, function, functools.partial(self._reduction, function))
        for function in _VIEWS:
            setattr(self, function, functools.partial(self._view, function))
        kind.xp = self
        backend._namespaces[kind] = self

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the memory account does not know what {name} of an array library makes")

    # -- for the footprints of accelerated operations --

    def workspace(self, dtype: Any, count: int, *shapes: tuple[int, ...], slot: str = "main") -> None:
        """Count the workspace of `count` chunks (`xpnet.accel.numpy.workspace`), of which each thread runs one at a time."""
        size = sum(-(-math.prod(s) * dtype.itemsize // ALIGNMENT) * ALIGNMENT for s in shapes)
        threads = max(1, min(get_num_threads(), count))
        current_log().workspace(slot, size + ALIGNMENT, threads, WORKSPACE_LIMIT + (2 << 20))

    def temporary(self, dtype: Any, *shapes: tuple[int, ...]) -> None:
        """Count further arrays that live within one operation."""
        current_log().temporary(sum(math.prod(shape) for shape in shapes) * np.dtype(dtype).itemsize)

    # -- new arrays --

    def empty(self, shape: Any, *, dtype: Any = np.float64, device: Any = None) -> FakeArray:
        """Return a new array."""
        return self.kind.new(shape, np.float64 if dtype is None else dtype)

    zeros = ones = empty

    def full(self, shape: Any, value: Any, *, dtype: Any = None, device: Any = None) -> FakeArray:
        """Return a new array."""
        return self.kind.new(shape, np.asarray(value).dtype if dtype is None else dtype)

    def empty_like(self, x: FakeArray, *, dtype: Any = None, device: Any = None) -> FakeArray:
        """Return a new array."""
        return self.kind.new(x.shape, x.dtype if dtype is None else dtype)

    zeros_like = ones_like = empty_like

    def full_like(self, x: FakeArray, value: Any, *, dtype: Any = None, device: Any = None) -> FakeArray:
        """Return a new array."""
        return self.empty_like(x, dtype=dtype)

    def arange(self, start: Any, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> FakeArray:
        """Return a new array."""
        first, last = (0, start) if stop is None else (start, stop)
        count = max(0, math.ceil((last - first) / step))
        return self.kind.new((count,), np.result_type(first, last, step) if dtype is None else dtype)

    def asarray(self, x: Any, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> FakeArray:
        """Return `x` itself if it has the dtype."""
        if not isinstance(x, FakeArray):
            values = np.asarray(x, dtype=dtype)
            return self.kind.new(values.shape, values.dtype)
        return x.astype(x.dtype if dtype is None else dtype, copy=bool(copy))

    array = asarray

    def ascontiguousarray(self, x: FakeArray) -> FakeArray:
        """Return `x` itself if it is contiguous."""
        return x if x.flags.c_contiguous else x.copy()

    def astype(self, x: FakeArray, dtype: Any, *, copy: bool = True, device: Any = None) -> FakeArray:
        """Return a copy in another dtype."""
        return x.astype(dtype, copy=copy)

    # -- elementwise, reductions, products --

    def _elementwise(self, name: str, *inputs: Any, out: Any = None, **_: Any) -> Any:
        if out is not None:
            return out
        shape = np.broadcast_shapes(*(tuple(getattr(x, "shape", ())) for x in inputs))
        return self.kind.new(shape, _dtype(name, tuple(getattr(x, "dtype", type(x)) for x in inputs)))

    def _reduction(
        self, name: str, x: FakeArray, axis: Any = None, dtype: Any = None, keepdims: bool = False, **_: Any
    ) -> FakeArray:
        return self.kind.new(_reduced_shape(x, axis, keepdims), _dtype(name, (x.dtype,)) if dtype is None else dtype)

    def argmax(self, x: FakeArray, *, axis: Any = None, keepdims: bool = False) -> FakeArray:
        """Return int64 indices."""
        return self.kind.new(_reduced_shape(x, axis, keepdims), np.int64)

    argmin = argmax

    def matmul(self, a: FakeArray, b: FakeArray, out: Any = None) -> Any:
        """Return an array of the product's shape, by NumPy's rules."""
        if out is not None:
            return out
        if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit")
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        inner = (*a.shape[-2:-1], *(b.shape[-1:] if b.ndim > 1 else ()))
        return self.kind.new((*batch, *inner), np.result_type(a.dtype, b.dtype))

    # -- shapes --

    def reshape(self, x: FakeArray, shape: Any, **_: Any) -> FakeArray:
        """Return a view where that is possible."""
        return x.reshape(shape)

    def _view(self, name: str, x: FakeArray, *arguments: Any, **options: Any) -> FakeArray:
        return x._view(getattr(np, name)(x.layout, *arguments, **options))

    def concat(self, arrays: Sequence[FakeArray], axis: int = 0) -> FakeArray:
        """Return a new array."""
        first = arrays[0]
        axis = axis % first.ndim
        size = sum(a.shape[axis] for a in arrays)
        dtype = np.result_type(*(a.dtype for a in arrays))
        return self.kind.new((*first.shape[:axis], size, *first.shape[axis + 1 :]), dtype)

    def stack(self, arrays: Sequence[FakeArray], axis: int = 0) -> FakeArray:
        """Return a new array."""
        first = arrays[0]
        axis = axis % (first.ndim + 1)
        dtype = np.result_type(*(a.dtype for a in arrays))
        return self.kind.new((*first.shape[:axis], len(arrays), *first.shape[axis:]), dtype)

    def take(self, x: FakeArray, indices: Any, axis: int = 0) -> FakeArray:
        """Return a new array."""
        return self.kind.new((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


@functools.lru_cache(maxsize=4096)
def _dtype(name: str, kinds: tuple[Any, ...]) -> Any:
    """Return the dtype of a function's result, given the dtype of each array and the type of each Python number."""
    operands = [np.ones(1, kind) if isinstance(kind, np.dtype) else kind(1) for kind in kinds]
    return getattr(np, name)(*operands).dtype


def _reduced_shape(x: FakeArray, axis: Any, keepdims: bool) -> tuple[int, ...]:
    axes = normalize_axes(axis, x.ndim)
    return tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes)


class FakeDevice(Device):
    """The device of fake arrays, of kind "cpu" or "cuda"."""

    @property
    def xp(self) -> Any:
        """The namespace of fake arrays."""
        return FakeNumpyArray.xp if self.kind == "cpu" else FakeCupyArray.xp

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def synchronize(self) -> None:
        """Do nothing."""


FakeNamespace("fake_numpy", FakeNumpyArray)
FakeNamespace("fake_cupy", FakeCupyArray)
FAKE_CPU, FAKE_CUDA = FakeDevice("cpu"), FakeDevice("cuda")
