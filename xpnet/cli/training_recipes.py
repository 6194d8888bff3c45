"""How each data set is trained when the command line does not say.

The numbers were chosen with a quarter of the training part held out; the test part had no say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from xpnet.data import augment
from xpnet.data.augment import Augmentation


@dataclass(frozen=True)
class Recipe:
    """Defaults for one data set.

    Attributes:
        epochs, batch_size, learning_rate: as on the command line.
        weight_decay: of AdamW; a few weights that see few examples need much.
        augmentation: makes the augmentation, given the value of an empty pixel; None for none.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    augmentation: Callable[[float], Augmentation] | None = None
    weight_decay: float = 0.0


def _turned(fill: float) -> Augmentation:
    return augment.Rotation(10, fill)


def _shifted(fill: float) -> Augmentation:
    return augment.Shift(2, fill)


def _mirrored_and_shifted(fill: float) -> Augmentation:
    return augment.Compose(augment.Flip(), augment.Crop(4, fill=fill))


RECIPES = {
    "iris": Recipe(60, 16, 2e-2, weight_decay=1.0),
    "digits": Recipe(20, 64, 2e-3, _turned),
    "mnist": Recipe(6, 128, 2e-3),
    "fashion-mnist": Recipe(10, 128, 2e-3),
    "cifar10": Recipe(20, 128, 2e-3, _mirrored_and_shifted),
    "cifar100": Recipe(30, 128, 2e-3, _mirrored_and_shifted),
}

IMAGES = Recipe(20, 64, 2e-3, _shifted)
FEATURES = Recipe(60, 32, 5e-3, weight_decay=0.1)
"""For data that nobody has chosen a recipe for."""


def warm_cosine(peak: float, steps: int, warm: float = 0.1) -> Callable[[int], float]:
    """A schedule: up to `peak` in a line over the first tenth of the steps, then down to 0 along half a cosine.

    Source: Loshchilov and Hutter, "SGDR", 2017; Goyal et al., "Accurate, large minibatch SGD", 2017 (warm-up).
    """
    rise = max(1, round(warm * steps))

    def schedule(step: int) -> float:
        if step < rise:
            return peak * (step + 1) / rise
        return peak * 0.5 * (1 + math.cos(math.pi * min((step - rise) / max(steps - rise, 1), 1.0)))

    return schedule
