"""Numbers and names formatted for people, ready for HTML."""

from __future__ import annotations

import html
import math
from typing import Any

THIN = "\N{NARROW NO-BREAK SPACE}"
DOT = " \N{MIDDLE DOT} "
DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


def escape(value: Any) -> str:
    """Escape text for HTML."""
    return html.escape(str(value), quote=True)


def number(value: Any, digits: int = 4) -> str:
    """Format a number with `digits` significant digits, an integer with separators, None as a dash."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", THIN).replace("-", "\N{MINUS SIGN}")
    if not isinstance(value, float):
        return escape(value)
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}{TIMES}10<sup>{int(exponent)}</sup>".replace("-", "\N{MINUS SIGN}")
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def setting(value: Any) -> str:
    """Format the value of a setting."""
    if isinstance(value, float):
        return escape(f"{value:.6g}")  # as it would be typed
    if isinstance(value, list):
        return escape(", ".join(str(v) for v in value))
    return number(value) if value is None or isinstance(value, bool) else escape(value)


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
