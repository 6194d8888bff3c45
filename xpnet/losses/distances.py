"""Losses on distances between embeddings, for siamese networks."""

from __future__ import annotations

from typing import Any

from xpnet import ops
from xpnet.autograd.tensor import bare
from xpnet.backend import Array, array_types, kind_of, namespace
from xpnet.losses.base import as_target, reduce, widened
from xpnet.ops.shapes import NOT_REAL, ShapeError, expect_real, not_real
from xpnet.runtime.settings import check_numbers


def _parts(name: str, embeddings: Any, count: int) -> list[Any]:
    """Split the prediction into its `count` embeddings (N, D)."""
    expect_real(name, prediction=bare(embeddings))
    if embeddings.ndim != 3 or embeddings.shape[1] != count:
        raise ShapeError(
            f"{name}: the prediction has shape {tuple(embeddings.shape)}, expected (N, {count}, D): the embeddings of each "
            f"example side by side, as xpnet.ops.stack([...], axis=1) puts them"
        )
    return [ops.getitem(embeddings, (slice(None), i, slice(None))) for i in range(count)]


def _distance(a: Any, b: Any) -> Any:
    """Compute |a - b| for each row; where the rows are equal the gradient is 0."""
    squares = ops.sum(ops.square(ops.subtract(a, b)), axis=-1)
    apart = bare(squares) > 0
    # The square root has no derivative at 0: there it is taken of 1, and discarded.
    return ops.where(apart, ops.sqrt(ops.where(apart, squares, 1.0)), 0.0)


def contrastive(embeddings: Any, same: Array, *, margin: float = 1.0, reduction: str = "mean") -> Any:
    """Compute, for each pair at distance d, d**2 / 2 if they are the same, else max(0, margin - d)**2 / 2.

    Args:
        embeddings: (N, 2, D), two for each example: a network applied twice, ops.stack([f(a), f(b)], axis=1).
        same: (N,), 1 or True where the two belong together.
        margin: different pairs are pushed apart up to this distance.
        reduction: over the pairs.

    Source: Hadsell et al., "Dimensionality reduction by learning an invariant mapping", 2006.
    """
    check_numbers("contrastive", "[0, inf)", margin=margin)
    a, b = widened(*_parts("contrastive", embeddings, 2))
    same = bare(same if type(same) in array_types else as_target("contrastive", same))
    if tuple(same.shape) != (embeddings.shape[0],):
        raise ShapeError(f"contrastive: `same` has shape {tuple(same.shape)}, expected ({embeddings.shape[0]},)")
    xp = namespace(same)
    if kind_of(same.dtype) in NOT_REAL:
        raise not_real("contrastive", "target", same, "0 and 1 or booleans")
    d = _distance(a, b)
    weight = xp.astype(same, bare(d).dtype)
    near = ops.multiply(ops.square(d), weight)
    far = ops.multiply(ops.square(ops.relu(ops.subtract(float(margin), d))), 1 - weight)
    return reduce("contrastive", ops.multiply(ops.add(near, far), 0.5), reduction, embeddings)


def triplet(embeddings: Any, target: Any = None, *, margin: float = 1.0, squared: bool = False, reduction: str = "mean") -> Any:
    """Compute max(0, |anchor - positive| - |anchor - negative| + margin) for each example.

    Args:
        embeddings: (N, 3, D): anchor, positive (which belongs to the anchor) and negative (which does not).
        target: ignored; it lets the loss be called like any other.
        margin: by how much farther away the negative should be.
        squared: compare the squares of the distances, as in the paper.
        reduction: over the examples.

    Source: Schroff et al., "FaceNet", 2015.
    """
    check_numbers("triplet", "[0, inf)", margin=margin)
    anchor, positive, negative = widened(*_parts("triplet", embeddings, 3))
    near, far = _distance(anchor, positive), _distance(anchor, negative)
    if squared:
        near, far = ops.square(near), ops.square(far)
    return reduce("triplet", ops.relu(ops.add(ops.subtract(near, far), float(margin))), reduction, embeddings)
