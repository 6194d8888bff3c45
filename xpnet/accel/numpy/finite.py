"""Infinities and NaNs in convolutions: each reaches the windows that hold it, and no other.

Fast algorithms multiply elements of a window's neighbourhood by 0, and count on 0 * x = 0. For an infinity or NaN that is a
NaN, so it shows in all the outputs that were computed together. They look at a few of these, and if one is not finite compute
them again by the sum over each window, here: finite data pay for a look. It is a product with zeros in BLAS, which is 0 or NaN;
the operations run within ``numpy.errstate(**QUIET)``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from xpnet.accel.numpy.workspace import Floats

QUIET: Final[Any] = {"invalid": "ignore"}
"""Settings of numpy.errstate for operations that look: what warns may be computed again, and then is no news."""

SERIAL_DOT = 8192
"""Elements up to which BLAS makes such a product without waking other threads."""

_BLOCK = 1 << 21
"""Bytes of windows that are copied at a time."""


def convolve_directly(
    P: Floats, kernel: Floats, bias: Floats | None, stride: tuple[int, int], dilation: tuple[int, int], out: Floats
) -> None:
    """Convolve the padded images P (n, rows, columns, C) with kernel (KH, KW, C, O) to out (n, OH, OW, O), in this thread.

    Every output is the sum over its own window: products of copied windows, a block of rows of outputs at a time.
    """
    (KH, KW, C, O), (n, OH, OW, _) = kernel.shape, out.shape
    K = KH * KW * C
    b0, b1, b2, b3 = P.strides
    strides = (b0, stride[0] * b1, stride[1] * b2, dilation[0] * b1, dilation[1] * b2, b3)
    windows = np.ndarray((n, OH, OW, KH, KW, C), P.dtype, P, 0, strides)
    matrix = kernel.reshape(K, O)
    lines = max(1, _BLOCK // (OW * K * P.itemsize))
    for i in range(n):
        for r0 in range(0, OH, lines):
            rows = windows[i, r0 : r0 + lines]
            part = out[i, r0 : r0 + lines]
            np.copyto(part, (rows.reshape(-1, K) @ matrix).reshape(part.shape))
            if bias is not None:
                np.add(part, bias, out=part)
