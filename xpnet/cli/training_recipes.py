"""Default training settings of each data set, for what the command line leaves open.

They were chosen on a quarter of the training part, held out; the test part was not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xpnet.data import augment
from xpnet.data.augment import Augmentation
from xpnet.optim.schedules import Cosine


@dataclass(frozen=True)
class Recipe:
    """Defaults for one data set.

    Attributes:
        epochs, batch_size, learning_rate: as on the command line.
        weight_decay: of AdamW; small networks on few examples need much of it.
        augmentation: builds the augmentation from the value of an empty pixel; None for none.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    augmentation: Callable[[float], Augmentation] | None = None
    weight_decay: float = 0.0


def _mirrored_and_shifted(fill: float) -> Augmentation:
    return augment.Compose(augment.Flip(), augment.Crop(4, fill=fill))


RECIPES = {
    "iris": Recipe(60, 16, 2e-2, weight_decay=1.0),
    "digits": Recipe(20, 64, 2e-3, lambda fill: augment.Rotation(10, fill)),
    "mnist": Recipe(6, 128, 2e-3),
    "fashion-mnist": Recipe(10, 128, 2e-3),
    "cifar10": Recipe(20, 128, 2e-3, _mirrored_and_shifted),
    "cifar100": Recipe(30, 128, 2e-3, _mirrored_and_shifted),
}

IMAGES = Recipe(20, 64, 2e-3, lambda fill: augment.Shift(2, fill))
FEATURES = Recipe(60, 32, 5e-3, weight_decay=0.1)
"""For all other data."""


def warm_cosine(peak: float, steps: int, warm: float = 0.1) -> Callable[[int], float]:
    """Return a schedule: up linearly to `peak` over the fraction `warm` of the steps, then down to 0 along half a cosine.

    Source: Loshchilov and Hutter, "SGDR", 2017; Goyal et al., "Accurate, large minibatch SGD", 2017 (warm-up).
    """
    rise = max(1, round(warm * steps))
    fall = Cosine(peak, max(steps - rise, 1))

    def schedule(step: int) -> float:
        return peak * (step + 1) / rise if step < rise else fall(step - rise)

    return schedule
