"""IDX files, the format of MNIST: one array per file, plain or gzip.

A header of big-endian numbers (two zero bytes, one byte for the type, one for the number of axes, four bytes
for the length of each axis), then the values, last axis fastest. Source: http://yann.lecun.com/exdb/mnist/
(end of the page).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from xpnet.runtime.files import place_to_write

from .dataset import DataError, NumpyArray

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MOST_AXES = 32
_BLOCK = 1 << 20


class ChecksumError(DataError):
    """A valid file, but not the published one. `found` is the md5 sum of its content."""

    def __init__(self, message: str, found: str):
        super().__init__(message)
        self.found = found


def read(path: str | os.PathLike[str], *, md5: str | None = None, mmap: bool = False) -> NumpyArray:
    """Read the array in an IDX file, in this machine's byte order.

    Args:
        path: the file, plain or gzip (recognised by its first bytes, not by its name).
        md5: the expected md5 sum of the decompressed file, in hexadecimal; None: not checked.
        mmap: map a plain file into memory instead of reading it, read-only and in the file's byte order, so
            that it may be larger than memory.

    Raises:
        DataError: no such file; not an IDX file; shorter or longer than its header says; damaged; another
            checksum.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if mmap:
            return _mapped(path, packed, md5)
        with cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb") as file:
            return _read_open(path, file, md5)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is truncated or damaged ({error}); get it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _header(path: Path, file: BinaryIO, update: Callable[[bytes], None]) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    start = file.read(4)
    update(start)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or start[3] == 0:
        raise DataError(
            f"{path}: not an IDX file: it starts with the bytes {start.hex(' ') or '(none)'}, expected 00 "
            f"00, a type (08, 09, 0b, 0c, 0d or 0e) and a number of axes"
        )
    if start[3] > MOST_AXES:
        raise DataError(f"{path}: its header says {start[3]} axes, expected up to {MOST_AXES}: damaged, or not an IDX file")
    lengths = file.read(4 * start[3])
    update(lengths)
    if len(lengths) < 4 * start[3]:
        raise DataError(f"{path}: truncated: it ends within its header")
    return np.dtype(TYPES[start[2]]), struct.unpack(f">{start[3]}I", lengths)


def _read_open(path: Path, file: BinaryIO, md5: str | None) -> NumpyArray:
    digest = hashlib.md5(usedforsecurity=False)
    dtype, shape = _header(path, file, digest.update)
    wanted = math.prod(shape) * dtype.itemsize
    content = bytearray()
    # Block by block: a damaged header can announce more bytes than there is memory.
    while len(content) <= wanted and (block := file.read(min(_BLOCK, wanted + 1 - len(content)))):
        content += block
        digest.update(block)
    if len(content) != wanted:
        found = f"only {len(content)}" if len(content) < wanted else "more"
        raise DataError(
            f"{path}: wrong size: its header says {' x '.join(map(str, shape))} {dtype.name} values, "
            f"{wanted} bytes; the file holds {found}"
        )
    if md5 is not None and digest.hexdigest() != md5:
        found = digest.hexdigest()
        raise ChecksumError(f"{path}: not the published file: the md5 sum of its content is {found}, expected {md5}", found)
    return _shaped(path, np.frombuffer(content, dtype), shape).astype(dtype.newbyteorder("="), copy=False)


def _shaped(path: Path, values: NumpyArray, shape: tuple[int, ...]) -> NumpyArray:
    try:
        return values.reshape(shape)
    except ValueError as error:  # no values, along axes that are longer than an array's may be
        raise DataError(f"{path}: its header says {' x '.join(map(str, shape))} values, which is too long") from error


def _mapped(path: Path, packed: bool, md5: str | None) -> NumpyArray:
    if packed:
        raise DataError(f"{path}: a gzip file cannot be memory-mapped; decompress it first, or read it with mmap=False")
    if md5 is not None:
        raise ValueError("md5 needs the whole file to be read: leave it out with mmap=True")
    with path.open("rb") as file:
        dtype, shape = _header(path, file, lambda _: None)
        start = file.tell()
    wanted, size = math.prod(shape) * dtype.itemsize, path.stat().st_size - start
    if size != wanted:
        raise DataError(f"{path}: wrong size: its header says {wanted} bytes of values, the file holds {size}")
    if wanted == 0:
        return _shaped(path, np.empty(0, dtype), shape)
    return np.memmap(path, dtype, "r", start, shape)


def write(path: str | os.PathLike[str], array: NumpyArray) -> None:
    """Write `array` as an IDX file, gzip if the name ends in .gz. The write is atomic; a symbolic link stays.

    Args:
        path: of the new file.
        array: at least one axis; uint8, int8, int16, int32, float32 or float64.

    Raises:
        ValueError: an IDX file cannot hold the array.
        OSError: the file cannot be written, or what is there is no regular file.
    """
    path, array = Path(path), np.asarray(array)
    codes = {np.dtype(name).newbyteorder("="): code for code, name in TYPES.items()}
    code = codes.get(array.dtype.newbyteorder("="))
    if code is None or not 1 <= array.ndim <= MOST_AXES:
        raise ValueError(
            f"an IDX file cannot hold {array.ndim} axes of {array.dtype}: it takes 1 to {MOST_AXES} axes of uint8, "
            f"int8, int16, int32, float32 or float64"
        )
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    content = header + array.astype(TYPES[code]).tobytes()
    target = place_to_write(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)
        temporary.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
