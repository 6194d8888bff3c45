"""Depthwise convolutions for NumPy: every channel with kernels of its own, as sums of shifted images.

There is no product over channels, hence no matrix product: for each element of the window the shifted image is
multiplied by one row of the kernel and added, a chunk that stays in the cache at a time. With stride 1 a shifted row of
pixels is one run of memory, and the kernel's row is repeated to the same length: long loops instead of one a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from xpnet.accel.numpy.columns import Windows
from xpnet.accel.numpy.ends import Gradient, Images, Outputs
from xpnet.accel.numpy.scratch import Floats, images_and_lines, scratch
from xpnet.threads import parallel, piece_count

_CHUNK = 1 << 18
"""Bytes of output in a chunk: with the input and one product they should fit the second-level cache."""


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

    def __call__(self, P: Floats, r: int) -> Iterator[tuple[int, int, Floats, Floats]]:
        """For each element of the window: kh, kw, what it sees, as rows of outputs, and the kernel's row."""
        (KH, KW), (sh, sw), (dh, dw), (_, OW) = self.w.window, self.w.stride, self.w.dilation, self.w.size
        if self.long:
            P = P.reshape(*P.shape[:2], -1)
        for kh in range(KH):
            rows = P[:, kh * dh : kh * dh + (r - 1) * sh + 1 : sh]
            for kw in range(KW):
                left = kw * dw
                if self.long:
                    seen = rows[:, :, left * self.O : (left + OW) * self.O]
                else:
                    seen = rows[:, :, left : left + (OW - 1) * sw + 1 : sw]
                yield kh, kw, seen, self.weights[kh, kw]


def _fill(P: Floats, x: Images, images: tuple[int, int], top: int, left: int) -> None:
    """Fill a padded chunk; with several outputs a channel each channel stands there several times."""
    each = P.shape[3] // x.shape[3]
    if each == 1:
        x.fill(P, images, top, left)
        return
    (single,) = scratch(P.dtype, (*P.shape[:3], x.shape[3]), slot="ends")
    x.fill(single, images, top, left)
    np.copyto(P.reshape(*single.shape, each), single[..., None])


def convolve(x: Images, kernel: Floats, bias: Floats | None, w: Windows, target: Outputs) -> None:
    """x (N, H, W, C) with kernel (KH, KW, 1, C * multiplier) -> (N, OH, OW, C * multiplier)."""
    OH, OW = w.size
    shifts = _Shifts(kernel, w)
    chunks = images_and_lines(x.shape[0], OH, OW * shifts.O * x.dtype.itemsize, _CHUNK)

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = where = chunks[number]
        n, r = n1 - n0, r1 - r0
        P, term = scratch(x.dtype, shifts.padded(n, r), (n, r, *shifts.row))
        _fill(P, x, (n0, n1), r0 * w.stride[0] - w.pads[0], -w.pads[1])
        room = target.room(where)
        total = room.reshape(term.shape)
        for kh, kw, seen, weights in shifts(P, r):
            if kh == kw == 0:
                np.multiply(seen, weights, out=total)
            else:
                np.multiply(seen, weights, out=term)
                np.add(total, term, out=total)
        if bias is not None:
            np.add(room, bias, out=room)
        target.finish(where, room)

    parallel(chunk, len(chunks))


def gradients(x: Images, kernel: Floats, dy: Gradient, w: Windows, needs: tuple[bool, bool, bool]) -> Any:
    """dx, dkernel and dbias, None where `needs` says so."""
    N, H, W, C = x.shape
    KH, KW, _, O = kernel.shape
    OH, OW = w.size
    dtype = x.dtype
    shifts = _Shifts(kernel, w)
    dx = np.empty(x.shape, dtype) if needs[0] else None
    parts = min(piece_count(), N)
    dkernels = np.zeros((parts, KH, KW, *shifts.row), dtype)
    dbiases = np.zeros((parts, *shifts.row), dtype)
    lines = max(1, min(OH, _CHUNK // (OW * O * dtype.itemsize)))

    def share(p: int) -> None:
        # The window may reach over the edge, or leave out the last rows: dx is summed in a padded image.
        full, grad = np.empty((2, *shifts.padded(1, OH)), dtype)
        for n in range(p * N // parts, (p + 1) * N // parts):
            _fill(full, x, (n, n + 1), -w.pads[0], -w.pads[1])
            grad[...] = 0
            for r0 in range(0, OH, lines):
                band(n, r0, min(r0 + lines, OH), full, grad, p)
            if dx is not None:
                crop(grad[0], dx[n])

    def band(n: int, r0: int, r1: int, full: Floats, grad: Floats, p: int) -> None:
        r = r1 - r0
        image, term = scratch(dtype, (1, r, OW, O), (1, r, *shifts.row))
        dy.fill(image, (n, n + 1), r0, 0)
        dz = image.reshape(term.shape)
        ones = np.ones(r, dtype)
        dbiases[p] += (ones @ dz.reshape(r, -1)).reshape(shifts.row)
        top = r0 * w.stride[0]
        for (kh, kw, seen, weights), (_, _, place, _) in zip(shifts(full[:, top:], r), shifts(grad[:, top:], r)):
            if needs[1]:
                np.multiply(seen, dz, out=term)
                dkernels[p, kh, kw] += (ones @ term.reshape(r, -1)).reshape(shifts.row)
            if dx is not None:
                np.multiply(dz, weights, out=term)
                np.add(place, term, out=place)

    def crop(grad: Floats, target: Floats) -> None:
        """Copy the image's part of a padded gradient; rows that no window saw are 0."""
        top, left = w.pads
        h, v = min(H, grad.shape[0] - top), min(W, grad.shape[1] - left)
        if h < H or v < W:
            target[...] = 0
        if h > 0 and v > 0:
            part = grad[top : top + h, left : left + v]
            if O == C:
                np.copyto(target[:h, :v], part)
            else:
                np.add.reduce(part.reshape(h, v, C, O // C), axis=3, out=target[:h, :v])

    parallel(share, parts)
    dkernel = dkernels.sum(axis=0).reshape(KH, KW, OW, O).sum(axis=2).reshape(kernel.shape) if needs[1] else None
    return dx, dkernel, dbiases.sum(axis=0).reshape(OW, O).sum(axis=0) if needs[2] else None
