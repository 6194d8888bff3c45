"""The command line: ``xpnet train digits`` and the other commands."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from xpnet.backend import DeviceError
from xpnet.cli.argument_types import UsageError
from xpnet.cli.parser import make_parser
from xpnet.data import DataError
from xpnet.io.archive import ArchiveError
from xpnet.ops.shapes import ShapeError

__all__ = ["UsageError", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows ``xpnet``; None takes the arguments of the process.

    Returns:
        The exit code: 0; 1 if training diverged; 2 for wrong arguments, missing files and missing devices, after one line
        on stderr that says what would be right; 130 after Ctrl-C; 141 if the output is no longer read.
    """
    args = make_parser().parse_args(arguments)
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"xpnet {args.command}: {' '.join(str(message).split())}\n"
    try:
        return int(args.run(args) or 0)
    except (UsageError, DataError, DeviceError, ArchiveError, ShapeError) as error:
        return _fail(args.command, str(error), 2)
    except ValueError as error:
        if args.command != "examples":  # which raises them for wrong names and settings
            raise
        return _fail(args.command, str(error), 2)
    except ArithmeticError as error:  # NotFiniteError: the loss diverged
        return _fail(args.command, str(error), 1)
    except BrokenPipeError:
        # The reader has gone (`xpnet info | head`); keep Python from raising again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fail(args.command, f"{place}{error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _fail(args.command, "interrupted", 130)
    finally:
        warnings.formatwarning = before


def _fail(command: str, message: str, code: int) -> int:
    print(f"xpnet {command}: {' '.join(message.split())}", file=sys.stderr)
    return code
