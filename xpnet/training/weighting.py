"""Class weights in the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xpnet import losses, ops
from xpnet.backend import Array, device_of, to_device, to_numpy


class ClassWeighted:
    """A loss whose terms are multiplied by the weight of their class: mean of weights[y] * loss(prediction, y).

    ``Trainer(model, loss=ClassWeighted("softmax_cross_entropy", xn.data.class_weights(y)), ...)`` gives rare classes the weight
    of frequent ones. The alternative is to sample their examples more often: ``Batches(..., weights=example_weights(y))``.

    Args:
        loss: a name or a function that takes reduction="none" and then returns one term for each example.
        weights: (K,), not negative; a mean of 1 over the examples, as from `class_weights`, keeps the scale of the loss.

    Raises:
        ValueError: weights of another shape, or negative; when it is called, not as many weights as classes.
    """

    def __init__(self, loss: str | Callable[..., Any], weights: Array) -> None:
        self.loss = losses.get(loss)
        self.weights = np.asarray(to_numpy(weights), dtype=np.float32)
        if self.weights.ndim != 1 or not (self.weights >= 0).all() or not np.isfinite(self.weights).all():
            raise ValueError(f"ClassWeighted: expected weights (K,), finite and not negative, got {self.weights}")
        self.__name__ = f"class_weighted_{getattr(self.loss, '__name__', 'loss')}"
        self._placed: dict[Any, Array] = {}

    def __call__(self, prediction: Any, target: Array) -> Any:
        """Compute the weighted mean, a 0-d Tensor or array. prediction: (N, K); target: (N,) class indices."""
        outputs = prediction.shape[-1] if len(prediction.shape) > 1 else 1
        if len(self.weights) != max(outputs, 2):  # one output tells two classes apart
            raise ValueError(
                f"ClassWeighted: got {len(self.weights)} weights for predictions {tuple(prediction.shape)}, expected one for "
                f"each of their {max(outputs, 2)} classes"
            )
        terms = self.loss(prediction, target, reduction="none")
        device = device_of(target)
        if device not in self._placed:
            self._placed[device] = to_device(self.weights, device)
        # A float64 network keeps its precision, a float32 one its speed.
        weights = self._placed[device][target]
        return ops.mean(terms * weights)
