"""The DATASET argument: a published data set, or the user's own folder of images, table or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpnet import data
from xpnet.cli.argument_types import UsageError
from xpnet.cli.array_files import read_npz
from xpnet.cli.hints import own_of_this_name
from xpnet.cli.image_folders import read_folder
from xpnet.cli.readings import Known, OwnDataset, Reading, own_dataset
from xpnet.cli.table_files import read_table
from xpnet.data import DataError, Dataset, tables
from xpnet.data.preprocessing import Transform

FORMS = "a folder of images CLASS/NAME.png, or a file .csv, .tsv, .csv.gz or .npz"


def find_dataset(
    name: str,
    path: str | None = None,
    size: Sequence[int] | None = None,
    target: str | None = None,
    skip_bad: bool = False,
    *,
    known: Known | None = None,
    validation: bool = False,
) -> Dataset:
    """Load the data set that the DATASET argument names.

    Args:
        name: one of :func:`xpnet.data.names`; a folder of images CLASS/NAME.png, or of train/, val/ and test/ folders of them;
            a table (CSV) of numbers with one column of classes; or a .npz file of arrays.
        path: the folder of the published files.
        size: (H, W) to resize the images of a folder to; None: they all have one size.
        target: the title of the column of classes in a table, or its number from 0; None: the last column.
        skip_bad: leave out images of a folder that cannot be read, with a warning for each, instead of raising.
        known: how the inputs of a model or of a resumed run were read, which the data must fit; columns and classes are
            matched by their names.
        validation: hold out a tenth of the training part of own data, if they have no validation part.

    Returns:
        the data set, an :class:`OwnDataset` if it is not a published one.

    Raises:
        DataError: what is missing or unreadable, by its name.
    """
    reading = read_own(name, size, target, skip_bad, known)
    if reading is not None:
        return own_dataset(reading, validation, None if known is None else known.kept)
    try:
        return data.load(name, path)
    except DataError as error:
        if note := own_of_this_name(name, path):
            raise DataError(f"{note}; {error}") from error
        raise


def read_own(
    name: str,
    size: Sequence[int] | None = None,
    target: str | None = None,
    skip_bad: bool = False,
    known: Known | None = None,
) -> Reading | None:
    """Read a folder or file of the user's; None where `name` is a published data set, or unknown. See :func:`find_dataset`."""
    here = Path(name)
    if name in data.names():
        return None
    if here.is_dir():
        return read_folder(here, size, skip_bad, known)
    if tables.is_table(here):
        return read_table(here, target, known)
    if here.suffix.lower() == ".npz":
        if target is not None:
            raise UsageError(f"--target is for tables, and {name} is a file of arrays, whose labels are named y: omit it")
        return read_npz(here, known)
    if here.exists():
        raise DataError(f"{name}: a file {here.suffix or 'without an ending'}, expected {FORMS}")
    if "/" in name or "\\" in name or here.suffix:
        raise DataError(f"{name}: no such folder or file; expected {FORMS}, or one of {', '.join(data.names())}")
    return None


def from_folder(folder: Path, size: Sequence[int] | None = None, skip_bad: bool = False) -> OwnDataset:
    """Load a folder of images; see :func:`find_dataset`."""
    return own_dataset(read_folder(Path(folder), size, skip_bad))


def from_csv(path: Path, target: str | None = None) -> OwnDataset:
    """Load a table of numbers and classes; see :func:`find_dataset`."""
    return own_dataset(read_table(Path(path), target))


def preprocess(x: Any, preprocessing: Transform | None) -> Any:
    """Preprocess examples in chunks: the intermediate arrays of a large data set would fill the memory."""
    if preprocessing is None:
        return x
    out = np.empty(x.shape, np.float32)
    for start in range(0, len(x), 1024):
        out[start : start + 1024] = preprocessing(x[start : start + 1024])
    return out
