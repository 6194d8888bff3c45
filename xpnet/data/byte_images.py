"""A data set that stays in memory as bytes and becomes numbers a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpnet import backend
from xpnet.backend import Array, Device, name_of, namespace


class Bytes:
    """Images kept as bytes, in main memory or in a GPU's: a quarter of the memory of float32.

    A batch of it is (bytes * scale - mean) / std. On a GPU each byte is looked up in a table of these, so the bits are those of
    the CPU. Use it in the place of x: ``trainer.fit((xn.data.Bytes(images, device="cuda"), labels))``; a recorded step then
    gathers, augments and converts its own batch.

    Args:
        images: (N, ..., C) uint8, of any library.
        scale: what a byte is multiplied by.
        mean, std: C numbers, for the last axis, in units of the scaled values; both or neither.
        dtype: of the batches, "float32" or another floating dtype.
        device: where the bytes live.

    Raises:
        ValueError: other dtypes, or a mean and std that do not fit.
    """

    gathers = True  # its own examples: see arrays._InBytes

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
        if not hasattr(images, "dtype") or backend.dtype_name(images) != "uint8" or images.ndim < 2:
            raise ValueError(f"Bytes: expected images (N, ..., C) of uint8, got {backend.describe(images)}")
        if (mean is None) != (std is None):
            raise ValueError("Bytes: give both mean and std, or neither")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != images.shape[-1]:
                raise ValueError(f"Bytes: {name} has {len(values)} numbers, the images {images.shape[-1]} channels")
        self.device = backend.device(device)
        self.images = backend.to_device(images, self.device)
        self.scale = scale
        self.mean = None if mean is None else np.asarray(mean, dtype)
        self.std = None if std is None else np.asarray(std, dtype)
        self.dtype = np.dtype(dtype)
        self._there: tuple[Array, Array] | None = None  # mean and std beside the images, once they are asked for
        self._table: Array | None = None

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

    def numbers(self, images: Array) -> Array:
        """Bytes of any shape (..., C) as numbers: what every batch of them is."""
        xp = namespace(images)
        batch = xp.astype(images, getattr(xp, self.dtype.name))
        batch *= self.scale
        if self.mean is not None:
            mean, std = (self.mean, self.std) if xp is np else self._beside()
            batch -= mean
            batch /= std
        return batch

    def _beside(self) -> tuple[Array, Array]:
        if self._there is None:
            self._there = backend.to_device(self.mean, self.device), backend.to_device(self.std, self.device)
        return self._there

    def program(self, augment: Any = None, seed: int = 0) -> Any:
        """The `xpnet.data.augment.program.Program` from the bytes to augmented numbers, or None."""
        from .augment.program import program

        return program(augment, seed, self.shape[1:], "uint8", self.numbers, self.mean is None)

    def table(self) -> Array | None:
        """What each byte becomes, (256, C) or (256, 1), beside the images; None where that would be too large."""
        if self._table is None and (made := self.program()) is not None:
            self._table = backend.to_device(made.table, self.device)
        return self._table


def gathered(data: Bytes, index: Array, kernel: bool) -> Array:
    """The images at `index` (int64, on their device) as numbers, by the CUDA kernel or by array code: the same bits."""
    xp = namespace(data.images)
    table = data.table() if kernel else None
    if table is None:
        return data.numbers(xp.take(data.images, index, axis=0))
    from xpnet.accel.cupy.batches import gather

    out = xp.empty((index.shape[0], *data.shape[1:]), dtype=getattr(xp, data.dtype.name))
    gather(data.images, index, out, table=table)
    return out
