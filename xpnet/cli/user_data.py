"""The DATASET argument: a published data set, or the user's own folder of images or CSV file."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpnet import data
from xpnet.cli.argument_types import UsageError
from xpnet.data import DataError, Dataset, ImageFolder
from xpnet.data.preprocessing import Transform

_TRAIN, _TEST = ("train", "training"), ("test", "validation", "val", "valid")
TEST_FRACTION = 0.2
"""The test part of data without one: always the same examples, so that no run trains on them."""
TEST_NOTE = f"{TEST_FRACTION:.0%} of every class are the test part"

NumpyArray = np.ndarray[Any, Any]


def find_dataset(
    name: str,
    path: str | None = None,
    size: Sequence[int] | None = None,
    target: str | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Load the data set that the DATASET argument names.

    Args:
        name: one of :func:`xpnet.data.names`; a folder of images CLASS/NAME.png, or of train/ and test/ folders of them; or a
            CSV file of numbers with one column of classes.
        path: the folder of the published files.
        size: (H, W) to resize the images of a folder to; None: they all have one size.
        target: the title of the column of classes in a CSV file; None: the last column.
        skip_bad: skip images of a folder that cannot be read, with a warning for each, instead of raising.

    Raises:
        DataError: what is missing or unreadable, by its name.
    """
    here = Path(name)
    if here.is_dir() and name not in data.names():
        return from_folder(here, size, skip_bad)
    if here.suffix.lower() == ".csv":
        return from_csv(here, target)
    return data.load(name, path)


def from_folder(folder: Path, size: Sequence[int] | None = None, skip_bad: bool = False) -> Dataset:
    """Load images from CLASS/NAME.png, or from train/CLASS/NAME.png and test/CLASS/NAME.png, into memory.

    Without train and test folders, a fifth of every class, always the same, is held out for testing.

    Raises:
        DataError: no images, or none of some class; images of several sizes without `size`; an image that cannot be read,
            unless `skip_bad`, which skips it with a warning.
        UsageError: a size that is not (H, W).
    """
    if size is not None and len(size) != 2:
        raise UsageError(f"--size {','.join(map(str, size))}: expected H,W, such as 64,64")
    parts = {d.name.lower(): d for d in folder.iterdir() if d.is_dir()}
    train = next((parts[n] for n in _TRAIN if n in parts), None)
    test = next((parts[n] for n in _TEST if n in parts), None)
    if train is not None and test is not None:
        first = ImageFolder(train)
        second = ImageFolder(test, classes=first.class_names)
        names = first.class_names
        pairs = _images(first, size, skip_bad), _images(second, size, skip_bad)
        notes = ""
    else:
        whole = ImageFolder(folder)
        names = whole.class_names
        pairs = data.split(*_images(whole, size, skip_bad), fraction=TEST_FRACTION)
        notes = TEST_NOTE
    return _dataset(str(folder), pairs, names, 255.0, notes)


def _images(found: ImageFolder, size: Sequence[int] | None, skip_bad: bool) -> tuple[NumpyArray, NumpyArray]:
    """Read the images of a folder, as grey ones where all are grey, and their class indices."""
    counts = np.bincount(found.labels, minlength=len(found.class_names))
    if not counts.all():
        empty = [name for name, count in zip(found.class_names, counts) if not count]
        raise DataError(
            f"class folders beside that of {found.paths[0]} hold no images: {', '.join(empty)}; add images, or remove folders "
            f"that are not a class"
        )
    readable = list(_readable(found)) if skip_bad else list(range(len(found)))
    if not readable:
        raise DataError(f"none of the {len(found)} images, such as {found.paths[0]}, can be read")
    first = found[readable[0]][0]
    some = (found[i][0] for i in readable[:: max(1, len(readable) // 20)])
    grey = first.shape[2] == 3 and all((image == image[..., :1]).all() for image in some)
    found.channels = 1 if grey else 3
    found.size = (size[0], size[1]) if size is not None else None
    H, W = found.size or first.shape[:2]
    x = np.empty((len(readable), H, W, found.channels), np.float32)
    for row, i in enumerate(readable):
        image = found[i][0]
        if image.shape != x.shape[1:]:
            raise DataError(
                f"{found.paths[i]} is {image.shape[0]} x {image.shape[1]} pixels, {found.paths[readable[0]]} is {H} x {W}; "
                f"give --size H,W to resize all images"
            )
        x[row] = image
    return x, found.labels[readable]


def _readable(found: ImageFolder) -> Iterator[int]:
    """Yield the indices of the images that can be read."""
    for i in range(len(found)):
        try:
            found[i]
        except DataError as error:
            warnings.warn(f"left out {error}", RuntimeWarning, stacklevel=2)
        else:
            yield i


def from_csv(path: Path, target: str | None = None) -> Dataset:
    """Load numbers and classes from the rows of a CSV file; a fifth of every class, always the same, is held out for testing.

    Raises:
        DataError: the file is missing or empty, or holds text where numbers should be; it names the example.
    """
    titles, rows = read_csv(path)
    if target is not None and (titles is None or target not in titles):
        columns = f"the columns {', '.join(titles)}" if titles else "columns without titles"
        raise UsageError(f"--target {target}: {path} has {columns}")
    column = len(rows[0]) - 1 if titles is None or target is None else titles.index(target)
    labels = [row[column].strip() for row in rows]
    names = tuple(sorted(set(labels), key=_order))
    y = np.array([names.index(label) for label in labels], np.int64)
    x = parse_numbers(path, titles, [[v for k, v in enumerate(row) if k != column] for row in rows])
    if len(names) < 2:
        raise DataError(f"{path}: the class column holds {names[0]!r} only")
    if len(names) > max(20, len(rows) // 3):
        raise DataError(f"{path}: the class column holds {len(names)} values in {len(rows)} rows; are these classes?")
    return _dataset(str(path), data.split(x, y, fraction=TEST_FRACTION), names, 1.0, TEST_NOTE)


def _order(label: str) -> tuple[int, float, str]:
    """Order labels that are numbers by value, before those that are text."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def read_csv(path: Path) -> tuple[list[str] | None, list[list[str]]]:
    """Read a CSV file: its titles, if its first line holds any, and its rows.

    Raises:
        DataError: the file is missing, not text or empty, or its rows differ in length.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file: {error}") from error
    if not rows:
        raise DataError(f"{path}: holds no rows")
    titles = None
    if not any(_is_number(cell) for cell in rows[0][1]):
        titles = [cell.strip() for cell in rows.pop(0)[1]]
        if not rows:
            raise DataError(f"{path}: holds titles and no rows")
    width = len(titles or rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise DataError(f"{path}: line {number} has {len(row)} columns, expected {width}")
    return titles, [row for _, row in rows]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def parse_numbers(path: Path, titles: list[str] | None, rows: list[list[str]]) -> NumpyArray:
    """Convert cells to float32 (N, F).

    Raises:
        DataError: a cell is not a finite number.
    """
    made = np.empty((len(rows), len(rows[0])), np.float32)
    for i, row in enumerate(rows):
        try:
            made[i] = [float(cell) for cell in row]
        except ValueError:
            wrong = next(cell for cell in row if not _is_number(cell))
            raise DataError(f"{path}: example {i + 1}: expected numbers, got {wrong!r}") from None
    if not np.isfinite(made).all():
        row_number = int(np.flatnonzero(~np.isfinite(made).all(axis=1))[0])
        raise DataError(f"{path}: example {row_number + 1} holds a number that is not finite")
    return made


def _dataset(name: str, pairs: Any, class_names: Sequence[str], scale: float, notes: str) -> Dataset:
    """Make a Dataset of a training and a test part, with the moments of the training part."""
    (x, y), (xt, yt) = pairs
    if not len(y) or not len(yt):
        raise DataError(f"{name}: {len(y)} examples to train on and {len(yt)} to test are too few")
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes, dtype=np.float64)
    std = x.std(axis=axes, dtype=np.float64)
    return Dataset(
        name,
        (x, y),
        (xt, yt),
        tuple(class_names),
        tuple(float(v) for v in mean),
        tuple(float(v) for v in np.where(std > 0, std, 1.0)),
        source="your own",
        licence="your own",
        scale=scale,
        notes=notes,
    )


def preprocess(x: Any, preprocessing: Transform | None) -> Any:
    """Preprocess examples in chunks: the intermediate arrays of a large data set would fill the memory."""
    if preprocessing is None:
        return x
    out = np.empty(x.shape, np.float32)
    for start in range(0, len(x), 1024):
        out[start : start + 1024] = preprocessing(x[start : start + 1024])
    return out
