"""Numbers formatted for people."""

from __future__ import annotations


def seconds_text(seconds: float) -> str:
    """Format a time with three significant digits and a unit: "72.4 us", "24.6 ms", "2.03 s"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            value = seconds / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError("unreachable")


def bytes_text(count: float) -> str:
    """Format bytes in MiB, or in GiB from 1 GiB on."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
