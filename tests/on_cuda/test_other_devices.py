"""Runs the tests for two GPUs, and for a small one, on software devices of that kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.cuda
@pytest.mark.usefixtures("software_gpu")
@pytest.mark.parametrize(
    ("tests", "settings"),
    [
        ("two_devices.py", {"SOFTWARE_GPU_COUNT": "2"}),
        ("two_devices.py", {"SOFTWARE_GPU_COUNT": "2", "SOFTWARE_GPU_SCHEDULE": "lazy"}),
        ("small_device.py", {"SOFTWARE_GPU_MIB": "96"}),
        # cuBLAS's workspace of 32 MiB for the stream of the graphs, and none for another.
        ("small_device.py::test_training_goes_on_with_a_smaller_batch[True-arrays]", {"SOFTWARE_GPU_MIB": "64"}),
    ],
    ids=["two", "two-lazy", "96", "64"],
)
def test_on_a_device_of_this_kind(tests, settings):
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--software-gpu", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTEST_ADDOPTS": "", **settings}  # in one process: what one test leaves is seen by the next
    done = subprocess.run(
        [*command, str(HERE / tests)], cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout, done.stdout
