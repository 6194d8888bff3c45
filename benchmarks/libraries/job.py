"""A case prepared in one library, and conversions between layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Arrays = dict[str, Any]


class Unsupported(Exception):  # noqa: N818 - a message for the tables, not an error
    """The library, or its module here, lacks what the case needs; the message says what."""


class Job:
    """A case, ready to run in one library.

    Args:
        check: computes the results to compare, before any update: NumPy arrays by name, in xpnet's layouts.
        once: does the work once.
        synchronize: waits until the device is idle.
        weights: returns the present weights by path, in xpnet's layouts; for training steps.
        units: the number of units (training steps) of one call of `once`.
        remark: returns a remark on how past calls ran; empty if there is none.
        close: releases what the job holds.
    """

    def __init__(
        self,
        check: Callable[[], Arrays],
        once: Callable[[], Any],
        *,
        synchronize: Callable[[], None] = lambda: None,
        weights: Callable[[], Arrays] | None = None,
        units: int = 1,
        remark: Callable[[], str] = lambda: "",
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.check = check
        self.once = once
        self.synchronize = synchronize
        self.weights = weights
        self.units = units
        self.remark = remark
        self.close = close


def weights_of(arrays: Arrays) -> Arrays:
    """Return the weights among the arrays of a case, by path."""
    return {name.removeprefix("weight/"): array for name, array in arrays.items() if name.startswith("weight/")}


def walk(net: list[dict[str, Any]], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, layer) for each layer of a network, without those inside residual blocks."""
    for i, layer in enumerate(net):
        yield f"{prefix}{i}", layer


def to_oihw(kernel: Any) -> Any:
    """Convert the kernel of a convolution (KH, KW, C, O) to (O, C, KH, KW)."""
    return np.ascontiguousarray(np.transpose(kernel, (3, 2, 0, 1)))


def from_oihw(kernel: Any) -> Any:
    """Convert the kernel of a convolution (O, C, KH, KW) to (KH, KW, C, O)."""
    return np.ascontiguousarray(np.transpose(kernel, (2, 3, 1, 0)))


def to_nchw(x: Any) -> Any:
    """Convert images (N, H, W, C) to (N, C, H, W); return other arrays unchanged."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 4 else x


def from_nchw(x: Any) -> Any:
    """Convert images (N, C, H, W) to (N, H, W, C); return other arrays unchanged."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if x.ndim == 4 else x


def flat_rows_from_nchw(kernel: Any, image: tuple[int, int, int]) -> Any:
    """Reorder the rows of a dense kernel (C*H*W, O) after a flattened NCHW image to NHWC order."""
    H, W, C = image
    return np.ascontiguousarray(kernel.reshape(C, H, W, -1).transpose(1, 2, 0, 3).reshape(H * W * C, -1))


def flat_rows_to_nchw(kernel: Any, image: tuple[int, int, int]) -> Any:
    """Reorder the rows of a dense kernel (H*W*C, O) after a flattened NHWC image to NCHW order."""
    H, W, C = image
    return np.ascontiguousarray(kernel.reshape(H, W, C, -1).transpose(2, 0, 1, 3).reshape(H * W * C, -1))
