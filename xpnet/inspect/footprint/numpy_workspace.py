"""The working memory of operations for NumPy."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from xpnet.accel.numpy.workspace import _ALIGNMENT, WORKSPACE_LIMIT
from xpnet.inspect.footprint.fake_array import FakeArray, current_log
from xpnet.runtime.threads import get_num_threads

Shape = tuple[int, ...]


def workspace(dtype: Any, count: int, *shapes: Shape, slot: str = "main") -> None:
    """The working memory of `count` chunks, of which as many run at a time as there are threads."""
    size = sum(-(-prod(s) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for s in shapes)
    current_log().keep(slot, size + _ALIGNMENT, max(1, min(get_num_threads(), count)), WORKSPACE_LIMIT + (2 << 20))


def moment(dtype: Any, *shapes: Shape) -> None:
    """Arrays that live within one operation, besides all that are counted."""
    current_log().moment(sum(prod(shape) for shape in shapes) * np.dtype(dtype).itemsize)


def activation_gradient(y: FakeArray, activation: str | None, shape: Shape) -> None:
    """The working memory of workspace.activation_gradient."""
    if activation is not None:
        moment(np.bool if activation == "relu" else y.dtype, shape)
