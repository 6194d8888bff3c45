"""The base class of augmentations, called with a seed and a step, and their composition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpnet import random
from xpnet.backend import Array, Namespace, describe, dtype_name, namespace
from xpnet.runtime.settings import Checked


class Augmentation(Checked, ABC):
    """A random change to a batch. Subclasses define :meth:`apply`."""

    def __call__(self, x: Array, y: Array | None = None, *, seed: int = 0, step: int = 0) -> Any:
        """Augment a batch; return `(x, y)`, or x if no y was given.

        Args:
            x: (N, H, W, C), of any array library.
            y: labels or targets (N, ...).
            seed: any integer.
            step: the number of the batch; each step has its own random numbers.
        """
        xp = namespace(x)
        new_x, new_y = self.staged(xp, x, y, seed, step, ())
        return new_x if y is None else (new_x, new_y)

    def staged(
        self, xp: Namespace, x: Array, y: Array | None, seed: int, step: int, place: tuple[int, ...]
    ) -> tuple[Array, Array | None]:
        """Call :meth:`apply` with the random numbers of this place in a composition."""
        return self.apply(xp, x, y, random.generator(random.key(seed, "augment", *place), step))

    @abstractmethod
    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Return the augmented batch.

        Args:
            xp: the namespace of x.
            x: (N, H, W, C).
            y: labels or targets, or None.
            rng: generator of the random numbers.
        """


def images(augmentation: Augmentation, x: Array) -> tuple[int, int, int, int]:
    """Return the shape (N, H, W, C) of x, or raise a ValueError that names the augmentation."""
    if len(x.shape) != 4:
        raise ValueError(f"{type(augmentation).__name__} expects images (N, H, W, C), got {describe(x)}")
    N, H, W, C = x.shape
    return N, H, W, C


def floating(augmentation: Augmentation, xp: Namespace, x: Array) -> None:
    """Raise a TypeError that names the augmentation, unless x is floating."""
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(
            f"{type(augmentation).__name__} computes with fractions and got {dtype_name(x)}; convert first, "
            f"for example with Rescale(255)"
        )


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with this message, unless the condition holds."""
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, init=False)
class Compose(Augmentation):
    """Several augmentations in sequence, each with its own random numbers."""

    stages: tuple[Augmentation, ...]

    def __init__(self, *stages: Augmentation):
        for stage in stages:
            if not isinstance(stage, Augmentation):
                raise TypeError(f"Compose takes augmentations, got {type(stage).__name__}")
        object.__setattr__(self, "stages", stages)

    def staged(
        self, xp: Namespace, x: Array, y: Array | None, seed: int, step: int, place: tuple[int, ...]
    ) -> tuple[Array, Array | None]:
        """Call every stage, at its own place."""
        for i, stage in enumerate(self.stages):
            x, y = stage.staged(xp, x, y, seed, step, (*place, i))
        return x, y

    def apply(self, xp: Namespace, x: Array, y: Array | None, rng: np.random.Generator) -> tuple[Array, Array | None]:
        """Apply every stage, with the numbers of one generator."""
        for stage in self.stages:
            x, y = stage.apply(xp, x, y, rng)
        return x, y
