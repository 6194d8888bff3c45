"""The shapes of a model's inputs."""

from __future__ import annotations

from typing import Any

from xpnet.layers.context import Shape
from xpnet.layers.module import Module
from xpnet.layers.sequential import Sequential


def _each(shapes: Any) -> tuple[Shape, ...]:
    """Return one shape, or several, as a tuple of shapes."""
    return tuple(shapes) if len(shapes) and hasattr(shapes[0], "__len__") else (tuple(shapes),)


def input_shapes(model: Module, given: Any, caller: str, example: str) -> tuple[Shape, ...]:
    """Return the given shapes of a model's inputs as tuples of int; if None, those that the model knows.

    Raises:
        ValueError: it knows none.
    """
    if given is None:
        given = getattr(model, "input_shape", None) or _first_shape(model)
    if given is None:
        raise ValueError(f"{caller}: the model has not seen an input yet; pass input_shape, such as {example}")
    return tuple(tuple(int(n) for n in shape) for shape in _each(given))


def _first_shape(model: Module) -> Shape | None:
    """Return the shape that the first layer of a chain was built for."""
    while model.built_for is None and isinstance(model, Sequential) and model.layers and isinstance(model.layers[0], Module):
        model = model.layers[0]
    return model.built_for
