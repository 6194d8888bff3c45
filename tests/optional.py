"""Optional libraries of tests."""

import importlib
import os
from typing import Any

import pytest


def optional(name: str) -> Any:
    """Import a module, or skip the test if it is not installed; with XPNET_REQUIRE_ALL set, raise instead."""
    if os.environ.get("XPNET_REQUIRE_ALL", "") not in ("", "0"):
        return importlib.import_module(name)
    return pytest.importorskip(name)
