"""Libraries that a test can do without, unless everything is asked for."""

import importlib
import os
from typing import Any

import pytest


def optional(name: str) -> Any:
    """The module, or a skip where it is not installed; with XPNET_REQUIRE_ALL set that is an error."""
    if os.environ.get("XPNET_REQUIRE_ALL", "") not in ("", "0"):
        return importlib.import_module(name)
    return pytest.importorskip(name)
