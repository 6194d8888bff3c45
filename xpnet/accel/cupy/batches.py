"""Batches from a data set in device memory: ``kernels/cuda/batches.cu``."""

from __future__ import annotations

import math
from typing import Any

from xpnet.accel.cupy.launch import INT32_LIMIT, THREADS, address, counters, launch, runtime
from xpnet.accel.cupy.source import C_NAMES, FLOATS, Kernel, dtype_of
from xpnet.accel.cupy.support import VECTORS, WIDTHS, valid_vector

Array = Any


def _listed(kind: str, width: int, source: str) -> bool:
    return valid_vector(kind, width) and source in ("u8", kind)


_gather = Kernel("batches", "gather", FLOATS, VECTORS, ("u8", *FLOATS), only=_listed)
_select = Kernel("batches", "select", (256,))


def select(
    batch: int,
    index: Array | None,
    drawn: Array | None,
    *,
    order: Array | None = None,
    position: Array | None = None,
    step: Array | None = None,
    program: Array | None = None,
    labels: Array | None = None,
    taken: Array | None = None,
) -> None:
    """Select the examples of the next batch, and draw the random numbers of its augmentation.

    Args:
        batch: N.
        index: (N,) int64, set to order[position : position + N]; position then advances by N. None without an order.
        drawn: (S, 2, N) int32, set to the random numbers of the stages for batch `step`, which then advances by one. None
            without a program.
        order: (M,) int64.
        position: () int64.
        step: () uint64.
        program: (S, 12) int64, from `xpnet.data.augment.program`.
        labels: (L, W) uint32, the labels of all examples in words; L is above every number in the order.
        taken: (N, W) uint32, set to the labels of the batch.
    """
    stages = 0 if program is None else int(program.shape[0])
    count = 0 if order is None else int(order.shape[0])
    words = 0 if labels is None else int(labels.shape[1])
    launch(_select[256,], 1, 256, order, count, position, step, program, stages, batch, labels, words, index, taken, drawn)


def gather(
    data: Array,
    index: Array | None,
    out: Array,
    *,
    table: Array | None = None,
    values: Array | None = None,
    fills: Array | None = None,
    program: Array | None = None,
    drawn: Array | None = None,
    order: Array | None = None,
    position: Array | None = None,
    labels: Array | None = None,
    taken: Array | None = None,
) -> None:
    """Gather rows of a data set, augment them as a program says and convert them, in one pass.

    Args:
        data: (M, ..., C), C-contiguous: uint8, or the dtype of `out`.
        index: (N,) int64, a number outside 0..M-1 gives NaN; None: the first N rows.
        out: (N, ..., C), written; with a program both are images (N, H, W, C), of any two sizes.
        table: (256, C) or (256, 1), the lookup table for uint8 data.
        values: (K, 2, C) in the accumulator dtype of `out`: (v - a) / b for each pair is applied to numbers; None: no change.
        fills: (S, C), the fill value of each stage.
        program: (S, 12) int64.
        drawn: (S, 2, N) int32, from `select`.
        order, position, labels, taken: as in `select`, which is then not needed: `index` is written.

    Raises:
        ValueError: an example has 2**31 elements or more.
    """
    size, out_size = math.prod(data.shape[1:]), math.prod(out.shape[1:])
    if max(size, out_size) >= INT32_LIMIT:
        raise ValueError(f"gather: examples of {max(size, out_size)} elements, expected fewer than 2**31")
    kind, source = C_NAMES[dtype_of(out)], C_NAMES[dtype_of(data)]
    stages = 0 if program is None else int(program.shape[0])
    channels = out.shape[-1] if out.ndim > 1 else 1
    V = WIDTHS[kind]
    wide = V * data.dtype.itemsize
    if out_size % V or address(out) % 16 or (stages == 0 and address(data) % wide):
        V = 1
    across = max(-(-out_size // (V * THREADS)), 1)
    down = min(out.shape[0], 65535, max(runtime().multiprocessors * 16 // across, 1))
    columns, pairs = 0 if table is None else int(table.shape[1]), 0 if values is None else int(values.shape[0])
    if out.size:
        count, counter = (0, None) if order is None else (int(order.shape[0]), counters(1))
        words = 0 if labels is None else int(labels.shape[1])
        launch(
            _gather[kind, V, source], (across, down, 1), THREADS, data, index, order, count, position, labels, words, taken,
            counter, table, values, fills, program, drawn, out,
            out.shape[0], data.shape[0], size, out_size, stages, columns, pairs,
            data.shape[2] if stages else 1, channels, out.shape[2] if stages else 1,
        )  # fmt: skip
