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

from xpnet.accel.numpy.chunks import MAC_SECONDS, PASS_SECONDS, Chunk, image_row_chunks
from xpnet.accel.numpy.epilogue import ImageTiles, OutputTiles
from xpnet.accel.numpy.workspace import WORKSPACE_LIMIT, Floats, activate, packed_dtype, strided_view, workspace
from xpnet.runtime.threads import chunk_count, parallel


class Windows(NamedTuple):
    """How windows lie on images: per axis (height, width)."""

    window: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]  # how far the first window lies above and left of the image; may be negative
    size: tuple[int, int]  # (OH, OW)


class Chunking(NamedTuple):
    """The sizes that the chunks of one convolution share."""

    t: int  # outputs that one row of columns covers
    length: int  # input columns that they see
    Q: int  # rows of columns for one row of outputs
    K: int  # inputs in a row of columns, without the bias
    chunks: list[Chunk]  # first and last image, first and last row of outputs
    seconds: float  # that one thread takes, about


def _outputs_per_row(w: Windows, C: int, O: int) -> int:
    """t, from what the products and the copies of one output cost."""
    (KH, KW), sw, OW = w.window, w.stride[1], w.size[1]
    if w.dilation[1] != 1 or C > 32 or OW < 2:
        return 1
    best, chosen = float("inf"), 1
    for t in range(1, min(OW, 16) + 1):
        K = KH * ((t - 1) * sw + KW) * C
        rows = -(-OW // t) / OW  # for each output
        # In multiplications at the full rate of about 50 a nanosecond: thin products run slower, an element costs
        # 10 to copy, a run of a copy 300.
        cost = rows * (K * t * O * (1 + 5 / (t * O)) * (1 + 8 / K) + 10 * K + 300 * KH)
        if OW % t:
            cost += 10 * O  # the result is copied
        if cost < best:
            best, chosen = cost, t
    return chosen


_CHUNK = 1 << 21
"""Bytes of columns in a chunk: few enough for the caches, enough for calls that take longer than Python between them."""


def plan_chunks(shape: tuple[int, ...], w: Windows, O: int, itemsize: int, whole: bool = False) -> Chunking:
    """Return how the convolution of images of `shape` is cut; `whole`: into whole images."""
    N, _, _, C = shape
    (KH, KW), (OH, OW) = w.window, w.size
    t = _outputs_per_row(w, C, O)
    length = (t - 1) * w.stride[1] + KW if w.dilation[1] == 1 else KW
    Q = -(-OW // t)
    K = KH * length * C
    line = itemsize * Q * (K + 1 + t * O)
    # Roughly: the product, the copies of columns, what else is done with the outputs.
    seconds = N * OH * Q * (MAC_SECONDS * K * t * O + 2 * PASS_SECONDS * K + (10 if whole else 4) * PASS_SECONDS * t * O)
    chunks = image_row_chunks(N, OH, line, max(_CHUNK, OH * line) if whole else _CHUNK, seconds)
    return Chunking(t, length, Q, K, chunks, seconds)


def _im2col(x: ImageTiles, w: Windows, plan: Chunking, chunk: Chunk, P: Floats, cols: Floats) -> None:
    """Copy the windows of a chunk's outputs to cols (n, rows, Q, K or more)."""
    n0, n1, r0, r1 = chunk
    C = x.shape[3]
    (KH, KW), (sh, sw), (dh, dw) = w.window, w.stride, w.dilation
    x.load_tile(P, (n0, n1), r0 * sh - w.pads[0], -w.pads[1])
    b0, b1, b2, _ = P.strides
    n, r = n1 - n0, r1 - r0
    # The items that are copied are the rows of a window, or its pixels where a dilation has them lie apart.
    if dw == 1:
        item = packed_dtype(plan.length * C, P.dtype)
        shape: tuple[int, ...] = (n, r, plan.Q, KH)
        source: tuple[int, ...] = (dh * b1,)
        target: tuple[int, ...] = (item.itemsize,)
    else:
        item = packed_dtype(C, P.dtype)
        shape = (n, r, plan.Q, KH, KW)
        source, target = (dh * b1, dw * b2), (KW * item.itemsize, item.itemsize)
    windows = strided_view(P, shape, (b0, sh * b1, plan.t * sw * b2, *source), item)
    np.copyto(strided_view(cols, shape, (*cols.strides[:3], *target), item), windows)


def _padded_shape(w: Windows, plan: Chunking, n: int, r: int, C: int) -> tuple[int, int, int, int]:
    (KH, KW), (sh, sw), (dh, dw) = w.window, w.stride, w.dilation
    return n, (r - 1) * sh + dh * (KH - 1) + 1, (plan.Q * plan.t - 1) * sw + dw * (KW - 1) + 1, C


def _kernel_matrix(kernel: Floats, bias: Floats | None, plan: Chunking, stride: int) -> Floats:
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


def convolve(x: ImageTiles, kernel: Floats, bias: Floats | None, w: Windows, target: OutputTiles) -> None:
    """The convolution of x (N, H, W, C) with kernel (KH, KW, C, O). What lies outside of an image counts as 0."""
    C, O = x.shape[3], kernel.shape[3]
    OW, dtype = w.size[1], x.dtype
    plan = plan_chunks(x.shape, w, O, dtype.itemsize, x.whole_images or target.whole_images)
    B = _kernel_matrix(kernel, bias, plan, w.stride[1])

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = where = plan.chunks[number]
        n, r = n1 - n0, r1 - r0
        M = n * r * plan.Q
        # Where the target's out is one matrix, possibly of a wider one, the product is written there at once.
        out = _as_matrix(target.output_tile(where), plan.t) if OW % plan.t == 0 else None
        P, cols, result = workspace(
            dtype,
            _padded_shape(w, plan, n, r, C),
            (n, r, plan.Q, B.shape[0]),
            (M if out is None else 0, plan.t * O),
        )
        _im2col(x, w, plan, where, P, cols)
        if bias is not None:
            cols[..., plan.K] = 1
        if out is not None:
            np.matmul(cols.reshape(M, -1), B, out=out)
            target.store_tile(where, target.output_tile(where))
        else:
            np.matmul(cols.reshape(M, -1), B, out=result)
            target.store_tile(where, result.reshape(n, r, plan.Q * plan.t, O)[:, :, :OW])

    parallel(chunk, len(plan.chunks), plan.seconds, 4 + x.calls + target.calls)


def _as_matrix(part: Floats, t: int) -> Floats | None:
    """Contiguous outputs, t in a row, as a matrix; or with t = 1 evenly spaced ones; else None."""
    if part.flags.c_contiguous:
        return part.reshape(-1, t * part.shape[3])
    (n, r, OW, O), (b0, b1, b2, b3) = part.shape, part.strides
    if t == 1 and b3 == part.itemsize and (r == 1 or b1 == OW * b2) and (n == 1 or b0 == r * OW * b2):
        return as_strided(part, (n * r * OW, O), (b2, b3))
    return None


def kernel_gradient(x: ImageTiles, dy: ImageTiles, w: Windows, kernel_shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """The gradients of kernel (KH, KW, C, O) and bias (O,) from x (N, H, W, C) and dy (N, OH, OW, O)."""
    KH, KW, C, O = kernel_shape
    dtype = x.dtype
    plan = plan_chunks(x.shape, w, O, dtype.itemsize, dy.whole_images)
    t = plan.t
    # Each part adds up its own share of the chunks; the shares are fixed, so a result can be repeated bit for bit.
    parts = min(chunk_count(), len(plan.chunks))
    bounds = [p * len(plan.chunks) // parts for p in range(parts + 1)]
    totals = np.empty((parts, plan.K + 1, t * O), dtype)

    def share(p: int) -> None:
        step: Floats | None = None
        for number in range(bounds[p], bounds[p + 1]):
            n0, n1, r0, r1 = where = plan.chunks[number]
            n, r = n1 - n0, r1 - r0
            M = n * r * plan.Q
            P, cols, dz, step = workspace(
                dtype,
                _padded_shape(w, plan, n, r, C),
                (n, r, plan.Q, plan.K + 1),
                (n, r, plan.Q * t, O),
                (plan.K + 1, t * O),
            )
            _im2col(x, w, plan, where, P, cols)
            cols[..., plan.K] = 1
            dy.load_tile(dz, (n0, n1), r0, 0)
            columns = cols.reshape(M, plan.K + 1).T
            if number == bounds[p]:
                np.matmul(columns, dz.reshape(M, t * O), out=totals[p])
            else:
                np.matmul(columns, dz.reshape(M, t * O), out=step)
                np.add(totals[p], step, out=totals[p])

    each = (4 + x.calls + dy.calls) * -(-len(plan.chunks) // parts)
    parallel(share, parts, plan.seconds, each)
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


def strided_data_gradient(dy: ImageTiles, kernel: Floats, w: Windows, dx: Floats) -> None:
    """The data gradient for strides above 1: every dy (N, OH, OW, O) times the kernel, added to its window in dx.

    With stride 1 a convolution with the turned kernel is faster.
    """
    N, OH, OW, O = dy.shape
    H, W, C = dx.shape[1:]
    (KH, KW), strides, dilations = w.window, w.stride, w.dilation
    dtype = dx.dtype
    matrices = np.ascontiguousarray(kernel.transpose(0, 1, 3, 2))  # (KH, KW, O, C)
    lines = max(1, min(OH, WORKSPACE_LIMIT // 8 // (dtype.itemsize * OW * (O + C))))
    rows = [valid_range(H, OH, strides[0], k * dilations[0] - w.pads[0]) for k in range(KH)]
    columns = [valid_range(W, OW, strides[1], k * dilations[1] - w.pads[1]) for k in range(KW)]

    def image(n: int) -> None:
        target = dx[n]
        target[...] = 0
        for r0 in range(0, OH, lines):
            r1 = min(r0 + lines, OH)
            dz, product = workspace(dtype, (r1 - r0, OW, O), (r1 - r0, OW, C))
            dy.load_tile(dz[None], (n, n + 1), r0, 0)
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

    work = N * OH * OW * KH * KW * (MAC_SECONDS * O * C + 2 * PASS_SECONDS * C)
    parallel(image, N, work, 2 + 2 * KH * KW * -(-OH // lines))


def valid_range(size: int, out: int, stride: int, offset: int) -> tuple[int, int, int]:
    """The first and last position of a window whose element at `offset` from the position lies inside of the image."""
    first = -(offset // stride) if offset < 0 else 0
    last = min(out, (size - 1 - offset) // stride + 1)
    return first, last, offset


def pointwise(x: Floats, matrix: Floats, bias: Floats | None, y: Floats, activation: str | None) -> None:
    """y (M, O) = activation(x (M, C) @ matrix (C, O) + bias), the rows shared out over the threads."""
    M, C = x.shape
    O = matrix.shape[1]
    height = max(64, min(_CHUNK // (x.itemsize * (C + O)), -(-M // chunk_count())))

    def part(p: int) -> None:
        rows = y[p * height : (p + 1) * height]
        np.matmul(x[p * height : (p + 1) * height], matrix, out=rows)
        if bias is not None:
            np.add(rows, bias, out=rows)
        activate(rows, activation)

    parallel(part, -(-M // height), M * (MAC_SECONDS * C * O + 2 * PASS_SECONDS * (C + O)), 3)
