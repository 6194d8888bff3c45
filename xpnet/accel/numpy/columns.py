"""Convolutions as matrix products of windows, a cache-sized chunk at a time.

The columns of a whole batch are KH*KW times the size of the images: written to and read back from memory, they cost
more than the product. Here they are made for a few rows of output, multiplied while they are in the cache, and made
again where the weight gradient needs them.

With few channels a window is a short row, and copying dominates. Then one row of columns covers t neighbouring outputs:
(KH, (t-1)*stride + KW, C) inputs against a block-Toeplitz kernel of t*O columns, in which each output's kernel stands
in its place among zeros. That multiplies more and copies much less. The bias is one more row of the kernel, against a
column of ones; so its gradient is one more row of the kernel's gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpnet.accel.numpy.scratch import LIMIT, Floats, activate, fill_padded, images_and_lines, scratch, slope
from xpnet.threads import get_num_threads, parallel


class Windows(NamedTuple):
    """How windows lie on images: per axis (height, width)."""

    window: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]  # how far the first window lies above and left of the image; may be negative
    size: tuple[int, int]  # (OH, OW)


class _Plan(NamedTuple):
    """The sizes that the chunks of one convolution share."""

    t: int  # outputs that one row of columns covers
    length: int  # input columns that they see
    Q: int  # rows of columns for one row of outputs
    K: int  # inputs in a row of columns, without the bias
    chunks: list[tuple[int, int, int, int]]  # first and last image, first and last row of outputs


def _outputs_at_once(w: Windows, C: int, O: int) -> int:
    """t, from what the products and the copies of one output cost."""
    (KH, KW), sw, OW = w.window, w.stride[1], w.size[1]
    if w.dilation[1] != 1 or C > 8 or OW < 2:
        return 1
    best, chosen = float("inf"), 1
    for t in range(1, min(OW, 16) + 1):
        length = (t - 1) * sw + KW
        waste = -(-OW // t) * t / OW
        # Multiplications; a run of the copy costs about 500, an element 12; narrow products run at a lower rate.
        narrow = 1 + 48 / (t * O)
        cost = waste * (KH * length * C * (O * narrow + 12 / t) + KH * 500 / t)
        if t * O > 512:
            break
        if cost < best:
            best, chosen = cost, t
    return chosen


_CHUNK = 3 << 18
"""Bytes of columns in a chunk: with the kernel and the output they should fit a core's second-level cache."""


def _plan(shape: tuple[int, ...], w: Windows, O: int, itemsize: int) -> _Plan:
    N, _, _, C = shape
    (KH, KW), (OH, OW) = w.window, w.size
    t = _outputs_at_once(w, C, O)
    length = (t - 1) * w.stride[1] + KW if w.dilation[1] == 1 else KW
    Q = -(-OW // t)
    K = KH * length * C
    chunks = images_and_lines(N, OH, itemsize * Q * (K + 1 + t * O), _CHUNK)
    return _Plan(t, length, Q, K, chunks)


def _gather(
    x: Floats,
    w: Windows,
    plan: _Plan,
    chunk: tuple[int, int, int, int],
    P: Floats,
    cols: Floats,
    output: Floats | None,
    activation: str | None,
) -> None:
    """Copy the windows of a chunk's outputs to cols (n, rows, Q, K or more)."""
    n0, n1, r0, r1 = chunk
    C = x.shape[3]
    (KH, KW), (sh, sw), (dh, dw) = w.window, w.stride, w.dilation
    fill_padded(P, x, output, activation, (n0, n1), r0 * sh - w.pads[0], -w.pads[1])
    b0, b1, b2, b3 = P.strides
    n, r = n1 - n0, r1 - r0
    target = cols[..., : plan.K]
    if dw == 1:
        shape: tuple[int, ...] = (n, r, plan.Q, KH, plan.length * C)
        strides: tuple[int, ...] = (b0, sh * b1, plan.t * sw * b2, dh * b1, b3)
    else:
        shape = (n, r, plan.Q, KH, KW, C)
        strides = (b0, sh * b1, sw * b2, dh * b1, dw * b2, b3)
    np.copyto(target.reshape(shape), as_strided(P, shape, strides))


def _padded_shape(w: Windows, plan: _Plan, n: int, r: int, C: int) -> tuple[int, int, int, int]:
    (KH, KW), (sh, sw), (dh, dw) = w.window, w.stride, w.dilation
    return n, (r - 1) * sh + dh * (KH - 1) + 1, (plan.Q * plan.t - 1) * sw + dw * (KW - 1) + 1, C


def _matrix(kernel: Floats, bias: Floats | None, plan: _Plan, stride: int) -> Floats:
    """The kernel (KH, KW, C, O) as the matrix (K [+ 1], t * O) that columns are multiplied with."""
    KH, KW, C, O = kernel.shape
    extra = bias is not None
    if plan.t == 1:
        flat = kernel.reshape(plan.K, O)
        return flat if bias is None else np.concatenate([flat, bias[None]])
    B = np.zeros((plan.K + extra, plan.t, O), kernel.dtype)
    body = B[: plan.K].reshape(KH, plan.length, C, plan.t, O)
    for j in range(plan.t):
        body[:, j * stride : j * stride + KW, :, j] = kernel
    if bias is not None:
        B[plan.K] = bias
    return B.reshape(-1, plan.t * O)


def convolve(
    x: Floats,
    kernel: Floats,
    bias: Floats | None,
    w: Windows,
    y: Floats,
    *,
    activation: str | None = None,
    output: Floats | None = None,
    output_activation: str | None = None,
) -> None:
    """The convolution of x (N, H, W, C) with kernel (KH, KW, C, O), written to y (N, OH, OW, O).

    Any strides of x, kernel and y are fine. What lies outside of an image counts as 0. `output` and `output_activation` make
    this a data gradient: x is first multiplied by the slope of that activation, from its output.
    """
    C, O = x.shape[3], kernel.shape[3]
    OW, dtype = w.size[1], x.dtype
    plan = _plan(x.shape, w, O, dtype.itemsize)
    B = _matrix(kernel, bias, plan, w.stride[1])
    # Where a chunk of y is one matrix, possibly of a wider one, the product is written there at once.
    direct = OW % plan.t == 0 and (y.flags.c_contiguous or (plan.t == 1 and _one_matrix(y)))

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = where = plan.chunks[number]
        n, r = n1 - n0, r1 - r0
        M = n * r * plan.Q
        P, cols, result = scratch(
            dtype, _padded_shape(w, plan, n, r, C), (n, r, plan.Q, B.shape[0]), (0 if direct else M, plan.t * O)
        )
        _gather(x, w, plan, where, P, cols, output, output_activation)
        if bias is not None:
            cols[..., plan.K] = 1
        part = y[n0:n1, r0:r1]
        if direct:
            np.matmul(cols.reshape(M, -1), B, out=_as_matrix(part, M))
        else:
            np.matmul(cols.reshape(M, -1), B, out=result)
            np.copyto(part, result.reshape(n, r, plan.Q * plan.t, O)[:, :, :OW])
        activate(part, activation)

    parallel(chunk, len(plan.chunks))


def _one_matrix(y: Floats) -> bool:
    """Whether the pixels of y (N, OH, OW, O) lie at equal distances."""
    (_, OH, OW, _), (b0, b1, b2, b3) = y.shape, y.strides
    return b3 == y.itemsize and b1 == OW * b2 and b0 == OH * b1


def _as_matrix(part: Floats, M: int) -> Floats:
    """A contiguous or evenly strided part of an output as (M, channels), without a copy."""
    if part.flags.c_contiguous:
        return part.reshape(M, -1)
    return as_strided(part, (M, part.shape[3]), part.strides[2:])


def kernel_gradient(
    x: Floats,
    dy: Floats,
    w: Windows,
    kernel_shape: tuple[int, ...],
    *,
    output: Floats | None = None,
    output_activation: str | None = None,
) -> tuple[Floats, Floats]:
    """The gradients of kernel (KH, KW, C, O) and bias (O,) from x (N, H, W, C) and dy (N, OH, OW, O)."""
    KH, KW, C, O = kernel_shape
    OW, dtype = w.size[1], x.dtype
    plan = _plan(x.shape, w, O, dtype.itemsize)
    t = plan.t
    # Each part adds up its own share of the chunks; the shares are fixed, so a result can be repeated bit for bit.
    parts = min(get_num_threads(), len(plan.chunks))
    bounds = [p * len(plan.chunks) // parts for p in range(parts + 1)]
    totals = np.empty((parts, plan.K + 1, t * O), dtype)

    def share(p: int) -> None:
        step: Floats | None = None
        for number in range(bounds[p], bounds[p + 1]):
            n0, n1, r0, r1 = where = plan.chunks[number]
            n, r = n1 - n0, r1 - r0
            M = n * r * plan.Q
            P, cols, dz, step = scratch(
                dtype,
                _padded_shape(w, plan, n, r, C),
                (n, r, plan.Q, plan.K + 1),
                (n, r, plan.Q * t, O),
                (plan.K + 1, t * O),
            )
            _gather(x, w, plan, where, P, cols, None, None)
            cols[..., plan.K] = 1
            part = (slice(n0, n1), slice(r0, r1))
            if t * plan.Q > OW:
                dz[:, :, OW:] = 0
            slope(dy[part], None if output is None else output[part], output_activation, dz[:, :, :OW])
            columns = cols.reshape(M, plan.K + 1).T
            if number == bounds[p]:
                np.matmul(columns, dz.reshape(M, t * O), out=totals[p])
            else:
                np.matmul(columns, dz.reshape(M, t * O), out=step)
                np.add(totals[p], step, out=totals[p])

    parallel(share, parts)
    total = totals[0]
    for other in totals[1:]:
        total += other
    if t == 1:
        return total[: plan.K].reshape(KH, KW, C, O), total[plan.K].copy()
    body = total[: plan.K].reshape(KH, plan.length, C, t, O)
    dkernel = np.zeros((KH, KW, C, O), dtype)
    for j in range(t):
        start = j * w.stride[1]
        dkernel += body[:, start : start + KW, :, j]
    return dkernel, total[plan.K].reshape(t, O).sum(axis=0)


def spread(
    dy: Floats,
    kernel: Floats,
    w: Windows,
    dx: Floats,
    *,
    output: Floats | None = None,
    output_activation: str | None = None,
) -> None:
    """The data gradient for strides above 1: every dy (N, OH, OW, O) times the kernel, added to its window in dx.

    With stride 1 a convolution with the turned kernel is faster.
    """
    N, OH, OW, O = dy.shape
    H, W, C = dx.shape[1:]
    (KH, KW), strides, dilations = w.window, w.stride, w.dilation
    dtype = dx.dtype
    matrices = np.ascontiguousarray(kernel.transpose(0, 1, 3, 2))  # (KH, KW, O, C)
    lines = max(1, min(OH, LIMIT // 8 // (dtype.itemsize * OW * (O + C))))
    rows = [reach(H, OH, strides[0], k * dilations[0] - w.pads[0]) for k in range(KH)]
    columns = [reach(W, OW, strides[1], k * dilations[1] - w.pads[1]) for k in range(KW)]

    def image(n: int) -> None:
        target = dx[n]
        target[...] = 0
        for r0 in range(0, OH, lines):
            r1 = min(r0 + lines, OH)
            dz, product = scratch(dtype, (r1 - r0, OW, O), (r1 - r0, OW, C))
            slope(dy[n, r0:r1], None if output is None else output[n, r0:r1], output_activation, dz)
            for kh, (first, last, offset) in enumerate(rows):
                first, last = max(first, r0), min(last, r1)
                if first >= last:
                    continue
                down = slice(first * strides[0] + offset, (last - 1) * strides[0] + offset + 1, strides[0])
                used = dz[first - r0 : last - r0].reshape(-1, O)
                part = product[: last - first]
                for kw, (left, right, shift) in enumerate(columns):
                    if left >= right:
                        continue
                    across = slice(left * strides[1] + shift, (right - 1) * strides[1] + shift + 1, strides[1])
                    np.matmul(used, matrices[kh, kw], out=part.reshape(-1, C))
                    place = target[down, across]
                    np.add(place, part[:, left:right], out=place)

    parallel(image, N)


def reach(size: int, out: int, stride: int, offset: int) -> tuple[int, int, int]:
    """The first and last position of a window whose element at `offset` from the position lies inside of the image."""
    first = -(offset // stride) if offset < 0 else 0
    last = min(out, (size - 1 - offset) // stride + 1)
    return first, last, offset


def product(x: Floats, matrix: Floats, bias: Floats | None, y: Floats, activation: str | None) -> None:
    """y (M, O) = activation(x (M, C) @ matrix (C, O) + bias), the rows shared out over the threads."""
    M, C = x.shape
    O = matrix.shape[1]
    height = max(64, min(_CHUNK // (x.itemsize * (C + O)), -(-M // get_num_threads())))

    def part(p: int) -> None:
        rows = y[p * height : (p + 1) * height]
        np.matmul(x[p * height : (p + 1) * height], matrix, out=rows)
        if bias is not None:
            np.add(rows, bias, out=rows)
        activate(rows, activation)

    parallel(part, -(-M // height))
