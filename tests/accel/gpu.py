"""Skips tests that need a GPU where there is none."""

from __future__ import annotations

import functools
import os

import pytest

from xpnet.backend import DeviceError, device


@functools.cache
def missing() -> str:
    """Return why no GPU can be used; empty if one can."""
    try:
        device("cuda")
    except DeviceError as error:
        return str(error)
    if os.environ.get("XPNET_TEST_NO_POOL"):  # a separate allocation for every array, which memory checkers see
        import cupy

        cupy.cuda.set_allocator(None)
    return ""


def skip_without_gpu() -> None:
    """Skip the test unless a GPU can be used."""
    if missing():
        pytest.skip(missing())
