"""Run a command line of the package within a test."""

from __future__ import annotations

from typing import Any

from xpnet.cli import main


def say(capsys, *words):
    """Run a command; return the exit code and what it printed."""
    code: Any
    try:
        code = main([str(w) for w in words])
    except SystemExit as error:  # argparse
        code = error.code
    out, err = capsys.readouterr()
    return code, out, err
