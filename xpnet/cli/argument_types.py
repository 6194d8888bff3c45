"""The words of the command line: types of arguments, and the error for those that cannot be carried out."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

MODEL_HELP = "mlp, cnn, or PATH.py:function, a function of (input_shape, classes, seed, device), or of some of them"


class UsageError(Exception):
    """Arguments that cannot be carried out; the message is one line that says what would be right."""


def integer(least: int) -> Callable[[str], int]:
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


def non_negative(text: str) -> float:
    """An argument's type: finite numbers from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, such as 0.01, got {text!r}")
    return value


def fraction(text: str) -> float:
    """An argument's type: numbers from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, such as 0.999, got {text!r}")
    return value


def one_of(*names: str) -> Callable[[str], str]:
    """An argument's type: one of some words."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected {' or '.join(names)}, got {text!r}")
        return text

    return read
