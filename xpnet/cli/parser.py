"""The words of the command line."""

from __future__ import annotations

import argparse
import importlib
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

MODEL_HELP = "mlp, cnn, or PATH.py:function, a function of (input_shape, classes, seed, device), or of some of them"


class UsageError(Exception):
    """Arguments that cannot be carried out; the message is one line that says what would be right."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage and line."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it gives has a function `run`."""
    from xpnet import __version__
    from xpnet.examples import add_examples_command

    parser = _Parser(prog="xpnet", description="Train neural networks with NumPy or CuPy, and use them.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"xpnet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, module: str, text: str, function: str | None = None) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(run=_later(f"xpnet.cli.{module}", function or name))
        return made

    train = command("train", "train", "Train a network on a data set, and leave model, history and pictures in a folder.")
    train.add_argument("dataset", metavar="DATASET", help="iris, digits, mnist, fashion-mnist, cifar10 or cifar100")
    train.add_argument("--model", help=MODEL_HELP + "; default: cnn for images, mlp for features")
    _device(train)
    train.add_argument("--epochs", type=whole(1), help="times through the training data; default: by data set")
    train.add_argument("--batch-size", type=whole(1), help="examples a step; default: by data set")
    train.add_argument("--learning-rate", type=positive, help="of Adam, at its highest; default: by data set")
    train.add_argument("--seed", type=whole(0), default=0, help="of weights, order, dropout and augmentation; default: 0")
    _data(train)
    train.add_argument("--out", metavar="FOLDER", help="where the results go; default: runs/DATASET-MODEL, or the next free")

    evaluate = command("evaluate", "use", "Measure a saved model on the test part of a data set.")
    _saved(evaluate)
    evaluate.add_argument("dataset", metavar="DATASET", nargs="?", help="default: the one it was trained on")
    _device(evaluate)
    _data(evaluate)
    evaluate.add_argument("--batch-size", type=whole(1), default=256, help="examples at once; default: 256")

    predict = command("predict", "use", "Say what a saved model takes images for: the class and its probability.")
    _saved(predict)
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="image files (need pillow), or .npy files of one or many")
    _device(predict)

    summary = command("summary", "look", "Print the layers, shapes, parameters and memory of a network.")
    summary.add_argument("model", metavar="MODEL", help="a file from xpnet train, or " + MODEL_HELP)
    summary.add_argument("--input", type=shape, metavar="H,W,C", help="shape of an example, such as 28,28,1, for a new network")
    summary.add_argument("--classes", type=whole(1), default=10, help="outputs of a new network; default: 10")
    summary.add_argument("--batch-size", type=whole(1), default=64, help="for the memory account; default: 64")
    _code(summary)

    command("info", "look", "Print versions, devices, and which accelerations are active.")

    add_examples_command(commands)
    examples = commands.choices["examples"]
    examples.set_defaults(run=_checked(examples.get_default("run")))
    return parser


def _later(module: str, function: str) -> Callable[[argparse.Namespace], Any]:
    """The function of a module that is imported only when it runs: --help is to be quick."""
    return lambda args: getattr(importlib.import_module(module), function)(args)


def _checked(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A command that raises ValueErrors for wrong words."""

    def checked(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except ValueError as error:
            raise UsageError(str(error)) from error

    return checked


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:N; default: cpu")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="FOLDER", help="holds the published files of the data set; default: $XPNET_DATA")


def _saved(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file from xpnet train")
    _code(parser)


def _code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--code", metavar="PATH.py", help="defines the classes and functions of your own that MODEL is made of")


def whole(least: int) -> Callable[[str], int]:
    """An argument's type: whole numbers from `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
        return value

    return read


def positive(text: str) -> float:
    """An argument's type: finite numbers above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected a number above 0, such as 0.001, got {text!r}")
    return value


def device(text: str) -> str:
    """An argument's type: the name of a device. Whether it is there is looked at later."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text


def shape(text: str) -> tuple[int, ...]:
    """An argument's type: sizes with commas between them."""
    try:
        sizes = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes with commas between them, such as 28,28,1 or 4, got {text!r}")
    return sizes
