"""Arrays in .npz files: examples and labels, divided or not."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from xpnet.cli.readings import Known, Reading, alike_names, class_indices, placed
from xpnet.data import DataError
from xpnet.data.dataset import NumpyArray, check_regular
from xpnet.data.inputs import InputRecord
from xpnet.data.npy import read_npy, read_open_npy
from xpnet.data.splits import TEST, TRAIN, VALIDATION, row_hashes
from xpnet.data.table_form import as_number, is_missing
from xpnet.runtime.messages import quoted

_PAIRS = (
    ("x", "y"),
    ("images", "labels"),
    ("data", "target"),
    ("features", "labels"),
    ("inputs", "targets"),
    ("arr_0", "arr_1"),
)
_PARTS = ((TRAIN, ("train",)), (VALIDATION, ("val", "valid", "validation")), (TEST, ("test",)))
_NAMES = ("class_names", "target_names", "classes")
_LARGEST, _MOST_EXPANSION = 1 << 28, 200
_SCALES = (1.0, 16.0, 255.0, 65535.0)
# What zipfile and its decompressors raise on damaged bytes; OSError for positions before the start of the file.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, lzma.LZMAError, OSError, EOFError, ValueError, LookupError, RuntimeError,
    NotImplementedError, OverflowError, MemoryError,
)  # fmt: skip
EXPECTED = "expected arrays x and y, or x_train, y_train, x_test and y_test"


def read_npz(path: Path, known: Known | None = None) -> Reading:
    """Read examples and labels from the arrays of a .npz file.

    Raises:
        DataError: the file is missing or damaged, or its arrays are not examples and labels.
    """
    names = _names(path)
    lower = {name.lower(): name for name in names}
    groups: list[tuple[int | None, str, str]] = []
    for x, y in _PAIRS:
        if x in lower and y in lower:
            groups = [(None, lower[x], lower[y])]
            break
        divided = [
            (part, lower[f"{x}_{word}"], lower[f"{y}_{word}"])
            for part, words in _PARTS
            for word in words
            if f"{x}_{word}" in lower and f"{y}_{word}" in lower
        ] or [
            (part, lower[f"{word}_{x}"], lower[f"{word}_{y}"])
            for part, words in _PARTS
            for word in words
            if f"{word}_{x}" in lower and f"{word}_{y}" in lower
        ]
        if any(part == TRAIN for part, _, _ in divided) and len(divided) > 1:
            groups = [*divided]
            if TEST not in [part for part, _, _ in divided]:  # as in folders: what is held out is the test part
                groups = [(TEST if part == VALIDATION else part, a, b) for part, a, b in divided]
            break
        if divided and known is not None:  # a model may be measured on one part alone
            groups = [(None if part == TRAIN else TEST, a, b) for part, a, b in divided if part == divided[-1][0]]
            break
    if not groups:
        raise DataError(f"{path}: holds the arrays {', '.join(map(quoted, names[:20])) or '(none)'}; {EXPECTED}")
    pairs = [(part, _member(path, a), _member(path, b, "fiubUS")) for part, a, b in groups]
    arrays = [_examples(path, x, y) for _, x, y in pairs]
    shapes = {x.shape[1:] for x, _ in arrays}
    if len(shapes) > 1:
        raise DataError(
            f"{path}: the examples of its parts have the shapes {' and '.join(map(str, shapes))}; expected one shape"
        )
    examples = np.concatenate([found for found, _ in arrays])
    labels = [label for _, found in arrays for label in found]
    parts = None
    if groups[0][0] is not None:
        parts = np.concatenate([np.full(len(y), part, np.int8) for (part, _, _), (_, y) in zip(groups, arrays)])
    given = next((tuple(map(str, _member(path, lower[name], "U").ravel())) for name in _NAMES if name in lower), None)
    if given is not None and all(y.dtype.kind not in "US" for _, _, y in pairs):  # the labels are indices of these names
        high = [label for label in labels if not 0 <= int(label) < len(given)]
        if high:
            raise DataError(
                f"{path}: holds the label {quoted(high[0])} and {len(given)} names of classes; expected 0 to {len(given) - 1}"
            )
        labels = [given[int(label)] for label in labels]
    return _reading(path, examples, labels, given, parts, known)


def _reading(
    path: Path, x: NumpyArray, labels: list[str], given: tuple[str, ...] | None, parts: NumpyArray | None, known: Known | None
) -> Reading:
    notes = alike_names(sorted(set(labels))) if known is None else []
    before = known
    if known is None:
        inputs = _record(path, x)
        names = tuple(sorted(set(labels), key=_order)) if given is None else given
        known = Known(inputs, names, str(path))
    else:
        x = fit(path, x, known.inputs)
    x, note = known.inputs.to_units(x, str(path))
    notes += [note] if note else []
    contents = row_hashes(x)
    places, inputs = placed(contents, known.inputs, before)
    y = class_indices(labels, known, str(path))
    return Reading(str(path), x, y, known.class_names, inputs, contents, places, parts, notes)


def _order(label: str) -> tuple[int, float, str]:
    """Order labels that are numbers by value, before those that are text."""
    number = as_number(label)
    return (1, 0.0, label) if number is None else (0, number, label)


def _record(path: Path, x: NumpyArray) -> InputRecord:
    """Return how new arrays are read: images of whole numbers from 0 are divided by what white is."""
    shape = x.shape[1:]
    if len(shape) != 3:
        return InputRecord("array", shape, whole=x.dtype.kind in "iu")
    if shape[0] in (1, 3) and shape[2] > 4:
        raise DataError(
            f"{path}: holds images of shape {shape}, channels first; expected (H, W, C): numpy.moveaxis(x, 1, -1) makes them"
        )
    least, most = float(x.min()), float(x.max())
    whole = x.dtype.kind in "iu" or bool((x == np.rint(x)).all())
    scale = 1.0
    if x.dtype.kind != "b" and whole and least >= 0:
        scale = next((s for s in _SCALES if most <= s), 1.0)
    return InputRecord("images", shape, scale, whole=whole)


def _examples(path: Path, x: NumpyArray, y: NumpyArray) -> tuple[NumpyArray, list[str]]:
    """Return examples (N, F) or (N, H, W, C), and their labels as text."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim not in (2, 4) or y.ndim != 1 or len(x) != len(y) or not x.size:
        raise DataError(
            f"{path}: holds examples of shape {x.shape} and labels of shape {y.shape}; expected (N, F), (N, H, W) or "
            f"(N, H, W, C), and (N,)"
        )
    if y.dtype.kind == "S":
        y = np.array([label.decode("utf-8", "replace") for label in y.tolist()])
    if y.dtype.kind == "f":
        if not (np.isfinite(y).all() and (y == np.rint(y)).all()):
            raise DataError(f"{path}: its labels are fractions or not finite; expected whole numbers or text")
        y = y.astype(np.int64)
    labels = [str(label).strip() for label in y.tolist()]
    missing = [k for k, label in enumerate(labels) if is_missing(label)]
    if missing:
        raise DataError(
            f"{path}: example {missing[0] + 1} has the label {quoted(labels[missing[0]])}; {len(missing):,} have none"
        )
    return x, labels


def fit(path: Path, x: NumpyArray, record: InputRecord) -> NumpyArray:
    """Return an array as (N, *shape) of a record: one example or many, images with or without the axis of one channel.

    Raises:
        DataError: it has another shape.
    """
    shape, found = record.shape, x.shape
    if len(shape) == 3 and shape[2] == 1 and x.shape[-2:] == shape[:2] and x.shape[-3:] != shape:
        x = x[..., None]
    if x.shape == shape:
        x = x[None]
    if x.shape[1:] != shape or not len(x):
        raise DataError(f"{path}: holds an array of shape {found}, expected {shape} or (N, {', '.join(map(str, shape))})")
    return x


def read_arrays(path: Path, known: Known) -> tuple[NumpyArray, list[str]]:
    """Read the examples in a .npy or .npz file for a model: float32 (N, *shape), and what should be said about them.

    Raises:
        DataError: the file is missing or damaged, or does not fit the model.
    """
    if path.suffix.lower() == ".npz":
        names = {name.lower(): name for name in _names(path)}
        found = next((names[x] for x, _ in _PAIRS if x in names), None) or (
            next(iter(names.values())) if len(names) == 1 else None
        )
        words = [word for _, words in _PARTS for word in words]
        parts = [n for x, _ in _PAIRS for word in words for n in (f"{x}_{word}", f"{word}_{x}") if n in names]
        found = names[parts[0]] if found is None and len(parts) == 1 else found
        if found is None:
            raise DataError(
                f"{path}: holds the arrays {', '.join(map(quoted, list(names)[:20]))}; expected one array, or one named x"
            )
        x = _member(path, found)
    else:
        x = read_npy(path)
    values, note = known.inputs.to_units(fit(path, x, known.inputs), str(path))
    return values, [note] if note else []


def _names(path: Path) -> list[str]:
    """Return the names of the arrays in a .npz file."""
    check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename.removesuffix(".npy") for info in archive.infolist() if info.filename.endswith(".npy")]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except _DAMAGE as error:
        raise DataError(f"{path}: not a readable .npz file: {error}") from error


def _member(path: Path, name: str, kinds: str = "fiub") -> NumpyArray:
    what = "; save labels as text, such as y.astype(str)" if "U" in kinds else ""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.file_size > max(_LARGEST, _MOST_EXPANSION * info.compress_size):
                raise DataError(f"{path}: {quoted(name)} expands to {info.file_size >> 20:,} MB; write it with numpy.savez")
            with archive.open(info) as file:
                return read_open_npy(cast(BinaryIO, file), f"{path}: {name}", info.file_size, kinds)
    except DataError as error:
        if not what or "expected numbers" not in str(error):
            raise
        raise DataError(f"{error} or text{what}") from error
    except _DAMAGE as error:
        raise DataError(f"{path}: {quoted(name)} cannot be read: {error}") from error
