"""Oracles: every operation again, as plain loops over elements in float64.

Slow, obvious and independent of xpnet: nothing here is imported from it. `elementwise` applies a function of numbers
to arrays; images are (N, H, W, C), kernels (KH, KW, C/groups, O).
"""

from __future__ import annotations

import builtins
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


def elementwise(function: Callable[..., float]) -> Callable[..., np.ndarray]:
    """Apply a function of numbers to every element of arrays that broadcast."""

    def lifted(*arrays: Any, **settings: Any) -> np.ndarray:
        arrays = np.broadcast_arrays(*arrays)
        out = np.empty(arrays[0].shape, np.float64)
        for place in np.ndindex(*out.shape):
            out[place] = function(*(float(a[place]) for a in arrays), **settings)
        return out

    return lifted


def broadcast_to(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    out = np.empty(shape)
    for place in np.ndindex(*out.shape):
        source = place[len(shape) - x.ndim :]
        out[place] = x[tuple(0 if n == 1 else i for i, n in zip(source, x.shape))]
    return out


# -- elementwise --


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _selu(x: float) -> float:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * (x if x > 0 else alpha * math.expm1(x))


def _gelu(x: float, approximate: bool = False) -> float:
    if approximate:
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * math.erfc(-x / math.sqrt(2))


def _clip(x: float, low: float | None = None, high: float | None = None) -> float:
    x = x if low is None or x > low else low
    return x if high is None or x < high else high


step = elementwise(lambda x: 1.0 if x > 0 else 0.0)
relu = elementwise(lambda x: x if x > 0 else 0.0)
leaky_relu = elementwise(lambda x, slope=0.01: x if x > 0 else slope * x)
elu = elementwise(lambda x, alpha=1.0: x if x > 0 else alpha * math.expm1(x))
selu = elementwise(_selu)
gelu = elementwise(_gelu)
sigmoid = elementwise(_sigmoid)
hard_sigmoid = elementwise(lambda x: builtins.min(builtins.max(x / 6 + 0.5, 0.0), 1.0))
silu = elementwise(lambda x: x * _sigmoid(x))
tanh = elementwise(math.tanh)
softplus = elementwise(lambda x: math.log1p(math.exp(-abs(x))) + builtins.max(x, 0.0))
softsign = elementwise(lambda x: x / (1 + abs(x)))
clip = elementwise(_clip)
select = elementwise(lambda x, y, condition: x if condition else y)


def where(x: np.ndarray, y: np.ndarray, *, condition: np.ndarray) -> np.ndarray:
    x, y, condition = np.broadcast_arrays(x, y, condition)
    out = np.empty(x.shape)
    for place in np.ndindex(*out.shape):
        out[place] = x[place] if condition[place] else y[place]
    return out


def activate(x: np.ndarray, activation: str | None) -> np.ndarray:
    return x if activation is None else {"relu": relu, "sigmoid": sigmoid, "tanh": tanh}[activation](x)


# -- reductions --


def lines(shape: Sequence[int], axes: Any) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Yield every index of an array reduced over `axes` (kept as 1), with all the indices that it sums."""
    axes = range(len(shape)) if axes is None else [axes] if isinstance(axes, int) else axes
    axes = {a % len(shape) for a in axes}
    for place in np.ndindex(*(1 if i in axes else n for i, n in enumerate(shape))):
        spans = [range(n) if i in axes else [p] for i, (n, p) in enumerate(zip(shape, place))]
        yield place, list(itertools.product(*spans))


def reduction(function: Callable[[list[float]], float]) -> Callable[..., np.ndarray]:
    def reduced(x: np.ndarray, axis: Any = None, keepdims: bool = False) -> np.ndarray:
        found = {place: function([float(x[p]) for p in places]) for place, places in lines(x.shape, axis)}
        shape = tuple(n + 1 for n in builtins.max(found))
        out = np.array([found[place] for place in np.ndindex(*shape)]).reshape(shape)
        if keepdims:
            return out
        axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
        gone = {a % x.ndim for a in axes}
        return out.reshape([n for i, n in enumerate(shape) if i not in gone])

    return reduced


sum = reduction(math.fsum)
mean = reduction(lambda values: math.fsum(values) / len(values))


def _squares(values: list[float]) -> float:
    middle = math.fsum(values) / len(values)
    return math.fsum((v - middle) ** 2 for v in values)


def var(x: np.ndarray, axis: Any = None, keepdims: bool = False, correction: float = 0) -> np.ndarray:
    return reduction(lambda values: _squares(values) / (len(values) - correction))(x, axis, keepdims)


def std(x: np.ndarray, axis: Any = None, keepdims: bool = False, correction: float = 0) -> np.ndarray:
    return reduction(lambda values: math.sqrt(_squares(values) / (len(values) - correction)))(x, axis, keepdims)


max = reduction(lambda values: sorted(values)[-1])
min = reduction(lambda values: sorted(values)[0])


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    out = np.empty(x.shape)
    for _, places in lines(x.shape, axis):
        largest = sorted(x[p] for p in places)[-1]
        total = math.fsum(math.exp(x[p] - largest) for p in places)
        for p in places:
            out[p] = math.exp(x[p] - largest) / total
    return out


def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    out: np.ndarray = np.log(softmax(x, axis))
    return out


def softmax_cross_entropy(
    logits: np.ndarray, labels: np.ndarray, reduction: str = "mean", label_smoothing: float = 0.0
) -> np.ndarray:
    log_p = log_softmax(logits)
    losses = np.zeros(logits.shape[:-1])
    for row in np.ndindex(*losses.shape):
        for k in range(logits.shape[-1]):
            target = float(labels[row] == k) if labels.dtype.kind in "iu" else labels[(*row, k)]
            losses[row] -= ((1 - label_smoothing) * target + label_smoothing / logits.shape[-1]) * log_p[(*row, k)]
    if reduction == "none":
        return losses
    return np.asarray(losses.sum() / (losses.size if reduction == "mean" else 1))


# -- products --


def matmul(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    rows = x[None, :] if x.ndim == 1 else x
    columns = y[:, None] if y.ndim == 1 else y
    batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    rows = broadcast_to(rows, (*batch, *rows.shape[-2:]))
    columns = broadcast_to(columns, (*batch, *columns.shape[-2:]))
    out = np.zeros((*batch, rows.shape[-2], columns.shape[-1]))
    for place in np.ndindex(*out.shape):
        *b, i, j = place
        out[place] = math.fsum(rows[(*b, i, k)] * columns[(*b, k, j)] for k in range(rows.shape[-1]))
    shape = [*batch] + ([] if x.ndim == 1 else [out.shape[-2]]) + ([] if y.ndim == 1 else [out.shape[-1]])
    return out.reshape(shape)


def dense(x: np.ndarray, kernel: np.ndarray, bias: Any = None, *, activation: str | None = None) -> np.ndarray:
    y = matmul(x, kernel)
    if bias is not None:
        for place in np.ndindex(*y.shape):
            y[place] += bias[place[-1]]
    return activate(y, activation)


# -- convolution and pooling --


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def pads(size: int, window: int, stride: int, dilation: int, padding: Any, axis: int) -> tuple[int, int]:
    """Return the padding before and after one axis (0: height, 1: width)."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        outputs = math.ceil(size / stride)
        total = (outputs - 1) * stride + dilation * (window - 1) + 1 - size
        total = total if total > 0 else 0
        return total // 2, total - total // 2
    if isinstance(padding, int):
        return padding, padding
    one = padding[axis]
    return (one, one) if isinstance(one, int) else (int(one[0]), int(one[1]))


def positions(size: int, window: int, stride: int, dilation: int, padding: Any, axis: int) -> list[list[int]]:
    """Return, for every position of the window along one axis, its places in the input (outside it: in the padding)."""
    before, after = pads(size, window, stride, dilation, padding, axis)
    found = []
    start = -before
    while start + dilation * (window - 1) < size + after:
        found.append([start + dilation * k for k in range(window)])
        start += stride
    return found


def im2col(
    x: np.ndarray, window: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, value: float = 0.0
) -> np.ndarray:
    N, H, W, C = x.shape
    (KH, KW), (SH, SW), (DH, DW) = pair(window), pair(stride), pair(dilation)
    rows = positions(H, KH, SH, DH, padding, 0)
    columns = positions(W, KW, SW, DW, padding, 1)
    out = np.full((N, len(rows), len(columns), KH, KW, C), value, np.float64)
    for oh, ow, kh, kw in itertools.product(range(len(rows)), range(len(columns)), range(KH), range(KW)):
        h, w = rows[oh][kh], columns[ow][kw]
        if 0 <= h < H and 0 <= w < W:
            out[:, oh, ow, kh, kw] = x[:, h, w]
    return out


def col2im(
    cols: np.ndarray, input_shape: Any, window: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1
) -> np.ndarray:
    N, H, W, C = input_shape
    (KH, KW), (SH, SW), (DH, DW) = pair(window), pair(stride), pair(dilation)
    rows = positions(H, KH, SH, DH, padding, 0)
    columns = positions(W, KW, SW, DW, padding, 1)
    out = np.zeros((N, H, W, C))
    for oh, ow, kh, kw in itertools.product(range(len(rows)), range(len(columns)), range(KH), range(KW)):
        h, w = rows[oh][kh], columns[ow][kw]
        if 0 <= h < H and 0 <= w < W:
            out[:, h, w] += cols[:, oh, ow, kh, kw]
    return out


def conv2d(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: str | None = None,
) -> np.ndarray:
    N, H, W, _ = x.shape
    KH, KW, Cg, O = kernel.shape
    (SH, SW), (DH, DW) = pair(stride), pair(dilation)
    rows = positions(H, KH, SH, DH, padding, 0)
    columns = positions(W, KW, SW, DW, padding, 1)
    y = np.zeros((N, len(rows), len(columns), O))
    for n, oh, ow, o in np.ndindex(*y.shape):
        first = o // (O // groups) * Cg  # the first input channel of this output
        total = 0.0 if bias is None else float(bias[o])
        for kh, kw, c in np.ndindex(KH, KW, Cg):
            h, w = rows[oh][kh], columns[ow][kw]
            if 0 <= h < H and 0 <= w < W:
                total += x[n, h, w, first + c] * kernel[kh, kw, c, o]
        y[n, oh, ow, o] = total
    return activate(y, activation)


def conv2d_max_pool2d(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: Any = None,
    *,
    window: Any,
    pool_stride: Any = None,
    pool_padding: Any = 0,
    **rest: Any,
) -> np.ndarray:
    return max_pool2d(conv2d(x, kernel, bias, **rest), window, stride=pool_stride, padding=pool_padding)


def conv1d(
    x: np.ndarray, kernel: np.ndarray, bias: Any = None, *, stride: int = 1, padding: Any = 0, dilation: int = 1, **rest: Any
) -> np.ndarray:
    if isinstance(padding, int):
        padding = (padding, padding)
    around = padding if isinstance(padding, str) else ((0, 0), tuple(padding))
    y = conv2d(x[:, None], kernel[None], bias, stride=(1, stride), padding=around, dilation=(1, dilation), **rest)
    return y[:, 0]


def conv_transpose2d(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> np.ndarray:
    N, H, W, _ = x.shape
    KH, KW, Cg, O = kernel.shape
    (SH, SW), (DH, DW), (EH, EW) = pair(stride), pair(dilation), pair(output_padding)
    if padding == "same":
        OH, OW = H * SH, W * SW
        top, left = pads(OH, KH, SH, DH, "same", 0)[0], pads(OW, KW, SW, DW, "same", 1)[0]
    else:
        (top, bottom), (left, right) = pads(0, KH, SH, DH, padding, 0), pads(0, KW, SW, DW, padding, 1)
        OH = (H - 1) * SH + DH * (KH - 1) + 1 - top - bottom + EH
        OW = (W - 1) * SW + DW * (KW - 1) + 1 - left - right + EW
    y = np.zeros((N, OH, OW, O)) + (0.0 if bias is None else bias)
    for n, h, w, kh, kw, cg, o in np.ndindex(N, H, W, KH, KW, Cg, O):
        oh, ow = h * SH + kh * DH - top, w * SW + kw * DW - left
        if 0 <= oh < OH and 0 <= ow < OW:
            y[n, oh, ow, o] += x[n, h, w, o // (O // groups) * Cg + cg] * kernel[kh, kw, cg, o]
    return y


def windows_of(x: np.ndarray, window: Any, stride: Any, padding: Any) -> tuple[Any, Iterator[Any]]:
    """Return the shape of the output, and its elements: (index, [(value, kh * KW + kw) of the window inside the image])."""
    N, H, W, C = x.shape
    (KH, KW), (SH, SW) = pair(window), pair(window if stride is None else stride)
    rows = positions(H, KH, SH, 1, padding, 0)
    columns = positions(W, KW, SW, 1, padding, 1)
    shape = (N, len(rows), len(columns), C)

    def walk() -> Iterator[Any]:
        for n, oh, ow, c in np.ndindex(*shape):
            inside = [
                (h, w, kh * KW + kw)
                for kh, h in enumerate(rows[oh])
                for kw, w in enumerate(columns[ow])
                if 0 <= h < H and 0 <= w < W
            ]
            yield (n, oh, ow, c), [(float(x[n, h, w, c]), which) for h, w, which in inside]

    return shape, walk()


def max_pool2d_with_switches(
    x: np.ndarray, window: Any, *, stride: Any = None, padding: Any = 0
) -> tuple[np.ndarray, np.ndarray]:
    shape, places = windows_of(x, window, stride, padding)
    y, switches = np.empty(shape), np.empty(shape, np.int64)
    for place, inside in places:
        best = inside[0]
        for candidate in inside[1:]:
            if candidate[0] > best[0]:  # the first of equal elements
                best = candidate
        y[place], switches[place] = best
    return y, switches


def max_pool2d(x: np.ndarray, window: Any, *, stride: Any = None, padding: Any = 0) -> np.ndarray:
    return max_pool2d_with_switches(x, window, stride=stride, padding=padding)[0]


def average_pool2d(
    x: np.ndarray, window: Any, *, stride: Any = None, padding: Any = 0, count_include_pad: bool = False
) -> np.ndarray:
    shape, places = windows_of(x, window, stride, padding)
    y = np.empty(shape)
    size = math.prod(pair(window))
    for place, inside in places:
        y[place] = math.fsum(v for v, _ in inside) / (size if count_include_pad else len(inside))
    return y


def lp_pool2d(x: np.ndarray, window: Any, *, p: float = 2.0, stride: Any = None, padding: Any = 0) -> np.ndarray:
    shape, places = windows_of(x, window, stride, padding)
    y = np.empty(shape)
    for place, inside in places:
        y[place] = math.fsum(abs(v) ** p for v, _ in inside) ** (1 / p)
    return y


def global_average_pool2d(x: np.ndarray) -> np.ndarray:
    return mean(x, axis=(1, 2))


# -- normalisation --


def _normalized(x: np.ndarray, groups_of_places: Any, epsilon: float) -> tuple[np.ndarray, list[float], list[float]]:
    out, means, variances = np.empty(x.shape), [], []
    for places in groups_of_places:
        values = [float(x[p]) for p in places]
        mu = math.fsum(values) / len(values)
        variance = math.fsum((v - mu) ** 2 for v in values) / len(values)
        for p, v in zip(places, values):
            out[p] = (v - mu) / math.sqrt(variance + epsilon)
        means.append(mu)
        variances.append(variance)
    return out, means, variances


def affine(y: np.ndarray, scale: Any, offset: Any) -> np.ndarray:
    """Compute y * scale + offset, both over the last axes."""
    out = np.empty(y.shape)
    for place in np.ndindex(*y.shape):
        out[place] = y[place]
        if scale is not None:
            out[place] *= scale[place[y.ndim - scale.ndim :]]
        if offset is not None:
            out[place] += offset[place[y.ndim - offset.ndim :]]
    return out


def batch_norm_with_statistics(
    x: np.ndarray, scale: Any = None, offset: Any = None, *, epsilon: float = 1e-5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    channels = [places for _, places in lines(x.shape, tuple(range(x.ndim - 1)))]
    y, means, variances = _normalized(x, channels, epsilon)
    return affine(y, scale, offset), np.array(means), np.array(variances)


def batch_norm_training(
    x: np.ndarray, scale: Any = None, offset: Any = None, residual: Any = None, *, epsilon: float = 1e-5, activation: Any = None
) -> np.ndarray:
    y = batch_norm_with_statistics(x, scale, offset, epsilon=epsilon)[0]
    y = y if residual is None else y + residual
    return y if activation is None else relu(y)


def batch_norm(
    x: np.ndarray, scale: Any = None, offset: Any = None, *, mean: Any = None, variance: Any = None, epsilon: float = 1e-5
) -> np.ndarray:
    if mean is not None:
        return batch_norm_inference(x, scale, offset, mean=mean, variance=variance, epsilon=epsilon)
    return batch_norm_with_statistics(x, scale, offset, epsilon=epsilon)[0]


def batch_norm_inference(
    x: np.ndarray, scale: Any = None, offset: Any = None, *, mean: Any, variance: Any, epsilon: float = 1e-5
) -> np.ndarray:
    y = np.empty(x.shape)
    for place in np.ndindex(*x.shape):
        c = place[-1]
        y[place] = (x[place] - mean[c]) / math.sqrt(variance[c] + epsilon)
    return affine(y, scale, offset)


def layer_norm(x: np.ndarray, scale: Any = None, offset: Any = None, *, axis: Any = -1, epsilon: float = 1e-5) -> np.ndarray:
    return affine(_normalized(x, [places for _, places in lines(x.shape, axis)], epsilon)[0], scale, offset)


def group_norm(x: np.ndarray, scale: Any = None, offset: Any = None, *, groups: int, epsilon: float = 1e-5) -> np.ndarray:
    size = x.shape[-1] // groups
    parts = [
        [(n, *at, c) for at in np.ndindex(*x.shape[1:-1]) for c in range(g * size, (g + 1) * size)]
        for n in range(x.shape[0])
        for g in range(groups)
    ]
    return affine(_normalized(x, parts, epsilon)[0], scale, offset)


def local_response_norm(x: np.ndarray, *, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> np.ndarray:
    y = np.empty(x.shape)
    C = x.shape[-1]
    for *place, c in np.ndindex(*x.shape):
        near = [j for j in range(c - size // 2, c + size // 2 + 1) if 0 <= j < C]
        total = math.fsum(float(x[(*place, j)]) ** 2 for j in near)
        y[(*place, c)] = x[(*place, c)] / (k + alpha * total) ** beta
    return y


# -- shapes --


def reshape(x: np.ndarray, shape: Any) -> np.ndarray:
    shape = list(shape)
    if -1 in shape:
        shape[shape.index(-1)] = x.size // math.prod(n for n in shape if n != -1)
    out = np.empty(shape)
    for source, place in zip(np.ndindex(*x.shape), np.ndindex(*shape)):
        out[place] = x[source]
    return out


def transpose(x: np.ndarray, axes: Any = None) -> np.ndarray:
    axes = [a % x.ndim for a in (reversed(range(x.ndim)) if axes is None else axes)]
    out = np.empty([x.shape[a] for a in axes])
    for place in np.ndindex(*out.shape):
        source = [0] * x.ndim
        for i, a in zip(place, axes):
            source[a] = i
        out[place] = x[tuple(source)]
    return out


def concat(*arrays: np.ndarray, axis: int = 0) -> np.ndarray:
    axis = axis % arrays[0].ndim
    shape = list(arrays[0].shape)
    shape[axis] = int(np.sum([a.shape[axis] for a in arrays]))
    out = np.empty(shape)
    start = 0
    for a in arrays:
        for place in np.ndindex(*a.shape):
            out[tuple(p + start if i == axis else p for i, p in enumerate(place))] = a[place]
        start += a.shape[axis]
    return out


def stack(*arrays: np.ndarray, axis: int = 0) -> np.ndarray:
    axis = axis % (arrays[0].ndim + 1)
    out = np.empty((*arrays[0].shape[:axis], len(arrays), *arrays[0].shape[axis:]))
    for i, a in enumerate(arrays):
        for place in np.ndindex(*a.shape):
            out[(*place[:axis], i, *place[axis:])] = a[place]
    return out


def pad(x: np.ndarray, widths: Any, *, value: float = 0.0) -> np.ndarray:
    out = np.full([n + a + b for n, (a, b) in zip(x.shape, widths)], value)
    for place in np.ndindex(*x.shape):
        out[tuple(p + a for p, (a, _) in zip(place, widths))] = x[place]
    return out


def flip(x: np.ndarray, axis: Any = None) -> np.ndarray:
    axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    axes = {a % x.ndim for a in axes}
    out = np.empty(x.shape)
    for place in np.ndindex(*x.shape):
        out[tuple(n - 1 - p if i in axes else p for i, (p, n) in enumerate(zip(place, x.shape)))] = x[place]
    return out


def embedding(indices: np.ndarray, table: np.ndarray) -> np.ndarray:
    out = np.empty((*indices.shape, table.shape[1]))
    for place in np.ndindex(*indices.shape):
        out[place] = table[int(indices[place])]
    return out


def scatter_rows(rows: np.ndarray, index: np.ndarray, *, size: int) -> np.ndarray:
    out = np.zeros((size, rows.shape[1]))
    for row, at in zip(rows, index):
        if 0 <= at < size:
            out[at] += row
    return out


def dropped(x: np.ndarray, keep: np.ndarray, rate: float, inverted: bool = True) -> np.ndarray:
    """Compute x where `keep`, divided by 1 - rate if inverted; else 0. `keep` broadcasts to x."""
    keep = np.broadcast_to(keep, x.shape)
    out = np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        if keep[place]:
            out[place] = x[place] / (1 - rate) if inverted and rate < 1 else x[place]
    return out


def sigmoid_cross_entropy(logits: np.ndarray, labels: np.ndarray, reduction: str = "mean") -> np.ndarray:
    losses = np.empty(logits.shape)
    for place in np.ndindex(*logits.shape):
        p, y = _sigmoid(float(logits[place])), float(labels[place])
        losses[place] = -y * math.log(p) - (1 - y) * math.log(1 - p)
    if reduction == "none":
        return losses
    return np.asarray(losses.sum() / (losses.size if reduction == "mean" else 1))


def _errors(
    term: Callable[[float], float], prediction: np.ndarray, target: np.ndarray, reduction: str, scale: float = 1.0
) -> np.ndarray:
    terms = np.empty(prediction.shape)
    for place in np.ndindex(*prediction.shape):
        terms[place] = scale * term(float(prediction[place]) - float(target[place]))
    if reduction == "none":
        return terms
    return np.asarray(terms.sum() / (terms.size if reduction == "mean" else 1))


def squared_error(prediction: np.ndarray, target: np.ndarray, reduction: str = "mean", scale: float = 1.0) -> np.ndarray:
    return _errors(lambda r: r * r, prediction, target, reduction, scale)


def absolute_error(prediction: np.ndarray, target: np.ndarray, reduction: str = "mean") -> np.ndarray:
    return _errors(lambda r: r if r > 0 else -r, prediction, target, reduction)


def huber_error(prediction: np.ndarray, target: np.ndarray, delta: float = 1.0, reduction: str = "mean") -> np.ndarray:
    def term(r: float) -> float:
        return r * r / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)

    return _errors(term, prediction, target, reduction)


# -- recurrent networks --


def _unrolled(x: np.ndarray, mask: Any, reverse: bool, states: list[np.ndarray], step: Callable[..., Any]) -> Any:
    """Run `step(x_t, *states of one example) -> new states` over every sequence; the first state is the output."""
    N, T, _ = x.shape
    y = np.zeros((N, T, states[0].shape[1]))
    states = [s.astype(np.float64).copy() for s in states]
    for n in range(N):
        for t in reversed(range(T)) if reverse else range(T):
            if mask is not None and not mask[n, t]:
                continue  # no element here: the output is 0 and the state stays
            for state, new in zip(states, step(x[n, t], *(s[n] for s in states))):
                state[n] = new
            y[n, t] = states[0][n]
    return (y, *states)


def _sum_of(x: np.ndarray, kernel: np.ndarray, bias: Any) -> np.ndarray:
    out: np.ndarray = dense(x[None], kernel, bias)[0]
    return out


def _start(state: Any, N: int, H: int) -> np.ndarray:
    return np.zeros((N, H)) if state is None else state


def rnn(
    x: Any, kernel: Any, recurrent: Any, bias: Any = None, h: Any = None, mask: Any = None, *, activation: Any = "tanh",
    reverse: bool = False,
) -> Any:  # fmt: skip
    def step(x_t: Any, h: Any) -> Any:
        return (activate(_sum_of(x_t, kernel, bias) + _sum_of(h, recurrent, None), activation),)

    return _unrolled(x, mask, reverse, [_start(h, len(x), len(recurrent))], step)


def lstm(
    x: Any, kernel: Any, recurrent: Any, bias: Any = None, h: Any = None, c: Any = None, mask: Any = None, *,
    reverse: bool = False,
) -> Any:  # fmt: skip
    H = len(recurrent)

    def step(x_t: Any, h: Any, c: Any) -> Any:
        z = _sum_of(x_t, kernel, bias) + _sum_of(h, recurrent, None)
        i, f, o = sigmoid(z[:H]), sigmoid(z[H : 2 * H]), sigmoid(z[3 * H :])
        c = f * c + i * tanh(z[2 * H : 3 * H])
        return o * tanh(c), c

    return _unrolled(x, mask, reverse, [_start(h, len(x), H), _start(c, len(x), H)], step)


def gru(
    x: Any, kernel: Any, recurrent: Any, bias: Any = None, recurrent_bias: Any = None, h: Any = None, mask: Any = None, *,
    reverse: bool = False,
) -> Any:  # fmt: skip
    H = len(recurrent)

    def step(x_t: Any, h: Any) -> Any:
        a, b = _sum_of(x_t, kernel, bias), _sum_of(h, recurrent, recurrent_bias)
        r, u = sigmoid(a[:H] + b[:H]), sigmoid(a[H : 2 * H] + b[H : 2 * H])
        n = tanh(a[2 * H :] + r * b[2 * H :])
        return ((1 - u) * n + u * h,)

    return _unrolled(x, mask, reverse, [_start(h, len(x), H)], step)
