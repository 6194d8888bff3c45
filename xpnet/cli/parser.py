"""The parser of the command line: every command with its arguments and examples of its use."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from xpnet.cli import train_settings
from xpnet.cli.argument_types import MODEL_HELP, device, file_name, integer, shape
from xpnet.cli.hints import unrecognized, with_choice
from xpnet.runtime.messages import shorten

DATA_HELP = (
    "iris, digits, mnist, fashion-mnist, cifar10 or cifar100; or a folder of images CLASS/NAME.png, or with train and test "
    "folders of them; or a file .csv, .tsv, .csv.gz or .npz"
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with one line, without argparse's usage."""
        text = shorten(" ".join(with_choice(message).split()))
        self.exit(2, f"{self.prog}: {text} (see {self.prog} --help)\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; for those that are not known, the error names the flags that were probably meant."""
        words = sys.argv[1:] if args is None else list(args)
        if words and words[0].startswith("-") and words[0].partition("=")[0] not in self._option_string_actions:
            self.error(unrecognized(words[:1], self))
        found, extra = self.parse_known_args(args, namespace)
        if extra:
            group = next((action for action in self._actions if isinstance(action, argparse._SubParsersAction)), None)
            command: argparse.ArgumentParser = group.choices[found.command] if group is not None else self
            several = next((a for a in command._actions if a.nargs in ("+", "*") and not a.option_strings), None)
            if several is None or any(word.startswith("-") for word in extra):
                command.error(unrecognized(extra, command))
            # argparse takes positional arguments up to the next flag; these came behind it.
            setattr(found, several.dest, [*getattr(found, several.dest), *extra])
        return found


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; parsed arguments hold the command's function as `run`."""
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

    def command(name: str, function: str, text: str, *examples: str) -> argparse.ArgumentParser:
        """Add a command; `function` is "module:function" under xpnet.cli."""
        lines = "\n".join(f"  xpnet {example}" for example in examples)
        made = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example{'s' if len(examples) > 1 else ''}:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(run=_lazy(function))
        return made

    _add_model_commands(command)
    _add_inspection_commands(command)
    add_examples_command(commands)
    examples = commands.choices["examples"]
    examples.epilog = "examples:\n  xpnet examples\n  xpnet examples spiral --out pictures"
    examples.formatter_class = argparse.RawDescriptionHelpFormatter
    completion = command(
        "completion",
        "completion:completion",
        "Print a completion script for your shell.",
        "completion bash >> ~/.bashrc",
        'completion zsh > "${fpath[1]}/_xpnet"',
        "completion fish > ~/.config/fish/completions/xpnet.fish",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def _add_model_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that train and use models."""
    train = command(
        "train",
        "train:train",
        "Train a network on a data set; write the model, checkpoints, history and a report to a folder.",
        "train digits",
        "train cifar10 --device cuda --epochs 40 --out runs/long",
        "train photos --size 64,64 --patience 5",
        "train --config run.toml --seed 1",
        "train --resume runs/long",
    )
    train.add_argument("dataset", metavar="DATASET", nargs="?", help=DATA_HELP)
    train.add_argument("--config", metavar="FILE.toml", help="settings, one per line, such as epochs = 40; flags override them")
    train.add_argument("--resume", metavar="FOLDER", help="resume the run in this folder where it stopped")
    train.add_argument("--out", metavar="FOLDER", help="folder of the results; default: runs/DATASET-MODEL or the next free")
    train_settings.add_flags(train)

    evaluate = command(
        "evaluate",
        "predict:evaluate",
        "Evaluate a saved model on the test part of the data it was trained on, or on all examples of other data.",
        "evaluate runs/digits-cnn/model.xpnet",
        "evaluate runs/flowers-mlp/model.xpnet new.csv",
    )
    _saved(evaluate)
    evaluate.add_argument("dataset", metavar="DATASET", nargs="?", help="default: the one it was trained on")
    _device(evaluate)
    _data(evaluate)
    evaluate.add_argument("--batch-size", type=integer(1), default=256, help="examples per batch; default: 256")

    predict = command(
        "predict",
        "predict:predict",
        "Predict the class of examples, and its probability, with a saved model.",
        "predict model.xpnet photo.png",
        "predict model.xpnet photos/ --out predictions.csv",
        "predict model.xpnet flowers.csv --out -",
    )
    _saved(predict)
    predict.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image files (need pillow), folders of them, .npy or .npz files with examples, or .csv files with one in each row",
    )
    train_settings.add_flags(predict, "target")
    predict.add_argument("--skip-bad", action="store_true", help="skip files that cannot be read")
    predict.add_argument(
        "--out",
        metavar="FILE.csv",
        type=file_name(".csv", ".txt"),
        help="write a CSV table with all probabilities; - for standard output",
    )
    _device(predict)


def _add_inspection_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that report on runs, networks and this machine."""
    report = command(
        "report",
        "report:report",
        "Write the HTML report of a run again, or one page that compares several runs.",
        "report runs/digits-cnn",
        "report runs/a runs/b runs/c --out compared.html",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="the folder of a run")
    where = "default: report.html in the folder of the run, or comparison.html here"
    report.add_argument("--out", metavar="FILE.html", type=file_name(".html", ".htm"), help=where)

    doctor = command(
        "doctor",
        "doctor:doctor",
        "Find what keeps a network from learning, before or after training; the exit code is 1 if something is wrong.",
        "doctor cnn digits",
        "doctor runs/digits-cnn/model.xpnet digits",
        "doctor nets.py:make photos --size 64,64",
    )
    doctor.add_argument("model", metavar="MODEL", help="a file from xpnet train, or " + MODEL_HELP)
    doctor.add_argument("dataset", metavar="DATASET", help=DATA_HELP)
    doctor.add_argument("--batch-size", type=integer(2), default=128, help="examples to check; default: 128")
    doctor.add_argument("--seed", type=integer(0), default=0, help="seed of a new network's weights; default: 0")
    doctor.add_argument("--quick", action="store_true", help="do not search a learning rate or overfit one batch")
    _device(doctor)
    _data(doctor)
    _code(doctor)

    profile = command(
        "profile",
        "profile:profile",
        "Time every layer, forward and backward, and count the memory it keeps.",
        "profile cnn --input 28,28,1",
        "profile model.xpnet --device cuda --trace step.json",
    )
    _network(profile)
    profile.add_argument("--steps", type=integer(1), default=20, help="steps to take the median of; default: 20")
    profile.add_argument("--trace", metavar="FILE.json", type=file_name(".json"), help="write the last step as a Chrome trace")
    _device(profile)

    summary = command(
        "summary",
        "info:summary",
        "Print the layers, shapes, parameters and memory of a network.",
        "summary cnn --input 28,28,1",
    )
    _network(summary)

    bench = command(
        "bench",
        "bench:bench",
        "Measure how fast this machine trains and predicts with the ready-made networks.",
        "bench",
        "bench --device cuda",
    )
    bench.add_argument("--seconds", type=integer(1), default=2, help="seconds per measurement; default: 2")
    _device(bench)

    info = command(
        "info",
        "info:info",
        "Print versions, devices and active accelerations.",
        "info",
        "info --convolutions",
    )
    info.add_argument("--convolutions", action="store_true", help="print what autotune chose for each convolution on a GPU")


def _lazy(function: str) -> Callable[[argparse.Namespace], Any]:
    """Return a command that imports its module only when it runs: --help should be fast."""
    return lambda args: resolve(function)(args)


def resolve(function: str) -> Callable[[argparse.Namespace], Any]:
    """Return the function "module:function" under xpnet.cli."""
    module, name = function.split(":")
    return getattr(importlib.import_module(f"xpnet.cli.{module}"), name)  # type: ignore[no-any-return]


def _network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file from xpnet train, or " + MODEL_HELP)
    parser.add_argument("--input", type=shape, metavar="H,W,C", help="shape of an example for a new network, such as 28,28,1")
    parser.add_argument("--classes", type=integer(1), default=10, help="classes of a new network; default: 10")
    parser.add_argument("--batch-size", type=integer(1), default=64, help="examples per batch; default: 64")
    _code(parser)


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:N; default: cpu")


def _data(parser: argparse.ArgumentParser) -> None:
    train_settings.add_flags(parser, "data", "size", "target")
    parser.add_argument("--skip-bad", action="store_true", help="skip images of a folder that cannot be read")


def _saved(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file from xpnet train")
    _code(parser)


def _code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--code", metavar="PATH.py", help="file that defines your own classes and functions in MODEL")
