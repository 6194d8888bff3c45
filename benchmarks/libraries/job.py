"""What a library's module makes of a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Arrays = dict[str, Any]


class Unsupported(Exception):  # noqa: N818 - a message to the reader of the table, not an error
    """The library, or this module for it, does not offer what the case needs; the message says what."""


class Job:
    """A case, ready to run in one library.

    Args:
        check: computes the results that all libraries have to agree on, before any update: NumPy arrays by name, in
            xpnet's layouts.
        once: does the work once.
        synchronize: waits until the device is idle.
        weights: the weights as they are now, by path, in xpnet's layouts; for training steps.
        units: how many units (training steps) one call of `once` does.
        remark: after some calls, what has to be said of how they ran; empty where nothing has.
        close: gives back what the job has taken possession of.
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
    """The weights among the arrays of a case, by path."""
    return {name.removeprefix("weight/"): array for name, array in arrays.items() if name.startswith("weight/")}


def walk(net: list[dict[str, Any]], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, layer) for each layer of a network, without those inside residual blocks."""
    for i, layer in enumerate(net):
        yield f"{prefix}{i}", layer


def to_oihw(kernel: Any) -> Any:
    """A convolution's kernel (KH, KW, C, O) as (O, C, KH, KW)."""
    return np.ascontiguousarray(np.transpose(kernel, (3, 2, 0, 1)))


def from_oihw(kernel: Any) -> Any:
    """And back."""
    return np.ascontiguousarray(np.transpose(kernel, (2, 3, 1, 0)))


def to_nchw(x: Any) -> Any:
    """Images (N, H, W, C) as (N, C, H, W); other arrays as they are."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 4 else x


def from_nchw(x: Any) -> Any:
    """And back."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if x.ndim == 4 else x


def flat_rows_from_nchw(kernel: Any, image: tuple[int, int, int]) -> Any:
    """The kernel (C*H*W, O) of a dense layer after a flattened NCHW image, with its rows in NHWC order."""
    H, W, C = image
    return np.ascontiguousarray(kernel.reshape(C, H, W, -1).transpose(1, 2, 0, 3).reshape(H * W * C, -1))


def flat_rows_to_nchw(kernel: Any, image: tuple[int, int, int]) -> Any:
    """The kernel (H*W*C, O) of a dense layer after a flattened NHWC image, with its rows in NCHW order."""
    H, W, C = image
    return np.ascontiguousarray(kernel.reshape(H, W, C, -1).transpose(2, 0, 1, 3).reshape(H * W * C, -1))
