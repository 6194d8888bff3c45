"""Batches from a data set that lives on the device as bytes: a launch of ``kernels/batches.cu``."""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.launch import THREADS, address, launch, runtime
from xpnet.accel.cupy.source import C_NAMES, FLOATS, Kernel, dtype_of
from xpnet.accel.cupy.support import VECTORS, WIDTHS, fits, product

Array = Any

_gather = Kernel("batches", "gather_bytes", FLOATS, VECTORS, only=fits)


def gather_bytes(
    xp: Any,
    data: Array,
    index: Array,
    *,
    scale: float = 1 / 255,
    mean: Array | None = None,
    deviation: Array | None = None,
    dtype: Any = None,
) -> Array:
    """The rows `index` of a data set of bytes, as (data * scale - mean) / deviation.

    Args:
        xp: the namespace of the arrays.
        data: (M, ..., C) uint8, C-contiguous.
        index: (N,) int64; a row outside 0..M-1 comes out as NaN.
        scale: what a byte is multiplied by.
        mean, deviation: (C,), for the last axis; both or neither.
        dtype: of the result, floating; float32 if not given.

    Returns:
        (N, ..., C).

    Raises:
        ValueError: only one of mean and deviation is given, or they are not (C,).
    """
    channels = data.shape[-1] if data.ndim > 1 else 1
    if (mean is None) != (deviation is None):
        raise ValueError("gather_bytes: give both mean and deviation, or neither")
    out = xp.empty((index.shape[0], *data.shape[1:]), dtype=xp.float32 if dtype is None else dtype)
    wide = xp.float64 if out.dtype.itemsize == 8 else xp.float32
    if mean is not None and deviation is not None:
        if tuple(mean.shape) != (channels,) or tuple(deviation.shape) != (channels,):
            raise ValueError(
                f"gather_bytes: mean {tuple(mean.shape)} and deviation {tuple(deviation.shape)}, expected ({channels},)"
            )
        mean, deviation = (xp.ascontiguousarray(v.astype(wide, copy=False)) for v in (mean, deviation))
    features = product(data.shape[1:])
    kind = C_NAMES[dtype_of(out)]
    V = WIDTHS[kind]
    if features % V or address(data) % V or address(out) % 16:
        V = 1
    across = max(-(-features // (V * THREADS)), 1)
    down = min(index.shape[0], 65535, max(runtime().multiprocessors * 16 // across, 1))
    if out.size:
        launch(
            _gather[kind, V], (across, down, 1), THREADS, data, index, mean, deviation, out, index.shape[0],
            data.shape[0], features, channels, scale,
        )  # fmt: skip
    return out
