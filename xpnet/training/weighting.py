"""Class weights in the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xpnet import losses, ops
from xpnet.backend import Array, device_of, to_device, to_numpy


class ClassWeighted:
    """A loss whose terms are multiplied by the weight of their class: mean of weights[y] * loss(prediction, y).

    ``Trainer(model, loss=ClassWeighted("softmax_cross_entropy", xn.data.class_weights(y)), ...)`` makes rare classes count as
    much as frequent ones. The other way is to draw their examples more often: ``Batches(..., weights=example_weights(y))``.

    Args:
        loss: a name or a function that takes reduction="none" and then gives one term an example.
        weights: (K,), not negative; with a mean over the examples of 1, as `class_weights` has it, the loss keeps its size.

    Raises:
        ValueError: weights of another shape, or negative.
    """

    def __init__(self, loss: str | Callable[..., Any], weights: Array) -> None:
        self.loss = losses.get(loss)
        self.weights = np.asarray(to_numpy(weights), dtype=np.float32)
        if self.weights.ndim != 1 or not (self.weights >= 0).all() or not np.isfinite(self.weights).all():
            raise ValueError(f"ClassWeighted: expected weights (K,), finite and not negative, got {self.weights}")
        self.__name__ = f"class_weighted_{getattr(self.loss, '__name__', 'loss')}"
        self._there: dict[Any, Array] = {}

    def __call__(self, prediction: Any, target: Array) -> Any:
        """prediction: (N, K); target: (N,) class numbers. A 0-d Tensor, or array."""
        terms = self.loss(prediction, target, reduction="none")
        device = device_of(target)
        if device not in self._there:
            self._there[device] = to_device(self.weights, device)
        # A float64 network keeps its precision, a float32 one its speed.
        weights = self._there[device][target]
        return ops.mean(terms * weights)
