"""What the tests of the device's rules share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import ctypes, threading
import numpy as np
import cupy
from cupy.cuda import runtime
cupy.cuda.set_allocator(None)  # an allocation for every array
driver = ctypes.CDLL("libcuda.so.1")

def error(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except (runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError) as caught:
        print(caught.status, str(caught))
    else:
        print("no error")
"""

WRITE = """
write = cupy.RawKernel('extern "C" __global__ void write(int* x, long long i) { x[i] = 7; }', "write")
read = cupy.RawKernel('extern "C" __global__ void read(const int* x, long long i, int* y) { y[0] = x[i]; }', "read")
"""


def program(code: str, **settings: str) -> list[str]:
    """Run a program on a device of its own, for what leaves a process unusable; return the lines that it prints.

    Args:
        code: the program; it may use what PRELUDE defines.
        settings: environment variables, without their prefix SOFTWARE_GPU_.
    """
    environment = {**os.environ, **{f"SOFTWARE_GPU_{name}": value for name, value in settings.items()}}
    environment.setdefault("SOFTWARE_GPU", "1")
    if "SCHEDULE" not in settings:  # at once: a launch says what is wrong with it, instead of what waits for it
        environment["SOFTWARE_GPU_SCHEDULE"] = "eager"
    done = subprocess.run(
        [sys.executable, "-m", "tests.software_gpu", "-c", PRELUDE + code],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@contextmanager
def refuses(number: int, name: str, reason: str = "") -> Iterator[None]:
    """Assert that the block fails with an error of the runtime or the driver, by its number, its name, and what it says."""
    import cupy

    with pytest.raises((cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)) as caught:
        yield
    assert caught.value.status == number, str(caught.value)
    assert str(caught.value).startswith(f"{name}: "), str(caught.value)
    assert reason in str(caught.value)


def capture(stream: Any, work: Callable[[], object], mode: int | None = None) -> Any:
    """Record what `work` puts into a stream; return the graph."""
    with stream:
        stream.begin_capture(mode)
        work()
        return stream.end_capture()
