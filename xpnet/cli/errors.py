"""From an exception to what the command line says: one line and an exit code, or a traceback that is called a bug."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType

import xpnet
from xpnet.backend import DeviceError
from xpnet.cli.argument_types import UsageError
from xpnet.cli.model_argument import describe_error, user_files
from xpnet.data import DataError
from xpnet.data.dataset import WorkerError
from xpnet.io.archive import ArchiveError
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.messages import shorten

BUG = 70  # EX_SOFTWARE of sysexits.h
_EXPECTED = (UsageError, DataError, DeviceError, ArchiveError, ShapeError, WorkerError)
_PACKAGE = str(Path(xpnet.__file__).parent)


def explain(error: Exception) -> tuple[str, int]:
    """Return one line for an exception that ended a command, and the exit code.

    A bug in xpnet, for which no message was written, is printed with its traceback first.
    """
    if isinstance(error, _EXPECTED):
        return str(error), 2
    if isinstance(error, ArithmeticError) and _raised_here(error):  # NotFiniteError: the loss diverged
        return str(error), 1
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}", 2
    if isinstance(error, MemoryError):
        return f"out of memory ({error or 'no details'}); a smaller --batch-size or --size, or less data, takes less", 2
    if isinstance(error, ImportError):
        return str(error), 2
    own = [file for file in user_files if any(frame == file for frame in _files(error.__traceback__))]
    if own:  # the user's network, or what it was given to
        return f"{own[0]}: {describe_error(error)}", 2
    if isinstance(error, (ValueError, TypeError)) and _raised_here(error):
        return str(error), 2
    traceback.print_exception(error)
    return (
        f"this is a bug in xpnet {xpnet.__version__}, not a mistake of yours ({type(error).__name__}); please report it with "
        f"the lines above",
        BUG,
    )


def _files(at: TracebackType | None) -> list[str]:
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(at)]


def _raised_here(error: Exception) -> bool:
    """Return whether xpnet itself raised an error, with a message written for the user: not NumPy, nor an expression."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_PACKAGE) and (frames[-1].line or "").startswith("raise ")


def say(command: str, message: str) -> None:
    """Print a message on one line of stderr, below 2 kB whatever it quotes."""
    print(f"xpnet {command}: {shorten(' '.join(message.split()))}", file=sys.stderr)
