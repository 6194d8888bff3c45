"""Augmentations that sample the image at fractional positions: rotation and elastic distortion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from xpnet.backend import Array, Namespace, dtype_name, namespace
from xpnet.runtime.settings import check_numbers

from ..arrays import like
from ..dataset import NumpyArray
from .base import Augmentation, floating, images, require


def warp(x: Array, rows: Array, columns: Array, fill: float = 0.0) -> Array:
    """Sample images at fractional positions, bilinearly: out[n, i, j] = x[n, rows[n, i, j], columns[n, i, j]].

    Args:
        x: (N, H, W, C), floating.
        rows: (N, OH, OW), of the library and dtype of x; row 0 is the centre of the first pixels.
        columns: the same.
        fill: the value outside the image.

    Returns:
        (N, OH, OW, C).
    """
    xp = namespace(x, rows, columns)
    N, H, W, C = x.shape
    # A border of one pixel around each image, 0 because `fill` is subtracted, represents everything outside.
    side, above = xp.zeros_like(x[:, :, :1, :]), xp.zeros_like(x[:, :1, :1, :])
    above = xp.broadcast_to(above, (N, 1, W + 2, C))
    framed = xp.concat([above, xp.concat([side, x - fill, side], axis=2), above], axis=1)
    flat = xp.reshape(framed, (N * (H + 2) * (W + 2), C))
    rows, columns = xp.clip(rows, -1.0, float(H)), xp.clip(columns, -1.0, float(W))
    top, left = xp.clip(xp.floor(rows), -1.0, H - 1.0), xp.clip(xp.floor(columns), -1.0, W - 1.0)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    images = like(xp, x, (np.arange(N) * ((H + 2) * (W + 2)))[:, None, None])
    index = xp.reshape(images + xp.astype((top + 1) * (W + 2) + (left + 1), xp.int64), (-1,))

    def corner(offset: int) -> Any:
        return xp.reshape(xp.take(flat, index + offset, axis=0), (*rows.shape, C))

    upper, lower = corner(0), corner(W + 2)
    upper = upper + right * (corner(1) - upper)
    lower = lower + right * (corner(W + 3) - lower)
    return cast(Array, upper + down * (lower - upper) + fill)


def _grid(xp: Namespace, x: Array) -> tuple[Array, Array]:
    """Return the coordinates of the pixels: rows (1, H, 1) and columns (1, 1, W), in the dtype of x."""
    _, H, W, _ = x.shape
    rows = np.arange(H).astype(dtype_name(x))[None, :, None]
    return like(xp, x, rows), like(xp, x, np.arange(W).astype(dtype_name(x))[None, None, :])


@dataclass(frozen=True)
class Rotation(Augmentation):
    """Rotate each image about its centre by an angle of up to `degrees` either way (bilinear)."""

    degrees: float
    fill: float = 0.0

    def __post_init__(self) -> None:
        check_numbers("Rotation", "[0, inf)", degrees=self.degrees)
        check_numbers("Rotation", "(-inf, inf)", fill=self.fill)

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Draw one angle for each image."""
        N, H, W, _ = images(self, x)
        floating(self, xp, x)
        angle = np.deg2rad(rng.uniform(-self.degrees, self.degrees, (N, 1, 1)))
        cos, sin = (like(xp, x, f(angle).astype(dtype_name(x))) for f in (np.cos, np.sin))
        rows, columns = _grid(xp, x)
        rows, columns = rows - (H - 1) / 2, columns - (W - 1) / 2
        return warp(x, cos * rows - sin * columns + (H - 1) / 2, sin * rows + cos * columns + (W - 1) / 2, self.fill), y


@dataclass(frozen=True)
class Elastic(Augmentation):
    """Displace the pixels of each image along a random smooth field (bilinear).

    The field is uniform noise in [-1, 1] for every pixel and direction, smoothed with a Gaussian of `sigma`
    pixels, times `alpha` pixels. Source: P. Simard, D. Steinkraus, J. Platt, "Best practices for
    convolutional neural networks" (2003), with alpha 34 and sigma 4 for 29 x 29 digits.
    """

    alpha: float = 34.0
    sigma: float = 4.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        require(self.sigma > 0, f"sigma must be positive, got {self.sigma}")
        check_numbers("Elastic", "(0, inf)", sigma=self.sigma)
        check_numbers("Elastic", "[0, inf)", alpha=self.alpha)
        check_numbers("Elastic", "(-inf, inf)", fill=self.fill)

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Draw two numbers for each pixel."""
        N, H, W, _ = images(self, x)
        floating(self, xp, x)
        noise = rng.random((2, N, H, W), dtype=np.float32) * 2 - 1
        smooth = [like(xp, x, _gaussian(n, self.sigma).astype(dtype_name(x))) for n in (H, W)]
        field = like(xp, x, noise.astype(dtype_name(x), copy=False))
        field = xp.matmul(xp.matmul(smooth[0], field), smooth[1]) * self.alpha
        rows, columns = _grid(xp, x)
        return warp(x, rows + field[0, ...], columns + field[1, ...], self.fill), y


def _gaussian(n: int, sigma: float) -> NumpyArray:
    """Return the (n, n) matrix that smooths a line of n pixels, zero-padded at its ends."""
    distance = np.arange(n)[:, None] - np.arange(n)
    reach = np.arange(-n, n + 1)
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    smooth: NumpyArray = weights / np.exp(-0.5 * (reach / sigma) ** 2).sum()
    return smooth
