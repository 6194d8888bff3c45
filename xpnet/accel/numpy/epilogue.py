"""Prologues and epilogues of convolutions: what is fused into loading an input tile and storing an output tile.

A convolution loads the input tile of a chunk and stores the chunk's output tile while both are in the cache. What is applied
there (the derivative of an activation, bias and activation, max pooling and unpooling) costs no further pass over memory, nor
do sums over the rows of a tile. BLAS and `einsum` add row after row; `sum_rows` and `sum_products` add blocks of a few rows,
and the blocks' sums in the same way: as exact as pairwise sums, in nearly the time of a product with a row of ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import Chunk
from xpnet.accel.numpy.workspace import Floats, workspace

ACTIVATIONS = (None, "relu", "sigmoid", "tanh")

_ROW = 2048
_zeros = {np.dtype(kind): np.zeros(_ROW, kind) for kind in (np.float32, np.float64)}

_BLOCK = 16
"""Rows that are added one after the other."""

_WIDE = 1024
"""Rows of fewer elements are merged: adding a block of short rows takes as long as one of long rows."""

_SMALL = 1 << 12
"""Elements of a chunk that take longer to arrange than to add."""

_ones = {kind: np.ones(2 * _BLOCK, kind) for kind in _zeros}


def relu_to(x: Floats, out: Floats) -> None:
    """Compute out = max(x, 0). NumPy's maximum against a scalar takes three times as long as against a row of zeros."""
    zeros = _zeros[x.dtype]
    if x.size <= 512:
        np.maximum(x, 0, out=out)
    elif x.flags.c_contiguous and out.flags.c_contiguous:
        flat, target = x.reshape(-1), out.reshape(-1)
        cut = flat.size - flat.size % _ROW
        np.maximum(flat[:cut].reshape(-1, _ROW), zeros, out=target[:cut].reshape(-1, _ROW))
        np.maximum(flat[cut:], zeros[: flat.size - cut], out=target[cut:])
    elif x.shape[-1] <= _ROW:
        np.maximum(x, zeros[: x.shape[-1]], out=out)
    else:
        np.maximum(x, 0, out=out)


def activate(y: Floats, activation: str | None) -> None:
    """Apply one of ACTIVATIONS in place."""
    if activation is None or not y.size:
        return
    if activation == "relu":
        relu_to(y, y)
    elif activation == "tanh":
        np.tanh(y, out=y)
    else:
        # Computed with tanh the logistic function cannot overflow: 1 / (1 + exp(-y)) = (1 + tanh(y / 2)) / 2.
        y *= 0.5
        np.tanh(y, out=y)
        y += 1
        y *= 0.5


_INTEGERS: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.float32): np.dtype(np.int32),
    np.dtype(np.float64): np.dtype(np.int64),
}


def integer_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the integer dtype of the same size."""
    return _INTEGERS[dtype]


def apply_mask(values: Floats, mask: Floats, out: Floats) -> None:
    """Compute out = values where the bool array `mask` is True, else 0, even where the value is infinite or NaN.

    Multiplies the bits, as integers, by the mask's 0 or 1: a fifth of the time of np.where.
    """
    whole = _INTEGERS[values.dtype]
    np.multiply(values.view(whole), mask.view(np.int8), out=out.view(whole))


def activation_gradient(dy: Floats, y: Floats | None, activation: str | None, out: Floats) -> None:
    """Compute out = dy times the derivative of the activation, from the activation's output `y`."""
    if activation is None or y is None:
        np.copyto(out, dy)
    elif activation == "relu":
        apply_mask(dy, np.greater(y, 0), out)
    else:
        square = y * y
        np.subtract(1 if activation == "tanh" else y, square, out=square)
        np.multiply(dy, square, out=out)


def fill_padded(
    P: Floats,
    x: Floats,
    y: Floats | None,
    activation: str | None,
    images: tuple[int, int],
    top: int,
    left: int,
    value: float = 0.0,
) -> None:
    """Fill P (n, rows, columns, C) with the `images` of x from row `top` and column `left` on, and `value` outside.

    With an activation, x is a gradient and `y` the activation's output: P receives the gradient of its input.
    """
    n0, n1 = images
    H, W = x.shape[1:3]
    lo, hi = max(top, 0), min(top + P.shape[1], H)
    w0, w1 = max(left, 0), min(left + P.shape[2], W)
    if hi <= lo or w1 <= w0:
        P[...] = value
        return
    P[:, : lo - top] = value
    P[:, hi - top :] = value
    inside = P[:, lo - top : hi - top]
    inside[:, :, : w0 - left] = value
    inside[:, :, w1 - left :] = value
    inside = inside[:, :, w0 - left : w1 - left]
    part = (slice(n0, n1), slice(lo, hi), slice(w0, w1))
    activation_gradient(x[part], None if y is None else y[part], activation, inside)


class ImageTiles:
    """A source of tiles: plain images."""

    whole_images = False
    """Whether chunks should be whole images."""

    calls = 2
    """Approximate NumPy calls a tile."""

    def __init__(self, array: Floats) -> None:
        self.array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype

    def load_tile(self, P: Floats, images: tuple[int, int], top: int, left: int) -> None:
        """Fill P (n, rows, columns, C) with the images from row `top` and column `left` on, and zeros outside."""
        fill_padded(P, self.array, None, None, images, top, left)

    def at(self, rows: slice, columns: slice) -> ImageTiles:
        """Return a source of these rows and columns only."""
        return ImageTiles(self.array[:, rows, columns])


class GradientTiles(ImageTiles):
    """A source: the gradient before an activation, from the gradient `dy` after it and the activation's output `y`."""

    def __init__(self, dy: Floats, y: Floats | None, activation: str | None) -> None:
        super().__init__(dy)
        self.y = y
        self.activation = activation

    def load_tile(self, P: Floats, images: tuple[int, int], top: int, left: int) -> None:
        """See `ImageTiles.load_tile`."""
        fill_padded(P, self.array, self.y, self.activation, images, top, left)

    def at(self, rows: slice, columns: slice) -> ImageTiles:
        """See `ImageTiles.at`."""
        y = None if self.y is None else self.y[:, rows, columns]
        return GradientTiles(self.array[:, rows, columns], y, self.activation)


class OutputTiles:
    """A target of tiles: plain outputs, with the activation applied."""

    whole_images = False
    """Whether chunks must be whole images."""

    calls = 2
    """Approximate NumPy calls a tile."""

    def __init__(self, y: Floats, activation: str | None = None) -> None:
        self.y = y
        self.shape: tuple[int, ...] = y.shape
        self.activation = activation

    def output_tile(self, chunk: Chunk) -> Floats:
        """Return an array (n, rows, OW, O) to write the chunk's result to."""
        n0, n1, r0, r1 = chunk
        return self.y[n0:n1, r0:r1]

    def store_tile(self, chunk: Chunk, result: Floats) -> None:
        """Apply the epilogue to the chunk's result and store it; `result` is its output tile or another array."""
        n0, n1, r0, r1 = chunk
        part = self.y[n0:n1, r0:r1]
        if result.__array_interface__["data"] == part.__array_interface__["data"]:
            activate(part, self.activation)
        elif self.activation == "relu":
            relu_to(result, part)
        else:
            np.copyto(part, result)
            activate(part, self.activation)


class StridedOutputTiles(OutputTiles):
    """A target: outputs whose pixels are not adjacent, so that tiles are computed in workspace."""

    def output_tile(self, chunk: Chunk) -> Floats:
        """See `OutputTiles.output_tile`."""
        n0, n1, r0, r1 = chunk
        (array,) = workspace(self.y.dtype, (n1 - n0, r1 - r0, *self.shape[2:]), slot="epilogue")
        return array


class TileFootprint:
    """What the input or output tiles of a convolution allocate, on fake arrays: nothing for plain images."""

    whole_images = False

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def load(self, n: int, count: int) -> None:
        """Count the workspace of `count` input tiles of n images."""

    def store(self, n: int, count: int) -> None:
        """Count the workspace of `count` output tiles of n images."""


def sum_rows(x: Floats) -> Floats:
    """Return the sum of each column of a contiguous x (rows, columns), in float64."""
    if x.size <= _SMALL:
        sums: Floats = np.add.reduce(x, axis=0, dtype=np.float64)
        return sums
    return _in_blocks(x, None)


def sum_products(x: Floats, y: Floats) -> Floats:
    """Return the sum of x * y of each column, both contiguous (rows, columns), in float64."""
    return _in_blocks(x, y)


def _in_blocks(x: Floats, y: Floats | None) -> Floats:
    rows, columns = x.shape
    merged = max(1, min(rows // _BLOCK, _WIDE // max(columns, 1)))
    wide, height = merged * columns, merged * _BLOCK
    count = rows // height
    whole = count * height
    found: Any = np.float64(0)
    if count:
        blocks = count, _BLOCK, wide
        sums = _added(x[:whole].reshape(blocks), None if y is None else y[:whole].reshape(blocks))
        while len(sums) > 2 * _BLOCK:
            rest = len(sums) % _BLOCK
            folded = _added(sums[: len(sums) - rest].reshape(-1, _BLOCK, wide), None)
            sums = np.concatenate([folded, sums[len(sums) - rest :]]) if rest else folded
        found = _added(sums[None], None).reshape(merged, columns)
        found = np.add.reduce(found, axis=0, dtype=np.float64) if merged > 1 else found[0].astype(np.float64)
    if whole == rows and count:
        return found  # type: ignore[no-any-return]
    x, y = x[whole:], None if y is None else y[whole:]
    return found + (_in_blocks(x, y) if len(x) > _BLOCK else _added(x[None], None if y is None else y[None])[0])  # type: ignore[no-any-return]


def _added(x: Floats, y: Floats | None) -> Floats:
    """Return the sums (count, columns) of blocks (count, rows, columns), or of their products."""
    sums: Floats
    if y is not None:
        sums = np.einsum("gij,gij->gj", x, y)
    elif x.shape[1] == 1:
        sums = x[:, 0]
    else:
        sums = np.matmul(_ones[x.dtype][: x.shape[1]], x)
    return sums
