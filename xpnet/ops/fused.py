"""Fused operations, for backends that compute several in a row without going through memory in between."""

from __future__ import annotations

from typing import Any

from xpnet.backend import Array, Namespace
from xpnet.ops.convolution import conv2d
from xpnet.ops.geometry import Padding, Size
from xpnet.ops.pooling import max_pool2d
from xpnet.ops.registry import Implementation, Op, in_float32, op


def _as_its_parts(operation: Op, xp: Namespace, inputs: tuple[Any, ...]) -> Implementation:
    """Return the reference where the convolution takes 16-bit floats."""
    return operation.reference if conv2d.implementation(xp).takes_half else in_float32(operation, xp, inputs)


@op(half=_as_its_parts)
def conv2d_max_pool2d(
    xp: Namespace,
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    window: Size,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    pool_stride: Size | None = None,
    pool_padding: Padding = 0,
    save: bool = True,
) -> Any:
    """Compute ``max_pool2d(conv2d(x, kernel, bias, ...), window, ...)``.

    Args:
        x, kernel, bias, stride, padding, dilation, groups, activation: as in :func:`conv2d`.
        window, pool_stride, pool_padding: as window, stride and padding in :func:`max_pool2d`.

    Returns:
        (N, PH, PW, O).

    Raises:
        ShapeError, ValueError: as the two operations.
    """
    inner = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "activation": activation}
    y, kept, first = conv2d.run(xp, (x, kernel, bias), inner, save)
    outer = {"window": window, "stride": pool_stride, "padding": pool_padding}
    z, switches, second = max_pool2d.run(xp, (y,), outer, save)
    return z, (kept, first, switches, second) if save else None


@conv2d_max_pool2d.backward
def _(
    xp: Namespace,
    dy: Array,
    saved: Any,
    *,
    window: Size,
    pool_stride: Size | None,
    pool_padding: Padding,
    needs: tuple[bool, ...],
    into: tuple[Array | None, ...] = (None,) * 3,
    **settings: Any,
) -> Any:
    kept, first, switches, second = saved
    outer = {"window": window, "stride": pool_stride, "padding": pool_padding}
    (dz,) = max_pool2d.gradients(second, xp, dy, switches, outer, (True,))
    return conv2d.gradients(first, xp, dz, kept, settings, needs, into)
