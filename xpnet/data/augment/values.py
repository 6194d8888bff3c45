"""Augmentations that change values: mixup, rescaling, normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from xpnet.backend import Array, Namespace, describe, dtype_name, namespace
from xpnet.runtime.settings import check_numbers, check_whole

from ..arrays import like
from ..preprocessing import one_hot
from .base import Augmentation, floating, require


@dataclass(frozen=True)
class Mixup(Augmentation):
    """Mix each example with another of the batch: x = l x_i + (1 - l) x_j, y likewise, l from Beta(alpha, alpha).

    Class indices become probabilities (N, classes) for `softmax_cross_entropy`; floating targets are mixed as they are.
    Source: H. Zhang, M. Cisse, Y. Dauphin, D. Lopez-Paz, "mixup: Beyond empirical risk minimization" (2018), with one l for
    each example.

    Args:
        alpha: positive; if small, l is mostly near 0 or 1.
        classes: K, needed for class indices.
    """

    alpha: float = 0.2
    classes: int | None = None

    def __post_init__(self) -> None:
        require(self.alpha > 0, f"alpha must be positive, got {self.alpha}")
        check_numbers("Mixup", "(0, inf)", alpha=self.alpha)
        if self.classes is not None:
            check_whole("Mixup", 1, classes=self.classes)

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Draw one number for each example, and a permutation of the batch."""
        floating(self, xp, x)
        N = x.shape[0]
        part = rng.beta(self.alpha, self.alpha, N)
        other = like(xp, x, rng.permutation(N))
        if y is not None:
            yp = namespace(x, y)
            if not yp.isdtype(y.dtype, "real floating"):
                require(self.classes is not None, "Mixup of integer labels needs their number: Mixup(classes=...)")
                y = one_hot(y, int(self.classes or 0), dtype=dtype_name(x))
            y = _mixed(yp, y, part, other)
        return _mixed(xp, x, part, other), y


def _mixed(xp: Namespace, a: Array, part: np.ndarray[Any, Any], other: Array) -> Array:
    weight = like(xp, a, part.astype(dtype_name(a)).reshape(-1, *(1,) * (len(a.shape) - 1)))
    return cast(Array, weight * a + (1 - weight) * xp.take(a, other, axis=0))


@dataclass(frozen=True)
class Rescale(Augmentation):
    """x / divisor as float32: bytes 0 to 255 become numbers in [0, 1]."""

    divisor: float = 255.0

    def __post_init__(self) -> None:
        check_numbers("Rescale", "(0, inf)", divisor=self.divisor)

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Return the result; no random numbers are drawn."""
        return xp.astype(x, xp.float32) / self.divisor, y


@dataclass(frozen=True)
class Normalise(Augmentation):
    """(x - mean) / std for each channel, for example with the published `mean` and `std` of a data set."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        require(len(self.mean) == len(self.std), f"{len(self.mean)} means and {len(self.std)} deviations")
        require(min(self.std) > 0, f"deviations must be positive, got {self.std}")
        check_numbers("Normalise", "(-inf, inf)", **{f"mean[{i}]": value for i, value in enumerate(self.mean)})
        check_numbers("Normalise", "(0, inf)", **{f"std[{i}]": value for i, value in enumerate(self.std)})

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Return the result; no random numbers are drawn."""
        floating(self, xp, x)
        require(
            len(self.mean) in (1, x.shape[-1]),
            f"Normalise has {len(self.mean)} channels, the images have {x.shape[-1]}: {describe(x)}",
        )
        mean, std = (like(xp, x, np.array(v, dtype_name(x))) for v in (self.mean, self.std))
        return (x - mean) / std, y
