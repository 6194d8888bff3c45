"""The states of stateful layers in a prediction that is made in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpnet.backend import namespace
from xpnet.layers.modes import stateful_layers
from xpnet.ops.shapes import ShapeError

if TYPE_CHECKING:
    from xpnet.layers.module import Module


class CarriedRows:
    """The states that the stateful layers of a model carry, split by the rows of the batches.

    Row n of a prediction goes on from row n of the one before it, whatever the batches are: without this, the state of one
    batch's rows would enter the next batch.

    Args:
        model: a Module; layers with a true attribute `stateful` keep their states in `carried`: None or a tuple of arrays
            (N, ...).
        count: the rows of the whole prediction.

    Raises:
        ShapeError: a layer carries the state of another number of rows.
    """

    def __init__(self, model: Module, count: int) -> None:
        self.layers = stateful_layers(model)
        self.count = count
        self.before = [layer.carried for layer in self.layers]
        self.after: list[list[Any]] = [[] for _ in self.layers]
        for layer, states in zip(self.layers, self.before):
            if states is not None and states[0].shape[0] != count:
                raise ShapeError(
                    f"predict: {_name(layer)} carries the state of {states[0].shape[0]} sequences and got {count}: pieces must "
                    f"come with the same rows; call xpnet.reset_states(model) where new sequences begin"
                )

    def __enter__(self) -> CarriedRows:
        return self

    def begin(self, start: int, stop: int) -> None:
        """Let every layer carry the states of the rows start..stop."""
        for layer, states in zip(self.layers, self.before):
            layer.carried = None if states is None else tuple(s[start:stop] for s in states)

    def end(self, start: int, stop: int) -> None:
        """Take the states of these rows from every layer."""
        for layer, found in zip(self.layers, self.after):
            if layer.carried is None:
                continue  # this forward pass does not call it
            rows = layer.carried[0].shape[0]
            if rows != min(stop, self.count) - start:
                raise ShapeError(
                    f"predict: {_name(layer)} is stateful and ran over {rows} sequences in a batch of "
                    f"{min(stop, self.count) - start} examples; predict all of them at once, with batch_size={self.count}"
                )
            found.append(layer.carried)

    def __exit__(self, kind: Any, *exception: object) -> None:
        """Join the states of all rows; after an exception the layers carry what they carried before."""
        for layer, before, parts in zip(self.layers, self.before, self.after):
            if kind is not None or not parts:
                layer.carried = before
            elif len(parts) == 1:
                layer.carried = parts[0]
            else:
                layer.carried = tuple(namespace(*part).concat(list(part), axis=0) for part in zip(*parts))


def _name(layer: Any) -> str:
    return f"layer {layer.path!r} ({type(layer).__name__})"
