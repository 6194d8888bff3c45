"""Augmentations that move whole pixels or overwrite them: shift, flip, crop, cutout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from xpnet.backend import Array, Namespace, dtype_name
from xpnet.runtime.settings import check_numbers, check_whole

from ..arrays import like
from .base import Augmentation, images, require


def cut(
    xp: Namespace, x: Array, top: np.ndarray[Any, Any], left: np.ndarray[Any, Any], size: tuple[int, int], fill: float
) -> Array:
    """Cut a patch out of each image: out[n, i, j] = x[n, top[n] + i, left[n] + j], and `fill` outside.

    Args:
        xp: the namespace of x.
        x: (N, H, W, C).
        top: integers (N,), on the host.
        left: the same.
        size: (OH, OW) of a patch.
        fill: any number.
    """
    (N, H, W, C), (OH, OW) = x.shape, size
    if xp is np:
        # A slice per image copies runs of OW * C numbers; gathering single pixels takes ten times as long.
        out = np.full((N, OH, OW, C), fill, x.dtype)
        for n, (r, c) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            r0, r1, c0, c1 = max(r, 0), min(r + OH, H), max(c, 0), min(c + OW, W)
            if r0 < r1 and c0 < c1:
                out[n, r0 - r : r1 - r, c0 - c : c1 - c] = x[n, r0:r1, c0:c1]
        return out
    rows, columns = top[:, None] + np.arange(OH), left[:, None] + np.arange(OW)
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None, :]
    rows, columns = rows.clip(0, H - 1), columns.clip(0, W - 1)
    index = (np.arange(N)[:, None, None] * H + rows[:, :, None]) * W + columns[:, None, :]
    pixels = xp.take(xp.reshape(x, (N * H * W, C)), like(xp, x, index.reshape(-1)), axis=0)
    blank = like(xp, x, np.full((1, 1, 1, 1), fill, dtype_name(x)))
    return cast(Array, xp.where(like(xp, x, inside[..., None]), xp.reshape(pixels, (N, OH, OW, C)), blank))


@dataclass(frozen=True)
class Shift(Augmentation):
    """Move each image by up to `pixels` up or down and left or right; new pixels are `fill`.

    Source: P. Simard, D. Steinkraus, J. Platt (2003).
    """

    pixels: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        require(self.pixels >= 0, f"pixels must not be negative, got {self.pixels}")
        check_whole("Shift", 0, pixels=self.pixels)
        check_numbers("Shift", "(-inf, inf)", fill=self.fill)

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Draw two integers for each image."""
        N, H, W, _ = images(self, x)
        by = rng.integers(-self.pixels, self.pixels, (N, 2), endpoint=True)
        return cut(xp, x, -by[:, 0], -by[:, 1], (H, W), self.fill), y


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirror each image with probability `p`: left and right, or up and down if `vertical`."""

    p: float = 0.5
    vertical: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, f"p must lie in [0, 1], got {self.p}")

    def apply(self, xp: Namespace, x: Any, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Draw one number for each image."""
        N = images(self, x)[0]
        turned, axis = rng.random(N) < self.p, 1 if self.vertical else 2
        if xp is np:
            out = x.copy()
            out[turned] = x[turned].take(np.arange(x.shape[axis])[::-1], axis=axis)
            return out, y
        return xp.where(like(xp, x, turned[:, None, None, None]), xp.flip(x, axis=axis), x), y


@dataclass(frozen=True)
class Crop(Augmentation):
    """Pad each image with `padding` pixels of `fill` and cut a random patch out of it.

    Args:
        padding: pixels on every side.
        size: (OH, OW) of the patch; None: the size of the image.
        fill: the value of the padding.
    """

    padding: int
    size: tuple[int, int] | None = None
    fill: float = 0.0

    def __post_init__(self) -> None:
        require(self.padding >= 0, f"padding must not be negative, got {self.padding}")
        check_whole("Crop", 0, padding=self.padding)
        check_numbers("Crop", "(-inf, inf)", fill=self.fill)
        if self.size is not None:
            require(
                hasattr(self.size, "__len__") and len(self.size) == 2, f"Crop: size must be (height, width), got {self.size}"
            )
            check_whole("Crop", 1, height=self.size[0], width=self.size[1])

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Draw two integers for each image: the corner of the patch."""
        N, H, W, _ = images(self, x)
        OH, OW = (H, W) if self.size is None else self.size
        room = H + 2 * self.padding - OH, W + 2 * self.padding - OW
        require(
            min(room) >= 0 and min(OH, OW) > 0,
            f"Crop cannot cut {OH} x {OW} out of {H} x {W} with {self.padding} pixels of padding",
        )
        top = rng.integers(0, room[0], N, endpoint=True) - self.padding
        left = rng.integers(0, room[1], N, endpoint=True) - self.padding
        return cut(xp, x, top, left, (OH, OW), self.fill), y


@dataclass(frozen=True)
class Cutout(Augmentation):
    """Overwrite a square of `size` pixels in each image, its centre anywhere in the image.

    Source: T. DeVries, G. Taylor, "Improved regularization of convolutional neural networks with cutout"
        (2017).
    """

    size: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        require(self.size > 0, f"size must be positive, got {self.size}")
        check_whole("Cutout", 1, size=self.size)
        check_numbers("Cutout", "(-inf, inf)", fill=self.fill)

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Draw two integers for each image."""
        N, H, W, _ = images(self, x)
        hit = []
        for length in (H, W):
            start = rng.integers(0, length, (N, 1)) - self.size // 2
            hit.append((np.arange(length) >= start) & (np.arange(length) < start + self.size))
        mask = like(xp, x, (hit[0][:, :, None] & hit[1][:, None, :])[..., None])
        return xp.where(mask, like(xp, x, np.full((1, 1, 1, 1), self.fill, dtype_name(x))), x), y
