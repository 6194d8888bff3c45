"""What a run keeps of its data, so that a resumed run goes on with the same: parts, moments, and what was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xpnet.cli.argument_types import UsageError
from xpnet.data.dataset import NumpyArray
from xpnet.data.splits import TEST, TRAIN, VALIDATION
from xpnet.io import archive

NAME = "data.kept"
_RECORD = ("low", "high", "trained_on")


@dataclass(frozen=True, eq=False)
class Kept:
    """What a run keeps of its data.

    Attributes:
        places: sorted hashes, uint64, each once: what decides on the part of an example.
        parts: TRAIN, VALIDATION or TEST for each.
        mean, std: what inputs are standardized by.
        record: the arrays of the InputRecord.
    """

    places: NumpyArray
    parts: NumpyArray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    record: Mapping[str, NumpyArray]

    def divide(self, places: NumpyArray, trained: NumpyArray, parts: NumpyArray, given: NumpyArray | None) -> NumpyArray:
        """Return the parts of examples: those that the run knows stay where they were.

        Args:
            places: of the examples, (N,).
            trained: whether they were trained on, under whatever name.
            parts: as new data would be divided.
            given: the parts that folders or arrays say, of which a run can hold out some of the training part; None: none do.
        """
        if given is not None and (given == VALIDATION).any():
            return parts
        at = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        known, before = self.places[at] == places, self.parts[at]
        if given is not None:
            known &= (given == TRAIN) & (before != TEST)
            trained = np.zeros(len(places), bool)
        # What is new is not held out for validation: the losses of all epochs are measured on the same examples.
        watched = bool((known & (before == VALIDATION)).any())
        new = np.where(trained | (watched & (parts == VALIDATION)), TRAIN, parts)
        return np.where(known, before, new)


def keep(
    folder: Path,
    places: NumpyArray,
    parts: NumpyArray,
    moments: tuple[Sequence[float], Sequence[float]],
    record: Mapping[str, NumpyArray],
    before: Kept | None,
) -> None:
    """Write what a run keeps of its data into its folder; what it kept `before` of data that are gone is kept still."""
    order = np.argsort(parts, kind="stable")  # of equal places the training part comes first
    unique, first = np.unique(places[order], return_index=True)
    part = parts[order][first].astype(np.int8)
    if before is not None:
        gone = ~np.isin(before.places, unique)
        unique, part = np.append(unique, before.places[gone]), np.append(part, before.parts[gone])
        order = np.argsort(unique)
        unique, part = unique[order], part[order]
    mean, std = (np.array(values, np.float64) for values in moments)
    archive.write(folder / NAME, {"format": NAME}, {"places": unique, "parts": part, "mean": mean, "std": std, **record})


def kept(folder: Path) -> Kept | None:
    """Return what the run in a folder kept of its data; None where it kept nothing.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        _, found = archive.read(path)
        places, parts, mean, std = (found[name] for name in ("places", "parts", "mean", "std"))
        if not len(places) or places.dtype != np.uint64 or places.shape != parts.shape or mean.shape != std.shape:
            raise ValueError("its arrays do not belong together")
    except (ValueError, KeyError) as error:  # ArchiveError is a ValueError
        raise UsageError(f"{path}: damaged ({error}); start a new run") from error
    record = {name: found[name] for name in _RECORD if name in found}
    return Kept(places, parts, tuple(mean.tolist()), tuple(std.tolist()), record)
