"""Whether there is a GPU to test on."""

from __future__ import annotations

import functools
import os

import pytest

from xpnet.backend import DeviceError, device


@functools.cache
def missing() -> str:
    """Why there is no GPU to test on; empty where there is one."""
    try:
        device("cuda")
    except DeviceError as error:
        return str(error)
    if os.environ.get("XPNET_TEST_NO_POOL"):  # every array is an allocation of its own, which memory checkers can see
        import cupy

        cupy.cuda.set_allocator(None)
    return ""


def skip_without_gpu() -> None:
    """Skip the test unless a GPU can be used."""
    if missing():
        pytest.skip(missing())
