"""Argument types for argparse, shared by flags and configuration files, and the error for arguments that cannot be used."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import TypeVar

MODEL_HELP = "mlp, cnn, or PATH.py:function, which takes any of input_shape, classes, seed and device"

Number = TypeVar("Number", int, float)


class UsageError(Exception):
    """Arguments that cannot be used; the message is one line that says what would be right."""


def _number(convert: Callable[[str], Number], allowed: Callable[[Number], bool], expected: str) -> Callable[[str], Number]:
    """Return an argument type for the numbers that are `allowed`."""

    def read(text: str) -> Number:
        try:
            value = convert(text)
        except ValueError:
            pass
        else:
            if allowed(value):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return read


def integer(least: int) -> Callable[[str], int]:
    """Return an argument type for whole numbers from `least`."""
    return _number(int, lambda value: value >= least, f"a whole number of at least {least}")


positive = _number(float, lambda value: 0 < value < math.inf, "a number above 0, such as 0.001")
non_negative = _number(float, lambda value: 0 <= value < math.inf, "a number of at least 0, such as 0.01")
fraction = _number(float, lambda value: 0 <= value < 1, "a number from 0 to below 1, such as 0.999")


def device(text: str) -> str:
    """Check the form of a device's name; whether the device exists is checked when it is used."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return text


def shape(text: str) -> tuple[int, ...]:
    """Read sizes separated by commas (or by "x")."""
    try:
        sizes = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes separated by commas, such as 28,28,1 or 4, got {text!r}")
    return sizes


def one_of(*names: str) -> Callable[[str], str]:
    """Return an argument type for a few names."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected {' or '.join(names)}, got {text!r}")
        return text

    return read
