"""Depthwise convolutions for NumPy: every channel with kernels of its own, as sums of shifted images.

There is no product over channels, hence no matrix product: for each element of the window the shifted image is multiplied
by one row of the kernel and added. `einsum` does that for a whole chunk in one call, row by row: a row of outputs stays in
the first-level cache while the window's elements are multiplied and added to it, and Python's lock is not needed in
between. With stride 1 a shifted row of pixels is one run of memory, and the kernel's row is repeated to the same length:
long loops instead of one a pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import PASS_SECONDS, Chunk, image_row_chunks
from xpnet.accel.numpy.epilogue import GradientTiles, ImageTiles, OutputTiles
from xpnet.accel.numpy.im2col import Windows
from xpnet.accel.numpy.workspace import Floats, strided_view, workspace
from xpnet.runtime.threads import chunk_count, parallel

_CHUNK = 1 << 20
"""Bytes of output in a chunk."""


class _Shifts:
    """The shifted images of a padded chunk (n, rows, columns, O), and the kernel's row for each."""

    def __init__(self, kernel: Floats, w: Windows) -> None:
        self.w = w
        self.O = kernel.shape[3]
        self.long = w.stride[1] == 1
        self.row = (w.size[1] * self.O,) if self.long else (w.size[1], self.O)  # one row of outputs
        self.weights = kernel[:, :, 0]
        if self.long:
            self.weights = np.tile(self.weights, w.size[1])

    def padded(self, n: int, r: int) -> tuple[int, int, int, int]:
        """The shape of a padded chunk with r rows of outputs."""
        (KH, KW), (sh, sw), (dh, dw), (_, OW) = self.w.window, self.w.stride, self.w.dilation, self.w.size
        return n, (r - 1) * sh + dh * (KH - 1) + 1, (OW - 1) * sw + dw * (KW - 1) + 1, self.O

    def seen(self, P: Floats, r: int) -> Floats:
        """What each element of the window sees of a contiguous chunk: (n, r, KH, KW, *row)."""
        (sh, sw), (dh, dw) = self.w.stride, self.w.dilation
        b0, b1, b2, b3 = P.strides
        within = (b3,) if self.long else (sw * b2, b3)
        return strided_view(P, (P.shape[0], r, *self.w.window, *self.row), (b0, sh * b1, dh * b1, dw * b2, *within))

    def sums(self, seen: Floats, total: Floats) -> None:
        """total (n, r, *row) = the sum over the window of what is seen times the kernel."""
        np.einsum("nrhwj,hwj->nrj" if self.long else "nrhwjo,hwo->nrjo", seen, self.weights, out=total)

    def products(self, seen: Floats, dz: Floats) -> Floats:
        """(KH, KW, *row): the sum over n and r of what is seen times dz (n, r, *row)."""
        found: Floats = np.einsum("nrhwj,nrj->hwj" if self.long else "nrhwjo,nrjo->hwjo", seen, dz)
        return found


def _load_tile(P: Floats, x: ImageTiles, images: tuple[int, int], top: int, left: int) -> None:
    """Fill a padded chunk; with several outputs a channel each channel stands there several times."""
    each = P.shape[3] // x.shape[3]
    if each == 1:
        x.load_tile(P, images, top, left)
        return
    (single,) = workspace(P.dtype, (*P.shape[:3], x.shape[3]), slot="epilogue")
    x.load_tile(single, images, top, left)
    np.copyto(P.reshape(*single.shape, each), single[..., None])


def _chunks(N: int, w: Windows, O: int, itemsize: int) -> list[Chunk]:
    return image_row_chunks(N, w.size[0], w.size[1] * O * itemsize, _CHUNK, _seconds(w, N * O))


def _seconds(w: Windows, planes: int) -> float:
    """How long one thread takes for so many planes of outputs, about."""
    return PASS_SECONDS * planes * w.size[0] * w.size[1] * (2 + w.window[0] * w.window[1])


def convolve(x: ImageTiles, kernel: Floats, bias: Floats | None, w: Windows, target: OutputTiles) -> None:
    """x (N, H, W, C) with kernel (KH, KW, 1, C * multiplier) -> (N, OH, OW, C * multiplier)."""
    shifts = _Shifts(kernel, w)
    chunks = _chunks(x.shape[0], w, shifts.O, x.dtype.itemsize)

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = where = chunks[number]
        n, r = n1 - n0, r1 - r0
        (P,) = workspace(x.dtype, shifts.padded(n, r))
        _load_tile(P, x, (n0, n1), r0 * w.stride[0] - w.pads[0], -w.pads[1])
        out = target.output_tile(where)
        shifts.sums(shifts.seen(P, r), out.reshape(n, r, *shifts.row))
        if bias is not None:
            np.add(out, bias, out=out)
        target.store_tile(where, out)

    parallel(chunk, len(chunks), _seconds(w, x.shape[0] * shifts.O), 4)


class _MultiplierSumTiles(OutputTiles):
    """A target: the sum over the outputs that each channel has."""

    def __init__(self, dx: Floats, multiplier: int) -> None:
        super().__init__(dx)
        self.multiplier = multiplier

    def output_tile(self, chunk: Chunk) -> Floats:
        """As `OutputTiles.output_tile`: workspace of this thread."""
        n0, n1, r0, r1 = chunk
        (array,) = workspace(self.y.dtype, (n1 - n0, r1 - r0, self.shape[2], self.shape[3] * self.multiplier), slot="epilogue")
        return array

    def store_tile(self, chunk: Chunk, result: Floats) -> None:
        """As `OutputTiles.store_tile`."""
        n0, n1, r0, r1 = chunk
        part = self.y[n0:n1, r0:r1]
        np.add.reduce(result.reshape(*part.shape, self.multiplier), axis=4, out=part)


def gradients(x: ImageTiles, kernel: Floats, dy: GradientTiles, w: Windows, needs: tuple[bool, bool, bool]) -> Any:
    """dx, dkernel and dbias, None where `needs` says so."""
    dx = np.empty(x.shape, x.dtype) if needs[0] else None
    if dx is not None:
        (_strided_data_gradient if w.stride != (1, 1) else _flipped_data_gradient)(dy, kernel, w, dx)
    if not (needs[1] or needs[2]):
        return dx, None, None
    dkernel, dbias = _kernel_gradient(x, kernel, dy, w)
    return dx, dkernel if needs[1] else None, dbias if needs[2] else None


def _flipped_data_gradient(dy: GradientTiles, kernel: Floats, w: Windows, dx: Floats) -> None:
    """dx for a stride of 1: a convolution of dy with the kernel turned by 180 degrees."""
    top, left = (d * (k - 1) - p for d, k, p in zip(w.dilation, w.window, w.pads))
    back = Windows(w.window, (1, 1), w.dilation, (top, left), dx.shape[1:3])
    multiplier = kernel.shape[3] // dx.shape[3]
    convolve(dy, kernel[::-1, ::-1], None, back, OutputTiles(dx) if multiplier == 1 else _MultiplierSumTiles(dx, multiplier))


def _kernel_gradient(x: ImageTiles, kernel: Floats, dy: GradientTiles, w: Windows) -> tuple[Floats, Floats]:
    """The gradients of kernel (KH, KW, 1, O) and bias (O,)."""
    O, dtype = kernel.shape[3], x.dtype
    shifts = _Shifts(kernel, w)
    chunks = _chunks(x.shape[0], w, O, dtype.itemsize)
    # Each part adds up its own share of the chunks; the shares are fixed, so a result can be repeated bit for bit.
    parts = min(chunk_count(), len(chunks))
    dkernels = np.zeros((parts, *w.window, *shifts.row), dtype)
    dbiases = np.zeros((parts, *shifts.row), dtype)

    def share(p: int) -> None:
        for n0, n1, r0, r1 in chunks[p * len(chunks) // parts : (p + 1) * len(chunks) // parts]:
            n, r = n1 - n0, r1 - r0
            P, image = workspace(dtype, shifts.padded(n, r), (n, r, w.size[1], O))
            _load_tile(P, x, (n0, n1), r0 * w.stride[0] - w.pads[0], -w.pads[1])
            dy.load_tile(image, (n0, n1), r0, 0)
            dbiases[p] += (np.ones(n * r, dtype) @ image.reshape(n * r, -1)).reshape(shifts.row)
            dkernels[p] += shifts.products(shifts.seen(P, r), image.reshape(n, r, *shifts.row))

    parallel(share, parts, _seconds(w, x.shape[0] * O), 8 * -(-len(chunks) // parts))
    dkernel = dkernels.sum(axis=0).reshape(*w.window, w.size[1], O).sum(axis=2).reshape(kernel.shape)
    return dkernel, dbiases.sum(axis=0).reshape(-1, O).sum(axis=0)


def _strided_data_gradient(dy: GradientTiles, kernel: Floats, w: Windows, dx: Floats) -> None:
    """dx for strides above 1: every dy times the kernel, added to its window in a padded image."""
    N, H, W, C = dx.shape
    O, OH, OW = kernel.shape[3], *w.size
    shifts = _Shifts(kernel, w)
    top, left = w.pads
    # The window may reach over the edge, or leave out the last rows, which get no gradient.
    padded = shifts.padded(1, OH)
    h, v = min(H, padded[1] - top), min(W, padded[2] - left)

    def image(n: int) -> None:
        grad, dz, term = workspace(dx.dtype, padded, (1, OH, OW, O), (1, OH, *shifts.row))
        grad[...] = 0
        dy.load_tile(dz, (n, n + 1), 0, 0)
        places = shifts.seen(grad, OH)
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
