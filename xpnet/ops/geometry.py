"""The arithmetic of sliding windows: sizes, paddings, strides and dilations. Plain integers, no arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import index
from typing import Any, NamedTuple

from xpnet.ops.shapes import ShapeError, is_whole
from xpnet.runtime.messages import quoted

Size = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


class Axis(NamedTuple):
    """One axis along which a window slides."""

    size: int
    window: int
    stride: int
    dilation: int
    before: int
    after: int
    out: int

    @property
    def reach(self) -> int:
        """The input elements that the dilated window spans."""
        return self.dilation * (self.window - 1) + 1

    @property
    def padded(self) -> int:
        """The padded input's size."""
        return self.before + self.size + self.after


class Geometry(NamedTuple):
    """Two axes along which a window slides over images."""

    h: Axis
    w: Axis

    @property
    def unpadded(self) -> bool:
        """Whether no padding is added anywhere."""
        return not (self.h.before or self.h.after or self.w.before or self.w.after)

    @property
    def settings(self) -> dict[str, Any]:
        """The window, stride, padding and dilation, as im2col takes them."""
        h, w = self
        pairs = (h.window, w.window), (h.stride, w.stride), (h[4:6], w[4:6]), (h.dilation, w.dilation)
        return dict(zip(("window", "stride", "padding", "dilation"), pairs))


def conv_output_size(
    size: int, window: int, stride: int = 1, padding: int | Sequence[int] = 0, *, dilation: int = 1, exact: bool = False
) -> int:
    """Return the number of positions of a window along one axis: (W - F + 2P) / S + 1, rounded down.

    Args:
        size: W, the input's size along the axis.
        window: F, the window's size.
        stride: S, the step from one position to the next.
        padding: P, elements added at each end, or a pair (before, after).
        dilation: distance between neighbouring elements of the window; the window then spans dilation*(F-1)+1.
        exact: raise unless the last position ends exactly at the end of the padded input.

    Raises:
        ShapeError: the window is larger than the padded input, a value is out of range, or `exact` is set and the
            division leaves a remainder; the message shows the calculation and which paddings and strides would fit.

    Source: CS231n, "Convolutional Networks", spatial arrangement.
    """
    ends: Any = padding
    before, after = (index(ends), index(ends)) if is_whole(ends) else map(index, ends)
    for name, value, least in (
        ("size", size, 0),
        ("window", window, 1),
        ("stride", stride, 1),
        ("dilation", dilation, 1),
        ("padding", min(before, after), 0),
    ):
        if value < least:
            raise ShapeError(f"{name} must be at least {least}, got {value}")
    reach = dilation * (window - 1) + 1
    room = size - reach + before + after
    if room < 0:
        spans = f"window of {window}" if dilation == 1 else f"window of {window} with dilation {dilation} spans {reach}, which"
        raise ShapeError(
            f"{spans} is larger than the padded input: {size} + {before} + {after} = {size + before + after}; "
            f"use a smaller window, a larger input or more padding"
        )
    if exact and room % stride:
        whole = f"2*{before}" if before == after else f"{before}+{after}"
        paddings: list[object] = [p for p in range(reach) if size - reach + 2 * p >= 0 and (size - reach + 2 * p) % stride == 0]
        if not paddings:  # an odd remainder needs padding at one end only
            paddings = [(0, p) for p in range(reach) if size - reach + p >= 0 and (size - reach + p) % stride == 0]
        strides = [s for s in range(1, max(room, 1) + 1) if room % s == 0]
        raise ShapeError(
            f"the window does not tile the input: ({size} - {reach} + {whole})/{stride} + 1 = {room / stride + 1:g}; "
            f"with this stride a padding of {_either(paddings)} fits, with this padding a stride of {_either(strides)} fits"
        )
    return room // stride + 1


def _either(values: Sequence[object]) -> str:
    shown = [str(v) for v in values[:6]]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown) if shown else "no value"


def pair(value: Size, name: str) -> tuple[int, int]:
    """Return `value` as (height, width); an int means both."""
    if is_whole(value):
        return int(value), int(value)  # type: ignore[arg-type]
    try:
        h, w = value  # type: ignore[misc]
        if is_whole(h) and is_whole(w):
            return int(h), int(w)
    except (TypeError, ValueError):
        pass
    raise ShapeError(f"{name} must be an int or a pair (height, width), got {quoted(value)}")


def same_padding(size: int, window: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return the paddings for ceil(size / stride) positions; the odd one goes to the end."""
    reach = dilation * (window - 1) + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _paddings(padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return a padding other than "same" as ((top, bottom), (left, right))."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if is_whole(padding):
        return (int(padding), int(padding)), (int(padding), int(padding))
    try:
        h, w = padding
        if is_whole(h) and is_whole(w):
            return (int(h), int(h)), (int(w), int(w))
        (top, bottom), (left, right) = h, w
        return (index(top), index(bottom)), (index(left), index(right))
    except (TypeError, ValueError):
        raise ShapeError(
            f'padding must be an int, a pair (height, width), pairs ((top, bottom), (left, right)), "valid" or "same", '
            f"got {quoted(padding)}"
        ) from None


def windows(shape: Sequence[int], window: Size, stride: Size = 1, padding: Padding = 0, dilation: Size = 1) -> Geometry:
    """Return the geometry of a window sliding over images of `shape` (N, H, W, C).

    Raises:
        ShapeError: a value is malformed, or the window is larger than the padded input.
    """
    try:
        return _windows(shape[1], shape[2], window, stride, padding, dilation)
    except TypeError:  # lists have no hash
        return _windows(int(shape[1]), int(shape[2]), *map(hashable, (window, stride, padding, dilation)))


def hashable(value: Any) -> Any:
    """Return nested lists as nested tuples."""
    return tuple(hashable(v) for v in value) if isinstance(value, (list, tuple)) else value


@lru_cache(maxsize=4096)
def _windows(height: int, width: int, window: Any, stride: Any, padding: Any, dilation: Any) -> Geometry:
    sizes = pair(window, "window")
    strides = pair(stride, "stride")
    dilations = pair(dilation, "dilation")
    for name, values in (("window", sizes), ("stride", strides), ("dilation", dilations)):
        if min(values) < 1:
            raise ShapeError(f"{name} must be at least 1, got {values}")
    if padding == "same":
        pads = tuple(same_padding(n, *rest) for n, *rest in zip((height, width), sizes, strides, dilations))
    else:
        pads = _paddings(padding)
    axes = []
    for which, n, k, s, d, p in zip(("height", "width"), (height, width), sizes, strides, dilations, pads):
        if n == 0 and sum(p) < d * (k - 1) + 1:
            raise ShapeError(f"the images have a {which} of 0, no pixels at all; leave out empty images, or crop less")
        try:
            out = conv_output_size(n, k, s, p, dilation=d)
        except ValueError as error:
            raise ShapeError(f"along the {which}: {error}") from None
        axes.append(Axis(n, k, s, d, p[0], p[1], out))
    return Geometry(*axes)
