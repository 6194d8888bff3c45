"""Convolutions for NumPy, on fake arrays."""

from __future__ import annotations

from math import prod
from typing import Any

from xpnet.accel.numpy import im2col, winograd
from xpnet.accel.numpy.convolution import MIN_WINOGRAD_OUTPUTS, is_pointwise, windows_of, winograd_tile
from xpnet.accel.numpy.epilogue import ACTIVATIONS
from xpnet.accel.numpy.fused import MATERIALIZE_LIMIT, _fits, _geometries
from xpnet.accel.numpy.pooled_tiles import images_per_chunk
from xpnet.accel.numpy.pooling_tiles import PoolTile
from xpnet.accel.numpy.workspace import FLOATS, WORKSPACE_LIMIT
from xpnet.inspect.footprint.fake_array import FakeArray, current_log
from xpnet.inspect.footprint.numpy_pooling import combined, handed_back, largest, mask_of
from xpnet.inspect.footprint.numpy_workspace import Shape, moment, workspace
from xpnet.ops.convolution import conv2d, conv_geometry
from xpnet.ops.fused import conv2d_max_pool2d
from xpnet.ops.geometry import Geometry
from xpnet.runtime.threads import chunk_count


class _Ends:
    """What a convolution reads from or writes to: plain images, or images behind a max pooling (`pool`, its windows)."""

    def __init__(self, dtype: Any, channels: int, pool: Geometry | None = None, keeps: bool = True) -> None:
        self.dtype, self.channels, self.pool, self.keeps = dtype, channels, pool, keeps

    def read(self, n: int, count: int) -> None:
        """The working memory of unpooling a chunk of n whole images."""
        if self.pool is None:
            return
        tile = PoolTile(self.pool, (0, n, 0, self.pool.h.out), self.channels)
        workspace(self.dtype, count, tile.out, slot="epilogue")
        workspace(self.dtype, count, tile.shape, slot="pool")
        handed_back(self.dtype, tile, count)

    def write(self, n: int, count: int) -> None:
        """The working memory of a chunk's output before the pooling, and of the pooling."""
        if self.pool is None:
            return
        g = self.pool
        workspace(self.dtype, count, (n, g.h.size, g.w.size, self.channels), slot="epilogue")
        tile = PoolTile(g, (0, n, 0, g.h.out), self.channels)
        (largest if self.keeps else combined)(self.dtype, tile, count)


def _convolve(shape: Shape, kernel: Shape, bias: bool, w: Any, source: _Ends, target: _Ends, turned: bool) -> None:
    """The working memory of convolution.convolve of images of `shape`."""
    dtype, log = source.dtype, current_log()
    C, O = kernel[2:]
    N = shape[0]
    m = winograd_tile(w, w.size, C, O) if N * w.size[0] * w.size[1] >= MIN_WINOGRAD_OUTPUTS else 0
    whole = source.pool is not None or target.pool is not None
    if m and (w.dilation == (1, 1) or not whole):
        t = winograd.transforms(m, w.window[0], dtype)
        cost = dtype.itemsize * (t.a * t.a * C * O + (prod(kernel) if turned else 0))
        log.moment(cost)  # the transformed kernel
        log.take(cost)
        _winograd(N, C, O, bias, w, source, target, t, whole)
        log.give(cost)
        return
    plan = im2col.plan_chunks(shape, w, O, dtype.itemsize, whole)
    rows = plan.K + bias
    cost = 0 if plan.t == 1 and not bias and not turned else dtype.itemsize * rows * plan.t * O
    log.take(cost)
    n0, n1, r0, r1 = plan.chunks[0]
    n, r = n1 - n0, r1 - r0
    product = 0 if w.size[1] % plan.t == 0 else n * r * plan.Q
    padded = im2col._padded_shape(w, plan, n, r, C)
    workspace(dtype, len(plan.chunks), padded, (n, r, plan.Q, rows), (product, plan.t * O))
    source.read(n, len(plan.chunks))
    target.write(n, len(plan.chunks))
    log.give(cost)


def _winograd(N: int, C: int, O: int, bias: bool, w: Any, source: _Ends, target: _Ends, t: Any, whole: bool) -> None:
    m, a, dtype = t.m, t.a, source.dtype
    terms = a + bias
    OH, OW = _phase(w)
    each = dtype.itemsize * (a * a * (C + O) + terms * m * O + (a + m + 2) * (m + 1) * C)
    wanted = max(64, (1 << 13) // max(C, O))
    tiling = winograd._tiling(
        N, OH, OW, m, max(1, min(wanted, WORKSPACE_LIMIT // each)), whole, winograd._seconds(t, 1, C, O, whole)
    )
    n0, n1, s0, s1 = tiling.chunks[0]
    n, s = n1 - n0, s1 - s0
    T, wide = n * s * tiling.tw, m * tiling.tw + t.r - 1
    workspace(
        dtype, len(tiling.chunks), (n, m * s + t.r - 1, wide, C), (n, s, a, wide * C), (a * a, T, C), (a * a, T, O),
        (n, s, terms, m * tiling.tw * O),
    )  # fmt: skip
    if w.dilation != (1, 1):  # the outputs lie product, and are written elsewhere first
        workspace(dtype, len(tiling.chunks), (n, min(m * s1, OH) - m * s0, OW, O), slot="epilogue")
    source.read(n, len(tiling.chunks))
    target.write(n, len(tiling.chunks))


def _phase(w: Any) -> tuple[int, int]:
    """The output's size of one of the plain convolutions that a dilated one is made of."""
    return -(-w.size[0] // w.dilation[0]), -(-w.size[1] // w.dilation[1])


def _kernel_gradient(xp: Any, shape: Shape, kernel: Shape, w: Any, source: _Ends) -> tuple[FakeArray, FakeArray]:
    """convolution.kernel_gradient of images of `shape`."""
    dtype, log = source.dtype, current_log()
    C, O = kernel[2:]
    m = winograd_tile(w, w.size, C, O)
    whole = source.pool is not None
    if m and (w.dilation == (1, 1) or not whole):
        cost = _winograd_kernel_gradient(shape[0], C, O, w, source, winograd.transforms(m, w.window[0], dtype), whole)
    else:
        plan = im2col.plan_chunks(shape, w, O, dtype.itemsize, whole)
        parts = min(chunk_count(), len(plan.chunks))
        n0, n1, r0, r1 = plan.chunks[0]
        n, r = n1 - n0, r1 - r0
        cost = dtype.itemsize * parts * (plan.K + 1) * plan.t * O
        log.take(cost)
        padded = im2col._padded_shape(w, plan, n, r, C)
        workspace(dtype, parts, padded, (n, r, plan.Q, plan.K + 1), (n, r, plan.Q * plan.t, O), (plan.K + 1, plan.t * O))
        source.read(n, parts)
    made = xp.empty(kernel, dtype=dtype), xp.empty((O,), dtype=dtype)
    log.give(cost)
    return made


def _winograd_kernel_gradient(N: int, C: int, O: int, w: Any, source: _Ends, t: Any, whole: bool) -> int:
    """Its working memory; returns the bytes of the sums, which are counted and still in use."""
    m, r, a, dtype, log = t.m, t.r, t.a, source.dtype, current_log()
    row = a * C * O * dtype.itemsize
    threads = chunk_count()
    shares = threads if a * row <= winograd._SMALL_SUMS else 1
    group = a if shares > 1 else -(-a // min(threads, a))
    while group > 1 and group * row > WORKSPACE_LIMIT // 3:
        group -= 1
    each = dtype.itemsize * (group * a * (C + O) + group * (m + 1) * (C + O) + (m + 2) * (m + 2) * (C + O))
    available = max(WORKSPACE_LIMIT - group * row, WORKSPACE_LIMIT // 4)
    tiles = max(1, min(max(128, (1 << 13) // min(C, O)), available // each))
    tiling = winograd._tiling(N, *_phase(w), m, tiles, whole, winograd._seconds(t, 1, C, O, whole))
    shares = min(shares, len(tiling.chunks))
    cost = shares * a * row
    log.take(cost)
    n0, n1, s0, s1 = tiling.chunks[0]
    n, s = n1 - n0, s1 - s0
    T, wide, g = n * s * tiling.tw, m * tiling.tw + r - 1, group
    workspace(
        dtype, shares * -(-a // group), (n, m * s + r - 1, wide, C), (n, m * s, m * tiling.tw, O), (n, s, g, wide * C),
        (n, s, g, m * tiling.tw * O), (g * a, T, C), (g * a, T, O), (g * a, C, O),
    )  # fmt: skip
    source.read(n, shares)
    return int(cost)


def _data_gradient(xp: Any, x: FakeArray, kernel: Shape, w: Any, source: _Ends) -> FakeArray:
    """convolution.data_gradient."""
    KH, KW, C, O = kernel
    dx: FakeArray = xp.empty_like(x)
    N, H, W, _ = x.shape
    shape = (N, *w.size, O)
    if w.stride == (1, 1):
        top, left = (d * (k - 1) - p for d, k, p in zip(w.dilation, w.window, w.pads))
        back = im2col.Windows(w.window, (1, 1), w.dilation, (top, left), (H, W))
        _convolve(shape, (KH, KW, O, C), False, back, source, _Ends(x.dtype, C), turned=True)
        return dx
    moment(x.dtype, kernel)
    OH, OW = w.size
    lines = max(1, min(OH, WORKSPACE_LIMIT // 8 // (x.itemsize * OW * (O + C))))
    workspace(x.dtype, N, (lines, OW, O), (lines, OW, C))
    source.read(1, N)
    return dx


@conv2d.accelerate("fake_numpy")
def _conv2d(
    xp: Any, x: FakeArray, kernel: FakeArray, bias: Any, *, stride: Any, padding: Any, dilation: Any, groups: int,
    activation: str | None, save: bool,
) -> Any:  # fmt: skip
    if x.dtype not in FLOATS or kernel.dtype != x.dtype or activation not in ACTIVATIONS:
        return NotImplemented
    g = conv_geometry(x, kernel, bias, stride, padding, dilation, groups)
    if not (x.size and kernel.size and g.h.out and g.w.out):
        return NotImplemented
    w = windows_of(g)
    O = kernel.shape[3]
    y = xp.empty((x.shape[0], *w.size, O), dtype=x.dtype)
    if groups == 1 and not is_pointwise(g, x):  # type: ignore[arg-type]
        ends = _Ends(x.dtype, O)
        _convolve(x.shape, kernel.shape, bias is not None, w, ends, ends, turned=False)
    return y, (x, kernel, y if activation else None) if save else None


@_conv2d.backward
def _(
    xp: Any, dy: FakeArray, saved: Any, *, stride: Any, padding: Any, dilation: Any, groups: int, activation: str | None,
    needs: tuple[bool, ...],
) -> Any:  # fmt: skip
    x, kernel, _ = saved
    w = windows_of(conv_geometry(x, kernel, None, stride, padding, dilation, groups))
    O = kernel.shape[3]
    dx = None
    if groups > 1:
        return (
            xp.empty_like(x) if needs[0] else None,
            xp.empty_like(kernel) if needs[1] else None,
            xp.empty((O,), dtype=x.dtype) if needs[2] else None,
        )
    source = _Ends(x.dtype, O)
    if needs[0]:
        dx = _data_gradient(xp, x, kernel.shape, w, source)
    if not (needs[1] or needs[2]):
        return dx, None, None
    dkernel, dbias = _kernel_gradient(xp, x.shape, kernel.shape, w, source)
    return dx, dkernel if needs[1] else None, dbias if needs[2] else None


@conv2d_max_pool2d.accelerate("fake_numpy")
def _pooled(xp: Any, x: FakeArray, kernel: FakeArray, bias: Any, *, window: Any, save: bool, **settings: Any) -> Any:
    activation = settings["activation"]
    if x.dtype not in FLOATS or kernel.dtype != x.dtype or activation not in ACTIVATIONS or settings["groups"] != 1:
        return NotImplemented
    g, p = _geometries(x, kernel, bias, window, settings)  # type: ignore[arg-type]
    O = kernel.shape[3]
    few = p.h.window * p.w.window <= 256
    if not (x.size and kernel.size and min(p.h.out, p.w.out) > 0 and few and _fits(x, O, g)):  # type: ignore[arg-type]
        return NotImplemented
    y = xp.empty((x.shape[0], p.h.out, p.w.out, O), dtype=x.dtype)
    mask = mask_of(xp, x.shape[0], p, O) if save else None
    source, target = _Ends(x.dtype, O), _Ends(x.dtype, O, p, save)
    _convolve(x.shape, kernel.shape, bias is not None, windows_of(g), source, target, turned=False)
    return y, (x, kernel, y, mask) if save else None


@_pooled.backward
def _(xp: Any, dy: FakeArray, saved: Any, *, window: Any, needs: tuple[bool, ...], **settings: Any) -> Any:
    x, kernel, _, _ = saved
    g, p = _geometries(x, kernel, None, window, settings)
    w = windows_of(g)
    dz = None
    source = _Ends(x.dtype, kernel.shape[3], p)
    whole = (x.shape[0], g.h.out, g.w.out, kernel.shape[3])
    if needs[0] and (needs[1] or needs[2]) and prod(whole) * x.itemsize <= MATERIALIZE_LIMIT:
        dz = xp.empty(whole, dtype=x.dtype)
        images = images_per_chunk(whole, x.dtype)
        source.read(images, -(-whole[0] // images))
        source = _Ends(x.dtype, kernel.shape[3])
    dx = _data_gradient(xp, x, kernel.shape, w, source) if needs[0] else None
    dkernel = dbias = None
    if needs[1] or needs[2]:
        dkernel, dbias = _kernel_gradient(xp, x.shape, kernel.shape, w, source)
    del dz
    return dx, dkernel if needs[1] else None, dbias if needs[2] else None
