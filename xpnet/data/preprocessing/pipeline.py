"""Transforms in sequence, and transforms from a saved state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xpnet.backend import Array, Namespace

from ..dataset import NumpyArray
from .base import Transform
from .principal import PCA, Whiten
from .simple import Bias, MeanSubtraction, MinMax, Scale, Standardize


class Pipeline(Transform):
    """Several transforms in sequence; each is fitted to the output of the previous one.

    Args:
        stages: transforms, none of them fitted yet (or all).
    """

    def __init__(self, *stages: Transform):
        super().__init__()
        for stage in stages:
            if not isinstance(stage, Transform):
                raise TypeError(f"Pipeline takes transforms, got {type(stage).__name__}")
        self.stages = stages
        self.needs_fit = any(stage.needs_fit for stage in stages)

    def _fit(self, x: Array) -> dict[str, NumpyArray]:
        for i, stage in enumerate(self.stages):
            stage.fit(x)
            if i + 1 < len(self.stages):
                x = stage(x)
        return {}

    def _apply(self, xp: Namespace, x: Array) -> Array:
        for stage in self.stages:
            x = stage(x)
        return x

    def _undo(self, xp: Namespace, z: Array) -> Array:
        for stage in reversed(self.stages):
            z = stage.inverse(z)
        return z

    def state(self) -> dict[str, Any]:
        """Return the state, as for every transform; the arrays of stage i are called "i.NAME"."""
        parts = [stage.state() for stage in self.stages]
        return {
            "kind": "Pipeline",
            "settings": {
                "stages": [{"kind": part["kind"], "settings": part["settings"]} for part in parts],
                "shape": None if self.shape is None else list(self.shape),
            },
            "arrays": {f"{i}.{name}": a for i, part in enumerate(parts) for name, a in part["arrays"].items()},
        }


_KINDS: dict[str, type[Transform]] = {
    kind.__name__: kind for kind in (MeanSubtraction, Standardize, MinMax, PCA, Whiten, Scale, Bias)
}


def from_state(state: Mapping[str, Any]) -> Transform:
    """Restore a transform from its `state()`. No code in a state is run: only the kinds of this module are created.

    Raises:
        ValueError: an unknown kind, or settings unknown to this kind.
    """
    try:
        kind, settings, arrays = state["kind"], dict(state["settings"]), state["arrays"]
        shape = settings.pop("shape")
        if kind == "Pipeline":
            made: Transform = Pipeline(
                *(from_state({**stage, "arrays": _below(arrays, f"{i}.")}) for i, stage in enumerate(settings["stages"]))
            )
        elif kind in _KINDS:
            made = _KINDS[kind](**settings)
            made.arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        else:
            raise ValueError(f"unknown transform {kind!r}; known are Pipeline, {', '.join(_KINDS)}")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the state of a transform: {type(error).__name__}: {error}") from error
    if shape is not None and kind != "Pipeline" and (missing := made.fitted_names - made.arrays.keys()):
        raise ValueError(f"not the state of a transform: {kind} lacks the arrays {', '.join(sorted(missing))}")
    made.shape = None if shape is None else tuple(int(n) for n in shape)
    return made


def _below(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
