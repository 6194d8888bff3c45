"""Class weights in the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xpnet import losses, ops
from xpnet.autograd.tensor import bare
from xpnet.backend import Array, device_of, is_floating, kind_of, namespace, to_device, to_numpy
from xpnet.losses.base import admitted, not_empty
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.messages import quoted
from xpnet.runtime.set_later import Settable


class ClassWeighted(Settable):
    """A loss whose terms are multiplied by the weight of their class: mean of weights[y] * loss(prediction, y).

    ``Trainer(model, loss=ClassWeighted("softmax_cross_entropy", xn.data.class_weights(y)), ...)`` gives rare classes the weight
    of frequent ones. The alternative is to sample their examples more often: ``Batches(..., weights=example_weights(y))``.

    Args:
        loss: a name or a function that takes reduction="none" and then returns one term for each example, or for each element
            in a binary loss such as sigmoid_cross_entropy.
        weights: (K,), not negative; a mean of 1 over the examples, as from `class_weights`, keeps the scale of the loss. A
            binary loss takes two: of 0 and of 1.

    Raises:
        ValueError: weights of another shape, or negative; when it is called, not as many weights as classes.
    """

    def __init__(self, loss: str | Callable[..., Any], weights: Array) -> None:
        if not (isinstance(loss, str) or callable(loss)):
            raise TypeError(f"ClassWeighted: loss must be a name or a function, got {quoted(loss)}: loss first, then weights")
        self.loss = losses.get(loss)
        if isinstance(weights, (str, Mapping)):
            raise TypeError(f"ClassWeighted: weights must be an array (K,), in the order of the classes, got {quoted(weights)}")
        self.weights = np.asarray(to_numpy(weights), dtype=np.float32)
        fits = self.weights.ndim == 1 and (self.weights >= 0).all() and np.isfinite(self.weights).all()
        if not fits or not self.weights.any():
            raise ValueError(
                f"ClassWeighted: expected weights (K,), finite, not negative, not all 0, got {quoted(self.weights.tolist())}"
            )
        self.__name__ = f"class_weighted_{getattr(self.loss, '__name__', 'loss')}"
        self._placed: dict[Any, Array] = {}

    def _take(self, name: str, made: Any) -> None:
        super()._take(name, made)
        self.__name__, self._placed = made.__name__, {}

    def __call__(self, prediction: Any, target: Array) -> Any:
        """Compute the weighted mean, a 0-d Tensor or array.

        Args:
            prediction: (..., K) scores, or any shape in a binary loss.
            target: class indices (...), or probabilities (..., K), which get the mean weight of their classes; in a binary
                loss 0 and 1, or probabilities, in the shape of the prediction.

        Raises:
            ShapeError: another number of weights than of classes, or a target that does not give one class for each term.
            ValueError: an empty batch, or targets of a binary loss outside 0..1 (on a GPU the loss is NaN instead).
        """
        terms = self.loss(prediction, target, reduction="none")
        not_empty("ClassWeighted", terms)
        target = bare(target)
        device = device_of(target)
        if device not in self._placed:
            self._placed[device] = to_device(self.weights, device)
        weights = self._of_terms(self._placed[device], tuple(prediction.shape), tuple(terms.shape), target)
        # A float64 network keeps its precision, a float32 one its speed.
        return ops.mean(terms * namespace(weights).astype(weights, bare(terms).dtype, copy=False))

    def _of_terms(self, weights: Array, prediction: tuple[int, ...], terms: tuple[int, ...], target: Array) -> Array:
        """Return the weight of each term, in the shape of the terms."""
        xp, shape = namespace(target), tuple(target.shape)
        if shape == terms and shape != prediction and kind_of(target.dtype) == "integer":
            if len(prediction) == len(terms) + 1:
                self._expect(prediction[-1], prediction)
            else:
                inside = (target >= 0) & (target < len(self.weights))
                admitted("ClassWeighted", target, inside, inside, f"class indices 0..{len(self.weights) - 1}")
            return weights[target]
        if shape == terms:
            self._expect(2, prediction)
            y = target if is_floating(target) else xp.astype(target, weights.dtype)
            found = weights[0] * (1 - y) + weights[1] * y
            valid, expected = (y >= 0) & (y <= 1), "0 and 1, or probabilities, for two class weights"
        elif shape == prediction and shape[:-1] == terms and is_floating(target):
            self._expect(shape[-1], prediction)
            y = target
            found = xp.sum(y * weights, axis=-1)
            valid = xp.abs(xp.sum(y, axis=-1) - 1) < 0.01
            expected = "probabilities (..., K) that sum to 1"
        else:
            raise ShapeError(
                f"ClassWeighted: the target {shape} does not give one class for each of the terms {terms} of the loss; for "
                f"attributes use sigmoid_cross_entropy with two weights"
            )
        valid_or_none = admitted("ClassWeighted", target, valid, xp.isnan(found), expected)
        return found if valid_or_none is None else xp.where(valid, found, xp.full_like(found, math.nan))

    def _expect(self, classes: int, prediction: tuple[int, ...]) -> None:
        if len(self.weights) != classes:
            raise ShapeError(
                f"ClassWeighted: got {len(self.weights)} weights, but the prediction {prediction} has {classes} classes; give "
                f"one weight for each class"
            )
