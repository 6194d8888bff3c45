"""Convolutions by im2col and GEMM, a cache-sized chunk at a time.

The im2col matrix of a whole batch is KH*KW times the size of the images: writing it to memory and reading it back costs
more than the product. Here it is built for a few rows of output, multiplied while it is in the cache, and rebuilt where the
weight gradient needs it.

With few channels a window is a short row, and copying dominates. Then one row of the matrix covers t neighbouring outputs:
(KH, (t-1)*stride + KW, C) inputs, multiplied by a block-Toeplitz kernel of t*O columns, which holds the kernel of each
output at its offset among zeros. That multiplies more and copies much less. The bias is one more row of the kernel, times
a column of ones.

A zero of the block-Toeplitz kernel times an infinity or NaN is a NaN: one in the input spoils all t outputs of its rows. Their
first columns show it, and then the outputs of the chunk are computed again, window by window, as are gradients of kernels.
"""

from __future__ import annotations

from functools import lru_cache
from math import isnan
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpnet.accel.numpy.chunks import MAC_SECONDS, PASS_SECONDS, Chunk, image_row_chunks
from xpnet.accel.numpy.epilogue import ImageTiles, OutputTiles, TileFootprint, activate, sum_rows
from xpnet.accel.numpy.finite import SERIAL_DOT, convolve_directly
from xpnet.accel.numpy.workspace import WORKSPACE_LIMIT, Floats, packed_dtype, workspace
from xpnet.ops.sums import row_product
from xpnet.runtime.threads import chunk_count, parallel


class Windows(NamedTuple):
    """The geometry of windows on images, each field as (height, width)."""

    window: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]  # rows and columns of the first window above and left of the image; may be negative
    size: tuple[int, int]  # (OH, OW)


class Chunking(NamedTuple):
    """The sizes shared by the chunks of one convolution."""

    t: int  # outputs a row of the im2col matrix
    length: int  # input columns that these outputs see
    Q: int  # rows of the matrix for one row of outputs
    K: int  # inputs in a row of the matrix, without the bias
    chunks: list[Chunk]  # rows are those of the outputs
    seconds: float  # estimate for one thread


@lru_cache(maxsize=4096)
def _outputs_per_row(w: Windows, C: int, O: int) -> int:
    """Return the t with the lowest estimated cost of products and copies an output."""
    (KH, KW), sw, OW = w.window, w.stride[1], w.size[1]
    if w.dilation[1] != 1 or C > 32 or OW < 2:
        return 1
    best, chosen = float("inf"), 1
    for t in range(1, min(OW, 16) + 1):
        K = KH * ((t - 1) * sw + KW) * C
        rows = -(-OW // t) / OW  # for each output
        # In multiply-adds at the full rate of about 50 a nanosecond: thin products run slower, copying costs 10 an element
        # and 300 a run.
        cost = rows * (K * t * O * (1 + 5 / (t * O)) * (1 + 8 / K) + 10 * K + 300 * KH)
        if OW % t:
            cost += 10 * O  # the surplus outputs are dropped by a copy
        if cost < best:
            best, chosen = cost, t
    return chosen


_CHUNK = 1 << 21
"""Bytes of the matrix in a chunk: few enough for the caches, enough to outweigh Python's overhead between the calls."""


def plan_chunks(
    shape: tuple[int, ...], w: Windows, O: int, itemsize: int, whole: bool = False, single: bool = False
) -> Chunking:
    """Return the chunks of a convolution of images of `shape`: whole images only if `whole`, a row an output if `single`."""
    N, _, _, C = shape
    (KH, KW), (OH, OW) = w.window, w.size
    t = 1 if single else _outputs_per_row(w, C, O)
    length = (t - 1) * w.stride[1] + KW if w.dilation[1] == 1 else KW
    Q = -(-OW // t)
    K = KH * length * C
    line = itemsize * Q * (K + 1 + t * O)
    # The product, the copies to the matrix, the epilogue of the outputs.
    seconds = N * OH * Q * (MAC_SECONDS * K * t * O + 2 * PASS_SECONDS * K + (10 if whole else 4) * PASS_SECONDS * t * O)
    chunks = image_row_chunks(N, OH, line, max(_CHUNK, OH * line) if whole else _CHUNK, seconds)
    return Chunking(t, length, Q, K, chunks, seconds)


def _im2col(x: ImageTiles, w: Windows, plan: Chunking, chunk: Chunk, P: Floats, cols: Floats) -> None:
    """Fill cols (n, rows, Q, K or more) with the windows of the chunk's outputs, by way of the padded tile P."""
    n0, n1, r0, r1 = chunk
    C = x.shape[3]
    (KH, KW), (sh, sw), (dh, dw) = w.window, w.stride, w.dilation
    x.load_tile(P, (n0, n1), r0 * sh - w.pads[0], -w.pads[1])
    b0, b1, b2, _ = P.strides
    n, r = n1 - n0, r1 - r0
    # Copy the rows of a window as single items, or its pixels if it is dilated along the width.
    if dw == 1:
        item = packed_dtype(plan.length * C, P.dtype)
        shape: tuple[int, ...] = (n, r, plan.Q, KH)
        source: tuple[int, ...] = (dh * b1,)
        target: tuple[int, ...] = (item.itemsize,)
    else:
        item = packed_dtype(C, P.dtype)
        shape = (n, r, plan.Q, KH, KW)
        source, target = (dh * b1, dw * b2), (KW * item.itemsize, item.itemsize)
    # np.ndarray makes a view in a tenth of the time of as_strided.
    windows = np.ndarray(shape, item, P, 0, (b0, sh * b1, plan.t * sw * b2, *source))
    np.copyto(np.ndarray(shape, item, cols, 0, (*cols.strides[:3], *target)), windows)


def _padded_shape(w: Windows, plan: Chunking, n: int, r: int, C: int) -> tuple[int, int, int, int]:
    (KH, KW), (sh, sw), (dh, dw) = w.window, w.stride, w.dilation
    return n, (r - 1) * sh + dh * (KH - 1) + 1, (plan.Q * plan.t - 1) * sw + dw * (KW - 1) + 1, C


def _kernel_matrix(kernel: Floats, bias: Floats | None, plan: Chunking, stride: int) -> Floats:
    """Return the kernel (KH, KW, C, O) and the bias as the right-hand matrix (K [+ 1], t * O) of the product."""
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
    """Convolve x (N, H, W, C), padded with zeros, with kernel (KH, KW, C, O)."""
    C, O = x.shape[3], kernel.shape[3]
    OW, dtype = w.size[1], x.dtype
    plan = plan_chunks(x.shape, w, O, dtype.itemsize, x.whole_images or target.whole_images)
    B = _kernel_matrix(kernel, bias, plan, w.stride[1])

    def chunk(number: int) -> None:
        n0, n1, r0, r1 = where = plan.chunks[number]
        n, r = n1 - n0, r1 - r0
        M = n * r * plan.Q
        # Write the product straight to the output tile where this is a matrix, possibly with a row stride.
        tile = target.output_tile(where)
        out = _as_matrix(tile, plan.t) if OW % plan.t == 0 else None
        P, cols, result = workspace(
            dtype,
            _padded_shape(w, plan, n, r, C),
            (n, r, plan.Q, B.shape[0]),
            (M if out is None else 0, plan.t * O),
        )
        _im2col(x, w, plan, where, P, cols)
        if bias is not None:
            cols[..., plan.K] = 1
        if out is None:
            out, tile = result, result.reshape(n, r, plan.Q * plan.t, O)[:, :, :OW]
        np.matmul(cols.reshape(M, -1), B, out=out)
        if plan.t > 1 and isnan(out[:, 0].dot(np.zeros(M, dtype))):
            convolve_directly(P, kernel, bias, w.stride, w.dilation, tile)
        target.store_tile(where, tile)

    parallel(chunk, len(plan.chunks), plan.seconds, 4 + x.calls + target.calls)


def _as_matrix(part: Floats, t: int) -> Floats | None:
    """Return outputs as a matrix of t a row if they are contiguous, or, with t = 1, evenly spaced; else None."""
    if part.flags.c_contiguous:
        return part.reshape(-1, t * part.shape[3])
    (n, r, OW, O), (b0, b1, b2, b3) = part.shape, part.strides
    if t == 1 and b3 == part.itemsize and (r == 1 or b1 == OW * b2) and (n == 1 or b0 == r * OW * b2):
        return as_strided(part, (n * r * OW, O), (b2, b3))
    return None


def kernel_gradient(
    x: ImageTiles, dy: ImageTiles, w: Windows, kernel_shape: tuple[int, ...], single: bool = False
) -> tuple[Floats, Floats]:
    """Return the gradients of kernel (KH, KW, C, O) and bias (O,) from x (N, H, W, C) and dy (N, OH, OW, O).

    If `single`, every row of the matrix is one window: infinities and NaNs reach the elements of the kernel that meet them.
    """
    KH, KW, C, O = kernel_shape
    dtype = x.dtype
    plan = plan_chunks(x.shape, w, O, dtype.itemsize, dy.whole_images, single)
    t = plan.t
    # Split-K: each part sums a fixed share of the chunks, so the result is reproducible bit for bit.
    parts = min(chunk_count(), len(plan.chunks))
    totals = np.empty((parts, plan.K, t * O), dtype)
    dbiases = np.zeros((parts, t * O), np.float64)

    def share(p: int) -> None:
        first, last = p * len(plan.chunks) // parts, (p + 1) * len(plan.chunks) // parts
        for number in range(first, last):
            n0, n1, r0, r1 = where = plan.chunks[number]
            n, r = n1 - n0, r1 - r0
            M = n * r * plan.Q
            P, cols, dz, step = workspace(
                dtype,
                _padded_shape(w, plan, n, r, C),
                (n, r, plan.Q, plan.K),
                (n, r, plan.Q * t, O),
                (plan.K, t * O),
            )
            _im2col(x, w, plan, where, P, cols)
            dy.load_tile(dz, (n0, n1), r0, 0)
            columns, gradient = cols.reshape(M, plan.K), dz.reshape(M, t * O)
            dbiases[p] += sum_rows(gradient)
            product = totals[p] if number == first else step
            if plan.K > 1 and t * O > 1:
                np.matmul(columns.T, gradient, out=product)
            else:
                product[...] = row_product(np, columns, gradient)
            if number > first:
                np.add(totals[p], step, out=totals[p])

    each = (4 + x.calls + dy.calls) * -(-len(plan.chunks) // parts)
    parallel(share, parts, plan.seconds, each)
    total = totals[0]
    for other in totals[1:]:
        total += other
    dbias = np.add.reduce(dbiases.reshape(-1, O), axis=0).astype(dtype)
    if t == 1:
        return total.reshape(KH, KW, C, O), dbias
    body = total.reshape(KH, plan.length, C, t, O)
    dkernel = np.zeros((KH, KW, C, O), dtype)
    for j in range(t):
        start = j * w.stride[1]
        dkernel += body[:, start : start + KW, :, j]
    small = dkernel.size <= SERIAL_DOT
    if isnan(dkernel.reshape(-1).dot(np.zeros(dkernel.size, dtype))) if small else not np.isfinite(dkernel).all():
        return kernel_gradient(x, dy, w, kernel_shape, single=True)
    return dkernel, dbias


def strided_data_gradient(dy: ImageTiles, kernel: Floats, w: Windows, dx: Floats) -> None:
    """Compute dx for strides above 1: add every dy (N, OH, OW, O) times the kernel to its window in dx.

    With stride 1 a convolution with the flipped kernel is faster, as long as the kernel is finite: it also adds the kernel
    times the zeros around dy.
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
    """Return the first and last window position whose element at `offset` lies inside the image, and the offset."""
    first = -(offset // stride) if offset < 0 else 0
    last = min(out, (size - 1 - offset) // stride + 1)
    return first, last, offset


def pointwise(x: Floats, matrix: Floats, bias: Floats | None, y: Floats, activation: str | None) -> None:
    """Compute y (M, O) = activation(x (M, C) @ matrix (C, O) + bias): a 1x1 convolution, in chunks of rows."""
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


# -- what it allocates, on fake arrays --


def convolve_footprint(
    xp: Any, shape: tuple[int, ...], O: int, bias: bool, w: Windows, source: TileFootprint, target: TileFootprint, flipped: bool
) -> None:
    """Count what `convolve` of images of `shape` with O output channels allocates; `flipped`: its kernel is no matrix yet."""
    dtype = source.dtype
    plan = plan_chunks(shape, w, O, dtype.itemsize, source.whole_images or target.whole_images)
    n0, n1, r0, r1 = plan.chunks[0]
    n, r, rows, count = n1 - n0, r1 - r0, plan.K + bias, len(plan.chunks)
    matrix = xp.empty((0 if plan.t == 1 and not bias and not flipped else rows * plan.t * O,), dtype=dtype)
    product = 0 if w.size[1] % plan.t == 0 else n * r * plan.Q
    padded = _padded_shape(w, plan, n, r, shape[3])
    xp.workspace(dtype, count, padded, (n, r, plan.Q, rows), (product, plan.t * O))
    source.load(n, count)
    target.store(n, count)
    del matrix


def kernel_gradient_footprint(xp: Any, shape: tuple[int, ...], O: int, w: Windows, source: TileFootprint) -> Any:
    """Count the workspace of `kernel_gradient` of images of `shape`; return its partial sums."""
    dtype = source.dtype
    plan = plan_chunks(shape, w, O, dtype.itemsize, source.whole_images)
    n0, n1, r0, r1 = plan.chunks[0]
    n, r, parts = n1 - n0, r1 - r0, min(chunk_count(), len(plan.chunks))
    sums = xp.empty((parts, plan.K, plan.t * O), dtype=dtype)
    padded = _padded_shape(w, plan, n, r, shape[3])
    xp.workspace(dtype, parts, padded, (n, r, plan.Q, plan.K), (n, r, plan.Q * plan.t, O), (plan.K, plan.t * O))
    source.load(n, parts)
    return sums


def strided_data_gradient_footprint(xp: Any, shape: tuple[int, ...], kernel: tuple[int, ...], w: Windows, source: Any) -> None:
    """Count what `strided_data_gradient` of images of `shape` allocates."""
    N, (OH, OW), (C, O), dtype = shape[0], w.size, kernel[2:], source.dtype
    xp.temporary(dtype, kernel)
    lines = max(1, min(OH, WORKSPACE_LIMIT // 8 // (dtype.itemsize * OW * (O + C))))
    xp.workspace(dtype, N, (lines, OW, O), (lines, OW, C))
    source.load(1, N)
