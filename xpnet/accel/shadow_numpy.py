"""What the accelerated operations for NumPy allocate, said on shadows.

Every function here stands for the one of the same operation in ``xpnet.accel.numpy``: it makes the arrays that this one
makes and keeps what it keeps, in the same order, and counts the working memory of its chunks. The tests compare the account
of whole training steps with what Python's tracemalloc measures.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from xpnet.accel.numpy import columns, winograd
from xpnet.accel.numpy.bands import CHUNK, Band
from xpnet.accel.numpy.convolution import _FEW, _pointwise, windows_of, winograd_tile
from xpnet.accel.numpy.elementwise import _CHUNK as _SMALL_RELU
from xpnet.accel.numpy.fused import _fits, _geometries
from xpnet.accel.numpy.max_pooling import Won, _takes
from xpnet.accel.numpy.normalization import _SMALL as _SMALL_NORM
from xpnet.accel.numpy.normalization import _Rows
from xpnet.accel.numpy.scratch import _ALIGNMENT, ACTIVATIONS, FLOATS, LIMIT, evenly, images_and_lines
from xpnet.accel.numpy.softmax import _SMALL as _SMALL_SOFTMAX
from xpnet.accel.numpy.softmax import _chunks
from xpnet.ops.activations import relu
from xpnet.ops.convolution import conv2d, conv_geometry
from xpnet.ops.dropout import dropout
from xpnet.ops.fused import conv2d_max_pool2d
from xpnet.ops.geometry import Geometry, windows
from xpnet.ops.linear import dense
from xpnet.ops.normalization import batch_norm_with_statistics
from xpnet.ops.pooling import average_pool2d, max_pool2d, max_pool2d_with_switches, pool_geometry
from xpnet.ops.softmax import softmax, softmax_cross_entropy
from xpnet.optim import rules
from xpnet.shadow.array import Shadow, current_ledger
from xpnet.threads import get_num_threads

Shape = tuple[int, ...]


def _scratch(dtype: Any, count: int, *shapes: Shape, slot: str = "main") -> None:
    """The working memory of `count` chunks, of which as many run at a time as there are threads."""
    size = sum(-(-prod(s) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for s in shapes)
    current_ledger().keep(slot, size + _ALIGNMENT, max(1, min(get_num_threads(), count)), LIMIT + (2 << 20))


def _moment(dtype: Any, *shapes: Shape) -> None:
    current_ledger().moment(sum(prod(shape) for shape in shapes) * np.dtype(dtype).itemsize)


def _slope(y: Shadow, activation: str | None, shape: Shape) -> None:
    """The working memory of scratch.slope."""
    if activation is not None:
        _moment(np.bool if activation == "relu" else y.dtype, shape)


# -- products --


@dense.accelerate("shadow_numpy")
def _dense(xp: Any, x: Shadow, kernel: Shadow, bias: Any, *, activation: str | None, save: bool) -> Any:
    if x.dtype not in FLOATS or kernel.dtype != x.dtype or activation not in ACTIVATIONS or not x.size:
        return NotImplemented
    if x.shape[-1:] != kernel.shape[:1]:
        return NotImplemented
    y = xp.empty((*x.shape[:-1], kernel.shape[1]), dtype=x.dtype)
    return y, (x, kernel, y if activation else None) if save else None


@_dense.backward
def _(xp: Any, dy: Shadow, saved: Any, *, activation: str | None, needs: tuple[bool, ...], into: Any = (None,) * 3) -> Any:
    x, kernel, y = saved
    if activation is not None:
        dy = xp.empty_like(dy)
        _slope(y, activation, dy.shape)
    return (
        xp.empty_like(x) if needs[0] else None,
        (xp.empty_like(kernel) if into[1] is None else into[1]) if needs[1] else None,
        (xp.empty(kernel.shape[1:], dtype=x.dtype) if into[2] is None else into[2]) if needs[2] else None,
    )


# -- elementwise --


@relu.accelerate("shadow_numpy")
def _relu(xp: Any, x: Shadow) -> Any:
    if x.dtype not in FLOATS or not x.flags.c_contiguous:
        return NotImplemented
    y = xp.empty_like(x)
    return y, y


@_relu.backward
def _(xp: Any, dy: Shadow, y: Shadow) -> Any:
    dx = xp.empty_like(dy)
    _moment(np.bool, (min(dy.size, _SMALL_RELU),))
    return dx


@dropout.accelerate("shadow_numpy")
def _dropout(xp: Any, x: Shadow, *, rate: float, key: Any, step: int, shape: Any, inverted: bool) -> Any:
    if x.dtype not in FLOATS or shape is not None or not 0 <= rate <= 1:
        return NotImplemented
    mask = xp.empty(x.shape, dtype=np.bool)
    _moment(np.uint16, x.shape)  # the random numbers
    return xp.empty_like(x), mask


@_dropout.backward
def _(xp: Any, dy: Shadow, mask: Shadow, *, rate: float, key: Any, step: int, shape: Any, inverted: bool) -> Any:
    return xp.empty_like(dy)


# -- softmax --


@softmax.accelerate("shadow_numpy")
def _softmax(xp: Any, x: Shadow, *, axis: int) -> Any:
    if x.dtype not in FLOATS or x.ndim == 0 or axis not in (-1, x.ndim - 1) or not x.size:
        return NotImplemented
    y = xp.empty_like(x)
    return y, y


@_softmax.backward
def _(xp: Any, dy: Shadow, y: Shadow, *, axis: int) -> Any:
    return xp.empty_like(y)


@softmax_cross_entropy.accelerate("shadow_numpy")
def _cross_entropy(xp: Any, logits: Shadow, labels: Shadow, *, reduction: str, save: bool) -> Any:
    if logits.dtype not in FLOATS or not logits.size or labels.shape != logits.shape[:-1]:
        return NotImplemented
    K, count = logits.shape[-1], labels.size
    losses = xp.empty((count,), dtype=logits.dtype)
    saved: Any
    if logits.size <= _SMALL_SOFTMAX:
        saved = xp.empty_like(logits), xp.empty((count,), dtype=np.int64), None
    else:
        saved = logits, labels, xp.empty((2, count, 1), dtype=logits.dtype)
        parts = _chunks(count, K)
        _scratch(logits.dtype, len(parts), (parts[0].stop, K))
    loss = losses.reshape(labels.shape) if reduction == "none" else xp.empty((), dtype=logits.dtype)
    return loss, saved if save else None


@_cross_entropy.backward
def _(xp: Any, dloss: Shadow, saved: Any, *, reduction: str) -> Any:
    return xp.empty_like(saved[0]), None


# -- normalisation --


@batch_norm_with_statistics.accelerate("shadow_numpy")
def _batch_norm(xp: Any, x: Shadow, scale: Any, offset: Any, *, epsilon: float) -> Any:
    if x.dtype not in FLOATS or x.ndim < 2 or x.size < _SMALL_NORM:
        return NotImplemented
    C = x.shape[-1]
    mean, variance, inverse = (xp.empty((C,), dtype=x.dtype) for _ in range(3))
    y = xp.empty_like(x)
    return (y, mean, variance), (x, mean, inverse, scale)


@_batch_norm.backward
def _(xp: Any, dys: Any, saved: Any, *, epsilon: float, needs: tuple[bool, ...]) -> Any:
    x, mean, _, _ = saved
    dy = xp.ascontiguousarray(dys[0])
    dx = None
    if needs[0]:
        dx = xp.empty_like(x)
        rows = _Rows(x.shape, x.shape[-1], x.size // x.shape[-1])
        _scratch(x.dtype, rows.chunks, (min(rows.height, rows.shape[0]), rows.shape[1]))
    del dy
    return dx, xp.empty_like(mean) if needs[1] else None, xp.empty_like(mean) if needs[2] else None


# -- pooling --


def _won(xp: Any, N: int, g: Geometry, C: int) -> Won:
    """The outcomes of all comparisons."""
    across, down = Won.shapes(N, g, C)
    return Won(xp.empty(across, dtype=np.bool), xp.empty(down, dtype=np.bool))


def _largest(dtype: Any, band: Band, count: int) -> None:
    """The working memory of max_pooling._largest."""
    _scratch(dtype, count, band.shape, band.across, slot="pool")


def _combined(dtype: Any, band: Band, count: int) -> None:
    """The working memory of bands.combine."""
    g, (n, lines, _, C) = band.g, band.out
    columns = (g.w.out - 1) * g.w.stride + g.w.window
    padded = (n, band.rows, columns, C) if band.top < 0 or g.w.before or columns > g.w.size else (0,)
    _scratch(dtype, count, padded, (n, lines, columns, C), slot="pool")


def _handed_back(dtype: Any, band: Band, count: int) -> None:
    """The working memory of max_pooling._hand_back."""
    _scratch(dtype, count, band.across, band.across, band.across, band.out, slot="unpool")


def _bands(x: Shadow, g: Geometry) -> tuple[Band, int]:
    """The first, largest of the chunks of bands.for_bands, and how many there are."""
    N, _, W, C = x.shape
    chunks = images_and_lines(N, g.h.out, g.h.stride * W * C * x.itemsize, CHUNK)
    return Band(g, chunks[0], C), len(chunks)


def _spread_back(xp: Any, shape: Shape, g: Geometry, dtype: Any) -> tuple[Shadow, Band, int]:
    """bands.gradient: dx, and its first chunk and how many there are; the working memory of its phases."""
    N, _, W, C = shape
    dx: Shadow = xp.empty(shape, dtype=dtype)
    line = g.h.stride * W * C * dx.itemsize
    images = evenly(N, max(1, CHUNK // (g.h.out * line)))
    lines = g.h.out if images > 1 else max(1, min(g.h.out, LIMIT // 3 // line))
    band, count = Band(g, (0, min(images, N), 0, lines), C), -(-N // images)
    _scratch(dtype, count, band.shape, slot="pool")
    return dx, band, count


def _with_switches(xp: Any, x: Shadow, g: Geometry) -> tuple[Shadow, Shadow]:
    N, C = x.shape[0], x.shape[3]
    y, switches = (xp.empty((N, g.h.out, g.w.out, C), dtype=dtype) for dtype in (x.dtype, np.uint8))
    band, count = _bands(x, g)
    _scratch(np.dtype(bool), count, (g.w.window - 1, *band.across), (g.h.window - 1, *band.out), slot="won")
    _largest(x.dtype, band, count)
    _moment(np.uint8, band.across, band.across)  # the winners' numbers
    return y, switches


def _unpool(xp: Any, dy: Shadow, shape: Shape, g: Geometry) -> Shadow:
    dx, band, count = _spread_back(xp, shape, g, dy.dtype)
    _scratch(dy.dtype, count, band.out, slot="unpool")
    _moment(np.bool, band.out)
    return dx


@max_pool2d_with_switches.accelerate("shadow_numpy")
def _max_pool_with_switches(xp: Any, x: Shadow, *, window: Any, stride: Any, padding: Any) -> Any:
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not _takes(x, g):  # type: ignore[arg-type]
        return NotImplemented
    y, switches = _with_switches(xp, x, g)
    return (y, switches), (x.shape, switches)


@_max_pool_with_switches.backward
def _(xp: Any, dys: Any, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    return _unpool(xp, dys[0], saved[0], windows(saved[0], window, window if stride is None else stride, padding))


@max_pool2d.accelerate("shadow_numpy")
def _max_pool(xp: Any, x: Shadow, *, window: Any, stride: Any, padding: Any, save: bool) -> Any:
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    if not _takes(x, g):  # type: ignore[arg-type]
        return NotImplemented
    if save and not Won.small(x.shape, g, x.itemsize):
        y, switches = _with_switches(xp, x, g)
        return y, (x.shape, switches)
    y = xp.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), dtype=x.dtype)
    won = _won(xp, x.shape[0], g, x.shape[3]) if save else None
    (_largest if save else _combined)(x.dtype, *_bands(x, g))
    return y, (x.shape, won) if save else None


@_max_pool.backward
def _(xp: Any, dy: Shadow, saved: Any, *, window: Any, stride: Any, padding: Any) -> Any:
    shape, kept = saved
    g = windows(shape, window, window if stride is None else stride, padding)
    if not isinstance(kept, Won):
        return _unpool(xp, dy, shape, g)
    dx, band, count = _spread_back(xp, shape, g, dy.dtype)
    _handed_back(dy.dtype, band, count)
    return dx


@average_pool2d.accelerate("shadow_numpy")
def _average_pool(xp: Any, x: Shadow, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = pool_geometry("average_pool2d", x, window, stride, padding)
    if x.dtype not in FLOATS or not x.size or min(g.h.out, g.w.out) == 0:
        return NotImplemented
    y = xp.empty((x.shape[0], g.h.out, g.w.out, x.shape[3]), dtype=x.dtype)
    _combined(x.dtype, *_bands(x, g))
    return y, x.shape


@_average_pool.backward
def _(xp: Any, dy: Shadow, shape: Any, *, window: Any, stride: Any, padding: Any, count_include_pad: bool) -> Any:
    g = windows(shape, window, window if stride is None else stride, padding)
    dx, band, count = _spread_back(xp, shape, g, dy.dtype)
    _scratch(dy.dtype, count, band.out, slot="unpool")
    return dx


# -- convolutions --


class _Ends:
    """What a convolution reads from or writes to: plain images, or images behind a max pooling (`pool`, its windows)."""

    def __init__(self, dtype: Any, channels: int, pool: Geometry | None = None, keeps: bool = True) -> None:
        self.dtype, self.channels, self.pool, self.keeps = dtype, channels, pool, keeps

    def read(self, n: int, count: int) -> None:
        """The working memory of unpooling a chunk of n whole images."""
        if self.pool is None:
            return
        band = Band(self.pool, (0, n, 0, self.pool.h.out), self.channels)
        _scratch(self.dtype, count, band.out, slot="ends")
        _scratch(self.dtype, count, band.shape, slot="pool")
        _handed_back(self.dtype, band, count)

    def write(self, n: int, count: int) -> None:
        """The working memory of a chunk's output before the pooling, and of the pooling."""
        if self.pool is None:
            return
        g = self.pool
        _scratch(self.dtype, count, (n, g.h.size, g.w.size, self.channels), slot="ends")
        band = Band(g, (0, n, 0, g.h.out), self.channels)
        (_largest if self.keeps else _combined)(self.dtype, band, count)


def _convolve(shape: Shape, kernel: Shape, bias: bool, w: Any, source: _Ends, target: _Ends, turned: bool) -> None:
    """The working memory of convolution.convolve of images of `shape`."""
    dtype, ledger = source.dtype, current_ledger()
    C, O = kernel[2:]
    N = shape[0]
    m = winograd_tile(w, w.size, C, O) if N * w.size[0] * w.size[1] >= _FEW else 0
    whole = source.pool is not None or target.pool is not None
    if m and (w.dilation == (1, 1) or not whole):
        t = winograd.transforms(m, w.window[0], dtype)
        cost = dtype.itemsize * (t.a * t.a * C * O + (prod(kernel) if turned else 0))
        ledger.moment(cost)  # the transformed kernel
        ledger.take(cost)
        _winograd(N, C, O, bias, w, source, target, t, whole)
        ledger.give(cost)
        return
    plan = columns._plan(shape, w, O, dtype.itemsize, whole)
    rows = plan.K + bias
    cost = 0 if plan.t == 1 and not bias and not turned else dtype.itemsize * rows * plan.t * O
    ledger.take(cost)
    n0, n1, r0, r1 = plan.chunks[0]
    n, r = n1 - n0, r1 - r0
    apart = 0 if w.size[1] % plan.t == 0 else n * r * plan.Q
    padded = columns._padded_shape(w, plan, n, r, C)
    _scratch(dtype, len(plan.chunks), padded, (n, r, plan.Q, rows), (apart, plan.t * O))
    source.read(n, len(plan.chunks))
    target.write(n, len(plan.chunks))
    ledger.give(cost)


def _winograd(N: int, C: int, O: int, bias: bool, w: Any, source: _Ends, target: _Ends, t: Any, whole: bool) -> None:
    m, a, dtype = t.m, t.a, source.dtype
    terms = a + bias
    OH, OW = _phase(w)
    each = dtype.itemsize * (a * a * (C + O) + terms * m * O + (a + m + 2) * (m + 1) * C)
    wanted = 64 if max(C, O) > 64 else (1 << 14) // max(C, O)
    cut = winograd._cut(N, OH, OW, m, max(1, min(wanted, LIMIT // each)), whole)
    n0, n1, s0, s1 = cut.chunks[0]
    n, s = n1 - n0, s1 - s0
    T, wide = n * s * cut.tw, m * cut.tw + t.r - 1
    _scratch(
        dtype, len(cut.chunks), (n, m * s + t.r - 1, wide, C), (n, s, a, wide * C), (a * a, T, C), (a * a, T, O),
        (n, s, terms, m * cut.tw * O),
    )  # fmt: skip
    if w.dilation != (1, 1):  # the outputs lie apart, and are written elsewhere first
        _scratch(dtype, len(cut.chunks), (n, min(m * s1, OH) - m * s0, OW, O), slot="ends")
    source.read(n, len(cut.chunks))
    target.write(n, len(cut.chunks))


def _phase(w: Any) -> tuple[int, int]:
    """The output's size of one of the plain convolutions that a dilated one is made of."""
    return -(-w.size[0] // w.dilation[0]), -(-w.size[1] // w.dilation[1])


def _kernel_gradient(xp: Any, shape: Shape, kernel: Shape, w: Any, source: _Ends) -> tuple[Shadow, Shadow]:
    """convolution.kernel_gradient of images of `shape`."""
    dtype, ledger = source.dtype, current_ledger()
    C, O = kernel[2:]
    m = winograd_tile(w, w.size, C, O)
    whole = source.pool is not None
    if m and (w.dilation == (1, 1) or not whole):
        cost = _winograd_kernel_gradient(shape[0], C, O, w, source, winograd.transforms(m, w.window[0], dtype), whole)
    else:
        plan = columns._plan(shape, w, O, dtype.itemsize, whole)
        parts = min(get_num_threads(), len(plan.chunks))
        n0, n1, r0, r1 = plan.chunks[0]
        n, r = n1 - n0, r1 - r0
        cost = dtype.itemsize * parts * (plan.K + 1) * plan.t * O
        ledger.take(cost)
        padded = columns._padded_shape(w, plan, n, r, C)
        _scratch(dtype, parts, padded, (n, r, plan.Q, plan.K + 1), (n, r, plan.Q * plan.t, O), (plan.K + 1, plan.t * O))
        source.read(n, parts)
    made = xp.empty(kernel, dtype=dtype), xp.empty((O,), dtype=dtype)
    ledger.give(cost)
    return made


def _winograd_kernel_gradient(N: int, C: int, O: int, w: Any, source: _Ends, t: Any, whole: bool) -> int:
    """Its working memory; returns the bytes of the sums, which are counted and still in use."""
    m, r, a, dtype, ledger = t.m, t.r, t.a, source.dtype, current_ledger()
    row = a * C * O * dtype.itemsize
    threads = get_num_threads()
    shares = threads if a * row <= winograd._SMALL_SUMS else 1
    group = a if shares > 1 else -(-a // min(threads, a))
    while group > 1 and group * row > LIMIT // 3:
        group -= 1
    each = dtype.itemsize * (group * a * (C + O) + group * (m + 1) * (C + O) + (m + 2) * (m + 2) * (C + O))
    room = max(LIMIT - group * row, LIMIT // 4)
    cut = winograd._cut(N, *_phase(w), m, max(1, min(256 * max(1, 64 // min(C, O)), room // each)), whole)
    shares = min(shares, len(cut.chunks))
    cost = shares * a * row
    ledger.take(cost)
    n0, n1, s0, s1 = cut.chunks[0]
    n, s = n1 - n0, s1 - s0
    T, wide, g = n * s * cut.tw, m * cut.tw + r - 1, group
    _scratch(
        dtype, shares * -(-a // group), (n, m * s + r - 1, wide, C), (n, m * s, m * cut.tw, O), (n, s, g, wide * C),
        (n, s, g, m * cut.tw * O), (g * a, T, C), (g * a, T, O), (g * a, C, O),
    )  # fmt: skip
    source.read(n, shares)
    return int(cost)


def _data_gradient(xp: Any, x: Shadow, kernel: Shape, w: Any, source: _Ends) -> Shadow:
    """convolution.data_gradient."""
    KH, KW, C, O = kernel
    dx: Shadow = xp.empty_like(x)
    N, H, W, _ = x.shape
    shape = (N, *w.size, O)
    if w.stride == (1, 1):
        top, left = (d * (k - 1) - p for d, k, p in zip(w.dilation, w.window, w.pads))
        back = columns.Windows(w.window, (1, 1), w.dilation, (top, left), (H, W))
        _convolve(shape, (KH, KW, O, C), False, back, source, _Ends(x.dtype, C), turned=True)
        return dx
    _moment(x.dtype, kernel)
    OH, OW = w.size
    lines = max(1, min(OH, LIMIT // 8 // (x.itemsize * OW * (O + C))))
    _scratch(x.dtype, N, (lines, OW, O), (lines, OW, C))
    source.read(1, N)
    return dx


@conv2d.accelerate("shadow_numpy")
def _conv2d(
    xp: Any, x: Shadow, kernel: Shadow, bias: Any, *, stride: Any, padding: Any, dilation: Any, groups: int,
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
    if groups == 1 and not _pointwise(g, x):  # type: ignore[arg-type]
        ends = _Ends(x.dtype, O)
        _convolve(x.shape, kernel.shape, bias is not None, w, ends, ends, turned=False)
    return y, (x, kernel, y if activation else None) if save else None


@_conv2d.backward
def _(
    xp: Any, dy: Shadow, saved: Any, *, stride: Any, padding: Any, dilation: Any, groups: int, activation: str | None,
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


@conv2d_max_pool2d.accelerate("shadow_numpy")
def _pooled(xp: Any, x: Shadow, kernel: Shadow, bias: Any, *, window: Any, save: bool, **settings: Any) -> Any:
    activation = settings["activation"]
    if x.dtype not in FLOATS or kernel.dtype != x.dtype or activation not in ACTIVATIONS or settings["groups"] != 1:
        return NotImplemented
    g, p = _geometries(x, kernel, bias, window, settings)  # type: ignore[arg-type]
    O = kernel.shape[3]
    few = p.h.window * p.w.window <= 256
    if not (x.size and kernel.size and min(p.h.out, p.w.out) > 0 and few and _fits(x, O, g)):  # type: ignore[arg-type]
        return NotImplemented
    y = xp.empty((x.shape[0], p.h.out, p.w.out, O), dtype=x.dtype)
    won = _won(xp, x.shape[0], p, O) if save else None
    source, target = _Ends(x.dtype, O), _Ends(x.dtype, O, p, save)
    _convolve(x.shape, kernel.shape, bias is not None, windows_of(g), source, target, turned=False)
    return y, (x, kernel, y, won) if save else None


@_pooled.backward
def _(xp: Any, dy: Shadow, saved: Any, *, window: Any, needs: tuple[bool, ...], **settings: Any) -> Any:
    x, kernel, _, _ = saved
    g, p = _geometries(x, kernel, None, window, settings)
    w = windows_of(g)
    source = _Ends(x.dtype, kernel.shape[3], p)
    dx = _data_gradient(xp, x, kernel.shape, w, source) if needs[0] else None
    dkernel = dbias = None
    if needs[1] or needs[2]:
        dkernel, dbias = _kernel_gradient(xp, x.shape, kernel.shape, w, source)
    return dx, dkernel if needs[1] else None, dbias if needs[2] else None


# -- update rules: in place --


@rules.sgd.accelerate("shadow_numpy")
def _sgd(xp: Any, w: Shadow, g: Shadow, *, learning_rate: float) -> None:
    return


@rules.momentum.accelerate("shadow_numpy")
def _momentum(xp: Any, w: Shadow, g: Shadow, v: Shadow, **settings: Any) -> None:
    return


@rules.adam.accelerate("shadow_numpy")
def _adam(xp: Any, w: Shadow, g: Shadow, m: Shadow, v: Shadow, **settings: Any) -> None:
    _moment(w.dtype, (min(w.size, 1 << 15),))
