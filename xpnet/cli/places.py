"""Paths of a run that hold wherever it is resumed: each as it was typed, and the folder that it was typed in."""

from __future__ import annotations

import os
from pathlib import Path

from xpnet.cli.argument_types import UsageError

STARTED_IN = "started_in"


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
    raise UsageError(
        f"{what} {path}, which was used in {started_in}, is no longer there, and it is not here ({os.getcwd()}) either; "
        f"put it back, or start a new run with the path where it is now"
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
