"""Worked examples: networks from the classic texts, with the numbers that those texts print.

Each example is one module, short enough to read as the explanation. ``run("spiral", out="pictures")`` or, in a shell,
``xpnet examples spiral --out pictures`` prints the numbers of the text beside the computed ones, and draws pictures.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from xpnet.examples._report import Folder, Report, Row
from xpnet.runtime.settings import check_kind

NAMES = (
    "perceptrons",
    "gates",
    "by_hand",
    "stairs",
    "iris",
    "digits",
    "spiral",
    "mnist",
    "conv_sizes",
    "cifar10",
    "regression",
    "sequences",
    "siamese",
    "residual",
)
"""The examples, in reading order."""

__all__ = ["NAMES", "Report", "Row", "about", "add_examples_command", "run"]


def _module(name: str) -> Any:
    known = name.replace("-", "_")
    if known not in NAMES:
        raise ValueError(f"unknown example {name!r}: expected one of {', '.join(NAMES)}")
    return importlib.import_module(f"xpnet.examples.{known}")


def about(name: str) -> str:
    """Return one line that says what an example shows."""
    return (_module(name).__doc__ or "").strip().splitlines()[0]


def run(name: str, out: Folder = None, **settings: Any) -> Report:
    """Run one example.

    Args:
        name: one of NAMES.
        out: the folder for its pictures; None draws none.
        settings: further arguments of the example's `run`, such as a seed.

    Returns:
        The report that was printed: `.rows`, and in `.differing` those that differ from the text.

    Raises:
        ValueError: no such example or setting.
        TypeError: a setting of another kind than the example takes.
    """
    module = _module(name)
    allowed = {name: p for name, p in inspect.signature(module.run).parameters.items() if name != "out"}
    if unknown := sorted(set(settings) - set(allowed)):
        raise ValueError(f"the example {name} has no setting {', '.join(unknown)}; it takes {', '.join(allowed) or 'none'}")
    for setting, value in settings.items():
        check_kind(f"the example {name}", setting, value, str(allowed[setting].annotation))
    report: Report = module.run(out, **settings)
    return report


def add_examples_command(subparsers: Any) -> None:
    """Add ``examples [NAME] [--out DIR] [SETTING=VALUE ...]`` to an argparse parser's subcommands.

    The parsed arguments hold the command's function as `run`; it takes them and returns an exit status.
    """
    parser = subparsers.add_parser("examples", help="list the worked examples, or run one", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="the example; default: list them")
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE", help="such as seed=1")
    parser.add_argument("--out", default=".", metavar="DIR", help="folder for the pictures; default: this one")
    parser.set_defaults(run=_command)


def _command(arguments: Any) -> int:
    if arguments.name is None:
        for name in NAMES:
            print(f"{name:<12} {about(name)}")
        return 0
    settings = {}
    for text in arguments.settings:
        name, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"expected SETTING=VALUE, got {text!r}")
        settings[name] = int(value) if value.lstrip("-").isdigit() else value
    return 1 if run(arguments.name, arguments.out, **settings).differing else 0
