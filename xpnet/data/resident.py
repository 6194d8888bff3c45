"""A data set that stays in memory as bytes and becomes numbers a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpnet import backend
from xpnet.backend import Array, Device, name_of, namespace


class Bytes:
    """Images kept as bytes, in main memory or in a GPU's: a quarter of the memory of float32.

    A batch of it is (bytes * scale - mean) / std, gathered, converted and normalised in one pass (on a GPU by one kernel). Use
    it in the place of x: ``trainer.fit((xn.data.Bytes(images, device="cuda"), labels))``.

    Args:
        images: (N, ..., C) uint8, of any library.
        scale: what a byte is multiplied by.
        mean, std: C numbers, for the last axis, in units of the scaled values; both or neither.
        dtype: of the batches, "float32" or another floating dtype.
        device: where the bytes live.

    Raises:
        ValueError: other dtypes, or a mean and std that do not fit.
    """

    def __init__(
        self,
        images: Array,
        *,
        scale: float = 1 / 255,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: str = "float32",
        device: str | Device = "cpu",
    ) -> None:
        if backend.dtype_name(images) != "uint8" or images.ndim < 2:
            raise ValueError(f"Bytes: expected images (N, ..., C) of uint8, got {backend.describe(images)}")
        if (mean is None) != (std is None):
            raise ValueError("Bytes: give both mean and std, or neither")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != images.shape[-1]:
                raise ValueError(f"Bytes: {name} has {len(values)} numbers, the images {images.shape[-1]} channels")
        place = backend.device(device)
        self.images = backend.to_device(images, place)
        self.scale = scale
        self.mean = None if mean is None else backend.to_device(np.asarray(mean, dtype), place)
        self.std = None if std is None else backend.to_device(np.asarray(std, dtype), place)
        self.dtype = np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ..., C)."""
        return tuple(self.images.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        """The images of a slice or of an array of indices, as numbers."""
        xp = namespace(self.images)
        if isinstance(index, slice):
            index = xp.arange(*index.indices(len(self)), dtype=xp.int64)
        return gathered(self, xp.asarray(index), kernel=name_of(xp) == "cupy")


def gathered(data: Bytes, index: Array, kernel: bool) -> Array:
    """The images at `index` (int64, on their device) as numbers, by the CUDA kernel or by array code."""
    xp = namespace(data.images)
    dtype = getattr(xp, data.dtype.name)
    if kernel:
        from xpnet.accel.cupy.batches import gather_bytes

        return gather_bytes(xp, data.images, index, scale=data.scale, mean=data.mean, deviation=data.std, dtype=dtype)
    batch = xp.astype(xp.take(data.images, index, axis=0), dtype)
    batch *= data.scale
    if data.mean is not None:
        batch -= data.mean
        batch /= data.std
    return batch
