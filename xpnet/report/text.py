"""HTML from text that may hold anything: names of classes, layers, settings and files come from users and from files.

There is one way from text to HTML: :func:`html` fills a template and escapes every value that is not :class:`Markup` already.
Only this module makes Markup, and the templates are literals (`tests/report/test_markup.py` holds both), so escaping cannot be
forgotten: what was not made here appears on the page as the text it is. The standard library does it, for every ``xpnet train``
writes a report, also where nothing else is installed. Below are numbers and names formatted for people.
"""

from __future__ import annotations

import functools
import html as _html
import math
import string
from collections.abc import Iterable
from importlib import resources
from typing import Any

THIN = "\N{NARROW NO-BREAK SPACE}"
DOT = " \N{MIDDLE DOT} "
DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


class Markup(str):
    """Text that is HTML. Made by :func:`html`, :func:`join` and :func:`part` alone."""

    __slots__ = ()

    def __add__(self, other: str) -> Markup:
        return Markup(str(self) + _escaped(other))


class _Escaping(string.Formatter):
    """Formats as str.format does, and escapes what it fills in."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return value if isinstance(value, Markup) and not format_spec else _escaped(format(value, format_spec))

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        return value if conversion is None else str(super().convert_field(value, conversion))


_FORMATTER = _Escaping()


def _escaped(value: Any) -> str:
    return value if isinstance(value, Markup) else _html.escape(str(value), quote=True)


def html(template: str, /, *values: Any, **named: Any) -> Markup:
    """Fill the places {} and {name} of a template, a literal, with values; those that are not Markup are escaped."""
    return Markup(_FORMATTER.vformat(template, values, named))


def join(parts: Iterable[Any], between: str = "") -> Markup:
    """Join parts to HTML; those that are not Markup, and what is between them, are escaped."""
    return Markup(_escaped(between).join(_escaped(part) for part in parts))


@functools.cache
def part(name: str) -> Markup:
    """Return a file of this package, its style or its script, as it is."""
    return Markup(resources.files("xpnet.report").joinpath(name).read_text(encoding="utf-8"))


def image(address: Any) -> str:
    """Return the address of an image in a record if it is one of the small PNG files that a report holds, or "" otherwise."""
    if isinstance(address, str) and address.startswith(PNG) and address[len(PNG) :].rstrip("=").isascii():
        return address
    return ""


PNG = "data:image/png;base64,"


def number(value: Any, digits: int = 4) -> Markup:
    """Format a number with `digits` significant digits, an integer with separators, None as a dash."""
    if value is None:
        return html("{}", DASH)
    if isinstance(value, bool):
        return html("yes") if value else html("no")
    if isinstance(value, int):
        return html("{}", f"{value:,}".replace(",", THIN).replace("-", "\N{MINUS SIGN}"))
    if not isinstance(value, float):
        return html("{}", value)
    if not math.isfinite(value):
        return html("not finite")
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        minus = "\N{MINUS SIGN}"
        return html("{}{}10<sup>{}</sup>", mantissa.replace("-", minus), TIMES, str(int(exponent)).replace("-", minus))
    return html("{}", f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}"))


def setting(value: Any) -> Markup:
    """Format the value of a setting."""
    if isinstance(value, float):
        return html("{:.6g}", value)  # as it would be typed
    if isinstance(value, list):
        return html("{}", ", ".join(str(v) for v in value))
    return number(value) if value is None or isinstance(value, bool) else html("{}", value)


def percent(value: float | None, digits: int = 2) -> str:
    """Format a fraction: 0.9812 as 98.12 %."""
    return DASH if value is None else f"{100 * value:.{digits}f}{THIN}%"


def size(count: float | None) -> str:
    """Format bytes with a unit."""
    if count is None:
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g}{THIN}{unit}"
    return f"{count:.0f}{THIN}B"


def duration(seconds: float | None) -> str:
    """Format a time with a unit, from microseconds to hours."""
    if seconds is None:
        return DASH
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g}{THIN}\N{MICRO SIGN}s"
    if seconds < 1:
        return f"{seconds * 1e3:.3g}{THIN}ms"
    if seconds < 100:
        return f"{seconds:.3g}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes}{THIN}min {rest:02d}{THIN}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN}h {minutes:02d}{THIN}min"


def name_of(series: str) -> str:
    """Spell out a name of the history: "val_accuracy" as "validation accuracy"."""
    bare = series.removeprefix("val_")
    if bare in ("mae", "mse", "rmse"):
        return series.replace("val_", "validation ", 1).replace(bare, bare.upper())
    return series.replace("val_", "validation ", 1).replace("_", " ")


def heading(series: str) -> str:
    """Spell out a name of the history as a heading."""
    words = name_of(series)
    return words[:1].upper() + words[1:]
