"""Paths of a run that hold wherever it is resumed: each as it was typed, and the folder that it was typed in.

And which files a command must not write to.
"""

from __future__ import annotations

import os
from pathlib import Path

from xpnet.cli.argument_types import UsageError
from xpnet.data.image_files import is_run
from xpnet.runtime.files import is_stream, place_to_write

STARTED_IN = "started_in"
FILES = ("model.xpnet", "config.toml", "data.kept", "run.json", "history.csv")
"""What a run consists of."""
PAGES = ("report.html", "learning_curves.png", "confusion_matrix.png")
"""What a run writes for its readers."""


def check_output(
    flag: str, out: str | os.PathLike[str] | None, *inputs: str | os.PathLike[str] | None, stream: bool = False
) -> None:
    """Check, before anything is read, that a file can be written, and is none of those that are read, under whatever name.

    Args:
        flag: that names the file.
        out: the file, or None.
        inputs: the files that are read.
        stream: whether a pipe or a character device will do.

    Raises:
        UsageError: it is one of `inputs`, or a file that a run is resumed or evaluated from; or it has no folder, or is there
            and no regular file.
    """
    if out is None:
        return
    try:
        if not (stream and is_stream(out)) and not (place := place_to_write(out)).parent.is_dir():
            raise UsageError(f"{flag} {out}: there is no folder {place.parent}; make it, or give another name")
    except OSError as error:
        raise UsageError(f"{flag} {out}: {error.strerror}") from error
    if not os.path.exists(out):
        return
    there = os.stat(out)
    if any(os.path.samestat(there, os.stat(path)) for path in inputs if path is not None and os.path.exists(path)):
        raise UsageError(f"{flag} {out}: is a file that this command reads, which would be lost: give another name")
    real = Path(os.path.realpath(out))
    if real.name in FILES and is_run(real.parent):
        raise UsageError(f"{flag} {out}: is a file of the run in {real.parent}, which would be damaged: give another name")


def locate(path: str, started_in: object, what: str) -> str:
    """Return a path that was typed in the folder `started_in` (None: in this one), for this one.

    The place of that time comes first: another folder of the same name, here, would be other data.

    Raises:
        UsageError: there is nothing at the path, neither there nor here.
    """
    if not isinstance(started_in, str) or os.path.isabs(path) or os.path.realpath(started_in) == os.path.realpath(os.curdir):
        return path
    there = Path(started_in) / path
    if there.exists():
        return str(there)
    if Path(path).exists():
        return path
    now = "name DATASET where it is now" if what == "the data" else "start a new run with the path where it is now"
    raise UsageError(
        f"{what} {path}, which was used in {started_in}, is no longer there, and it is not here ({os.getcwd()}) either; "
        f"put it back, or {now}"
    )


def locate_network(name: str, started_in: object) -> str:
    """Return a MODEL argument, of which PATH.py:function holds a path, for this folder; errors as in :func:`locate`."""
    path, colon, function = name.rpartition(":")
    return f"{locate(path, started_in, 'the file')}:{function}" if colon and path.endswith(".py") else name


def absolute(value: str, started_in: object) -> str:
    """Return a data set, folder or MODEL that names something in the folder `started_in` as an absolute path; else as it is."""
    path, colon, function = value.rpartition(":") if ".py:" in value else (value, "", "")
    if not isinstance(started_in, str) or not (there := Path(started_in) / path).exists():
        return value
    return f"{there}{colon}{function}"
