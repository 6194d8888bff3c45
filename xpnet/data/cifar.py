"""CIFAR-10 and CIFAR-100, binary version: records of one or two label bytes and 3,072 pixels.

Source: A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from .dataset import DataError, NumpyArray

PIXELS = 3 * 32 * 32


def read(path: str | os.PathLike[str], *, classes: int = 10, records: int | None = None) -> tuple[NumpyArray, NumpyArray]:
    """Read the images and labels of one file of the binary version.

    Args:
        path: for example data_batch_1.bin.
        classes: 10 (one label byte a record) or 100 (a coarse and a fine label; the fine one is returned).
        records: the expected number; None: any.

    Returns:
        images uint8 (N, 32, 32, 3) and labels int64 (N,).

    Raises:
        DataError: no such file, or not this format.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return decode(content, str(path), classes=classes, records=records)


def decode(content: bytes, source: str, *, classes: int = 10, records: int | None = None) -> tuple[NumpyArray, NumpyArray]:
    """Decode the bytes of a file as :func:`read` does; `source` is its name for messages."""
    if classes not in (10, 100):
        raise ValueError(f"classes must be 10 or 100, got {classes}")
    labels = 1 if classes == 10 else 2
    size = labels + PIXELS
    whole = len(content) % size == 0 and len(content) > 0
    if not whole or (records is not None and len(content) != records * size):
        expected = f"{records * size} ({records} records)" if records is not None else "a multiple"
        raise DataError(
            f"{source}: wrong size for CIFAR-{classes}: {len(content)} bytes, expected {expected} of {size} bytes a record; "
            f"the file is truncated or another one"
        )
    table = np.frombuffer(content, np.uint8).reshape(-1, size)
    y = table[:, labels - 1].astype(np.int64)
    if y.max() >= classes:
        i = int(np.argmax(y >= classes))
        raise DataError(f"{source}: record {i} has the label {y[i]}, expected 0 to {classes - 1}: not CIFAR-{classes}")
    # (N, C, H, W) in the file
    x = table[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x), y


def read_archive(path: Path, names: tuple[str, ...], md5: str | None) -> dict[str, bytes]:
    """Read the files called `names` from the published .tar.gz, without writing anything to disk.

    Raises:
        DataError: damaged, another checksum, or a file is missing.
    """
    import tarfile

    try:
        if md5 is not None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != md5:
                raise DataError(f"{path}: not the published archive: its md5 sum is {found}, expected {md5}")
        contents = {}
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in names and (file_in := archive.extractfile(member)) is not None:
                    contents[name] = file_in.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: the archive cannot be read ({error}); get it again") from None
    if missing := [name for name in names if name not in contents]:
        raise DataError(f"{path}: the archive lacks {', '.join(missing)}")
    return contents
