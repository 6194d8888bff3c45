"""Messages of bounded length: what a file holds may be quoted in an error, however long it is."""

from __future__ import annotations

MOST = 1500
"""Characters of a message. With the name of a file in front it stays below 2 kB."""


def shorten(text: str, most: int = MOST) -> str:
    """Return `text`, or its beginning and its end with the number of characters between them left out."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    tail = most - head
    return f"{text[:head]} [... {len(text) - head - tail:,} characters ...] {text[len(text) - tail :]}"


def quoted(value: object, most: int = 80) -> str:
    """Return the representation of a value from a file or of an argument, shortened, for an error message.

    An array or a table is its type, shape and dtype.
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and not isinstance(value, type):
        numbers = f" {dtype}" if dtype is not None else ""
        return shorten(f"{type(value).__name__} {tuple(shape) if isinstance(shape, (tuple, list)) else shape}{numbers}", most)
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write out integers of thousands of digits
        return f"an integer of {value.bit_length():,} bits"
    try:
        return shorten(" ".join(repr(value).split()), most)
    except (ValueError, RecursionError):  # it holds such an integer, or is nested too deeply
        return f"a {type(value).__name__}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number and what it counts: 1 example, 1,200 examples, 2 classes (a `plural` other than with s is given)."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def were(count: int) -> str:
    """Return the verb for so many things."""
    return "was" if count == 1 else "were"


class QuotingError(Exception):
    """Base of errors that quote what files hold: the message is shortened to `MOST` characters."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(shorten(a) if isinstance(a, str) else a for a in arguments))
