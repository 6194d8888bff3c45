"""The base class of transforms: fit once, apply, invert, and a state without code."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from xpnet.backend import Array, Namespace, describe, dtype_name, namespace, to_numpy
from xpnet.runtime.messages import quoted
from xpnet.runtime.set_later import Settable

from ..arrays import adopted_tree, like
from ..dataset import NumpyArray

Per: TypeAlias = Literal["channel", "feature", "all"]
_CHUNK_BYTES = 1 << 25


class Transform(Settable, ABC):
    """A transform of examples. Subclasses define `_fit`, `_apply` and `_undo`."""

    needs_fit = True
    fitted_names: frozenset[str] = frozenset()
    """The names of the fitted arrays."""
    setting_names: tuple[str, ...] = ()
    """The attributes that are the constructor's arguments."""

    def __init__(self) -> None:
        self.arrays: dict[str, NumpyArray] = {}
        """The fitted arrays, float64."""
        self.shape: tuple[int, ...] | None = None
        """The shape of one example; None until fitted."""

    def fit(self, x: Array) -> Transform:
        """Fit to training data, and return the transform itself.

        Args:
            x: (N, ...), N at least 1; any array library, or a memory-mapped file.

        Raises:
            ValueError: it is fitted already, or x is unsuitable.
        """
        if self.shape is not None:
            raise ValueError(
                f"{self._name} is fitted already; make a new one (fitting again would change what earlier data became)"
            )
        x = adopted_tree(x, self._name)
        if not hasattr(x, "shape") or len(x.shape) < 2 or x.shape[0] < 1:
            raise ValueError(f"{self._name}.fit needs examples (N, ...) with N at least 1, got {describe(x)}")
        try:
            arrays = self._fit(x)
        except np.linalg.LinAlgError:
            if all(np.isfinite(chunk).all() for chunk in chunks(x)):
                raise
            raise ValueError(f"{self._name}: x holds NaN or infinite values") from None
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"{self._name}: the fitted {name} is not finite; x holds NaN or infinite values")
        self.arrays = arrays
        self.shape = tuple(int(n) for n in x.shape[1:])
        return self

    def __call__(self, x: Array) -> Any:
        """Return the transformed examples, in the library and floating dtype of x, float32 for integers."""
        x = adopted_tree(x, self._name)
        xp = namespace(x)
        if self.needs_fit:
            expected = self._fitted()
            if tuple(x.shape[1:]) != expected:
                raise ValueError(f"{self._name} was fitted to examples of shape {expected}, got {describe(x)}")
        return self._apply(xp, _as_floating(xp, x))

    def inverse(self, z: Array) -> Any:
        """Return the examples that this transform would turn into `z`, as far as it is invertible."""
        if self.needs_fit:
            self._fitted()
        z = adopted_tree(z, self._name)
        xp = namespace(z)
        return self._undo(xp, _as_floating(xp, z))

    def state(self) -> dict[str, Any]:
        """Return the transform's state: {"kind": name, "settings": for JSON, "arrays": {name: array}}."""
        shape = None if self.shape is None else list(self.shape)
        settings = {name: getattr(self, name) for name in self.setting_names}
        return {"kind": self._name, "settings": {**settings, "shape": shape}, "arrays": dict(self.arrays)}

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _fitted(self) -> tuple[int, ...]:
        if self.shape is None:
            raise ValueError(f"{self._name} is not fitted: call fit(x_train) first")
        return self.shape

    def _get(self, xp: Namespace, x: Array, name: str) -> Array:
        """Return a fitted array in the library, on the device and in the dtype of x."""
        return like(xp, x, self.arrays[name].astype(dtype_name(x)))

    def _fit(self, x: Array) -> dict[str, NumpyArray]:
        return {}

    @abstractmethod
    def _apply(self, xp: Namespace, x: Array) -> Array: ...

    @abstractmethod
    def _undo(self, xp: Namespace, z: Array) -> Array: ...


def _as_floating(xp: Namespace, x: Array) -> Array:
    return x if xp.isdtype(x.dtype, "real floating") else xp.astype(x, xp.float32)


def chunks(x: Array) -> Iterator[NumpyArray]:
    """Yield x as float64 on the host, some rows at a time."""
    rows = max(1, _CHUNK_BYTES // (8 * max(1, math.prod(x.shape[1:]))))
    for start in range(0, x.shape[0], rows):
        yield np.asarray(to_numpy(x[start : min(start + rows, x.shape[0]), ...]), dtype=np.float64)


def axes_of(per: Per, x: Array) -> tuple[int, ...]:
    """Return the axes that a statistic is computed over."""
    over = {"feature": (0,), "channel": tuple(range(len(x.shape) - 1)), "all": tuple(range(len(x.shape)))}
    if per not in over:
        raise ValueError(f'per must be "channel", "feature" or "all", got {quoted(per)}')
    return over[per]


def mean_of(x: Array, per: Per) -> NumpyArray:
    """Return the mean over all axes but those that `per` keeps, in float64 on the host."""
    axes = axes_of(per, x)
    total = sum(chunk.sum(axes) for chunk in chunks(x))
    return np.asarray(total / math.prod(x.shape[a] for a in axes))
