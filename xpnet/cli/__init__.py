"""The command line: ``xpnet train digits`` and the other commands."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from xpnet.cli.argument_types import UsageError
from xpnet.cli.errors import explain, say
from xpnet.cli.parser import make_parser
from xpnet.runtime.messages import shorten

__all__ = ["UsageError", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what follows ``xpnet``; None takes the arguments of the process.

    Returns:
        The exit code: 0; 1 if training diverged; 2 for wrong arguments, missing files and missing devices, after one line
        on stderr that says what would be right; 70 for a bug in xpnet, after its traceback; 130 after Ctrl-C, 143 after
        SIGTERM, 138 after SIGUSR1 (a training run has then written a checkpoint); 141 if the output is no longer read.
    """
    args = make_parser().parse_args(arguments)
    before = warnings.formatwarning

    def one_line(message: Warning | str, *_: object, **__: object) -> str:
        return f"xpnet {args.command}: {shorten(' '.join(str(message).split()))}\n"

    warnings.formatwarning = one_line
    try:
        with _printable_output():
            return int(args.run(args) or 0)
    except BrokenPipeError:
        # The reader has gone (`xpnet info | head`); keep Python from raising again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message, code = explain(error)
        say(args.command, message)
        return code
    except KeyboardInterrupt:
        say(args.command, "interrupted")
        return 130
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def _printable_output() -> Iterator[None]:
    """Let standard output show characters that its encoding lacks as escapes: names of files and classes may hold any."""
    output = sys.stdout
    errors = getattr(output, "errors", None)
    if errors != "strict" or not hasattr(output, "reconfigure"):
        yield
        return
    output.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        output.reconfigure(errors=errors)
