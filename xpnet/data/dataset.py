"""A data set: two pairs of arrays, and facts about them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xpnet.runtime.messages import QuotingError
from xpnet.runtime.peers import missing_attribute

NumpyArray: TypeAlias = np.ndarray[Any, Any]
Pair: TypeAlias = tuple[NumpyArray, NumpyArray]


class DataError(QuotingError, ValueError):
    """Data that are missing, damaged, or not as expected. The message names the file."""


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise a DataError where a path is that of a pipe or a device, which would be waited for; a missing file is no matter.

    What a shell hands over, /dev/stdin or /dev/fd/63, has a writer.
    """
    if os.fspath(path).startswith(("/dev/stdin", "/dev/fd/")):
        return
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise DataError(f"{path}: a pipe or a device, expected a regular file: write its content to one first")


class WorkerError(RuntimeError):
    """A worker process died."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A classification data set, split into a training and a test part.

    Attributes:
        name: as given to :func:`xpnet.data.load`.
        train: `(x, y)`: x float32 in [0, 1], (N, H, W, C) for images or (N, F); y int64 (N,), 0 to K - 1.
        test: the same for the test part.
        class_names: K names, in the order of the labels.
        mean: mean of x over the training part, one number per channel (or feature): the published one where
            there is one.
        std: standard deviation of x, likewise.
        source: authors and place of publication.
        licence: the authors' terms of use.
        scale: x = published value / scale.
        notes: further facts, for example about the split.
        titles: of a table, the titles of its features; () where they have none.
        class_title: the title of its classes.
    """

    name: str
    train: Pair = field(repr=False)
    test: Pair = field(repr=False)
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    licence: str
    scale: float = 1.0
    notes: str = ""
    titles: tuple[str, ...] = ()
    class_title: str = ""
    if not TYPE_CHECKING:  # mypy would know every attribute
        __getattr__ = missing_attribute

    @property
    def classes(self) -> int:
        """The number of classes, K."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example: (H, W, C) or (F,)."""
        return tuple(self.train[0].shape[1:])

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}: {len(self.train[0])} training and {len(self.test[0])} test examples of "
            f"shape {self.input_shape}, {self.classes} classes)"
        )
