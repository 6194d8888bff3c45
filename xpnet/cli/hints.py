"""What was probably meant: hints for mistyped flags, commands and data sets, and for settings that mean nothing."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from xpnet import data
from xpnet.cli.argument_types import UsageError
from xpnet.data.catalogue import shipped
from xpnet.data.image_files import holds_images
from xpnet.runtime.messages import quoted

_OTHER_NAMES = {
    "--lr": "--learning-rate",
    "--rate": "--learning-rate",
    "--wd": "--weight-decay",
    "--bs": "--batch-size",
    "--gpu": "--device",
    "--cuda": "--device",
    "--output": "--out",
    "--output-dir": "--out",
    "--folder": "--out",
    "--image-size": "--size",
    "--label": "--target",
    "--early-stopping": "--patience",
    "--ema": "--average",
    "--network": "--model",
    "--arch": "--model",
    "--random-state": "--seed",
    "--num-workers": "--workers",
}
"""What other programs call our flags."""
_SHOWN = 8


def close(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant, or None."""
    found = difflib.get_close_matches(word, list(known), 1)
    return found[0] if found else None


def unrecognized(extra: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Return the message for arguments that a command does not know, with the flags that were probably meant."""
    flags = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    hints = []
    for word in extra:
        if word.lower() in ("yes", "no", "true", "false", "on", "off"):
            hints.append("a switch takes no value: --NAME turns it on, --no-NAME off")
        if not word.startswith("-") or _is_number(word):
            continue
        name = word.partition("=")[0].replace("_", "-")
        other = _OTHER_NAMES.get(name)
        longer = [flag for flag in flags if name.startswith("--") and len(name) > 3 and flag.startswith(name)]
        meant = other if other in flags else longer[0] if longer else name if name in flags else _close_flag(name, flags)
        if meant is not None:
            hints.append(f"did you mean {meant} instead of {word.partition('=')[0]}?")
    return f"unrecognized arguments: {' '.join(extra)}" + (f"; {' '.join(hints)}" if hints else "")


def _close_flag(name: str, flags: Iterable[str]) -> str | None:
    """Return the flag that was probably meant: what they all begin with makes none alike."""
    found = difflib.get_close_matches(name.lstrip("-"), [flag.lstrip("-") for flag in flags], 1, 0.65)
    return f"--{found[0]}" if found else None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def with_choice(message: str) -> str:
    """Return argparse's message, with the choice that was probably meant."""
    found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
    if found is None:
        return message
    meant = close(found[1], re.findall(r"[\w-]+", found[2]))
    return message if meant is None else f"{message}; did you mean {meant}?"


def unknown_dataset(name: str) -> UsageError:
    """Return the error for a DATASET that is no published data set, no folder and no file: it names what is here."""
    here = Path(name).parent
    folders: list[str] = []
    tables: list[str] = []
    if here.is_dir():
        for entry in sorted(here.iterdir()):
            shown = entry.name if str(here) == "." else str(entry)
            if entry.is_dir() and not entry.name.startswith((".", "__")):
                folders.append(f"{shown}/")
            elif entry.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".npz")):
                tables.append(shown)
    meant = close(name.rstrip("/"), [*data.names(), *(f.rstrip("/") for f in folders), *tables])
    place = "here" if str(here) == "." else f"in {here}"
    there = folders[:_SHOWN] + tables[:_SHOWN]
    return UsageError(
        f"{quoted(name, 200)}: no such folder or file; expected a folder of images CLASS/NAME.png, a CSV file, or one of the "
        f"data sets {', '.join(data.names())}"
        + (f'; did you mean "{meant}"?' if meant else "")
        + (f"; {place} are {', '.join(there)}" if there else f"; {place} are no folders and no tables")
    )


def own_of_this_name(name: str, path: str | None = None) -> str:
    """Say that there is a folder of images or a file that has the name of a published data set, which comes first; "" for none.

    A folder of the published files may have it, too, and so may anything where `path` says what is meant.
    """
    if path is not None or name not in data.names() or not (Path(name).is_file() or holds_images(Path(name))):
        return ""
    kind, slash = ("folder", "/") if Path(name).is_dir() else ("file", "")
    return f"{name} is the published data set; a {kind} {name}{slash} is here, too: write ./{name} for it"


def check_settings(name: str, path: str | None, size: Sequence[int] | None, target: str | None, skip_bad: bool | None) -> None:
    """Check that DATASET is there, and that the flags given with it mean something for data of its kind.

    Raises:
        UsageError: it is not there, or a flag is for other data; the message says for which.
    """
    published = name in data.names()
    if not published and not Path(name).exists():
        raise unknown_dataset(name)
    if path and published and name in shipped():
        raise UsageError(f"--data is for data sets of published files, and {name} is part of xpnet: omit it")
    folder = not published and Path(name).is_dir()
    what = "a published data set" if published else "a folder of images" if folder else "a table"
    for given, flag, meant, fits in (
        (path, "--data", "published data sets", published),
        (size, "--size", "folders of images", folder),
        (skip_bad, "--skip-bad", "folders of images", folder),
        (target, "--target", "tables", not published and not folder),
    ):
        if given and not fits:
            raise UsageError(f"{flag} is for {meant}, and {name} is {what}: omit it")
