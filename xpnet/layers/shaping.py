"""Layers that only change the shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xpnet import ops
from xpnet.layers.context import Shape, elements
from xpnet.layers.module import Module
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.settings import sizes


class Flatten(Module):
    """Every example flattened to a vector: (N, ...) -> (N, D)."""

    plannable = True

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (...) to (D,)."""
        return (elements(input_shape),)

    def forward(self, x: Any) -> Any:
        """Map x (N, ...) to (N, D)."""
        shape = x.shape
        return ops.reshape(x, (shape[0], math.prod(shape[1:])))


class Reshape(Module):
    """Every example in another shape: (N, ...) -> (N, *shape).

    Args:
        shape: without the batch axis; one size may be -1.
    """

    plannable = True

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = sizes("Reshape", "shape", shape)

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (...) to shape."""
        total = elements(input_shape)
        known = elements(tuple(n for n in self.shape if n != -1))
        wild = self.shape.count(-1)
        if wild > 1 or (wild and (not known or total % known)) or (not wild and known != total):
            raise ShapeError(f"Reshape: examples of shape {tuple(input_shape)} have {total} elements, not {self.shape}")
        return tuple(total // known if n == -1 else n for n in self.shape)

    def forward(self, x: Any) -> Any:
        """Map x (N, ...) to (N, *shape)."""
        return ops.reshape(x, (x.shape[0], *self.output_shape(tuple(x.shape[1:]))))
