"""Dropout layers."""

from __future__ import annotations

from typing import Any

from xpnet import ops, random
from xpnet.layers.context import Shape
from xpnet.layers.module import Module
from xpnet.runtime.settings import check_numbers


class Dropout(Module):
    """Dropout: in training each element is set to 0 with probability `rate`; in evaluation the input is returned as it is.

    The masks are a function of the model's seed, the layer's path and a counter of its calls: the same on every device.

    Args:
        rate: the probability, in [0, 1].
        inverted: divide what is kept by 1 - rate in training (the usual form). False is the original form: no factor in
            training, and a factor of 1 - rate in evaluation.
        spatial: drop whole channels of (N, ..., C) instead of single elements.
    """

    plannable = True

    def __init__(self, rate: float, *, inverted: bool = True, spatial: bool = False) -> None:
        check_numbers("Dropout", "[0, 1]", rate=rate)
        self.rate = float(rate)
        self.inverted = inverted
        self.spatial = spatial

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the input's shape."""
        return input_shape

    def forward(self, x: Any) -> Any:
        """Drop elements of x in training."""
        x = self.as_float(x)
        if not self.training:
            return x if self.inverted else x * (1 - self.rate)
        if self.rate == 0:
            return x
        shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) if self.spatial else None
        key = random.key(self.context.seed, self.path or "", "dropout")
        return ops.dropout(x, self.rate, key=key, step=self.next_random_step(), shape=shape, inverted=self.inverted)
