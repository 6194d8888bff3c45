"""Winograd convolutions, F(m x m, r x r), as matrix products.

An output tile of m x m is computed from an input tile of a x a, a = m + r - 1, with a*a multiplications for each pair of
channels instead of m*m*r*r: 36 instead of 144 for F(4x4, 3x3). With the matrices A, B, G of Cook and Toom:

    U = G k G^T    V = B^T d B    M = sum over channels of U * V    y = A^T M A

The transforms are applied along one axis at a time, as many small products of a constant matrix with rows of the image,
read and written through strides: tiles are never gathered or scattered. The a*a sums over channels are ordinary matrix
products (tiles, C) x (C, O).

The data gradient is such a convolution with the kernel flipped along both axes and its channels exchanged. The weight
gradient is the adjoint: dU = V^T (A dy A^T) at each of the a*a positions, dk = G^T dU G.

Rounding: float32 results of F(4x4, 3x3) and F(2x2, 5x5) differ from the exact ones by up to about 1e-5 of the largest
output, 1.6e-5 with 256 channels (by im2col: below 1e-6); those of F(2x2, 3x3) and F(3x3, 3x3) by about half of that.
``XPNET_WINOGRAD=0`` or ``use_winograd(False)`` turns Winograd off.

An infinity or NaN in the input spoils all outputs of its tile, and the gradient of the kernel. Where the first output of a tile
is not finite, the outputs of its chunk are computed again by the sums over their windows, and gradients that are not finite by
im2col; kernels that are not finite are left to im2col.

Source: S. Winograd, "Arithmetic complexity of computations" (1980); A. Lavin and S. Gray, "Fast algorithms for
convolutional neural networks" (2015), sections 4 and 5.
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from xpnet.accel.numpy.chunks import MAC_SECONDS, PASS_SECONDS, Chunk, image_row_chunks
from xpnet.accel.numpy.epilogue import ImageTiles, OutputTiles, TileFootprint, sum_rows
from xpnet.accel.numpy.finite import convolve_directly
from xpnet.accel.numpy.workspace import WORKSPACE_LIMIT, Floats, workspace
from xpnet.runtime.environment import setting
from xpnet.runtime.threads import chunk_count, parallel

enabled: bool = setting("XPNET_WINOGRAD")

POINTS = (0, 1, -1, 2, -2)
"""Interpolation points, besides infinity: small numbers, for small rounding errors."""


def use_winograd(on: bool) -> bool:
    """Allow or forbid Winograd convolutions, and return whether they were allowed before."""
    global enabled
    before, enabled = enabled, bool(on)
    return before


class Transforms(NamedTuple):
    """The matrices of F(m x m, r x r), in one dtype."""

    m: int
    r: int
    a: int
    AT: Floats  # (m, a)
    A1: Floats  # (m, a + 1): AT and a column of ones, for the bias
    A: Floats  # (a, m)
    BT: Floats  # (a, a)
    GG: Floats  # (a * a, r * r): the Kronecker product of G with itself


@lru_cache(maxsize=32)
def transforms(m: int, r: int, dtype: np.dtype[Any]) -> Transforms:
    """Return the Cook-Toom matrices for tiles of `m` outputs and `r` taps along each axis."""
    a = m + r - 1
    points = np.array(POINTS[: a - 1], np.float64)
    AT = np.zeros((m, a))
    AT[:, :-1] = points ** np.arange(m)[:, None]
    AT[-1, -1] = 1
    G = np.zeros((a, r))
    BT = np.zeros((a, a))
    for j, point in enumerate(points):
        others = np.delete(points, j)
        G[j] = point ** np.arange(r) / np.prod(point - others)
        BT[j, : a - 1] = np.poly(others)[::-1]
    G[-1, -1] = 1
    BT[-1] = np.poly(points)[::-1]
    A1 = np.concatenate([AT, np.ones((m, 1))], axis=1)
    return Transforms(m, r, a, *(np.ascontiguousarray(x, dtype) for x in (AT, A1, AT.T, BT, np.kron(G, G))))


@lru_cache(maxsize=4096)
def best_tile(OH: int, OW: int, C: int, O: int, r: int) -> int:
    """Return the m for which F(m x m, r x r) is expected to beat im2col on an (OH, OW) output, or 0."""
    if r not in (3, 5) or OH < 1 or OW < 1 or min(C, O) < 16:
        return 0
    # In multiply-adds an output pixel. The constants are the cost of im2col's copies and of the transforms, in channels of
    # products, fitted to measured times.
    best, chosen = float(r * r * (C * O + 12 * C)), 0
    for m in range(2, 8 - r):
        a = m + r - 1
        tiles = -(-OH // m) * -(-OW // m) / (OH * OW)
        cost = tiles * a * a * (C * O + 14 * C + 12 * O)
        if cost < 0.95 * best:
            best, chosen = cost, m
    return chosen


_TRANSFORM_COLUMNS = 1 << 14
"""Columns of a kernel transformed at a time."""

_SMALL_SUMS = 3 << 20
"""Bytes of dU up to which every thread has its own sum."""


def _seconds(t: Transforms, tiles: int, C: int, O: int, pooled: bool) -> float:
    """Estimate the seconds one thread takes for so many tiles."""
    epilogue = (8 if pooled else 2) * PASS_SECONDS * t.m * t.m * O
    return tiles * (t.a * t.a * (MAC_SECONDS * C * O + 3.5 * PASS_SECONDS * (C + O)) + epilogue)


def _transform(matrix: Floats, flat: Floats) -> Floats:
    """Return matrix (a * a, r * r), or its transpose, times the elements `flat` of a kernel, in blocks of columns."""
    size = flat.shape[1]
    out = np.empty((len(matrix), size), flat.dtype)

    def part(p: int) -> None:
        columns = slice(p * _TRANSFORM_COLUMNS, (p + 1) * _TRANSFORM_COLUMNS)
        np.matmul(matrix, flat[:, columns], out=out[:, columns])

    rows, taps = max(matrix.shape), min(matrix.shape)
    parallel(part, -(-size // _TRANSFORM_COLUMNS), rows * size * (MAC_SECONDS * taps + 2 * PASS_SECONDS))
    return out


def transform_kernel(kernel: Floats, t: Transforms) -> Floats:
    """Return U (a, a, C, O) of a kernel (r, r, C, O)."""
    r, _, C, O = kernel.shape
    return _transform(t.GG, np.ascontiguousarray(kernel).reshape(r * r, C * O)).reshape(t.a, t.a, C, O)


class _Tiling(NamedTuple):
    """The tiles of an image, and chunks of whole images, or of rows of tiles where one image has many."""

    th: int  # tiles along the height of an image
    tw: int  # tiles along its width
    chunks: list[Chunk]  # rows are those of tiles


def _tiling(N: int, OH: int, OW: int, m: int, tiles: int, whole: bool, each: float) -> _Tiling:
    """Split the work into nearly equal chunks of about `tiles` tiles; `each` is the estimated seconds a tile.

    There is at least one chunk a thread if there are enough images.
    """
    th, tw = -(-OH // m), -(-OW // m)
    size = max(tiles, th * tw) if whole else tiles
    return _Tiling(th, tw, image_row_chunks(N, th, tw, size, N * th * tw * each))


def _convolution_tiling(
    N: int, OH: int, OW: int, C: int, O: int, terms: int, t: Transforms, itemsize: int, pooled: bool
) -> _Tiling:
    m, a = t.m, t.a
    each = itemsize * (a * a * (C + O) + terms * m * O + (a + m + 2) * (m + 1) * C)
    # Fewer tiles keep V and M closer to the core; more make the calls long enough to outweigh Python's overhead.
    wanted = max(64, (1 << 13) // max(C, O))
    return _tiling(N, OH, OW, m, max(1, min(wanted, WORKSPACE_LIMIT // each)), pooled, _seconds(t, 1, C, O, pooled))


def convolve(
    x: ImageTiles,
    kernel: Floats,
    U: Floats,
    t: Transforms,
    bias: Floats | None,
    pads: tuple[int, int],
    target: OutputTiles,
) -> None:
    """Convolve x (N, H, W, C), padded with zeros, with a transformed kernel, stride 1.

    Args:
        x: the input.
        kernel: (r, r, C, O), all finite.
        U: (a, a, C, O) from `transform_kernel`, with the same transforms.
        t: transforms.
        bias: (O,) or None.
        pads: rows and columns of the first window above and left of the image.
        target: (N, OH, OW, O), contiguous.
    """
    C = x.shape[3]
    N, OH, OW, O = target.shape
    m, a, dtype = t.m, t.a, x.dtype
    terms = a if bias is None else a + 1
    pooled = x.whole_images or target.whole_images
    tiling = _convolution_tiling(N, OH, OW, C, O, terms, t, dtype.itemsize, pooled)
    tw = tiling.tw
    wide = m * tw + t.r - 1
    A1 = t.AT if bias is None else t.A1
    bias_row = None if bias is None else np.tile(bias, m * tw)
    U = U.reshape(a * a, C, O)

    def chunk(number: int) -> None:
        n0, n1, s0, s1 = tiling.chunks[number]
        n, s = n1 - n0, s1 - s0
        T = n * s * tw
        P, D, V, M, Z = workspace(
            dtype,
            (n, m * s + t.r - 1, wide, C),
            (n, s, a, wide * C),
            (a * a, T, C),
            (a * a, T, O),
            (n, s, terms, m * tw * O),
        )
        x.load_tile(P, (n0, n1), m * s0 - pads[0], -pads[1])
        where = n0, n1, m * s0, min(m * s1, OH)
        with np.errstate(over="ignore"):
            # B^T along the height, then along the width
            b0, b1, _, b3 = P.strides
            np.matmul(t.BT, np.ndarray((n, s, a, wide * C), P.dtype, P, 0, (b0, m * b1, b1, b3)), out=D)
            b0, b1, b2, b3 = D.strides
            tiles = np.ndarray((a, n, s, tw, a, C), D.dtype, D, 0, (b2, b0, b1, m * C * b3, C * b3, b3))
            np.matmul(t.BT, tiles, out=V.reshape(a, a, n, s, tw, C).transpose(0, 2, 3, 4, 1, 5))
            np.matmul(V, U, out=M)
            # A^T along the width, then along the height, with the bias as one more term
            tiles = Z.reshape(n, s, terms, tw, m, O)[:, :, :a].transpose(2, 0, 1, 3, 4, 5)
            np.matmul(t.AT, M.reshape(a, a, n, s, tw, O).transpose(0, 2, 3, 4, 1, 5), out=tiles)
            if bias_row is not None:
                Z[:, :, a] = bias_row
            out = target.output_tile(where)
            whole = out.shape[1] // m
            Z = Z[..., : OW * O]
            if whole:
                np.matmul(A1, Z[:, :whole], out=out[:, : m * whole].reshape(n, whole, m, OW * O))
            if whole < s:
                rest = out.shape[1] - m * whole
                np.matmul(A1[:rest], Z[:, whole], out=out[:, m * whole :].reshape(n, rest, OW * O))
            # One output of a tile and one channel are enough: whatever is not finite reaches them all.
            finite = isfinite(np.add.reduce(out[:, ::m, ::m, 0], axis=None))
        if not finite:
            convolve_directly(P, kernel, bias, (1, 1), (1, 1), out)
        target.store_tile(where, out)

    parallel(chunk, len(tiling.chunks), _seconds(t, N * tiling.th * tw, C, O, pooled), 8 + x.calls + target.calls)


def _gradient_tiling(
    N: int, OH: int, OW: int, C: int, O: int, t: Transforms, itemsize: int, pooled: bool
) -> tuple[int, int, _Tiling]:
    """Return the rows of a group of positions, the number of shares, and the tiling of `kernel_gradient`.

    Where dU is small, each thread sums its share of the tiles, and the shares are added at the end (split-K). Where it is
    large, the rows of the a x a positions are distributed instead: each thread computes the transforms of its rows for all
    tiles, and no two threads add to the same sum.
    """
    m, a = t.m, t.a
    row = a * C * O * itemsize
    threads = chunk_count()
    shares = threads if a * row <= _SMALL_SUMS else 1
    group = a if shares > 1 else -(-a // min(threads, a))
    while group > 1 and group * row > WORKSPACE_LIMIT // 3:
        group -= 1
    each = itemsize * (group * a * (C + O) + group * (m + 1) * (C + O) + (m + 2) * (m + 2) * (C + O))
    available = max(WORKSPACE_LIMIT - group * row, WORKSPACE_LIMIT // 4)
    tiles = max(1, min(max(128, (1 << 13) // min(C, O)), available // each))
    tiling = _tiling(N, OH, OW, m, tiles, pooled, _seconds(t, 1, C, O, pooled))
    return group, min(shares, len(tiling.chunks)), tiling


def kernel_gradient(x: ImageTiles, dy: ImageTiles, t: Transforms, pads: tuple[int, int]) -> tuple[Floats, Floats]:
    """Return the gradients of kernel (r, r, C, O) and bias (O,) of a convolution with stride 1.

    Args:
        x: (N, H, W, C), the convolution's input.
        dy: (N, OH, OW, O), the gradient of its output.
        t: transforms.
        pads: rows and columns of the first window above and left of the image.
    """
    N, _, _, C = x.shape
    _, OH, OW, O = dy.shape
    m, r, a, dtype = t.m, t.r, t.a, x.dtype
    group, shares, tiling = _gradient_tiling(N, OH, OW, C, O, t, dtype.itemsize, dy.whole_images)
    groups = [(i, min(i + group, a)) for i in range(0, a, group)]
    tw = tiling.tw
    wide = m * tw + r - 1
    bounds = [i * len(tiling.chunks) // shares for i in range(shares + 1)]
    dU = np.empty((shares, a, a, C, O), dtype)
    dbias = np.zeros((shares, O), np.float64)

    def rows_of(part: int) -> None:
        share, which = divmod(part, len(groups))
        first, last = groups[which]
        g = last - first
        total = dU[share, first:last].reshape(g * a, C, O)
        BT, A = t.BT[first:last], t.A[first:last]
        for index in range(bounds[share], bounds[share + 1]):
            n0, n1, s0, s1 = tiling.chunks[index]
            n, s = n1 - n0, s1 - s0
            T = n * s * tw
            P, Q, D, E, V, F, step = workspace(
                dtype,
                (n, m * s + r - 1, wide, C),
                (n, m * s, m * tw, O),
                (n, s, g, wide * C),
                (n, s, g, m * tw * O),
                (g * a, T, C),
                (g * a, T, O),
                (g * a, C, O),
            )
            x.load_tile(P, (n0, n1), m * s0 - pads[0], -pads[1])
            dy.load_tile(Q, (n0, n1), m * s0, 0)
            b0, b1, _, b3 = P.strides
            np.matmul(BT, np.ndarray((n, s, a, wide * C), P.dtype, P, 0, (b0, m * b1, b1, b3)), out=D)
            b0, b1, b2, b3 = D.strides
            tiles = np.ndarray((g, n, s, tw, a, C), D.dtype, D, 0, (b2, b0, b1, m * C * b3, C * b3, b3))
            np.matmul(t.BT, tiles, out=V.reshape(g, a, n, s, tw, C).transpose(0, 2, 3, 4, 1, 5))
            np.matmul(A, Q.reshape(n, s, m, m * tw * O), out=E)
            tiles = E.reshape(n, s, g, tw, m, O).transpose(2, 0, 1, 3, 4, 5)
            np.matmul(t.A, tiles, out=F.reshape(g, a, n, s, tw, O).transpose(0, 2, 3, 4, 1, 5))
            if first <= 1 < last:
                # At the point 1 every power is 1, so A dy A^T is the sum of a tile, as needed for the bias.
                dbias[share] += sum_rows(F[(1 - first) * a + 1])
            if index > bounds[share]:
                np.matmul(V.transpose(0, 2, 1), F, out=step)
                np.add(total, step, out=total)
            else:
                np.matmul(V.transpose(0, 2, 1), F, out=total)

    each = (10 + x.calls + dy.calls) * -(-len(tiling.chunks) // shares)
    parallel(rows_of, shares * len(groups), _seconds(t, N * tiling.th * tw, C, O, dy.whole_images), each)
    for other in dU[1:]:
        dU[0] += other
    return _transform(t.GG.T, dU[0].reshape(a * a, C * O)).reshape(r, r, C, O), dbias.sum(axis=0).astype(dtype)


# -- what it allocates, on fake arrays --


def convolve_footprint(
    xp: Any,
    shape: tuple[int, ...],
    C: int,
    bias: bool,
    t: Transforms,
    source: TileFootprint,
    target: TileFootprint,
    apart: bool,
) -> None:  # fmt: skip
    """Count the workspace of `convolve` with outputs of `shape`, which lie `apart` in one phase of a dilated convolution."""
    (N, OH, OW, O), m, a, dtype = shape, t.m, t.a, source.dtype
    terms = a + bias
    pooled = source.whole_images or target.whole_images
    tiling = _convolution_tiling(N, OH, OW, C, O, terms, t, dtype.itemsize, pooled)
    n0, n1, s0, s1 = tiling.chunks[0]
    n, s, tw, count = n1 - n0, s1 - s0, tiling.tw, len(tiling.chunks)
    T, wide = n * s * tw, m * tw + t.r - 1
    xp.workspace(
        dtype, count, (n, m * s + t.r - 1, wide, C), (n, s, a, wide * C), (a * a, T, C), (a * a, T, O),
        (n, s, terms, m * tw * O),
    )  # fmt: skip
    if apart:
        xp.workspace(dtype, count, (n, min(m * s1, OH) - m * s0, OW, O), slot="epilogue")
    source.load(n, count)
    target.store(n, count)


def kernel_gradient_footprint(xp: Any, shape: tuple[int, ...], C: int, t: Transforms, source: TileFootprint) -> Any:
    """Count the workspace of `kernel_gradient` with outputs of `shape`; return its partial sums."""
    (N, OH, OW, O), m, a, dtype = shape, t.m, t.a, source.dtype
    g, shares, tiling = _gradient_tiling(N, OH, OW, C, O, t, dtype.itemsize, source.whole_images)
    sums = xp.empty((shares, a, a, C, O), dtype=dtype)
    n0, n1, s0, s1 = tiling.chunks[0]
    n, s, tw = n1 - n0, s1 - s0, tiling.tw
    T, wide = n * s * tw, m * tw + t.r - 1
    xp.workspace(
        dtype, shares * -(-a // g), (n, m * s + t.r - 1, wide, C), (n, m * s, m * tw, O), (n, s, g, wide * C),
        (n, s, g, m * tw * O), (g * a, T, C), (g * a, T, O), (g * a, C, O),
    )  # fmt: skip
    source.load(n, shares)
    return sums
