"""Penalties on weights, and projections of weights.

The Trainer adds the penalties of all layers to the loss. In your own training loop add them by hand, before the backward pass:
``loss = loss + model.flat_parameters.penalty()`` (None for a model without any).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xpnet import ops
from xpnet.backend import Array, namespace
from xpnet.ops.sums import total
from xpnet.runtime.settings import Checked, check_numbers


@dataclass(frozen=True)
class L2(Checked):
    """1/2 * strength * sum(w**2), whose gradient is strength * w. Source: CS231n, "Neural networks part 2"."""

    strength: float

    def __post_init__(self) -> None:
        check_numbers(type(self).__name__, "[0, inf)", strength=self.strength)

    def __call__(self, w: Any) -> Any:
        """Return the penalty of w, 0-d."""
        return ops.sum(ops.square(w)) * (0.5 * float(self.strength))


@dataclass(frozen=True)
class L1(Checked):
    """strength * sum(|w|): drives weights to exactly 0."""

    strength: float

    def __post_init__(self) -> None:
        check_numbers(type(self).__name__, "[0, inf)", strength=self.strength)

    def __call__(self, w: Any) -> Any:
        """Return the penalty of w, 0-d."""
        return ops.sum(ops.abs(w)) * float(self.strength)


@dataclass(frozen=True)
class ElasticNet(Checked):
    """l1 * sum(|w|) + 1/2 * l2 * sum(w**2). Source: Zou and Hastie, 2005."""

    l1: float
    l2: float

    def __post_init__(self) -> None:
        check_numbers("ElasticNet", "[0, inf)", l1=self.l1, l2=self.l2)

    def __call__(self, w: Any) -> Any:
        """Return the penalty of w, 0-d."""
        return L1(self.l1)(w) + L2(self.l2)(w)


@dataclass(frozen=True)
class MaxNorm(Checked):
    """A projection, not a penalty: after each update the weights into one unit are scaled down to length `limit` or less.

    Source: Srebro et al., 2004; CS231n, "Neural networks part 2".
    """

    limit: float

    def __post_init__(self) -> None:
        check_numbers("MaxNorm", "(0, inf)", limit=self.limit)

    def project(self, w: Array) -> None:
        """Scale w (..., units) in place."""
        xp, limit = namespace(w), float(self.limit)
        axes = tuple(range(w.ndim - 1))
        norms = xp.sqrt(total(xp, w * w, axes, keepdims=True))
        w *= xp.where(norms > limit, limit / xp.where(norms > 0, norms, xp.ones_like(norms)), xp.ones_like(norms))
