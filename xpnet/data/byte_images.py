"""Images that stay in memory as bytes and are converted to floating point batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnet import backend
from xpnet.backend import Array, Device, name_of, namespace
from xpnet.runtime.overrides import is_own
from xpnet.runtime.settings import Checked

from .dataset import NumpyArray

if TYPE_CHECKING:
    from .augment import Augmentation
    from .augment.program import AugmentProgram


class ByteImages(Checked):
    """Images kept as bytes, in main memory or on a GPU: a quarter of the memory of float32.

    A batch is (bytes * scale - mean) / std. On a GPU each byte is looked up in a table of these values, so the bits are those
    of the CPU. Use it in place of x: ``trainer.fit((xn.data.ByteImages(images, device="cuda"), labels))``; a recorded step
    then gathers, augments and converts its own batch.

    Args:
        images: (N, ..., C) uint8, of any library.
        scale: the factor of each byte.
        mean, std: C numbers, for the last axis, in units of the scaled values; both or neither.
        dtype: of the batches, "float32" or another floating dtype.
        device: where the bytes live.

    Raises:
        ValueError: other dtypes, or a mean and std that do not fit.
    """

    gathers = True  # see arrays._InByteImages

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
            raise ValueError(f"ByteImages: expected images (N, ..., C) of uint8, got {backend.describe(images)}")
        if (mean is None) != (std is None):
            raise ValueError("ByteImages: give both mean and std, or neither")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != images.shape[-1]:
                raise ValueError(f"ByteImages: {name} has {len(values)} numbers, the images {images.shape[-1]} channels")
        self.device = backend.device(device)
        self.images = backend.to_device(images, self.device)
        self._scale, self._dtype = scale, np.dtype(dtype)
        self._mean, self._std = _fixed(mean, dtype), _fixed(std, dtype)
        self._moments: tuple[Array, Array] | None = None  # mean and std on the images' device, made when first needed
        self._table: Array | None = None

    # Fixed, as tables of them may be on a device already.

    @property
    def scale(self) -> float:
        """The factor of each byte."""
        return self._scale

    @property
    def mean(self) -> NumpyArray | None:
        """What is subtracted, (C,)."""
        return self._mean

    @property
    def std(self) -> NumpyArray | None:
        """What is divided by, (C,)."""
        return self._std

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the batches."""
        return self._dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (N, ..., C)."""
        return tuple(self.images.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        """Return the images of a slice or of an array of indices, in floating point."""
        xp = namespace(self.images)
        with self.device:
            if isinstance(index, slice):
                index = xp.arange(*index.indices(len(self)), dtype=xp.int64)
            return gathered(self, xp.asarray(index), kernel=name_of(xp) == "cupy")

    def numbers(self, images: Array) -> Array:
        """Convert bytes of any shape (..., C) to floating point, as in every batch."""
        xp = namespace(images)
        batch: Array = xp.astype(images, getattr(xp, self.dtype.name))
        batch *= self.scale
        if self.mean is not None:
            mean, std = (self.mean, self.std) if xp is np else self._device_moments()
            batch -= mean
            batch /= std
        return batch

    def _device_moments(self) -> tuple[Array, Array]:
        if self._moments is None:
            self._moments = backend.to_device(self.mean, self.device), backend.to_device(self.std, self.device)
        return self._moments

    def augment_program(self, augment: Augmentation | None = None, seed: int = 0) -> AugmentProgram | None:
        """Return the program from the bytes to augmented floating point images, or None; see augment.program."""
        from .augment.program import augment_program

        return augment_program(augment, seed, self.shape[1:], "uint8", self.numbers, self.mean is None)

    def table(self) -> Array | None:
        """Return the lookup table of the bytes, (256, C) or (256, 1), on their device; None where it would be too large."""
        if self._table is None and (made := self.augment_program()) is not None:
            self._table = backend.to_device(made.table, self.device)
        return self._table


def _fixed(values: Sequence[float] | None, dtype: str) -> NumpyArray | None:
    """Return a copy that cannot be written to."""
    if values is None:
        return None
    copy = np.array(values, dtype)
    copy.flags.writeable = False
    return copy


def gathered(data: ByteImages, index: Array, kernel: bool) -> Array:
    """Gather the images at `index` (int64, on their device) in floating point, by the CUDA kernel or by array code."""
    xp = namespace(data.images)
    table = data.table() if kernel and is_own(data, "numbers", "augment_program", "table") else None
    if table is None:
        return data.numbers(xp.take(data.images, index, axis=0))
    from xpnet.accel.cupy.batches import gather

    out: Array = xp.empty((index.shape[0], *data.shape[1:]), dtype=getattr(xp, data.dtype.name))
    images: Any = data.images
    if images.flags.c_contiguous:
        gather(images, index, out, table=table)
    else:
        gather(xp.take(images, index, axis=0), None, out, table=table)
    return out
