"""Transforms of single features or channels: mean, standard deviation, range, scale, the bias trick."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from xpnet.backend import Array, Namespace
from xpnet.runtime.settings import check_numbers

from ..dataset import NumpyArray
from .base import Per, Transform, axes_of, chunks, mean_of


class _Per(Transform):
    """A transform with one number for each channel, for each feature, or for all."""

    setting_names: tuple[str, ...] = ("per",)

    def __init__(self, per: Per = "channel"):
        super().__init__()
        axes_of(per, np.empty((0, 0)))
        self.per = per


class MeanSubtraction(_Per):
    """x - mean.

    Args:
        per: "feature": one mean for every pixel and channel (the mean image); "channel": for every entry of
            the last axis; "all": one number.
    """

    fitted_names = frozenset({"mean"})

    def __init__(self, per: Per = "feature"):
        super().__init__(per)

    def _fit(self, x: Array) -> dict[str, NumpyArray]:
        return {"mean": mean_of(x, self.per)}

    def _apply(self, xp: Namespace, x: Array) -> Array:
        return x - self._get(xp, x, "mean")

    def _undo(self, xp: Namespace, z: Array) -> Array:
        return z + self._get(xp, z, "mean")


class Standardize(_Per):
    """(x - mean) / std; where the deviation is 0 (a constant feature) it is taken as 1.

    Args:
        per: "channel": one pair of numbers for every entry of the last axis, which for (N, F) is every
            feature; "feature": for every pixel and channel; "all": one pair.
    """

    fitted_names = frozenset({"mean", "std"})

    def _fit(self, x: Array) -> dict[str, NumpyArray]:
        axes, mean = axes_of(self.per, x), mean_of(x, self.per)
        squares = sum(((chunk - mean) ** 2).sum(axes) for chunk in chunks(x))
        std = np.asarray(np.sqrt(squares / math.prod(x.shape[a] for a in axes)))
        # For a constant feature, rounding of the mean leaves a deviation of a few ulps.
        return {"mean": mean, "std": np.where(std > 1e-12 * np.abs(mean), std, 1.0)}

    @classmethod
    def from_moments(cls, mean: Any, std: Any, shape: tuple[int, ...]) -> Standardize:
        """Return a transform with a given mean and deviation for each channel, such as the published ones of a data set.

        Args:
            mean: one number for each channel.
            std: the same, positive.
            shape: of one example, without N.
        """
        made = cls("channel")
        arrays = {"mean": np.array(mean, np.float64), "std": np.array(std, np.float64)}
        for name, array in arrays.items():
            if array.shape != tuple(shape[-1:]):
                raise ValueError(f"{name} has shape {array.shape}, expected one for each channel: {tuple(shape[-1:])}")
        if not (arrays["std"] > 0).all():
            raise ValueError(f"std must be positive, got {std}")
        made.arrays, made.shape = arrays, tuple(shape)
        return made

    def _apply(self, xp: Namespace, x: Array) -> Array:
        return (x - self._get(xp, x, "mean")) / self._get(xp, x, "std")

    def _undo(self, xp: Namespace, z: Array) -> Array:
        return z * self._get(xp, z, "std") + self._get(xp, z, "mean")


class MinMax(_Per):
    """Map the range of the training data to [low, high]; a constant feature goes to `low`.

    Args:
        low: image of the minimum.
        high: image of the maximum.
        per: see :class:`Standardize`.
    """

    fitted_names = frozenset({"least", "range"})
    setting_names = ("low", "high", "per")

    def __init__(self, low: float = 0.0, high: float = 1.0, per: Per = "channel"):
        super().__init__(per)
        check_numbers("MinMax", "(-inf, inf)", low=low, high=high)
        if not low < high:
            raise ValueError(f"low must be less than high, got {low} and {high}")
        self.low, self.high = float(low), float(high)

    def _fit(self, x: Array) -> dict[str, NumpyArray]:
        axes = axes_of(self.per, x)
        least = np.asarray(np.minimum.reduce([chunk.min(axes) for chunk in chunks(x)]))
        greatest = np.asarray(np.maximum.reduce([chunk.max(axes) for chunk in chunks(x)]))
        return {"least": least, "range": np.where(greatest > least, greatest - least, 1.0)}

    def _apply(self, xp: Namespace, x: Array) -> Array:
        unit = (x - self._get(xp, x, "least")) / self._get(xp, x, "range")
        return unit * (self.high - self.low) + self.low

    def _undo(self, xp: Namespace, z: Array) -> Array:
        unit = (z - self.low) / (self.high - self.low)
        return unit * self._get(xp, z, "range") + self._get(xp, z, "least")


class Scale(Transform):
    """x / divisor, for example bytes / 255; nothing is fitted."""

    needs_fit = False
    setting_names = ("divisor",)

    def __init__(self, divisor: float = 255.0):
        super().__init__()
        if divisor == 0:
            raise ValueError("divisor must not be 0")
        check_numbers("Scale", "(0, inf)", divisor=divisor)
        self.divisor = float(divisor)

    def _apply(self, xp: Namespace, x: Array) -> Array:
        return x / self.divisor

    def _undo(self, xp: Namespace, z: Array) -> Array:
        return z * self.divisor


class Bias(Transform):
    """The bias trick: append a 1 to the last axis, so that a weight matrix holds the bias as its last row."""

    needs_fit = False

    def _apply(self, xp: Namespace, x: Array) -> Array:
        return cast(Array, xp.concat([x, xp.ones_like(x[..., :1])], axis=-1))

    def _undo(self, xp: Namespace, z: Array) -> Array:
        return z[..., :-1]
