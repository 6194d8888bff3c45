"""Changes that move whole pixels or paint over them: shift, flip, crop, cutout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xpnet.backend import Array, Namespace, dtype_name

from ..sources import like
from .base import Augmentation, images, require


def _pick(xp: Namespace, x: Array, rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any], fill: float) -> Array:
    """out[n, i, j] = x[n, rows[n, i], columns[n, j]], and `fill` where that lies outside.

    Args:
        xp: the namespace of x.
        x: (N, H, W, C).
        rows: integers (N, OH).
        columns: integers (N, OW).
        fill: any number.
    """
    N, H, W, C = x.shape
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None, :]
    rows, columns = rows.clip(0, H - 1), columns.clip(0, W - 1)
    index = (np.arange(N)[:, None, None] * H + rows[:, :, None]) * W + columns[:, None, :]
    out = xp.reshape(xp.take(xp.reshape(x, (N * H * W, C)), like(xp, x, index.reshape(-1)), axis=0), (*index.shape, C))
    if inside.all():
        return out
    return xp.where(like(xp, x, inside[..., None]), out, like(xp, x, np.full((1, 1, 1, 1), fill, dtype_name(x))))


@dataclass(frozen=True)
class Shift(Augmentation):
    """Move each image by up to `pixels` up or down and left or right; what comes in is `fill`.

    Source: the shifted copies of P. Simard, D. Steinkraus, J. Platt (2003).
    """

    pixels: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        require(self.pixels >= 0, f"pixels must not be negative, got {self.pixels}")

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Two whole numbers for each image."""
        N, H, W, _ = images(self, x)
        by = rng.integers(-self.pixels, self.pixels, (N, 2), endpoint=True)
        return _pick(xp, x, np.arange(H) - by[:, :1], np.arange(W) - by[:, 1:], self.fill), y


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirror each image with probability `p`: left and right, or up and down if `vertical`."""

    p: float = 0.5
    vertical: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, f"p must lie in [0, 1], got {self.p}")

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """One number for each image."""
        N = images(self, x)[0]
        turned = like(xp, x, (rng.random(N) < self.p)[:, None, None, None])
        return xp.where(turned, xp.flip(x, axis=1 if self.vertical else 2), x), y


@dataclass(frozen=True)
class Crop(Augmentation):
    """Surround each image with `padding` pixels of `fill` and cut a random piece out of it.

    Args:
        padding: pixels on every side.
        size: (OH, OW) of the piece; None: the size of the image.
        fill: the value of the padding.
    """

    padding: int
    size: tuple[int, int] | None = None
    fill: float = 0.0

    def __post_init__(self) -> None:
        require(self.padding >= 0, f"padding must not be negative, got {self.padding}")

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Two whole numbers for each image: the corner of the piece."""
        N, H, W, _ = images(self, x)
        OH, OW = (H, W) if self.size is None else self.size
        room = H + 2 * self.padding - OH, W + 2 * self.padding - OW
        require(
            min(room) >= 0 and min(OH, OW) > 0,
            f"Crop cannot cut {OH} x {OW} out of {H} x {W} with {self.padding} pixels of padding",
        )
        top = rng.integers(0, room[0], (N, 1), endpoint=True) - self.padding
        left = rng.integers(0, room[1], (N, 1), endpoint=True) - self.padding
        return _pick(xp, x, np.arange(OH) + top, np.arange(OW) + left, self.fill), y


@dataclass(frozen=True)
class Cutout(Augmentation):
    """Paint a square of `size` pixels over each image, its centre anywhere in the image.

    Source: T. DeVries, G. Taylor, "Improved regularization of convolutional neural networks with cutout"
        (2017).
    """

    size: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        require(self.size > 0, f"size must be positive, got {self.size}")

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Two whole numbers for each image."""
        N, H, W, _ = images(self, x)
        hit = []
        for length in (H, W):
            start = rng.integers(0, length, (N, 1)) - self.size // 2
            hit.append((np.arange(length) >= start) & (np.arange(length) < start + self.size))
        mask = like(xp, x, (hit[0][:, :, None] & hit[1][:, None, :])[..., None])
        return xp.where(mask, like(xp, x, np.full((1, 1, 1, 1), self.fill, dtype_name(x))), x), y
