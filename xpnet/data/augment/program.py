"""An augmentation as a program for one kernel: ``kernels/cuda/batches.cu``.

Moving, flipping and overwriting only determine where a pixel comes from; rescaling and normalising only change its value. A
composition of these is one pass over the batch: the program is followed backwards from each pixel to its origin, and the
changes of its value are applied or looked up. The random numbers are those of the stages' `apply`, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpnet import random
from xpnet.runtime.overrides import is_own

from ..dataset import NumpyArray
from .base import Augmentation, Compose
from .moves import Crop, Cutout, Flip, Shift
from .values import Normalise, Rescale

MOVE, FLIP_COLUMNS, FLIP_ROWS, CUTOUT = range(4)
"""The kinds of stages, numbered as in the kernel."""

_FAR = 1 << 30  # positions beyond this do not fit the kernel's 32-bit integers
_WIDE = 1 << 16  # channels; a lookup table for more could be larger than the data


@dataclass(frozen=True)
class AugmentProgram:
    """The arguments of the kernels `select` and `gather` of ``xpnet.accel.cupy.batches``, as NumPy arrays.

    Attributes:
        shape: of a resulting example.
        dtype: of the result.
        stages: (S, 12) int64; None: no pixel moves.
        fills: (S, C) of `dtype`, the fill value of each stage after the changes of value that follow it; None without stages.
        table: (256, C) of `dtype`, or (256, 1) for all channels: the value of each byte; None unless the data are bytes.
        values: (K, 2, C) of `dtype`: each pair (a, b) changes a number v to (v - a) / b; None for no change.
    """

    shape: tuple[int, ...]
    dtype: str
    stages: NumpyArray | None
    fills: NumpyArray | None
    table: NumpyArray | None
    values: NumpyArray | None


def augment_program(
    augment: Augmentation | None,
    seed: int,
    shape: tuple[int, ...],
    dtype: str,
    convert: Callable[[NumpyArray], Any] | None = None,
    alike: bool = True,
) -> AugmentProgram | None:
    """Return the program of an augmentation, or None if a stage cannot be expressed in one.

    Such stages are Mixup, Rotation, Elastic, user-defined classes and those with a replaced method; Rescale and Normalise
    in half precision, and bytes that stay bytes.

    Args:
        augment: any; None changes nothing.
        seed: of the augmentation.
        shape: of an example in the data, (H, W, C); of any number of axes where no pixel moves.
        dtype: of the data.
        convert: elementwise conversion of bytes before the augmentation: (256, 1, 1, C) uint8 to floating.
        alike: whether `convert` does the same for all channels.

    Raises:
        ValueError, TypeError: the augmentation does not fit such examples.
    """
    channels = shape[-1] if shape else 1
    if not _are_own(augment):
        return None
    flat = list(_flat(augment, seed, ()))
    different = channels if not alike or any(type(stage) is Normalise for stage, _ in flat) else 1
    bytes_ = dtype == "uint8"
    if bytes_ and different > _WIDE:
        return None
    samples: Any = np.zeros((1, 1, 1, different), dtype)  # run through the stages
    if bytes_:
        samples = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 1, 1, different))
        samples = samples if convert is None else convert(samples)
    stages: list[list[int]] = []
    fills: list[Any] = []
    pairs: list[NumpyArray] = []
    for stage, key in flat:
        kind = type(stage)
        if kind in (Rescale, Normalise):
            if not bytes_ and samples.dtype not in ((np.float32,) if kind is Rescale else (np.float32, np.float64)):
                return None
            kept = samples.dtype
            samples, *fills = (stage.apply(np, a, None, random.generator(key))[0] for a in (samples, *fills))
            if not bytes_:
                pairs.append(_pair(stage, channels, kept))
            continue
        if len(shape) != 3:
            return None  # `apply` raises: these are no images
        found = _stage(stage, shape, key)
        if found is None:
            return None
        row, shape, fill = found
        stages.append(row)
        fills.append(np.full((1, 1, 1, different), fill, samples.dtype))
    if samples.dtype.kind != "f":
        return None
    return AugmentProgram(
        shape,
        samples.dtype.name,
        np.array(stages, np.int64) if stages else None,
        np.stack([np.broadcast_to(fill.reshape(different), (channels,)) for fill in fills]) if stages else None,
        np.ascontiguousarray(samples.reshape(256, different)) if bytes_ else None,
        np.stack(pairs) if pairs else None,
    )


def _are_own(stage: Augmentation | None) -> bool:
    """Return whether no method of a stage is replaced."""
    return stage is None or (is_own(stage) and all(map(_are_own, getattr(stage, "stages", ()))))


def _flat(stage: Augmentation | None, seed: int, place: tuple[int, ...]) -> Iterator[tuple[Augmentation, random.Key]]:
    """Yield the stages with the keys of `Augmentation.staged`."""
    if type(stage) is Compose:
        for i, part in enumerate(stage.stages):
            yield from _flat(part, seed, (*place, i))
    elif stage is not None:
        yield stage, random.key(seed, "augment", *place)


def _pair(stage: Any, channels: int, dtype: Any) -> NumpyArray:
    mean, std = ((0.0,), (stage.divisor,)) if type(stage) is Rescale else (stage.mean, stage.std)
    return np.stack([np.broadcast_to(np.array(v, dtype), (channels,)) for v in (mean, std)])


def _stage(stage: Any, shape: tuple[int, ...], key: random.Key) -> tuple[list[int], tuple[int, ...], float] | None:
    """Return a stage's row of the program, the shape of its output, and its fill value."""
    (H, W, C), kind = shape, type(stage)
    fill, size, threshold = getattr(stage, "fill", 0.0), 0, 0
    choices, offset, sign, paired = (1, 1), 0, 1, 0
    if kind is Shift:
        choices, offset, sign, paired = (2 * stage.pixels + 1,) * 2, stage.pixels, -1, 1
    elif kind is Crop:
        OH, OW = (H, W) if stage.size is None else stage.size
        choices, offset = (H + 2 * stage.padding - OH + 1, W + 2 * stage.padding - OW + 1), -stage.padding
        shape = (OH, OW, C)
        if min(*choices, OH, OW) < 1:
            return None  # `apply` raises
    elif kind is Cutout:
        choices, offset, size = (H, W), -(stage.size // 2), stage.size
    elif kind is Flip:
        # The multiples k of 2**-53 below p are those with k < p * 2**53, an exact product.
        threshold = math.ceil(stage.p * 2.0**53)
    else:
        return None
    # Draws are 0 .. choices - 1, and choices must fit 32 bits.
    number = CUTOUT if kind is Cutout else MOVE if kind is not Flip else FLIP_ROWS if stage.vertical else FLIP_COLUMNS
    if max(*choices, abs(offset), size) > 2 * _FAR + 1 or abs(offset) > _FAR:
        return None
    words = (word - (1 << 64) if word >= 1 << 63 else word for word in key)  # the same bits as int64
    return [number, H, W, size, *choices, offset, sign, paired, *words, threshold], shape, fill
