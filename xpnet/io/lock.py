"""A folder that one process at a time writes a run into.

The lock is one of the operating system on a file in the folder. It ends with the process that holds it, however that ends: a
file that is left over locks nothing. Where the file system has no locks (some network drives), there is none and no error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME = ".lock"
_FIRST = 512
"""The byte that Windows locks: beyond the text, which others may then read."""

_held: dict[Path, tuple[int, int]] = {}  # descriptor and holders, by the real path of the folder
_guard = threading.Lock()


class LockedError(OSError):
    """Another process writes a run into the folder."""


def acquire(folder: str | os.PathLike[str]) -> None:
    """Lock a folder for this process, which may do so several times.

    Raises:
        LockedError: another process holds it; the message names the process.
    """
    place = Path(os.path.realpath(folder))
    with _guard:
        if place in _held:
            file, count = _held[place]
            _held[place] = file, count + 1
            return
        opened = _open(place)
        if opened is None:
            return
        os.ftruncate(opened, 0)
        os.lseek(opened, 0, os.SEEK_SET)
        with contextlib.suppress(OSError):  # a full disk does not take the name, and the lock holds all the same
            os.write(opened, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        _held[place] = opened, 1


def release(folder: str | os.PathLike[str]) -> None:
    """Give back what one call of :func:`acquire` took; without one, do nothing."""
    place = Path(os.path.realpath(folder))
    with _guard:
        if place not in _held:
            return
        file, count = _held[place]
        if count > 1:
            _held[place] = file, count - 1
            return
        del _held[place]
        if sys.platform != "win32":  # where it may be removed while it is locked: nobody can lock it in between
            with contextlib.suppress(OSError):
                (place / NAME).unlink()
        os.close(file)


def _open(place: Path) -> int | None:
    """Open and lock the file; None where files cannot be locked."""
    path = place / NAME
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                return None  # a folder that cannot be written has an error of its own
            raise
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                os.close(file)
                return None
            os.lseek(file, 0, os.SEEK_SET)
            holder = os.read(file, 200).decode("utf-8", "replace").strip() or "unknown"
            os.close(file)
            raise LockedError(
                errno.EBUSY,
                f"another process ({holder}) is training into this folder; wait for its end, stop it, or choose another folder",
                str(place),
            ) from None
        # The process that held it may have removed the file since it was opened here.
        with contextlib.suppress(OSError):
            if sys.platform == "win32" or os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)


def _lock(file: int) -> None:
    if sys.platform == "win32":
        os.lseek(file, _FIRST, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
