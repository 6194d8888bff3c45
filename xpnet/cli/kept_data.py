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
        places: sorted hashes, uint64, each once: what decides on the part of a new example.
        parts: TRAIN, VALIDATION or TEST for each.
        identities: what an example is known by, for each: images, whose places are their names, by their pixels. None where an
            earlier version did not keep them; those of the rows of tables and arrays are their places.
        mean, std: what inputs are standardized by.
        record: the arrays of the InputRecord.
    """

    places: NumpyArray
    parts: NumpyArray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    record: Mapping[str, NumpyArray]
    identities: NumpyArray | None = None

    def divide(
        self, places: NumpyArray, identities: NumpyArray, trained: NumpyArray, parts: NumpyArray, given: NumpyArray | None
    ) -> NumpyArray:
        """Return the parts of examples: those that the run knows stay where they were.

        An example is looked for under its place; one that is known, and not there, has got another place and keeps its part.

        Args:
            places: of the examples, (N,).
            identities: of the examples, (N,).
            trained: whether they were trained on, under whatever name.
            parts: as new data would be divided.
            given: the parts that folders or arrays say, of which a run can hold out some of the training part; None: none do.
        """
        if given is not None and (given == VALIDATION).any():
            return parts
        at, known = _find(self.places, places)
        before = self.parts[at]
        if self.identities is not None:
            order = np.lexsort((self.parts, self.identities))  # of equal ones the training part comes first
            moved, found = _find(self.identities[order], identities)
            found &= ~(known & (self.identities[at] == identities))
            before = np.where(found, self.parts[order][moved], before)
            known |= found
        if given is not None:
            known &= (given == TRAIN) & (before != TEST)
            trained = np.zeros(len(places), bool)
        # What is new is not held out for validation: the losses of all epochs are measured on the same examples.
        watched = bool((known & (before == VALIDATION)).any())
        new = np.where(trained | (watched & (parts == VALIDATION)), TRAIN, parts)
        return np.where(known, before, new)


def _find(sorted_hashes: NumpyArray, hashes: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
    """Return where each of some hashes is first among sorted ones, and whether it is there."""
    at = np.minimum(np.searchsorted(sorted_hashes, hashes), len(sorted_hashes) - 1)
    return at, sorted_hashes[at] == hashes


def keep(
    folder: Path,
    places: NumpyArray,
    identities: NumpyArray,
    parts: NumpyArray,
    moments: tuple[Sequence[float], Sequence[float]],
    record: Mapping[str, NumpyArray],
    before: Kept | None,
) -> None:
    """Write what a run keeps of its data into its folder; what it kept `before` of data that are gone is kept still."""
    order = np.argsort(parts, kind="stable")  # of equal places the training part comes first
    unique, first = np.unique(places[order], return_index=True)
    part, known = parts[order][first].astype(np.int8), identities[order][first]
    if before is not None:
        gone = ~np.isin(before.places, unique)
        # An earlier version did not keep what was there: such places are known by no example.
        theirs = before.places if before.identities is None else before.identities
        unique, part = np.append(unique, before.places[gone]), np.append(part, before.parts[gone])
        known = np.append(known, theirs[gone])
        order = np.argsort(unique)
        unique, part, known = unique[order], part[order], known[order]
    mean, std = (np.array(values, np.float64) for values in moments)
    arrays = {"places": unique, "parts": part, "identities": known, "mean": mean, "std": std, **record}
    if np.array_equal(unique, known):
        del arrays["identities"]
    archive.write(folder / NAME, {"format": NAME}, arrays)


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
        identities = found.get("identities")
        if identities is not None and (identities.dtype != np.uint64 or identities.shape != places.shape):
            raise ValueError("its arrays do not belong together")
    except (ValueError, KeyError) as error:  # ArchiveError is a ValueError
        raise UsageError(f"{path}: damaged ({error}); start a new run") from error
    record = {name: found[name] for name in _RECORD if name in found}
    return Kept(places, parts, tuple(mean.tolist()), tuple(std.tolist()), record, identities)
