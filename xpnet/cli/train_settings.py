"""The settings of ``xpnet train``, one table for the flags and the keys of configuration files (TOML)."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpnet import data
from xpnet.cli.argument_types import MODEL_HELP, UsageError, device, fraction, integer, non_negative, one_of, positive, shape
from xpnet.cli.places import STARTED_IN, absolute, locate
from xpnet.data.dataset import check_regular
from xpnet.runtime.messages import quoted

CONFIG = "config.toml"
_TEXTS = ("dataset", STARTED_IN)
"""Keys of a file that have no flag."""
_LARGEST_FILE, _MOST_DOTS = 1 << 16, 200
INPUTS = "inputs"
"""The table of a run's configuration file that says how its data were read: no setting, so that --config passes over it."""
_MARK = f"\n[{INPUTS}]\n".encode()
_LARGEST_RECORD = 1 << 24

Settings = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: the key in a file; with dashes, the flag.
        read: the argument type: converts text, or raises argparse.ArgumentTypeError; bool for a switch.
        text: for --help.
        metavar: the placeholder of the value in --help.
        free: whether a resumed run may have another value than it began with.
    """

    name: str
    read: Callable[[str], Any]
    text: str
    metavar: str | None = None
    free: bool = False

    @property
    def flag(self) -> str:
        """The name on the command line."""
        return "--" + self.name.replace("_", "-")


SETTINGS = (
    Setting("model", str, MODEL_HELP + "; default: cnn for images, mlp for features", "MODEL"),
    Setting("device", device, "cpu, cuda or cuda:N; default: cpu", free=True),
    Setting("epochs", integer(1), "passes over the training data; default: depends on the data set", "N", free=True),
    Setting("batch_size", integer(1), "examples per step; default: depends on the data set", "N"),
    Setting("learning_rate", positive, "peak learning rate of AdamW; default: depends on the data set", "RATE"),
    Setting(
        "schedule", one_of("cosine", "constant"), "of the learning rate: cosine (after warm-up; default) or constant", "NAME"
    ),
    Setting("weight_decay", non_negative, "of AdamW; default: depends on the data set", "DECAY"),
    Setting("augment", bool, "augment the training images; default: depends on the data set"),
    Setting("accumulate", integer(1), "accumulate the gradients of N batches for each update; default: 1", "N"),
    Setting("clip", positive, "clip the global norm of the gradients to NORM", "NORM"),
    Setting("average", fraction, "end with an exponential moving average of the weights; such as 0.999", "DECAY"),
    Setting(
        "patience",
        integer(0),
        "early stopping after N epochs without a lower loss; restores the best weights (not with --average)",
        "N",
    ),
    Setting("balance", bool, "sample the examples of all classes equally often"),
    Setting("workers", integer(0, 256), "threads that prefetch batches; default: 0", "N", free=True),
    Setting("seed", integer(0), "seed of initial weights, shuffling, dropout and augmentation; default: 0", "N"),
    Setting("deterministic", bool, "bitwise reproducible results with any number of threads; default: $XPNET_DETERMINISTIC"),
    Setting("data", str, "folder of the published files of the data set; default: $XPNET_DATA", "FOLDER", free=True),
    Setting("size", shape, "resize the images of your own folder", "H,W"),
    Setting("skip_bad", bool, "skip images of a folder that cannot be read, instead of ending", free=True),
    Setting("target", str, "column of classes in a CSV file: its title or its number from 0; default: the last", "COLUMN"),
    Setting("checkpoint_minutes", positive, "between checkpoints within an epoch; default: 10", "MINUTES", free=True),
    Setting("keep", integer(1), "number of checkpoints to keep; default: 3", "N", free=True),
)
_PATHS = ("dataset", "data", "model")
BY_NAME = {setting.name: setting for setting in SETTINGS}


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add a flag with default None for each of the named settings, or for all."""
    for s in [BY_NAME[name] for name in names] or SETTINGS:
        if s.read is bool:
            parser.add_argument(s.flag, action=argparse.BooleanOptionalAction, default=None, help=s.text)
        else:
            parser.add_argument(s.flag, type=s.read, metavar=s.metavar, help=s.text)


def read_file(path: str | Path) -> Settings:
    """Read the settings in a TOML file, including "dataset"; keys have underscores or dashes.

    Raises:
        UsageError: not TOML, unknown keys, or values that the flags would refuse.
        OSError: the file cannot be read.
        DataError: it is a pipe or a device.
    """
    check_regular(path)
    with open(path, "rb") as file:
        raw = file.read(_LARGEST_RECORD).partition(_MARK)[0]
    # The parser takes quadratic time for a long dotted key.
    if len(raw) > _LARGEST_FILE or max((line.count(b".") for line in raw.splitlines()), default=0) > _MOST_DOTS:
        raise UsageError(
            f"{path}: not a file of settings: expected up to {_LARGEST_FILE:,} bytes, with up to {_MOST_DOTS} dots in a line"
        )
    try:
        content = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, and integers of thousands of digits
        raise UsageError(f"{path}: not TOML: {error}") from error
    found: Settings = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in _TEXTS and name not in BY_NAME:
            close = difflib.get_close_matches(name, ["dataset", *BY_NAME], 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are dataset, {', '.join(BY_NAME)}"
            raise UsageError(f"{path}: unknown setting {quoted(key)}{hint}")
        found[name] = _value(path, name, value)
    return found


def _value(path: str | Path, name: str, value: Any) -> Any:
    if name in _TEXTS:
        if not isinstance(value, str):
            raise UsageError(f"{path}: {name}: expected text, got {quoted(value)}")
        return value
    setting = BY_NAME[name]
    if isinstance(value, list) and all(isinstance(v, int) for v in value):
        value = ",".join(map(str, value))
    if isinstance(value, bool):
        if setting.read is bool:
            return value
        value = "true" if value else "false"
        if setting.read is str:
            raise UsageError(f"{path}: {name}: expected text in quotes, got {value}")
    elif setting.read is bool or not isinstance(value, (int, float, str)):
        raise UsageError(
            f"{path}: {name}: expected {'true or false' if setting.read is bool else 'a value'}, got {quoted(value)}"
        )
    try:
        return setting.read(str(value) if not isinstance(value, int) or abs(value) < 2**63 else quoted(value))
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{path}: {name}: {error}") from None


def effective(args: argparse.Namespace) -> Settings:
    """Merge the settings of the resumed run, of the configuration file and of the flags; the later ones take precedence.

    Raises:
        UsageError: there is no data set, or a setting that must not change differs from that of the resumed run.
    """
    given: Settings = read_file(args.config) if args.config else {}
    typed = {s.name: value for s in SETTINGS if (value := getattr(args, s.name)) is not None}
    if args.dataset is not None:
        typed["dataset"] = args.dataset
    for name in _PATHS:
        try:
            str(typed.get(name, "")).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{typed[name]!r}: a path that is not UTF-8, which {CONFIG} cannot hold; rename it") from None
    if args.resume is None:
        if "dataset" not in typed and "dataset" not in given:
            raise UsageError("give a data set, such as: xpnet train digits; or --config FILE or --resume FOLDER")
        if given.get(STARTED_IN) != os.getcwd():  # of another run: its paths are kept, those typed here hold here
            for name in _PATHS:
                if name in given and name not in typed:
                    given[name] = _absolute(name, given[name], given.get(STARTED_IN))
        return {**given, **typed, STARTED_IN: os.getcwd()}
    given |= typed
    given.pop(STARTED_IN, None)
    path = Path(args.resume) / CONFIG
    if not path.is_file():
        raise UsageError(f"--resume {args.resume}: no run there; expected a folder with {CONFIG}")
    before = read_file(path)
    if "dataset" not in before:
        raise UsageError(
            f"{path}: damaged: it holds no dataset; write the settings of the run into it again, or start a new run"
        )
    for name in _PATHS:
        if name in given and is_same_path(name, before, given[name]):
            del given[name]  # the same, from another folder
        elif name in given:
            given[name] = _absolute(name, given[name], os.getcwd())
    for name, value in given.items():
        free = name in BY_NAME and BY_NAME[name].free
        if name == "dataset" and _is_gone(before) and os.path.exists(value):
            continue  # they may have moved: whether they are the same is seen when they are read
        if not free and before.get(name) != value:
            flag = BY_NAME[name].flag if name in BY_NAME else "the data set"
            raise UsageError(
                f"{flag} {value} is not what the run in {args.resume} began with ({before.get(name)}); a run is resumed with "
                f"its own settings: omit it, or start a new run"
            )
    return {**before, **given}


def _absolute(name: str, value: str, started_in: Any) -> str:
    """Return a setting that may be a path from the folder `started_in` as an absolute one; names of ours stay."""
    if (name == "dataset" and value in data.names()) or (name == "model" and ".py:" not in value):
        return value
    return absolute(value, started_in)


def is_same_path(name: str, before: Settings, now: str) -> bool:
    """Return whether a path in a run's configuration is one that is typed here."""
    then, started_in = before.get(name), before.get(STARTED_IN)
    if then == now and (now in data.names() or not isinstance(started_in, str)):
        return True
    if not isinstance(then, str) or not isinstance(started_in, str):
        return False
    return os.path.realpath(_absolute(name, then, started_in)) == os.path.realpath(_absolute(name, now, os.getcwd()))


def _is_gone(before: Settings) -> bool:
    """Return whether there is nothing where a run began with its own data."""
    name, started_in = before["dataset"], before.get(STARTED_IN)
    return name not in data.names() and not os.path.exists(
        os.path.join(started_in if isinstance(started_in, str) else "", name)
    )


def located_data(settings: Settings) -> tuple[str, str | None]:
    """Return the data set and the folder of its published files as they are to be found from this folder.

    Raises:
        UsageError: they are not where the run began with them, and not here either.
    """
    name, folder, started = settings["dataset"], settings.get("data"), settings.get(STARTED_IN)
    if name not in data.names():
        name = locate(name, started, "the data")
    return name, None if folder is None else locate(folder, started, "the folder")


def recorded_inputs(folder: str | Path) -> dict[str, Any] | None:
    """Return what the configuration file of a run says of its data, or None where it says nothing.

    Raises:
        UsageError: that is damaged.
        OSError: the file cannot be read.
    """
    path = Path(folder) / CONFIG
    with open(path, "rb") as file:
        raw = file.read(_LARGEST_RECORD).partition(_MARK)[2]
    if not raw:
        return None
    if any(b"." in line.partition(b"=")[0] for line in raw.splitlines()):
        raise UsageError(f"{path}: its table [{INPUTS}] is damaged; start a new run")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: its table [{INPUTS}] is damaged, not TOML: {error}; start a new run") from error


def with_inputs(settings: Settings, inputs: Settings) -> str:
    """Format settings with a table that :func:`recorded_inputs` returns."""
    return to_toml(settings) + _MARK.decode() + to_toml(inputs)


def to_toml(settings: Settings) -> str:
    """Format settings as TOML, without those that are None."""
    return "".join(f"{name} = {_toml(value)}\n" for name, value in settings.items() if value is not None)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(v) for v in value)}]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "nan"
    if isinstance(value, int):
        return str(value)
    # A JSON string is a TOML basic string, except that TOML wants DEL escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
