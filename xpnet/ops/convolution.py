"""Convolution as a matrix product: im2col, its adjoint col2im, and the convolutions made of them.

Images are (N, H, W, C), kernels (KH, KW, C/groups, O). As in all neural-network libraries "convolution" is
cross-correlation: the kernel is not flipped. Source: CS231n, "Convolutional Networks", implementation as matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from xpnet.backend import Array, Namespace
from xpnet.ops.activations import activate, activation_gradient
from xpnet.ops.elementwise import add
from xpnet.ops.geometry import Axis, Geometry, Padding, Size, hashable, pair, windows
from xpnet.ops.linear import matmul
from xpnet.ops.registry import as_is, op
from xpnet.ops.shapes import ShapeError, conjugate, expect_axes, expect_rank, is_whole
from xpnet.ops.shaping import concat, pad, pad_array, reshape, transpose
from xpnet.ops.sums import row_product, total


def gather_windows(xp: Namespace, x: Array, g: Geometry, value: float = 0.0) -> Array:
    """Return the windows of x (N,H,W,C) as (N,OH,OW,KH,KW,C), with `value` in the padding."""
    x = pad_array(xp, x, ((0, 0), g.h[4:6], g.w[4:6], (0, 0)), value)
    rows = [x[:, _positions(g.h, kh), :, :] for kh in range(g.h.window)]
    columns = [xp.stack([row[:, :, _positions(g.w, kw), :] for kw in range(g.w.window)], axis=3) for row in rows]
    return cast(Array, xp.stack(columns, axis=3))  # of (N,OH,OW,KW,C): KH goes before KW


def _positions(axis: Axis, k: int) -> slice:
    """Return the indices of element k of the window in the padded input, over all positions of the window."""
    first = k * axis.dilation
    return slice(first, first + (axis.out - 1) * axis.stride + 1, axis.stride)


def scatter_windows(xp: Namespace, cols: Array, g: Geometry) -> Array:
    """Sum (N,OH,OW,KH,KW,C) into (N,H,W,C): the adjoint of gather_windows."""
    x = None
    for kh in range(g.h.window):
        row: Any = None
        for kw in range(g.w.window):
            part = _spread(xp, cols[:, :, :, kh, kw, :], 2, g.w, kw)
            row = part if row is None else row + part
        part = _spread(xp, row, 1, g.h, kh)
        x = part if x is None else x + part
    assert x is not None  # a window has at least one element
    return x[:, g.h.before : g.h.before + g.h.size, g.w.before : g.w.before + g.w.size, :]


def _spread(xp: Namespace, y: Array, axis: int, a: Axis, k: int) -> Array:
    """Return y with stride-1 zeros after each element along `axis`, placed at element k of the window in the padded size."""
    if a.stride > 1:
        zero = xp.zeros_like(y)
        y = xp.stack([y] + [zero] * (a.stride - 1), axis=axis + 1)
        y = xp.reshape(y, (*y.shape[:axis], a.out * a.stride, *y.shape[axis + 2 :]))
    first = k * a.dilation
    # The zeros after the last element may reach past the end.
    room = a.padded - first
    if y.shape[axis] > room:
        y = y[(slice(None),) * axis + (slice(0, room), ...)]
    widths = [(0, 0)] * y.ndim
    widths[axis] = (first, room - y.shape[axis])
    return pad_array(xp, y, widths)


@op(half=as_is, integers="keep", linear=True)
def im2col(xp: Namespace, x: Array, window: Size, *, stride: Size = 1, padding: Padding = 0, dilation: Size = 1) -> Any:
    """Copy every window of the images, with zeros in the padding: (N, H, W, C) -> (N, OH, OW, KH, KW, C).

    Args:
        x: (N, H, W, C), any dtype.
        window: int or (KH, KW).
        stride, padding, dilation: as in :func:`conv2d`.

    Raises:
        ShapeError: x does not have four axes.
        ValueError: the window is larger than the padded input.
    """
    expect_rank("im2col", "x", x, "N H W C")
    return gather_windows(xp, x, windows(x.shape, window, stride, padding, dilation)), x.shape


@im2col.backward
def _(xp: Namespace, dy: Array, shape: Any, **settings: Any) -> Any:
    return col2im.run(xp, (dy,), {"input_shape": shape, **settings}, False)[0]


@op(linear=True)
def col2im(
    xp: Namespace,
    cols: Array,
    input_shape: Sequence[int],
    window: Size,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
) -> Any:
    """Sum windows into images, overlapping elements added: (N, OH, OW, KH, KW, C) -> (N, H, W, C).

    It is the adjoint of :func:`im2col`.

    Args:
        cols: (N, OH, OW, KH, KW, C).
        input_shape: (N, H, W, C) of the images.
        window, stride, padding, dilation: as given to im2col.

    Raises:
        ShapeError: `cols` is not what im2col makes of `input_shape`.
    """
    expect_rank("col2im", "cols", cols, "N OH OW KH KW C")
    g = windows(input_shape, window, stride, padding, dilation)
    expected = (input_shape[0], g.h.out, g.w.out, g.h.window, g.w.window, input_shape[3])
    if tuple(cols.shape) != expected:
        raise ShapeError(f"col2im: cols has shape {tuple(cols.shape)}, expected {expected} for images {tuple(input_shape)}")
    return scatter_windows(xp, cols, g), None


@col2im.backward
def _(xp: Namespace, dy: Array, saved: None, *, input_shape: Any, **settings: Any) -> Any:
    return im2col.run(xp, (dy,), settings, False)[0]


def conv_geometry(
    x: Array, kernel: Array, bias: Array | None, stride: Size, padding: Padding, dilation: Size, groups: int
) -> Geometry:
    """Check the inputs of a 2-D convolution and return its geometry.

    Raises:
        ShapeError: shapes that do not fit each other.
        ValueError: the window is larger than the padded input.
    """
    shapes = x.shape, kernel.shape, None if bias is None else bias.shape
    try:
        return geometry_of_shapes(*shapes, stride, padding, dilation, groups)
    except TypeError:  # lists have no hash
        return geometry_of_shapes(*shapes, hashable(stride), hashable(padding), hashable(dilation), groups)


@lru_cache(maxsize=4096)
def geometry_of_shapes(
    x: tuple[int, ...],
    kernel: tuple[int, ...],
    bias: tuple[int, ...] | None,
    stride: Size,
    padding: Padding,
    dilation: Size,
    groups: int,
) -> Geometry:
    """Do :func:`conv_geometry` for shapes, once for each: small convolutions take microseconds."""
    expect_axes("conv2d", "x", x, "N H W C")
    expect_axes("conv2d", "kernel", kernel, "KH KW C/groups O")
    KH, KW, Cg, O = kernel
    if groups < 1 or O % groups or x[3] != Cg * groups:
        raise ShapeError(
            f"conv2d: x {tuple(x)} has {x[3]} channels, but the kernel {tuple(kernel)} with groups={groups} "
            f"takes {Cg * groups} and gives {O} (both must be multiples of groups); "
            f"the layouts are x (N, H, W, C) and kernel (KH, KW, C/groups, O)"
        )
    if bias is not None and tuple(bias) != (O,):
        raise ShapeError(f"conv2d: bias has shape {tuple(bias)}, expected ({O},)")
    return windows(x, (KH, KW), stride, padding, dilation)


def _columns(xp: Namespace, x: Array, g: Geometry, groups: int) -> Array:
    """Return the windows of x as one matrix a group: (G, N*OH*OW, KH*KW*C/G)."""
    N, C = x.shape[0], x.shape[3]
    cols = im2col.run(xp, (x,), g.settings, False)[0]
    cols = xp.reshape(cols, (N * g.h.out * g.w.out, g.h.window * g.w.window, groups, C // groups))
    cols = xp.permute_dims(cols, (2, 0, 1, 3))
    return cast(Array, xp.reshape(cols, (groups, N * g.h.out * g.w.out, g.h.window * g.w.window * (C // groups))))


def _kernel_matrices(xp: Namespace, kernel: Array, groups: int) -> Array:
    """Return the kernel as one matrix a group: (G, KH*KW*C/G, O/G)."""
    KH, KW, Cg, O = kernel.shape
    return cast(Array, xp.permute_dims(xp.reshape(kernel, (KH * KW * Cg, groups, O // groups)), (1, 0, 2)))


@op(linear=True)
def conv2d(
    xp: Namespace,
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    save: bool = True,
) -> Any:
    """Convolve images with a kernel: every output is the sum of a window of x times the kernel, plus a bias.

    Args:
        x: (N, H, W, C).
        kernel: (KH, KW, C/groups, O).
        bias: (O,), or None.
        stride: int or (h, w): the step between windows.
        padding: zeros around the images: int, (h, w), ((top, bottom), (left, right)), "valid" (none) or "same" (as many as
            give ceil(size / stride) outputs, the odd one at the end).
        dilation: int or (h, w): distance between neighbouring elements of the window.
        groups: split the channels into this many independent groups; C gives a depthwise convolution.
        activation: None, "relu", "sigmoid" or "tanh", fused into the operation.

    Integers are computed in the dtype of what is floating, or in float32. Complex numbers are taken without an activation; the
    kernel is not conjugated forward, and backward is the adjoint: the gradient of x is that of dy with the conjugated kernel.

    Returns:
        (N, OH, OW, O) with OH = (H - F + P) // stride + 1, F = dilation*(KH-1)+1 and P the padding at both ends.

    Raises:
        ShapeError: shapes that do not fit each other.
        ValueError: the window is larger than the padded input.
    """
    g = conv_geometry(x, kernel, bias, stride, padding, dilation, groups)
    N, O = x.shape[0], kernel.shape[3]
    y = xp.matmul(_columns(xp, x, g, groups), _kernel_matrices(xp, kernel, groups))  # (G, N*OH*OW, O/G)
    y = xp.reshape(xp.permute_dims(y, (1, 0, 2)), (N, g.h.out, g.w.out, O))
    if bias is not None:
        y = y + bias
    y = activate(xp, y, activation)
    return y, (x, kernel, y if activation else None) if save else None


@conv2d.backward
def _(
    xp: Namespace,
    dy: Array,
    saved: Any,
    *,
    stride: Size,
    padding: Padding,
    dilation: Size,
    groups: int,
    activation: str | None,
    needs: tuple[bool, ...],
) -> Any:
    x, kernel, y = saved
    x, kernel = conjugate(xp, x), conjugate(xp, kernel)
    g = conv_geometry(x, kernel, None, stride, padding, dilation, groups)
    N, C, O = x.shape[0], x.shape[3], kernel.shape[3]
    KH, KW, Cg = kernel.shape[:3]
    dy = activation_gradient(xp, dy, y, activation)
    rows = xp.reshape(dy, (N * g.h.out * g.w.out, O))
    grouped = xp.permute_dims(xp.reshape(rows, (rows.shape[0], groups, O // groups)), (1, 0, 2))  # (G, N*OH*OW, O/G)
    dx = dkernel = None
    if needs[0]:
        cols = xp.matmul(grouped, xp.matrix_transpose(_kernel_matrices(xp, kernel, groups)))
        cols = xp.permute_dims(xp.reshape(cols, (groups, rows.shape[0], KH * KW, Cg)), (1, 2, 0, 3))
        cols = xp.reshape(cols, (N, g.h.out, g.w.out, KH, KW, C))
        dx = col2im.run(xp, (cols,), {"input_shape": tuple(x.shape), **g.settings}, False)[0]
    if needs[1]:
        # The columns are computed again: kept from forward they would be KH*KW times the size of x.
        dk = row_product(xp, _columns(xp, x, g, groups), grouped)  # (G, KH*KW*C/G, O/G)
        dkernel = xp.reshape(xp.permute_dims(dk, (1, 0, 2)), kernel.shape)
    return dx, dkernel, total(xp, rows, (0,)) if needs[2] else None


def conv1d(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    stride: int = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Any:
    """Convolve sequences with a kernel: a :func:`conv2d` of images of height 1.

    Args:
        x: (N, L, C).
        kernel: (K, C/groups, O).
        bias: (O,), or None.
        stride, dilation, groups, activation: as in conv2d.
        padding: int, (before, after), "valid" or "same".

    Returns:
        (N, OL, O).
    """
    expect_rank("conv1d", "x", x, "N L C")
    expect_rank("conv1d", "kernel", kernel, "K C/groups O")
    if not isinstance(padding, str):
        padding = (padding, padding) if is_whole(padding) else tuple(padding)  # type: ignore[arg-type, assignment]
    pads: Any = padding if isinstance(padding, str) else ((0, 0), padding)
    y = conv2d(
        reshape(x, (x.shape[0], 1, *x.shape[1:])),
        reshape(kernel, (1, *kernel.shape)),
        bias,
        stride=(1, stride),
        padding=pads,
        dilation=(1, dilation),
        groups=groups,
        activation=activation,
    )
    return reshape(y, (y.shape[0], *y.shape[2:]))


def conv_transpose2d(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Any:
    """Compute the transposed convolution: add every element of x, times the kernel, to its window of the output.

    It is the data gradient of :func:`conv2d`, and reverses a convolution's change of shape.

    Args:
        x: (N, H, W, C).
        kernel: (KH, KW, C/groups, O): C channels come in, O go out, as for conv2d.
        bias: (O,), or None.
        stride: int or (h, w): the step between the windows of neighbouring elements.
        padding: the padding of the corresponding convolution, cropped from the output here. "same" gives H * stride.
        output_padding: int or (h, w), less than the stride or the dilation: rows and columns added at the end of the output.
        dilation: int or (h, w).
        groups: as in conv2d.

    Returns:
        (N, OH, OW, O) with OH = (H - 1) * stride + dilation*(KH-1)+1 - padding at both ends + output_padding.

    Raises:
        ShapeError: shapes that do not fit each other, or an output without elements.
    """
    expect_rank("conv_transpose2d", "x", x, "N H W C")
    expect_rank("conv_transpose2d", "kernel", kernel, "KH KW C/groups O")
    N, H, W, C = x.shape
    KH, KW, Cg, O = kernel.shape
    if groups < 1 or Cg * groups != C or O % groups:
        raise ShapeError(
            f"conv_transpose2d: x {tuple(x.shape)} has {C} channels, but the kernel {tuple(kernel.shape)} with "
            f"groups={groups} takes {Cg * groups} and gives {O}; "
            f"the layouts are x (N, H, W, C) and kernel (KH, KW, C/groups, O)"
        )
    if bias is not None and tuple(bias.shape) != (O,):
        raise ShapeError(f"conv_transpose2d: bias has shape {tuple(bias.shape)}, expected ({O},)")
    if not H or not W:
        raise ShapeError(f"conv_transpose2d: x {tuple(x.shape)} has no pixels; leave out empty images, or crop less")
    size, pads = transposed_size((H, W), (KH, KW), stride, padding, output_padding, dilation)
    parts = []
    for i in range(groups):
        part = x if groups == 1 else x[..., i * Cg : (i + 1) * Cg]
        weights = kernel if groups == 1 else kernel[..., i * (O // groups) : (i + 1) * (O // groups)]
        matrix = reshape(transpose(weights, (2, 0, 1, 3)), (Cg, KH * KW * (O // groups)))
        parts.append(reshape(matmul(part, matrix), (N, H, W, KH, KW, O // groups)))
    cols = parts[0] if groups == 1 else concat(parts, axis=-1)
    # Rows more than stride - 1 beyond the last one that a kernel reaches belong to no window: they are padded with zeros.
    steps, dilations = pair(stride, "stride"), pair(dilation, "dilation")
    reached = [
        (n - 1) * s + d * (k - 1) + 1 - before for n, s, d, k, (before, _) in zip((H, W), steps, dilations, (KH, KW), pads)
    ]
    inner = [min(n, r + s - 1) for n, r, s in zip(size, reached, steps)]
    if min(inner) < 1:
        raise ShapeError(f"conv_transpose2d: the padding {padding} cuts off all that the kernels reach; use less padding")
    cut = tuple((before, max(r - n, 0)) for (before, _), r, n in zip(pads, reached, inner))
    y = col2im(cols, (N, *inner, O), (KH, KW), stride=stride, padding=cut, dilation=dilation)
    if tuple(inner) != size:
        y = pad(y, ((0, 0), (0, size[0] - inner[0]), (0, size[1] - inner[1]), (0, 0)))
    return y if bias is None else add(y, bias)


def transposed_size(
    size: tuple[int, int], window: Size, stride: Size, padding: Padding, output_padding: Size, dilation: Size
) -> tuple[tuple[int, int], tuple[tuple[int, int], tuple[int, int]]]:
    """Return the output size of a transposed convolution, and its padding as ((top, bottom), (left, right))."""
    extra = pair(output_padding, "output_padding")
    steps = pair(stride, "stride")
    if any(e < 0 or e >= max(s, d) for e, s, d in zip(extra, steps, pair(dilation, "dilation"))):
        raise ValueError(
            f"conv_transpose2d: output_padding {output_padding} must be at least 0 and smaller than the stride {stride} or "
            f"the dilation {dilation}"
        )
    # The geometry of the corresponding convolution, over an input that is certainly large enough.
    if padding == "same":
        full = tuple(n * s for n, s in zip(size, steps))
        g = windows((1, *full, 1), window, stride, "same", dilation)
        return (full[0], full[1]), ((g.h.before, g.h.after), (g.w.before, g.w.after))
    reach = [d * (k - 1) + 1 for d, k in zip(pair(dilation, "dilation"), pair(window, "window"))]
    g = windows((1, *reach, 1), window, stride, padding, dilation)
    out = tuple((n - 1) * s + a.reach - a.before - a.after + e for n, s, a, e in zip(size, steps, g, extra))
    if min(out) < 1:
        raise ShapeError(f"conv_transpose2d: an output of {out} has no elements; use less padding")
    return (out[0], out[1]), ((g.h.before, g.h.after), (g.w.before, g.w.after))
