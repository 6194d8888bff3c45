"""Principal component analysis and whitening."""

from __future__ import annotations

import math
from typing import Literal, cast

import numpy as np

from xpnet.backend import Array, Namespace
from xpnet.ops.shapes import is_whole
from xpnet.runtime.settings import check_numbers

from ..dataset import NumpyArray
from .base import Transform, chunks, mean_of


def _principal(name: str, x: Array, components: int | None) -> dict[str, NumpyArray]:
    """Return mean (F,), leading eigenvectors (F, k) of the covariance matrix, and the variances (k,) along them."""
    N, F = x.shape[0], math.prod(x.shape[1:])
    k = min(N, F) if components is None else components
    if not 1 <= k <= min(N, F):
        raise ValueError(f"{name}: {k} components of {N} examples with {F} features; expected 1 to {min(N, F)}")
    mean = mean_of(x, "feature").reshape(F)
    if N < F:
        rows = np.concatenate([chunk.reshape(-1, F) for chunk in chunks(x)]) - mean
        _, singular, axes = np.linalg.svd(rows, full_matrices=False)
        vectors, variances = axes.T, singular**2 / N
    else:
        covariance = np.zeros((F, F))
        for chunk in chunks(x):
            centred = chunk.reshape(-1, F) - mean
            covariance += centred.T @ centred
        variances, vectors = np.linalg.eigh(covariance / N)
        variances, vectors = variances[::-1], vectors[:, ::-1]
    vectors = vectors[:, :k]
    # An eigenvector's sign is arbitrary: make its largest entry positive.
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    vectors = np.ascontiguousarray(vectors * np.where(largest < 0, -1.0, 1.0))
    return {
        "mean": mean,
        "vectors": vectors,
        "variances": variances[:k].clip(min=0),
        "total": np.asarray(variances.clip(min=0).sum()),
    }


class PCA(Transform):
    """Projection to the first principal components: (N, ...) becomes (N, k), centred and uncorrelated.

    `inverse` gives the nearest examples in the space of the components; the variances (divided by N) along them are in
    `arrays["variances"]`, the explained variance ratio in `explained`.

    Args:
        components: k, 1 to min(N, F); None: min(N, F).
    """

    fitted_names = frozenset({"mean", "vectors", "variances", "total"})
    setting_names: tuple[str, ...] = ("components",)

    def __init__(self, components: int | None = None):
        super().__init__()
        if components is not None and not (is_whole(components) and components >= 1):
            raise ValueError(f"{self._name}: {components} components, expected a whole number, at least 1")
        self.components = components

    @property
    def explained(self) -> NumpyArray:
        """The explained variance ratio of each component, (k,)."""
        self._fitted()
        share: NumpyArray = self.arrays["variances"] / max(float(self.arrays["total"]), np.finfo(float).tiny)
        return share

    def _fit(self, x: Array) -> dict[str, NumpyArray]:
        return _principal(self._name, x, self.components)

    def _apply(self, xp: Namespace, x: Array) -> Array:
        flat = xp.reshape(x, (x.shape[0], -1 if x.shape[0] else math.prod(self._fitted())))
        return cast(Array, xp.matmul(flat - self._get(xp, x, "mean"), self._get(xp, x, "vectors")))

    def _undo(self, xp: Namespace, z: Array) -> Array:
        flat = xp.matmul(z, xp.matrix_transpose(self._get(xp, z, "vectors"))) + self._get(xp, z, "mean")
        return cast(Array, xp.reshape(flat, (z.shape[0], *self._fitted())))


class Whiten(PCA):
    """Whitening to uncorrelated components of unit variance: z = (x - mean) V / sqrt(variance + epsilon).

    Args:
        kind: "pca" gives (N, k); "zca" rotates back, z V^T, and keeps the shape and appearance of the examples.
        components: k; None: min(N, F).
        epsilon: limits the amplification of directions with little variance; in units of x squared.
    """

    fitted_names = frozenset({"mean", "vectors", "variances", "total", "deviations"})
    setting_names = ("kind", "components", "epsilon")

    def __init__(self, kind: Literal["pca", "zca"] = "pca", components: int | None = None, epsilon: float = 1e-5):
        super().__init__(components)
        if kind not in ("pca", "zca"):
            raise ValueError(f'kind must be "pca" or "zca", got {kind!r}')
        if not epsilon >= 0:
            raise ValueError(f"epsilon must not be negative, got {epsilon}")
        check_numbers("Whiten", "[0, inf)", epsilon=epsilon)
        self.kind, self.epsilon = kind, float(epsilon)

    def _fit(self, x: Array) -> dict[str, NumpyArray]:
        arrays = super()._fit(x)
        width = arrays["variances"] + self.epsilon
        # Without epsilon, a direction in which nothing varies stays at 0.
        arrays["deviations"] = np.sqrt(np.where(width > 1e-12 * max(width.max(), 0), width, np.inf))
        arrays["deviations"][np.isinf(arrays["deviations"])] = 1.0
        return arrays

    def _apply(self, xp: Namespace, x: Array) -> Array:
        z = super()._apply(xp, x) / self._get(xp, x, "deviations")
        if self.kind != "pca":
            z = xp.reshape(xp.matmul(z, xp.matrix_transpose(self._get(xp, x, "vectors"))), x.shape)
        return z

    def _undo(self, xp: Namespace, z: Array) -> Array:
        if self.kind == "zca":
            z = xp.matmul(xp.reshape(z, (z.shape[0], math.prod(self._fitted()))), self._get(xp, z, "vectors"))
        return super()._undo(xp, z * self._get(xp, z, "deviations"))
