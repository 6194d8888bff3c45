"""Depthwise convolutions for NumPy, as sums of shifted images.

There is no sum over channels, hence no matrix product: for each element of the window the shifted image is multiplied by one
row of the kernel and added. `einsum` does that for a whole chunk in one call, row by row: a row of outputs stays in the L1
cache while the window's elements are multiplied and added to it, and the GIL is not taken in between. With stride 1 a shifted
row of pixels is one run of memory, and the kernel's row is repeated to the same length: long loops instead of one a pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import PASS_SECONDS, Chunk, image_row_chunks
from xpnet.accel.numpy.epilogue import GradientTiles, ImageTiles, OutputTiles, sum_rows
from xpnet.accel.numpy.im2col import Windows
from xpnet.accel.numpy.workspace import Floats, workspace
from xpnet.ops.sums import total
from xpnet.runtime.threads import chunk_count, parallel

_CHUNK = 1 << 20
"""Bytes of output in a chunk."""

_ROWS = 128
"""Rows of outputs whose products are added one after the other for the gradient of the kernel."""


class _Shifts:
    """The shifted images of a padded tile (n, rows, columns, O), and the kernel's row for each."""

    def __init__(self, kernel: Floats, w: Windows) -> None:
        self.w = w
        self.O = kernel.shape[3]
        self.long = w.stride[1] == 1
        self.row = (w.size[1] * self.O,) if self.long else (w.size[1], self.O)  # one row of outputs
        self.weights = kernel[:, :, 0]
        if self.long:
            self.weights = np.tile(self.weights, w.size[1])

    def padded_shape(self, n: int, r: int) -> tuple[int, int, int, int]:
        """Return the shape of a padded tile with r rows of outputs."""
        (KH, KW), (sh, sw), (dh, dw), (_, OW) = self.w.window, self.w.stride, self.w.dilation, self.w.size
        return n, (r - 1) * sh + dh * (KH - 1) + 1, (OW - 1) * sw + dw * (KW - 1) + 1, self.O

    def views(self, P: Floats, r: int) -> Floats:
        """Return the shifted images of a contiguous tile, a view (n, r, KH, KW, *row)."""
        (sh, sw), (dh, dw) = self.w.stride, self.w.dilation
        b0, b1, b2, b3 = P.strides
        within = (b3,) if self.long else (sw * b2, b3)
        return np.ndarray((P.shape[0], r, *self.w.window, *self.row), P.dtype, P, 0, (b0, sh * b1, dh * b1, dw * b2, *within))

    def convolve(self, views: Floats, out: Floats) -> None:
        """Compute out (n, r, *row) = the sum over the window of the shifted images times the kernel."""
        np.einsum("nrhwj,hwj->nrj" if self.long else "nrhwjo,hwo->nrjo", views, self.weights, out=out)

    def correlate(self, views: Floats, dz: Floats, sums: Floats) -> None:
        """Add to sums (KH, KW, *row) the sum over n and r of the shifted images times dz (n, r, *row)."""
        N, R = dz.shape[:2]
        rows = -(-R // -(-R // _ROWS))  # nearly equal parts
        images = -(-N // max(1, N * rows // _ROWS))
        for r in range(0, R, rows):
            for n in range(0, N, images):
                part = slice(n, n + images), slice(r, r + rows)
                sums += np.einsum("nrhwj,nrj->hwj" if self.long else "nrhwjo,nrjo->hwjo", views[part], dz[part])


def _load_tile(P: Floats, x: ImageTiles, images: tuple[int, int], top: int, left: int) -> None:
    """Fill the padded tile P, each channel repeated as often as it has outputs."""
    multiplier = P.shape[3] // x.shape[3]
    if multiplier == 1:
        x.load_tile(P, images, top, left)
        return
    (single,) = workspace(P.dtype, (*P.shape[:3], x.shape[3]), slot="epilogue")
    x.load_tile(single, images, top, left)
    np.copyto(P.reshape(*single.shape, multiplier), single[..., None])


def _chunks(N: int, w: Windows, O: int, itemsize: int) -> list[Chunk]:
    return image_row_chunks(N, w.size[0], w.size[1] * O * itemsize, _CHUNK, _seconds(w, N * O))


def _seconds(w: Windows, planes: int) -> float:
    """Estimate the seconds one thread takes for `planes` planes of outputs."""
    return PASS_SECONDS * planes * w.size[0] * w.size[1] * (2 + w.window[0] * w.window[1])


def convolve(x: ImageTiles, kernel: Floats, bias: Floats | None, w: Windows, target: OutputTiles) -> None:
    """Convolve x (N, H, W, C) with kernel (KH, KW, 1, C * multiplier) to (N, OH, OW, C * multiplier)."""
    shifts = _Shifts(kernel, w)
    chunks = _chunks(x.shape[0], w, shifts.O, x.dtype.itemsize)

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = where = chunks[number]
        n, r = n1 - n0, r1 - r0
        (P,) = workspace(x.dtype, shifts.padded_shape(n, r))
        _load_tile(P, x, (n0, n1), r0 * w.stride[0] - w.pads[0], -w.pads[1])
        out = target.output_tile(where)
        shifts.convolve(shifts.views(P, r), out.reshape(n, r, *shifts.row))
        if bias is not None:
            np.add(out, bias, out=out)
        target.store_tile(where, out)

    parallel(chunk, len(chunks), _seconds(w, x.shape[0] * shifts.O), 4)


class _MultiplierSumTiles(OutputTiles):
    """A target: sums over the outputs of each channel."""

    def __init__(self, dx: Floats, multiplier: int) -> None:
        super().__init__(dx)
        self.multiplier = multiplier

    def output_tile(self, chunk: Chunk) -> Floats:
        """See `OutputTiles.output_tile`."""
        n0, n1, r0, r1 = chunk
        (array,) = workspace(self.y.dtype, (n1 - n0, r1 - r0, self.shape[2], self.shape[3] * self.multiplier), slot="epilogue")
        return array

    def store_tile(self, chunk: Chunk, result: Floats) -> None:
        """See `OutputTiles.store_tile`."""
        n0, n1, r0, r1 = chunk
        part = self.y[n0:n1, r0:r1]
        np.add.reduce(result.reshape(*part.shape, self.multiplier), axis=4, out=part)


def gradients(
    x: ImageTiles, kernel: Floats, dy: GradientTiles, w: Windows, needs: tuple[bool, bool, bool], flipped: bool
) -> Any:
    """Return dx, dkernel and dbias, None where `needs` is False.

    If `flipped`, for a stride of 1, dx is a convolution with the flipped kernel. That also adds the kernel times the zeros
    around dy, which is 0 only if the kernel is finite.
    """
    dx = np.empty(x.shape, x.dtype) if needs[0] else None
    if dx is not None:
        (_flipped_data_gradient if flipped else _strided_data_gradient)(dy, kernel, w, dx)
    if not (needs[1] or needs[2]):
        return dx, None, None
    dkernel, dbias = _kernel_gradient(x, kernel, dy, w)
    return dx, dkernel if needs[1] else None, dbias if needs[2] else None


def _flipped_data_gradient(dy: GradientTiles, kernel: Floats, w: Windows, dx: Floats) -> None:
    """Compute dx for stride 1: a convolution of dy with the kernel flipped along both axes."""
    top, left = (d * (k - 1) - p for d, k, p in zip(w.dilation, w.window, w.pads))
    back = Windows(w.window, (1, 1), w.dilation, (top, left), dx.shape[1:3])
    multiplier = kernel.shape[3] // dx.shape[3]
    convolve(dy, kernel[::-1, ::-1], None, back, OutputTiles(dx) if multiplier == 1 else _MultiplierSumTiles(dx, multiplier))


def _kernel_gradient(x: ImageTiles, kernel: Floats, dy: GradientTiles, w: Windows) -> tuple[Floats, Floats]:
    """Return the gradients of kernel (KH, KW, 1, O) and bias (O,)."""
    O, dtype = kernel.shape[3], x.dtype
    shifts = _Shifts(kernel, w)
    chunks = _chunks(x.shape[0], w, O, dtype.itemsize)
    # Split-K: each part sums a fixed share of the chunks, so the result is reproducible bit for bit.
    parts = min(chunk_count(), len(chunks))
    few = len(chunks) <= 16 and x.shape[0] * w.size[0] <= 16 * _ROWS  # sums that are added one after the other
    dkernels = np.zeros((parts, *w.window, *shifts.row), dtype if few else np.float64)
    dbiases = np.zeros((parts, w.size[1] * O), np.float64)

    def share(p: int) -> None:
        for n0, n1, r0, r1 in chunks[p * len(chunks) // parts : (p + 1) * len(chunks) // parts]:
            n, r = n1 - n0, r1 - r0
            P, dz = workspace(dtype, shifts.padded_shape(n, r), (n, r, w.size[1], O))
            _load_tile(P, x, (n0, n1), r0 * w.stride[0] - w.pads[0], -w.pads[1])
            dy.load_tile(dz, (n0, n1), r0, 0)
            dbiases[p] += sum_rows(dz.reshape(n * r, -1))
            shifts.correlate(shifts.views(P, r), dz.reshape(n, r, *shifts.row), dkernels[p])

    parallel(share, parts, _seconds(w, x.shape[0] * O), 8 * -(-len(chunks) // parts))
    dkernel: Any = total(np, dkernels.reshape(parts, *w.window, w.size[1], O), (0, 3))
    dbias = dbiases.reshape(-1, O).sum(axis=0)
    return dkernel.reshape(kernel.shape).astype(dtype, copy=False), dbias.astype(dtype)


def _strided_data_gradient(dy: GradientTiles, kernel: Floats, w: Windows, dx: Floats) -> None:
    """Compute dx for strides above 1: add every dy times the kernel to its window in a padded image."""
    N, H, W, C = dx.shape
    O, OH, OW = kernel.shape[3], *w.size
    shifts = _Shifts(kernel, w)
    top, left = w.pads
    # Windows may extend beyond the image, or leave out its last rows, which get no gradient.
    padded = shifts.padded_shape(1, OH)
    h, v = min(H, padded[1] - top), min(W, padded[2] - left)

    def image(n: int) -> None:
        grad, dz, term = workspace(dx.dtype, padded, (1, OH, OW, O), (1, OH, *shifts.row))
        grad[...] = 0
        dy.load_tile(dz, (n, n + 1), 0, 0)
        places = shifts.views(grad, OH)
        for kh in range(w.window[0]):
            for kw in range(w.window[1]):
                np.multiply(dz.reshape(term.shape), shifts.weights[kh, kw], out=term)
                place = places[:, :, kh, kw]
                np.add(place, term, out=place)
        target = dx[n]
        if h < H or v < W:
            target[...] = 0
        if h > 0 and v > 0:
            part = grad[0, top : top + h, left : left + v]
            if O == C:
                np.copyto(target[:h, :v], part)
            else:
                np.add.reduce(part.reshape(h, v, C, O // C), axis=3, out=target[:h, :v])

    parallel(image, N, 2 * _seconds(w, N * O), 4 + 2 * w.window[0] * w.window[1])
