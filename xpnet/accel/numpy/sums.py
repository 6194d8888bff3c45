"""Sums over the rows of a matrix for NumPy."""

from __future__ import annotations

import numpy as np

from xpnet.accel.numpy.workspace import Floats
from xpnet.ops.sums import total

_PLAIN = 256
"""Rows that are added one after the other: a batch has no more as a rule, and gradients of a bias cancel little."""


def column_sums(x: Floats, out: Floats | None = None) -> Floats:
    """Return the sums over the rows of x (rows, columns), written to `out` if that is given."""
    if len(x) <= _PLAIN:
        sums: Floats = np.add.reduce(x, axis=0, out=out)
        return sums
    made: Floats = total(np, x, (0,))  # type: ignore[assignment, arg-type]
    if out is None:
        return made
    np.copyto(out, made)
    return out
