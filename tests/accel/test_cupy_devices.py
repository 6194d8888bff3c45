"""Devices that this machine is not: two GPUs, a small one, none. Each in a process of its own, on the software device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize(
    ("file", "setting"),
    [("two_gpus", "SOFTWARE_GPU_COUNT=2"), ("small_gpu", "SOFTWARE_GPU_MIB=64"), ("no_gpu", "SOFTWARE_GPU_COUNT=0")],
)
def test_on(file, setting):
    name, _, value = setting.partition("=")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--software-gpu", f"{HERE}/devices/{file}.py"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, name: value}, cwd=HERE.parent.parent
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"^\d+ passed in", done.stdout, re.MULTILINE), done.stdout  # none skipped
