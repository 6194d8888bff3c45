"""Losses of distances between embeddings, for networks with shared weights."""

from __future__ import annotations

from typing import Any

from xpnet import ops
from xpnet.backend import Array, namespace
from xpnet.losses.base import bare, reduce
from xpnet.ops.shapes import ShapeError


def _parts(name: str, embeddings: Any, count: int) -> list[Any]:
    """The `count` embeddings (N, D) of each example."""
    if embeddings.ndim != 3 or embeddings.shape[1] != count:
        raise ShapeError(
            f"{name}: the prediction has shape {tuple(embeddings.shape)}, expected (N, {count}, D): the embeddings of each "
            f"example side by side, as xpnet.ops.stack([...], axis=1) puts them"
        )
    return [ops.getitem(embeddings, (slice(None), i, slice(None))) for i in range(count)]


def _distance(a: Any, b: Any) -> Any:
    """|a - b| for each row; where the rows are equal the gradient is 0."""
    squares = ops.sum(ops.square(ops.subtract(a, b)), axis=-1)
    apart = bare(squares) > 0
    # The square root has no slope at 0: there it is taken of 1, and thrown away.
    return ops.where(apart, ops.sqrt(ops.where(apart, squares, 1.0)), 0.0)


def contrastive(embeddings: Any, same: Array, *, margin: float = 1.0, reduction: str = "mean") -> Any:
    """For each pair at distance d: d**2 / 2 if they are the same, else max(0, margin - d)**2 / 2.

    Args:
        embeddings: (N, 2, D), two embeddings an example: a network applied twice, ops.stack([f(a), f(b)], axis=1).
        same: (N,), 1 or True where the two belong together.
        margin: others are pushed no farther apart than this.
        reduction: over the pairs.

    Source: Hadsell et al., "Dimensionality reduction by learning an invariant mapping", 2006.
    """
    a, b = _parts("contrastive", embeddings, 2)
    same = bare(same)
    if tuple(same.shape) != (embeddings.shape[0],):
        raise ShapeError(f"contrastive: `same` has shape {tuple(same.shape)}, expected ({embeddings.shape[0]},)")
    xp = namespace(same)
    d = _distance(a, b)
    weight = xp.astype(same, bare(d).dtype)
    near = ops.multiply(ops.square(d), weight)
    far = ops.multiply(ops.square(ops.relu(ops.subtract(float(margin), d))), 1 - weight)
    return reduce("contrastive", ops.multiply(ops.add(near, far), 0.5), reduction)


def triplet(embeddings: Any, target: Any = None, *, margin: float = 1.0, squared: bool = False, reduction: str = "mean") -> Any:
    """max(0, |anchor - positive| - |anchor - negative| + margin) for each example.

    Args:
        embeddings: (N, 3, D): anchor, positive (which belongs to the anchor) and negative (which does not).
        target: not looked at; it stands here so that the loss can be called like any other.
        margin: by how much farther away the negative shall be.
        squared: compare the squares of the distances, as in the paper.
        reduction: over the examples.

    Source: Schroff et al., "FaceNet", 2015.
    """
    anchor, positive, negative = _parts("triplet", embeddings, 3)
    near, far = _distance(anchor, positive), _distance(anchor, negative)
    if squared:
        near, far = ops.square(near), ops.square(far)
    return reduce("triplet", ops.relu(ops.add(ops.subtract(near, far), float(margin))), reduction)
