"""Depthwise convolutions for NumPy: every channel with kernels of its own, as sums of shifted images.

There is no product over channels, hence no matrix product: for each element of the window the shifted image is
multiplied by one row of the kernel and added, a chunk that stays in the cache at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.columns import Windows
from xpnet.accel.numpy.scratch import Floats, activate, fill_padded, images_and_lines, scratch, slope
from xpnet.threads import get_num_threads, parallel

_CHUNK = 1 << 18
"""Bytes of output in a chunk: with the input and one product they should fit the second-level cache."""


def _padded(w: Windows, n: int, r: int, C: int) -> tuple[int, int, int, int]:
    (KH, KW), (sh, sw), (dh, dw) = w.window, w.stride, w.dilation
    return n, (r - 1) * sh + dh * (KH - 1) + 1, (w.size[1] - 1) * sw + dw * (KW - 1) + 1, C


def _shifted(P: Floats, w: Windows, r: int, kh: int, kw: int) -> Floats:
    """The element (kh, kw) of every window in the padded chunk: (n, r, OW, C)."""
    (sh, sw), (dh, dw) = w.stride, w.dilation
    top, left = kh * dh, kw * dw
    return P[:, top : top + (r - 1) * sh + 1 : sh, left : left + (w.size[1] - 1) * sw + 1 : sw]


def convolve(x: Floats, kernel: Floats, bias: Floats | None, w: Windows, y: Floats, activation: str | None) -> None:
    """Fill y (N, OH, OW, C * multiplier) from x (N, H, W, C) and kernel (KH, KW, 1, C * multiplier)."""
    N, _, _, C = x.shape
    O = kernel.shape[3]
    OH, OW = w.size
    each = O // C
    chunks = images_and_lines(N, OH, OW * O * x.itemsize, _CHUNK)
    weights = kernel.reshape(*w.window, C, each)

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = chunks[number]
        n, r = n1 - n0, r1 - r0
        P, term = scratch(x.dtype, _padded(w, n, r, C), (n, r, OW, C, each))
        fill_padded(P, x, None, None, (n0, n1), r0 * w.stride[0] - w.pads[0], -w.pads[1])
        part = y[n0:n1, r0:r1]
        total = part.reshape(term.shape)
        for kh in range(w.window[0]):
            for kw in range(w.window[1]):
                image = _shifted(P, w, r, kh, kw)[..., None]
                if kh == kw == 0:
                    np.multiply(image, weights[0, 0], out=total)
                else:
                    np.multiply(image, weights[kh, kw], out=term)
                    np.add(total, term, out=total)
        if bias is not None:
            np.add(part, bias, out=part)
        activate(part, activation)

    parallel(chunk, len(chunks))


def gradients(
    x: Floats,
    kernel: Floats,
    dy: Floats,
    y: Floats | None,
    w: Windows,
    activation: str | None,
    needs: tuple[bool, bool, bool],
) -> Any:
    """dx, dkernel and dbias, None where `needs` says so."""
    N, H, W, C = x.shape
    KH, KW, _, O = kernel.shape
    OH, OW = w.size
    each = O // C
    dtype = x.dtype
    weights = np.ascontiguousarray(kernel.reshape(KH, KW, C, each).transpose(0, 1, 3, 2))  # (KH, KW, each, C)
    dx = np.empty(x.shape, dtype) if needs[0] else None
    parts = min(get_num_threads(), N)
    dkernels = np.zeros((parts, KH, KW, each, C), dtype)
    dbiases = np.zeros((parts, O), dtype)
    lines = max(1, min(OH, _CHUNK // (OW * O * x.itemsize)))

    def share(p: int) -> None:
        # The window may reach over the edge, or leave out the last rows: dx is summed in a padded image.
        full, grad = np.empty((2, *_padded(w, 1, OH, C)), dtype)
        for n in range(p * N // parts, (p + 1) * N // parts):
            fill_padded(full, x, None, None, (n, n + 1), -w.pads[0], -w.pads[1])
            grad[...] = 0
            for r0 in range(0, OH, lines):
                r1 = min(r0 + lines, OH)
                _image(n, r0, r1, full, grad, p)
            if dx is not None:
                _crop(grad[0], dx[n])

    def _image(n: int, r0: int, r1: int, full: Floats, grad: Floats, p: int) -> None:
        r = r1 - r0
        dz, flat, term = scratch(dtype, (1, r, OW, O), (each, 1, r, OW, C), (1, r, OW, C))
        part = (slice(n, n + 1), slice(r0, r1))
        slope(dy[part], None if y is None else y[part], activation, dz)
        dbiases[p] += dz.sum(axis=(0, 1, 2))
        np.copyto(flat, dz.reshape(1, r, OW, C, each).transpose(4, 0, 1, 2, 3))
        top = r0 * w.stride[0]
        for kh in range(KH):
            for kw in range(KW):
                image = _shifted(full[:, top:], w, r, kh, kw)
                place = _shifted(grad[:, top:], w, r, kh, kw)
                for j in range(each):
                    if needs[1]:
                        np.multiply(image, flat[j], out=term)
                        dkernels[p, kh, kw, j] += term.reshape(-1, C).sum(axis=0)
                    if dx is not None:
                        np.multiply(flat[j], weights[kh, kw, j], out=term)
                        np.add(place, term, out=place)

    def _crop(grad: Floats, target: Floats) -> None:
        """Copy the image's part of a padded gradient; rows that no window saw are 0."""
        top, left = w.pads
        target[...] = 0
        h = min(H, grad.shape[0] - top)
        v = min(W, grad.shape[1] - left)
        if h > 0 and v > 0:
            target[:h, :v] = grad[top : top + h, left : left + v]

    parallel(share, parts)
    dkernel = dkernels.sum(axis=0).transpose(0, 1, 3, 2).reshape(kernel.shape) if needs[1] else None
    return dx, dkernel, dbiases.sum(axis=0) if needs[2] else None
