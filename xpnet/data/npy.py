"""Arrays in .npy files, read so that a damaged or a hostile file is one error.

``numpy.load`` believes the header: it allocates what it announces, returns an archive where the file is a .npz, and raises
whatever the parser of the header raises.
"""

from __future__ import annotations

import ast
import math
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from xpnet.runtime.messages import quoted, shorten

from .dataset import DataError, NumpyArray, check_regular

_KINDS = "fiub"
_LONGEST_HEADER = 10_000
_LONGEST_TEXT = 1_000
_MOST_AXES = 32


def read_npy(path: str | os.PathLike[str]) -> NumpyArray:
    """Read the array of numbers in a .npy file.

    Returns:
        An array of floats, integers or booleans, as the file holds it, in this machine's byte order.

    Raises:
        OSError: there is no such file, or it cannot be read.
        DataError: not a .npy file; shorter or longer than its header says; not numbers. The message names the
            file. Nothing larger than the file is allocated.

    Source: NEP 1, a simple file format for NumPy arrays.
    """
    check_regular(path)
    with Path(path).open("rb") as file:
        return read_open_npy(file, str(path), os.fstat(file.fileno()).st_size)


def read_open_npy(file: BinaryIO, name: str, size: int, kinds: str = _KINDS) -> NumpyArray:
    """Read a .npy file that is open at its beginning, of `size` bytes, as :func:`read_npy` does.

    Args:
        file: the open file.
        name: of the file, for messages.
        size: in bytes.
        kinds: the kinds of dtypes that are expected; with "U", text as well.
    """
    start = file.read(6)
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        raise DataError(f"{name}: not a readable .npy file, but a zip archive such as .npz; write one array with numpy.save")
    if start != npy_format.MAGIC_PREFIX:
        found = start.hex(" ") or "(none)"
        raise DataError(f"{name}: not a readable .npy file: it starts with the bytes {found}, expected 93 4e 55 4d 50 59")
    shape, fortran, dtype = _header(file, name)
    if dtype.kind not in kinds:
        raise DataError(f"{name}: holds {shorten(str(dtype), 80)}, expected numbers")
    wanted, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if wanted != there:
        raise DataError(
            f"{name}: wrong size: its header says {quoted(shape)} {dtype.name} values, the file holds {there:,} bytes of them; "
            f"it is truncated or damaged"
        )
    content = file.read(wanted)
    if len(content) != wanted:
        raise DataError(f"{name}: truncated: it ends within its values")
    try:
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    except ValueError as error:  # no values, along axes that are longer than an array's may be
        raise DataError(f"{name}: holds an array of shape {quoted(shape)}, which is too long") from error
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Return shape, order and dtype in the header of a file that is open behind its first six bytes."""
    version = file.read(2)
    sizes = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}
    if version not in sizes:
        raise DataError(f"{name}: version {'.'.join(map(str, version)) or '(none)'} of the .npy format, expected 1.0 to 3.0")
    length_bytes = file.read(sizes[version])
    length = int.from_bytes(length_bytes, "little")
    if len(length_bytes) < sizes[version] or length > _LONGEST_HEADER:
        raise DataError(f"{name}: not a readable .npy file: a header of {length:,} bytes, expected up to {_LONGEST_HEADER:,}")
    raw = file.read(length)
    if len(raw) < length:
        raise DataError(f"{name}: truncated: it ends within its header")
    text = raw.decode("utf-8" if version == b"\3\0" else "latin-1", "replace").strip()
    bad = f"{name}: not a readable .npy file, or not plain numbers: its header is {quoted(text)}"
    # The header of plain numbers is short. In a long one the parser of Python can be led to recurse, and costs memory.
    if len(text) > _LONGEST_TEXT or "\\" in text:
        raise DataError(bad)
    try:
        header = ast.literal_eval(text)
        shape, fortran, description = header["shape"], header["fortran_order"], header["descr"]
        dtype = np.dtype(description if isinstance(description, str) else "V")
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise DataError(bad) from error
    plain = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**62 for n in shape) and len(shape) <= _MOST_AXES
    if not plain or not isinstance(fortran, bool):
        raise DataError(bad)
    return shape, fortran, dtype
