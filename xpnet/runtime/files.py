"""Where a file is written to: a new name, or a regular file, also behind symbolic links."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def place_to_write(path: str | os.PathLike[str]) -> Path:
    """Return the place of a file that is to be replaced: where symbolic links lead to, so that they stay links.

    Raises:
        IsADirectoryError: there is a folder.
        OSError: there is a pipe, a device or a socket, which a file would take the place of; or links that lead in a circle.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Path(os.path.realpath(path))
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; expected the name of a file", os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(mode)), "no file")
        raise OSError(errno.EINVAL, f"is {kind}; expected a regular file or a new name", os.fspath(path))
    return Path(os.path.realpath(path))


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is that of a pipe or a character device, which takes what is written one byte after the other."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
