"""The user's own data as they were read, and the data set made of them."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xpnet.cli.kept_data import Kept
from xpnet.data import DataError, Dataset
from xpnet.data.dataset import NumpyArray, Pair
from xpnet.data.inputs import InputRecord
from xpnet.data.splits import TEST, TRAIN, VALIDATION, divide, few_differ, spread_repetitions
from xpnet.data.table_form import as_number
from xpnet.runtime.messages import counted, quoted

TEST_FRACTION = 0.2
"""The test part of data without one: chosen by a hash of each example, so that no later run trains on it."""
TEST_NOTE = f"about {TEST_FRACTION:.0%} of every class are the test part, chosen by a hash of each example"
_FEW = 10
VALIDATION_FRACTION = 0.1
"""The part of the training data held out for early stopping: the test part must not decide when a run ends."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the data from a model file, or from the beginning of a run that is resumed.

    Attributes:
        inputs: how they were read then.
        class_names: the classes, in the order of the model's outputs.
        place: the model file or run, for messages.
        kept: what the run kept of its data.
    """

    inputs: InputRecord
    class_names: tuple[str, ...]
    place: str
    kept: Kept | None = None


@dataclass(eq=False)
class Reading:
    """Examples read from a folder or a file of the user's.

    Attributes:
        name: of the folder or file.
        x: float32 (N, *shape), in the units that `inputs` says.
        y: class indices (N,).
        class_names: their names.
        inputs: how they were read, without the training part's range.
        contents: hashes of the content of the examples: what tells whether one was trained on.
        places: hashes that decide on the part of an example.
        parts: TRAIN, VALIDATION or TEST of every example, where the data are divided already; None where not.
        notes: what should be said about the data.
    """

    name: str
    x: NumpyArray
    y: NumpyArray
    class_names: tuple[str, ...]
    inputs: InputRecord
    contents: NumpyArray
    places: NumpyArray
    parts: NumpyArray | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def identities(self) -> NumpyArray:
        """Hashes that tell whether an example was trained on: of its content, where few differ of its repetition as well."""
        return self.places if self.inputs.spread else self.contents

    def divided(self, validation: bool = False, kept: Kept | None = None) -> NumpyArray:
        """Return the part of every example; with `validation`, a tenth of the training part is held out if none is yet."""
        parts = self._divided(validation)
        if kept is None:
            return parts
        return kept.divide(self.places, self.identities, self.inputs.seen(self.identities)[0], parts, self.parts)

    def _divided(self, validation: bool) -> NumpyArray:
        fraction = VALIDATION_FRACTION if validation else 0.0
        if self.parts is None:
            return divide(self.places, self.y, test=TEST_FRACTION, validation=fraction)
        parts = self.parts.copy()
        if validation and not (parts == VALIDATION).any():
            rows = np.flatnonzero(parts == TRAIN)
            parts[rows] = divide(self.places[rows], self.y[rows], test=0.0, validation=fraction)
        return parts


@dataclass(frozen=True, eq=False, repr=False)
class OwnDataset(Dataset):
    """A data set of the user's own.

    Attributes:
        validation: the pair of a validation part, or None.
        reading: what was read.
        inputs: how, with the training part's range and the hashes of its examples.
        parts: TRAIN, VALIDATION or TEST of every example that was read.
        trained_before: how many examples of the test part a resumed run trained on; None where that is not known.
    """

    validation: Pair | None = field(default=None, repr=False)
    reading: Reading = field(default=None, repr=False)  # type: ignore[assignment]
    inputs: InputRecord = field(default=None, repr=False)  # type: ignore[assignment]
    parts: NumpyArray = field(default=None, repr=False)  # type: ignore[arg-type]
    trained_before: int | None = None


def own_dataset(reading: Reading, validation: bool = False, kept: Kept | None = None) -> OwnDataset:
    """Divide a reading, and compute the moments of the training part; a resumed run has both from its beginning.

    Raises:
        DataError: there are fewer than two classes, or too few examples to divide.
    """
    if len(reading.class_names) < 2:
        raise DataError(
            f"{reading.name}: all examples are of one class, {quoted(reading.class_names[0])}; expected two or more"
        )
    parts = reading.divided(validation, kept)
    train, test, held = (np.flatnonzero(parts == part) for part in (TRAIN, TEST, VALIDATION))
    if not len(train) or not len(test):
        raise DataError(
            f"{reading.name}: {counted(len(train), 'example')} to train on and {len(test)} to test are too few; every class "
            f"needs two or more that differ"
        )
    if validation and not len(held):
        raise DataError(
            f"{reading.name}: {counted(len(train), 'example')} to train on are too few for early stopping on "
            f"some of them; omit --patience"
        )
    absent = [name for k, name in enumerate(reading.class_names) if not (reading.y[train] == k).any()]
    if absent:
        raise DataError(
            f"{reading.name}: no example to train on of {counted(len(absent), 'class', 'classes')}, such as {quoted(absent[0])}"
        )
    notes = list(reading.notes)
    untested = [name for k, name in enumerate(reading.class_names) if not (reading.y[test] == k).any()]
    if untested:
        notes.append(
            f"the test part has no example of {counted(len(untested), 'class', 'classes')}, such as {quoted(untested[0])}"
        )
    if len(test) < _FEW:
        notes.append(f"the test part has {counted(len(test), 'example')}: an accuracy on so few says little")
    doubled = int(np.isin(reading.contents[test], reading.contents[train]).sum())
    if doubled:
        are = "is a copy of a training example" if doubled == 1 else "are copies of training examples"
        notes.append(f"{doubled:,} of the {counted(len(test), 'test example')} {are}")
    reading.notes = notes
    x = reading.x[train]
    axes = tuple(range(x.ndim - 1))
    if kept is None:
        mean, std = x.mean(axis=axes, dtype=np.float64), x.std(axis=axes, dtype=np.float64)
        std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
    else:
        mean, std = np.array(kept.mean), np.array(kept.std)
    tested = reading.x[test], reading.y[test]
    watched = (reading.x[held], reading.y[held]) if len(held) else None
    reading.x = reading.x[:0].copy()  # the parts are copies: the whole is not kept beside them
    return OwnDataset(
        reading.name,
        (x, reading.y[train]),
        tested,
        reading.class_names,
        tuple(float(v) for v in mean),
        tuple(float(v) for v in std),
        source="your own",
        licence="your own",
        scale=reading.inputs.scale,
        notes=TEST_NOTE if reading.parts is None else "",
        validation=watched,
        reading=reading,
        inputs=reading.inputs.with_training_part(x, reading.identities[train]),
        parts=parts,
        trained_before=None if kept is None else int(reading.inputs.seen(reading.identities[test])[0].sum()),
    )


def placed(contents: NumpyArray, inputs: InputRecord, known: Known | None) -> tuple[NumpyArray, InputRecord]:
    """Return what decides on the parts of the rows of a table or array, and the record that says whether repetitions count.

    Whether they do is found out once: a table that grows, or one row of it, is read as at first.
    """
    if known is None and few_differ(contents):
        inputs = replace(inputs, spread=True)
    return (spread_repetitions(contents) if inputs.spread else contents), inputs


def class_indices(labels: Sequence[str], known: Known, name: str) -> NumpyArray:
    """Return the index of each label among the classes of a model, by name; 1 and 1.0 are one name.

    Raises:
        DataError: a label is none of them.
    """
    index = {normalized(label): k for k, label in enumerate(known.class_names)}
    numbers = {value: k for k, label in enumerate(known.class_names) if (value := as_number(label)) is not None}
    table: dict[str, int] = {}
    unknown = []
    for label in dict.fromkeys(labels):
        k = index.get(normalized(label))
        if k is None and (value := as_number(label)) is not None:
            k = numbers.get(value)
        if k is None:
            unknown.append(label)
        else:
            table[label] = k
    if unknown:
        raise DataError(
            f"{name}: {known.place} does not know the class{'es' * (len(unknown) > 1)} {quoted_list(unknown)}; it knows "
            f"{quoted_list(known.class_names)}"
        )
    return np.array([table[label] for label in labels], np.int64)


def normalized(name: str) -> str:
    """Return a name with accents composed: file systems and programs write the same name in two ways."""
    return unicodedata.normalize("NFC", name)


def quoted_list(names: Sequence[str], most: int = 10) -> str:
    """Return names from a file as messages list them."""
    shown = ", ".join(quoted(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def alike_names(names: Sequence[str]) -> list[str]:
    """Say which classes differ in upper and lower case alone."""
    first: dict[str, str] = {}
    return [
        f"the classes {quoted(first[name.casefold()])} and {quoted(name)} differ in upper and lower case alone"
        for name in names
        if first.setdefault(name.casefold(), name) != name
    ][:3]


def describe_change(before: dict[str, Any], reading: Reading) -> str:
    """Say what has changed in the data since `before`, a result of :func:`facts`; "" for nothing."""
    now = facts(reading)
    same = before.get("examples") == now["examples"] and before.get("counts") == now["counts"]
    mark = str(before.get("fingerprint"))
    if same and (mark == now["fingerprint"] or len(mark) != len(now["fingerprint"])):  # earlier versions had another one
        if before.get("names", now["names"]) == now["names"]:
            return ""
        return f"the examples of when the run began ({now['examples']:,}), but some under other names"
    if same:
        count = f"as many examples as when the run began ({now['examples']:,})"
        return f"{count}, but some have other contents, or another class or part"
    old = dict(zip(before.get("classes", []), before.get("counts", []), strict=False))
    changed = [f"{n} {old.get(n, 0):,} -> {c:,}" for n, c in zip(now["classes"], now["counts"]) if old.get(n, 0) != c]
    more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
    count = counted(now["examples"], "example")
    return f"{count}, {before.get('examples', 0):,} when the run began ({', '.join(changed[:8])}{more})"


def facts(reading: Reading) -> dict[str, Any]:
    """Return counts, class names and fingerprints of the data and of which name each has, to be kept with a run."""
    parts = np.zeros(len(reading.y), np.int8) if reading.parts is None else reading.parts
    order = np.lexsort((parts, reading.y, reading.contents))
    each = np.stack([column[order].astype("<u8") for column in (reading.contents, reading.y, parts)])
    pairs = np.stack([reading.identities, reading.places])[:, np.lexsort((reading.places, reading.identities))]
    counts = np.bincount(reading.y, minlength=len(reading.class_names))
    return {
        "examples": len(reading.y),
        "classes": list(reading.class_names),
        "counts": counts.tolist(),
        "fingerprint": hashlib.blake2b(each.tobytes(), digest_size=16).hexdigest(),
        "names": hashlib.blake2b(pairs.astype("<u8").tobytes(), digest_size=16).hexdigest(),
    }
