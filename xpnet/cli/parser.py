"""The parser of the command line: every command, its words, and an example of its use."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any, NoReturn

from xpnet.cli import train_settings
from xpnet.cli.argument_types import MODEL_HELP, UsageError, device, integer, shape

DATA_HELP = (
    "iris, digits, mnist, fashion-mnist, cifar10 or cifar100; or a folder CLASS/NAME.png, with train and test in it or "
    "without; or a CSV file"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage and line."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what it gives has a function `run`."""
    from xpnet import __version__
    from xpnet.examples import add_examples_command

    parser = _Parser(
        prog="xpnet",
        description="Train neural networks with NumPy or CuPy, and use them.",
        epilog="example:\n  xpnet train digits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"xpnet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, where: str, text: str, *examples: str) -> argparse.ArgumentParser:
        """A command; `where` is "module:function" under xpnet.cli."""
        lines = "\n".join(f"  xpnet {example}" for example in examples)
        made = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(run=_later(where))
        return made

    _learning(command)
    _looking(command)
    add_examples_command(commands)
    examples = commands.choices["examples"]
    examples.epilog = "examples:\n  xpnet examples\n  xpnet examples spiral --out pictures"
    examples.formatter_class = argparse.RawDescriptionHelpFormatter
    examples.set_defaults(run=_checked(examples.get_default("run")))
    completion = command(
        "completion",
        "completion:completion",
        "Print a script that completes commands and flags in your shell.",
        "completion bash >> ~/.bashrc",
        'completion zsh > "${fpath[1]}/_xpnet"',
        "completion fish > ~/.config/fish/completions/xpnet.fish",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def _learning(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Commands that make and use models."""
    train = command(
        "train",
        "train:train",
        "Train a network on a data set, and leave model, checkpoints, history and a report in a folder.",
        "train digits",
        "train cifar10 --device cuda --epochs 40 --out runs/long",
        "train photos --size 64,64 --patience 5",
        "train --config run.toml --seed 1",
        "train --resume runs/long",
    )
    train.add_argument("dataset", metavar="DATASET", nargs="?", help=DATA_HELP)
    train.add_argument(
        "--config", metavar="FILE.toml", help="settings, one a line, such as epochs = 40; flags come before them"
    )
    train.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder, where it stopped")
    train.add_argument("--out", metavar="FOLDER", help="where the results go; default: runs/DATASET-MODEL, or the next free")
    train_settings.add_flags(train)

    evaluate = command(
        "evaluate",
        "predict:evaluate",
        "Measure a saved model on the test part of a data set.",
        "evaluate runs/digits-cnn/model.xpnet",
    )
    _saved(evaluate)
    evaluate.add_argument("dataset", metavar="DATASET", nargs="?", help="default: the one it was trained on")
    _device(evaluate)
    _data(evaluate)
    evaluate.add_argument("--batch-size", type=integer(1), default=256, help="examples at once; default: 256")

    predict = command(
        "predict",
        "predict:predict",
        "Say what a saved model takes examples for: the class and its probability.",
        "predict model.xpnet photo.png",
        "predict model.xpnet photos/ --out answers.csv",
        "predict model.xpnet flowers.csv --out -",
    )
    _saved(predict)
    predict.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files (need pillow), folders of them, .npy files of one or many, .csv files with an example a row",
    )
    predict.add_argument("--skip-bad", action="store_true", help="leave out files that cannot be read")
    predict.add_argument("--out", metavar="FILE.csv", help="write a CSV table with all probabilities; - is the standard output")
    _device(predict)


def _looking(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Commands that show something."""
    report = command(
        "report",
        "report:report",
        "Write the HTML page of a run again; of several runs, one page with all on the same axes.",
        "report runs/digits-cnn",
        "report runs/a runs/b runs/c --out compared.html",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder")
    report.add_argument("--out", metavar="FILE.html", help="default: report.html in the run, or comparison.html here")

    doctor = command(
        "doctor",
        "doctor:doctor",
        "Look for what keeps a network from learning, before or after training; the exit code is 1 if something is wrong.",
        "doctor cnn digits",
        "doctor runs/digits-cnn/model.xpnet digits",
        "doctor nets.py:make photos --size 64,64",
    )
    doctor.add_argument("model", metavar="MODEL", help="a file from xpnet train, or " + MODEL_HELP)
    doctor.add_argument("dataset", metavar="DATASET", help=DATA_HELP)
    doctor.add_argument("--batch-size", type=integer(2), default=128, help="examples to look at; default: 128")
    doctor.add_argument("--seed", type=integer(0), default=0, help="of a new network's weights; default: 0")
    doctor.add_argument("--quick", action="store_true", help="do not try a learning rate, nor to learn one batch by heart")
    _device(doctor)
    _data(doctor)
    _code(doctor)

    profile = command(
        "profile",
        "profile:profile",
        "Time every layer, forward and backward, and count the memory that it keeps.",
        "profile cnn --input 28,28,1",
        "profile model.xpnet --device cuda --trace step.json",
    )
    _network(profile, 64)
    profile.add_argument("--steps", type=integer(1), default=20, help="passes to take the median of; default: 20")
    profile.add_argument("--trace", metavar="FILE.json", help="leave the last pass as a Chrome trace")
    _device(profile)

    summary = command(
        "summary",
        "info:summary",
        "Print the layers, shapes, parameters and memory of a network.",
        "summary cnn --input 28,28,1",
    )
    _network(summary, 64)

    bench = command(
        "bench",
        "bench:bench",
        "Measure how fast this machine trains and predicts with the networks that come along.",
        "bench",
        "bench --device cuda",
    )
    bench.add_argument("--seconds", type=integer(1), default=2, help="for each number; default: 2")
    _device(bench)

    info = command(
        "info",
        "info:info",
        "Print versions, devices, and which accelerations are active.",
        "info",
        "info --convolutions",
    )
    info.add_argument(
        "--convolutions", action="store_true", help="print which way of computing each convolution on a GPU was the fastest"
    )


def _later(where: str) -> Callable[[argparse.Namespace], Any]:
    """The function of a module that is imported only when it runs: --help is to be quick."""
    module, function = where.split(":")
    return lambda args: getattr(importlib.import_module(f"xpnet.cli.{module}"), function)(args)


def _checked(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A command that raises ValueErrors for wrong words."""

    def checked(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except ValueError as error:
            raise UsageError(str(error)) from error

    return checked


def _network(parser: argparse.ArgumentParser, batch_size: int) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file from xpnet train, or " + MODEL_HELP)
    parser.add_argument("--input", type=shape, metavar="H,W,C", help="shape of an example, such as 28,28,1, for a new network")
    parser.add_argument("--classes", type=integer(1), default=10, help="outputs of a new network; default: 10")
    parser.add_argument("--batch-size", type=integer(1), default=batch_size, help=f"examples in a batch; default: {batch_size}")
    _code(parser)


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:N; default: cpu")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="FOLDER", help="holds the published files of the data set; default: $XPNET_DATA")
    parser.add_argument("--size", type=shape, metavar="H,W", help="resize the images of a folder of your own")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images of a folder that cannot be read")
    parser.add_argument("--target", metavar="COLUMN", help="the column of a CSV file that holds the classes; default: the last")


def _saved(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file from xpnet train")
    _code(parser)


def _code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--code", metavar="PATH.py", help="defines the classes and functions of your own that MODEL is made of")
