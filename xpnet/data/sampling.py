"""Sampling: the order of an epoch, class weights, and splitting data into two parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet import random
from xpnet.backend import Array, to_numpy
from xpnet.runtime.settings import checked

from .arrays import adopted_tree, gather, is_array
from .dataset import NumpyArray


def order(
    seed: int, epoch: int, n: int, *, shuffle: bool = True, weights: NumpyArray | None = None, samples: int | None = None
) -> NumpyArray:
    """Return the indices of the examples of one epoch, int64: a pure function of the arguments.

    Args:
        seed: any integer.
        epoch: 0, 1, ...
        n: how many examples there are.
        shuffle: False: 0, 1, 2, ...
        weights: (n,), not negative: draw with replacement, example i with probability weights[i] /
            sum(weights).
        samples: how many indices; None: n. Without weights they are drawn without replacement; the cost of a few does not
            depend on n.
    """
    count = n if samples is None else samples
    if weights is not None:
        cumulative = np.cumsum(weights, dtype=np.float64)
        uniform = random.generator(random.key(seed, "sample"), epoch).random(count)
        drawn = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        # Rounding can turn uniform * total into the total: do not draw trailing examples of weight 0 then.
        last: NumpyArray = np.minimum(drawn, int(np.flatnonzero(weights)[-1]))
        return last
    if not shuffle:
        return np.arange(count)
    if count < n:
        drawn = random.generator(random.key(seed, "sample"), epoch).choice(n, count, replace=False)
        return drawn.astype(np.int64, copy=False)
    return random.permutation(seed, epoch, n)


def check_weights(weights: Array, n: int) -> NumpyArray:
    """Return `weights` as float64 (n,), or raise a ValueError that says what is wrong with them."""
    found = np.asarray(to_numpy(weights), dtype=np.float64)
    if found.shape != (n,):
        raise ValueError(f"weights have shape {found.shape}, expected one for each of the {n} examples: ({n},)")
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ValueError("weights must be finite, not negative, and not all zero")
    return found


@checked
def class_weights(y: Array, classes: int | None = None) -> NumpyArray:
    """Return weights that give every class the same total: N / (present classes * count of the class), 0 if absent.

    Args:
        y: integer labels (N,).
        classes: K; None: the largest label + 1.

    Returns:
        float32 (K,); the mean of class_weights[y] over the N examples is 1.
    """
    labels = _labels(y)
    counts = np.bincount(labels, minlength=classes or 0)
    if classes is not None and len(counts) > classes:
        raise ValueError(f"labels go up to {len(counts) - 1}, expected less than classes = {classes}")
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights.astype(np.float32)


def example_weights(y: Array, weights: Array | None = None) -> NumpyArray:
    """Return each example's class weight, for `Batches(..., weights=...)`: by default, all classes are equally likely.

    Args:
        y: integer labels (N,).
        weights: one per class (K,); None: those of :func:`class_weights`.

    Returns:
        float32 (N,).
    """
    labels = _labels(y)
    table = class_weights(labels) if weights is None else np.asarray(to_numpy(weights), dtype=np.float32)
    if table.ndim != 1 or labels.max(initial=-1) >= len(table):
        raise ValueError(f"labels go up to {labels.max(initial=-1)}, but weights have shape {table.shape}")
    picked: NumpyArray = table[labels]
    return picked


@checked
def split(
    x: Array, y: Array, *, fraction: float = 0.2, seed: int = 0, stratify: bool = True
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Divide `(x, y)` at random into two parts, for example to set a validation part aside.

    Args:
        x: N examples.
        y: N labels or targets.
        fraction: how much goes to the second part, in (0, 1).
        seed: any integer; the same seed gives the same parts.
        stratify: take that fraction of every class; `y` is then integer labels (N,).

    Returns:
        `(x, y)` of the first part and `(x, y)` of the second; examples stay in their order.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    x, y = adopted_tree(x, "split: x"), adopted_tree(y, "split: y")
    for name, part in (("x", x), ("y", y)):
        if not is_array(part):
            raise TypeError(f"split: {name} is a {type(part).__name__}, expected an array; convert a list with numpy.asarray")
    n = len(x)
    if len(y) != n:
        raise ValueError(f"x has {n} examples and y has {len(y)}; they must be as many")
    try:
        labels = _labels(y) if stratify else np.zeros(n, np.int64)
    except ValueError as error:
        raise ValueError(f"split: stratify=True takes a part of every class: {error}; use stratify=False for targets") from None
    second = np.zeros(n, bool)
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        shuffled = random.generator(random.key(seed, "split", label)).permutation(rows)
        second[shuffled[: round(fraction * len(rows))]] = True
    parts = np.flatnonzero(~second), np.flatnonzero(second)
    return (gather(x, parts[0]), gather(y, parts[0])), (gather(x, parts[1]), gather(y, parts[1]))


def _labels(y: Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    labels = to_numpy(y)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any():
        text = labels.dtype.kind in "OSTU"
        raise ValueError(
            f"expected integer labels of shape (N,), none negative; got shape {labels.shape} of {labels.dtype}"
            f"{'; for class names use names, y = numpy.unique(y, return_inverse=True)' if text else ''}"
        )
    return labels.astype(np.int64, copy=False)
