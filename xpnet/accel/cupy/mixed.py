"""Mixed precision: 16-bit copies of float32 arrays, and loss scaling for float16: ``kernels/cuda/mixed.cu``."""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.launch import THREADS, grid_size, launch, vector_width
from xpnet.accel.cupy.source import C_NAMES, Kernel, dtype_of
from xpnet.accel.cupy.support import c_name, contiguous, valid_vector
from xpnet.backend import dtype_named
from xpnet.ops.half import cast
from xpnet.ops.updates import half as rules_half

Array = Any

_KINDS = ("float", "float16", "bfloat16")
_WIDTH = 4  # float32 elements in 16 bytes


def _converts(source: str, target: str, width: int) -> bool:
    return (source == "float") != (target == "float") and width in (1, _WIDTH)


_convert = Kernel("mixed", "convert", _KINDS, _KINDS, (1, _WIDTH), only=_converts)
_unscale = Kernel("mixed", "unscale", ("float", "double"), (1, 2, 4), only=valid_vector)
_adjust = Kernel("mixed", "adjust_scale", ("float",))


def _is_conversion(before: str, after: str) -> bool:
    source, target = C_NAMES.get(before, ""), C_NAMES.get(after, "")
    return source in _KINDS and target in _KINDS and _converts(source, target, 1)


def _convert_into(source: Array, target: Array) -> None:
    V = vector_width(source.size, source, target)
    kernel = _convert[c_name(source), c_name(target), V]
    launch(kernel, grid_size(source.size // V), THREADS, source, target, source.size)


@cast.accelerate("cupy")
def _cast(xp: Any, x: Array, *, dtype: str) -> Any:
    before = dtype_of(x)
    if not _is_conversion(before, dtype):
        return NotImplemented
    x = contiguous(xp, x)
    y = xp.empty(x.shape, dtype=dtype_named(xp, dtype))
    _convert_into(x, y)
    return y, before


@_cast.backward
def _(xp: Any, dy: Array, before: str, *, dtype: str) -> Any:
    if not _is_conversion(dtype_of(dy), before):
        return dy.astype(dtype_named(xp, before))
    dy = contiguous(xp, dy)
    dx = xp.empty(dy.shape, dtype=dtype_named(xp, before))
    _convert_into(dy, dx)
    return dx


@rules_half.rounded.accelerate("cupy")
def _rounded(xp: Any, copy: Array, values: Array) -> None:
    if dtype_of(values) == "float32":
        _convert_into(values, copy)
    else:
        copy[...] = values


@rules_half.unscale.accelerate("cupy")
def _unscale_rule(xp: Any, g: Array, scale: Array, overflow: Array) -> None:
    V = vector_width(g.size, g)
    launch(_unscale[c_name(g), V], grid_size(g.size // V), THREADS, g, scale, overflow, g.size)


@rules_half.adjust.accelerate("cupy")
def _adjust_rule(xp: Any, scale: Array, good: Array, overflow: Array, *, factor: float, interval: int, smallest: float) -> None:
    launch(_adjust[("float",)], 1, 32, scale, good, overflow, factor, interval, smallest)
