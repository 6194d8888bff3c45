"""What the machine has."""

from __future__ import annotations

import os


def memory() -> int | None:
    """Return the bytes of main memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows; an unknown name
        return None
