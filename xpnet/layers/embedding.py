"""Embedding: a learnt vector for every index."""

from __future__ import annotations

from typing import Any

from xpnet import ops
from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tensor import Tensor
from xpnet.backend import namespace
from xpnet.layers.context import Shape, Spec
from xpnet.layers.dense import Initial
from xpnet.layers.module import Module
from xpnet.ops.shapes import is_whole
from xpnet.runtime.settings import check_whole


class Embedding(Module):
    """Lookup of rows of a learnt table.

    Args:
        symbols: V; indices are 0..V-1.
        units: D, the length of a row.
        padding: an index whose output is 0 and is not learnt, for padding short sequences; a recurrent layer behind it with
            mask_value=0.0 skips those steps. None: no such index.
        initializer: of the table.
        regularizer: a penalty on the table.

    Shapes:
        integers (N, ...) -> (N, ..., D). Parameters: table (V, D).
    """

    table: Parameter

    def __init__(
        self,
        symbols: int,
        units: int,
        *,
        padding: int | None = None,
        initializer: Initial = "uniform",
        regularizer: Any = None,
    ) -> None:
        check_whole("Embedding", 1, symbols=symbols, units=units)
        if padding is not None and not (is_whole(padding) and 0 <= padding < symbols):
            raise ValueError(f"Embedding: padding must be one of the symbols 0..{symbols - 1}, got {padding}")
        self.symbols = int(symbols)
        self.units = int(units)
        self.padding = padding
        self.initializer = initializer
        self.regularizer = regularizer

    def parameter_specs(self, input_shape: Shape) -> dict[str, Spec]:
        """Return the spec of the table."""
        return {"table": Spec((self.symbols, self.units), self.initializer, regularizer=self.regularizer)}

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (...) to (..., D)."""
        return (*input_shape, self.units)

    def forward(self, x: Any) -> Any:
        """Map integers x (N, ...) to (N, ..., D)."""
        indices = x.array if isinstance(x, Tensor) else x
        y = ops.embedding(indices, self.table)
        if self.padding is None:
            return y
        xp = namespace(indices)
        return ops.where((indices != self.padding)[..., None], y, xp.zeros((), dtype=y.dtype, device=indices.device))
