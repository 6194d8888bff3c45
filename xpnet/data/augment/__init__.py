"""Augmentation: random changes to a batch of images that keep its labels valid.

Each class holds its settings; calling it with a batch ``(x, y)`` returns the augmented batch. The random numbers are a pure
function of ``seed`` and ``step`` (and of the position in a :class:`Compose`), drawn on the host, so that the images are the
same on every backend; only these numbers are copied to a GPU. x is (N, H, W, C), and never changed in place.
"""

from .base import Augmentation, Compose
from .moves import Crop, Cutout, Flip, Shift
from .values import Mixup, Normalise, Rescale
from .warps import Elastic, Rotation, warp

__all__ = [
    "Augmentation", "Compose", "Crop", "Cutout", "Elastic", "Flip", "Mixup", "Normalise", "Rescale", "Rotation", "Shift",
    "warp",
]  # fmt: skip
