"""Parts of a data set: an example's part follows from a hash of it, and in small classes from those of its neighbours."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import numpy as np

from .dataset import NumpyArray

TRAIN, VALIDATION, TEST = 0, 1, 2

_CHUNK = 1 << 20
_FEW = 20
"""With fewer different rows than this a table is one of repeated cases, and its repetitions are divided as well."""


def hashes(items: Iterable[bytes]) -> NumpyArray:
    """Return a hash of each item, uint64 (N,), the same in every process and on every machine."""
    joined = b"".join(hashlib.blake2b(item, digest_size=8).digest() for item in items)
    return np.frombuffer(joined, "<u8").astype(np.uint64)


def row_hashes(x: NumpyArray) -> NumpyArray:
    """Return a hash of the content of each example of x (N, ...), uint64 (N,)."""
    step = max(1, _CHUNK // max(1, x[:1].size))  # a copy of all examples would take as much memory as they do
    chunks = (np.ascontiguousarray(x[i : i + step], "<f4") + np.float32(0) for i in range(0, len(x), step))  # -0 is 0
    return hashes(row.tobytes() for chunk in chunks for row in chunk)


def few_differ(found: NumpyArray) -> bool:
    """Return whether a table is one of repeated cases: its repetitions are then examples of their own."""
    return len(np.unique(found)) < _FEW


def spread_repetitions(found: NumpyArray) -> NumpyArray:
    """Return hashes of content and repetition: equal examples are numbered, and the first keeps its hash."""
    before: Counter[int] = Counter()
    spread = found.copy()
    for i, value in enumerate(found.tolist()):
        if before[value]:
            spread[i] = hashes([f"{value} {before[value]}".encode()])[0]
        before[value] += 1
    return spread


def divide(found: NumpyArray, labels: NumpyArray, *, test: float, validation: float = 0.0) -> NumpyArray:
    """Divide examples by their hashes; those with equal ones stay together.

    The test part are the hashes in the lowest fraction `test` of all, so that hardly an example moves when the data grow. Every
    class with two examples that differ gets at least one in training and, unless another class holds the same, one in testing.

    Args:
        found: hashes, uint64 (N,).
        labels: class indices (N,).
        test: the fraction of the test part; 0 for none.
        validation: the fraction of the validation part, of what remains.

    Returns:
        TRAIN, VALIDATION or TEST for every example, int8 (N,).
    """
    place = found.astype(np.float64) / 2.0**64
    parts = np.full(len(found), TRAIN, np.int8)
    parts[place < test + validation * (1 - test)] = VALIDATION
    parts[place < test] = TEST
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        own, groups = parts[rows], np.unique(place[rows])
        if len(groups) == 1:
            own[:] = TRAIN
        else:
            if test and not (own == TEST).any():
                own[place[rows] == groups[0]] = TEST
            if not (own == TRAIN).any():
                own[place[rows] == groups[-1]] = TRAIN
            trained = np.unique(place[rows[own == TRAIN]])
            if validation and not (own == VALIDATION).any() and len(trained) > 1:
                own[place[rows] == trained[0]] = VALIDATION
        parts[rows] = own
    unique, group = np.unique(found, return_inverse=True)
    least = np.full(len(unique), TEST, np.int8)
    np.minimum.at(least, group, parts)  # equal examples of several classes stay together, too
    return least[group]
