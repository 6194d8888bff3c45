"""Argument types for argparse, shared by flags and configuration files, and the error for arguments that cannot be used."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from typing import TypeVar

from xpnet.runtime.messages import QuotingError, quoted

MODEL_HELP = "mlp, cnn, or PATH.py:function, which takes any of input_shape, classes, seed and device"

_FORMATS = {
    ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".toml", ".html", ".htm", ".md", ".pdf", ".png", ".jpg", ".svg", ".npy",
    ".npz", ".xlsx", ".xls", ".parquet", ".feather", ".gz", ".zip", ".xpnet", ".ckpt",
}  # fmt: skip
"""Endings that say what a file holds."""

T = TypeVar("T")


class UsageError(QuotingError):
    """Arguments that cannot be used; the message is one line that says what would be right."""


def _argument(convert: Callable[[str], T], allowed: Callable[[T], object], expected: str) -> Callable[[str], T]:
    """Return an argument type for text that `convert` accepts and whose values are `allowed`."""

    def read(text: str) -> T:
        try:
            value = convert(text)
        except (ValueError, OverflowError):
            pass
        else:
            if allowed(value):
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {quoted(text)}")

    return read


def integer(least: int, most: int = 2**62) -> Callable[[str], int]:
    """Return an argument type for whole numbers from `least` to `most`."""
    expected = f"a whole number of at least {least}" + (f" and at most {most}" if most < 2**62 else "")
    return _argument(int, lambda value: least <= value <= most, expected)


def one_of(*names: str) -> Callable[[str], str]:
    """Return an argument type for a few names."""
    return _argument(str, names.__contains__, " or ".join(names))


def file_name(*suffixes: str) -> Callable[[str], str]:
    """Return an argument type for the name of a file that will be written, which is not one of another format's."""

    def fits(name: str) -> bool:
        suffix = os.path.splitext(name.lower())[1]
        return suffix in suffixes or suffix not in _FORMATS

    return _argument(str, fits, f"the name of a {' or '.join(suffixes)} file, which is what will be written")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.replace("x", ",").split(","))


positive = _argument(float, lambda value: 0 < value < math.inf, "a number above 0, such as 0.001")
non_negative = _argument(float, lambda value: 0 <= value < math.inf, "a number of at least 0, such as 0.01")
fraction = _argument(float, lambda value: 0 <= value < 1, "a number from 0 to below 1, such as 0.999")
shape = _argument(_sizes, lambda sizes: min(sizes) >= 1, "sizes separated by commas, such as 28,28,1 or 4")
# Whether a device exists is checked when it is used.
device = _argument(str, re.compile(r"cpu|cuda(:\d+)?").fullmatch, "cpu, cuda or cuda:N")
