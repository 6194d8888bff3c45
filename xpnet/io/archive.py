"""One file for a JSON document and named arrays: what model files and checkpoints are made of.

The file is a zip archive, stored without compression, of ``document.json`` and ``arrays.safetensors``. The zip's CRC-32
of each part reveals truncation and flipped bits.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from xpnet.runtime.files import place_to_write
from xpnet.runtime.messages import QuotingError

DOCUMENT = "document.json"
ARRAYS = "arrays.safetensors"

NumpyArrays = dict[str, "np.ndarray[Any, Any]"]


class ArchiveError(QuotingError, ValueError):
    """A file is truncated, damaged, or has another format."""


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically: at every moment `path` is either the old file or the complete new one.

    `write` fills a temporary file in the same folder; it is flushed to the disk and then renamed. On failure the
    temporary file is removed and the old file is untouched. A symbolic link stays: the file that it leads to is replaced.

    Raises:
        OSError: the folder does not exist or cannot be written, the disk is full, or what is there is no regular file.
    """
    target = place_to_write(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"cannot write {target.name}: there is no such folder", str(target.parent))
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)  # mkstemp does not apply it, and it can only be read by setting it
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, name):
            raise type(error)(error.errno, error.strerror, str(path)) from error  # a full disk names no file
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the renaming durable, where the system lets a folder be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: str | Path, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write a document and arrays to `path`, atomically.

    Raises:
        TypeError: the document contains something that JSON cannot represent.
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    text = json.dumps(document, indent=1, allow_nan=True).encode()
    # safetensors ignores strides; np.ascontiguousarray would give a 0-d array an axis.
    blob = save({name: a if a.flags.c_contiguous else a.copy() for name, a in arrays.items()})

    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, part in ((DOCUMENT, text), (ARRAYS, blob)):
                # Without a time stamp: the same content gives the same bytes.
                archive.writestr(zipfile.ZipInfo(name), part)

    write_atomically(path, fill)


def read(path: str | Path) -> tuple[dict[str, Any], NumpyArrays]:
    """Return the document and the arrays in a file of :func:`write`.

    Raises:
        FileNotFoundError: there is no such file.
        ArchiveError: it is truncated, damaged or of another format; the message names the file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    blob = Path(path).read_bytes()
    if blob[8:10] == b'{"' and int.from_bytes(blob[:8], "little") <= len(blob) - 8:
        raise ArchiveError(
            f"{path}: holds weights alone (safetensors); make the model as it was made before they were saved, and use "
            f"model.load_weights(path)"
        )
    content = io.BytesIO(blob)
    try:
        with zipfile.ZipFile(content) as archive:
            names = archive.namelist()
            if sorted(names) != sorted([DOCUMENT, ARRAYS]):
                raise ArchiveError(f"{path}: not a file of xpnet: it holds {', '.join(names[:5]) or 'nothing'}")
            for info in archive.infolist():
                # Without compression no part can expand to more than the file's size.
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                    raise ArchiveError(f"{path}: not a file of xpnet: its parts are compressed or encrypted")
            document = json.loads(archive.read(DOCUMENT))
            arrays = load(archive.read(ARRAYS))
    except ArchiveError:
        raise
    # What zipfile, json (RecursionError: nested too deeply) and safetensors raise on damaged bytes.
    except (
        zipfile.BadZipFile,
        struct.error,
        EOFError,
        RuntimeError,
        SafetensorError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        OSError,
    ) as error:
        raise ArchiveError(f"{path}: truncated, damaged or not a file of xpnet ({error})") from error
    if not isinstance(document, dict):
        raise ArchiveError(f"{path}: not a file of xpnet: its document is a {type(document).__name__}")
    return document, arrays
