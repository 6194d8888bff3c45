"""Operations that move elements without changing them: reshape, transpose, concat, pad, indexing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any

from xpnet.backend import Array, Namespace, dtype_name, kind_of, refuse_subclass
from xpnet.ops.registry import as_is, op
from xpnet.ops.shapes import ShapeError, is_whole, normalize_axes, unbroadcast, zeros_like_shape
from xpnet.ops.sums import row_product
from xpnet.runtime.messages import quoted


@op(half=as_is, integers="keep", linear=True)
def reshape(xp: Namespace, x: Array, shape: Sequence[int]) -> Any:
    """Return the elements, in C order, in another shape; one size may be -1."""
    given: Any = shape
    try:
        target = tuple([index(n) for n in (given if isinstance(given, tuple) else (given,) if is_whole(given) else given)])
    except TypeError:
        raise TypeError(f"reshape: shape must hold whole numbers, got {quoted(shape)}") from None
    total = math.prod(x.shape)
    if target.count(-1) == 1:
        rest = math.prod(n for n in target if n != -1)
        # With no elements -1 is ambiguous, and array libraries refuse it.
        target = tuple((total // rest if rest else 0) if n == -1 else n for n in target)
    if math.prod(target) != total:
        raise ShapeError(f"reshape: {tuple(x.shape)} has {total} elements, {tuple(shape)} cannot hold them")
    return xp.reshape(x, target), x.shape


@reshape.backward
def _(xp: Namespace, dy: Array, before: Any, *, shape: Any) -> Any:
    return xp.reshape(dy, before)


@op(half=as_is, integers="keep", linear=True)
def transpose(xp: Namespace, x: Array, axes: Sequence[int] | None = None) -> Any:
    """Permute the axes to the order `axes`, or reverse them."""
    order = tuple(reversed(range(x.ndim))) if axes is None else normalize_axes(axes, x.ndim)
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"transpose: axes {axes} are not an order of the {x.ndim} axes of {tuple(x.shape)}")
    return xp.permute_dims(x, order), order


@transpose.backward
def _(xp: Namespace, dy: Array, order: Any, *, axes: Any) -> Any:
    return xp.permute_dims(dy, tuple(sorted(range(len(order)), key=order.__getitem__)))


@op(half=as_is, integers="keep", linear=True)
def concat(xp: Namespace, *arrays: Array, axis: int = 0) -> Any:
    """Join arrays along an existing axis: ``concat([a, b], axis=-1)``."""
    axis = normalize_axes((axis,), arrays[0].ndim)[0]
    for other in arrays[1:]:
        if other.ndim != arrays[0].ndim or any(
            a != b for i, (a, b) in enumerate(zip(arrays[0].shape, other.shape)) if i != axis
        ):
            shapes = ", ".join(str(tuple(a.shape)) for a in arrays)
            raise ShapeError(f"concat: shapes {shapes} differ outside axis {axis}")
    return xp.concat(arrays, axis=axis), tuple(a.shape[axis] for a in arrays)


@concat.backward
def _(xp: Namespace, dy: Array, sizes: Any, *, axis: int) -> Any:
    axis = axis % dy.ndim
    parts, start = [], 0
    for size in sizes:
        parts.append(dy[(slice(None),) * axis + (slice(start, start + size), ...)])
        start += size
    return parts


@op(half=as_is, integers="keep", linear=True)
def stack(xp: Namespace, *arrays: Array, axis: int = 0) -> Any:
    """Join arrays of one shape along a new axis: ``stack([a, b], axis=0)``."""
    if len({tuple(a.shape) for a in arrays}) > 1:
        raise ShapeError(f"stack: shapes differ: {', '.join(str(tuple(a.shape)) for a in arrays)}")
    return xp.stack(arrays, axis=axis), len(arrays)


@stack.backward
def _(xp: Namespace, dy: Array, count: int, *, axis: int) -> Any:
    axis = axis % dy.ndim
    return [dy[(slice(None),) * axis + (i, ...)] for i in range(count)]


@op(half=as_is, integers="keep", linear=True)
def broadcast_to(xp: Namespace, x: Array, shape: Sequence[int]) -> Any:
    """Broadcast x to a larger shape by NumPy's rules."""
    target = tuple(shape)
    extra = len(target) - x.ndim
    if extra < 0 or any(n not in (1, target[extra + i]) for i, n in enumerate(x.shape)):
        raise ShapeError(f"broadcast_to: {tuple(x.shape)} cannot be repeated to {target}; only axes of size 1 can")
    return xp.broadcast_to(x, target), tuple(x.shape)


@broadcast_to.backward
def _(xp: Namespace, dy: Array, before: Any, *, shape: Any) -> Any:
    return unbroadcast(xp, dy, before)


def pad_array(xp: Namespace, x: Array, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """Pad x with `value` along each axis, by joining, since arrays of some libraries are immutable."""
    for axis, (before, after) in enumerate(widths):
        if before or after:
            parts = [x]
            for count, at in ((before, 0), (after, len(parts) + 1)):
                if count:
                    shape = tuple(count if i == axis else n for i, n in enumerate(x.shape))
                    parts.insert(at, xp.full(shape, value, dtype=x.dtype, device=x.device))
            x = xp.concat(parts, axis=axis)
    return x


@op(half=as_is, integers="keep", linear=True)
def pad(xp: Namespace, x: Array, widths: Sequence[tuple[int, int]], *, value: float = 0.0) -> Any:
    """Pad x with `value`; `widths` holds (before, after) for each axis, as for numpy.pad.

    Raises:
        ShapeError: not one pair an axis, or a negative width.
        TypeError: x holds integers or booleans, and the value is none of them, or the value is complex, and x is not.
    """
    kind = kind_of(x.dtype)
    lost = isinstance(value, complex) and kind != "complex"
    if lost or (kind in ("integer", "boolean") and value != 0 and not _holds(xp, x, kind, value)):
        raise TypeError(
            f"pad: the value {value} does not fit x of dtype {dtype_name(x)}; convert x to {'complex64' if lost else 'float32'}"
        )
    given: Any = widths
    pairs = [] if is_whole(given) else [(index(a), index(b)) for a, b in given]
    if len(pairs) != x.ndim or any(a < 0 or b < 0 for a, b in pairs):
        raise ShapeError(
            f"pad: widths {widths} for shape {tuple(x.shape)}; expected {x.ndim} pairs (before, after) of 0 or more"
        )
    return pad_array(xp, x, pairs, value), x.shape


def _holds(xp: Namespace, x: Array, kind: str, value: float) -> bool:
    if kind == "boolean":
        return value in (0, 1)
    limits = xp.iinfo(x.dtype)
    return bool(value == value // 1 and limits.min <= value <= limits.max)


@pad.backward
def _(xp: Namespace, dy: Array, shape: Any, *, widths: Any, value: float) -> Any:
    return dy[tuple(slice(before, before + n) for (before, _), n in zip(widths, shape))]


@op(half=as_is, integers="keep", linear=True)
def getitem(xp: Namespace, x: Array, index: Any) -> Any:
    """Return x[index]: integers, slices, None and ..., or integer or boolean arrays as the library of x allows."""
    return x[_full(index)], (tuple(x.shape), x.dtype, x.device)


def _basic(parts: tuple[Any, ...]) -> bool:
    """Return whether an index holds integers, slices, None and ... only: then it selects no element twice."""
    return all(p is None or p is Ellipsis or isinstance(p, (int, slice)) for p in parts)


def _full(index: Any) -> Any:
    """Return a basic index with an explicit ... for the remaining axes, as the Array API requires."""
    parts = index if isinstance(index, tuple) else (index,)
    if _basic(parts):
        return index if Ellipsis in parts else (*parts, ...)
    for part in parts:
        refuse_subclass(part)
    return index


@getitem.backward
def _(xp: Namespace, dy: Array, like: Any, *, index: Any) -> Any:
    """Add each element of dy to the element of x that it was read from."""
    parts = index if isinstance(index, tuple) else (index,)
    shape, dtype, device = like
    dx: Any = xp.zeros(shape, dtype=dtype, device=device)
    if _basic(parts):
        place = _full(tuple(p for p in parts if p is not None))  # x has no axis for a new axis of dy
        part = xp.reshape(dy, dx[place].shape)
        if hasattr(dx, "at"):  # JAX's arrays are not written to
            return dx.at[place].set(part)
        dx[place] = part
        return dx
    # Element numbers, indexed the same way, give the source of each element; an array index may select one twice.
    size = math.prod(shape)
    source = xp.reshape(xp.reshape(xp.arange(size, device=device), shape)[index], (-1,))
    rows = xp.reshape(dy, (source.shape[0], 1))
    return xp.reshape(scatter_rows.run(xp, (rows, source), {"size": size}, False)[0], shape)


@op(linear=True, indices=("index",))
def scatter_rows(xp: Namespace, rows: Array, index: Array, *, size: int) -> Any:
    """Add rows (M, D) by index (M,) into an array (size, D): out[index[m]] += rows[m], from 0. Others count nowhere.

    The reference is a product with the one-hot matrix of the index, a block of rows at a time: pure Array API and
    deterministic. Infinities and NaNs, which that would multiply by 0, are counted instead, and added to their rows only.

    Raises:
        ShapeError: the rows are not a matrix, or there is not one integer for each.
    """
    if rows.ndim != 2 or tuple(index.shape) != tuple(rows.shape[:1]) or not xp.isdtype(index.dtype, "integral"):
        raise ShapeError(
            f"scatter_rows: rows {tuple(rows.shape)} and index {tuple(index.shape)} {index.dtype}; "
            f"expected rows (M, D) and integers (M,)"
        )
    index = xp.astype(index, xp.int64, copy=False)  # the number of rows need not fit a smaller dtype
    finite = xp.isfinite(rows)
    if bool(xp.all(finite)):
        return _sums_by_index(xp, rows, index, size), index
    if xp.isdtype(rows.dtype, "complex floating"):
        parts = [scatter_rows.run(xp, (part, index), {"size": size}, False)[0] for part in (xp.real(rows), xp.imag(rows))]
        return xp.astype(parts[0], rows.dtype) + 1j * xp.astype(parts[1], rows.dtype), index
    sums = _sums_by_index(xp, xp.where(finite, rows, xp.zeros_like(rows)), index, size)
    held = xp.isnan(rows), rows == math.inf, rows == -math.inf
    nan, high, low = (_sums_by_index(xp, xp.astype(one, rows.dtype), index, size) > 0 for one in held)
    sums = xp.where(high, xp.full_like(sums, math.inf), xp.where(low, xp.full_like(sums, -math.inf), sums))
    sums = xp.where(nan | (high & low), xp.full_like(sums, math.nan), sums)
    return sums, index


def _sums_by_index(xp: Namespace, rows: Array, index: Array, size: int) -> Array:
    """Return the product of the one-hot matrix of the index with the rows."""
    many = max(1, (1 << 22) // max(1, index.shape[0]))
    blocks: list[Array] = []
    for start in range(0, size, many):
        target = xp.arange(start, min(start + many, size), dtype=index.dtype, device=index.device)
        blocks.append(row_product(xp, xp.astype(index[:, None] == target[None, :], rows.dtype), rows))
    if not blocks:
        return zeros_like_shape(xp, rows, (0, rows.shape[1]))
    return blocks[0] if len(blocks) == 1 else xp.concat(blocks, axis=0)


@scatter_rows.backward
def _(xp: Namespace, dy: Array, index: Array, *, size: int) -> Any:
    zeros = zeros_like_shape(xp, dy, (index.shape[0], dy.shape[1]))
    if not size:
        return zeros, None
    inside = (index >= 0) & (index < size)
    return xp.where(inside[:, None], xp.take(dy, xp.where(inside, index, xp.zeros_like(index)), axis=0), zeros), None


@op(half=as_is, integers="keep", linear=True)
def flip(xp: Namespace, x: Array, axis: int | Sequence[int] | None = None) -> Any:
    """Reverse the order of the elements along `axis`."""
    axes = normalize_axes(axis, x.ndim)
    return xp.flip(x, axis=axes), None


@flip.backward
def _(xp: Namespace, dy: Array, saved: None, *, axis: Any) -> Any:
    return xp.flip(dy, axis=normalize_axes(axis, dy.ndim))
