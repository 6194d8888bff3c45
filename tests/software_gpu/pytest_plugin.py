"""The pytest option --software-gpu: the tests, and the programs that they start, run CuPy on the software device.

Load it from a conftest.py, ``pytest_plugins = ["tests.software_gpu.pytest_plugin"]``, or with ``-p``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import build, device

SITE = Path(__file__).resolve().parent / "site"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--software-gpu", action="store_true", help="run CuPy on a CUDA device in software instead of a GPU")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device, or --software-gpu")
    if not config.getoption("--software-gpu"):
        return
    try:
        device.install(device.CACHES)
    except build.MissingError as error:
        raise pytest.UsageError(f"--software-gpu: {error}") from None
    os.environ["SOFTWARE_GPU"] = " ".join(device.CACHES) or "1"
    places = [str(SITE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in places if p))


@pytest.fixture
def software_gpu(request: pytest.FixtureRequest) -> None:
    """Skip a test of the device itself unless it is in use."""
    if not request.config.getoption("--software-gpu"):
        pytest.skip("tests the software GPU itself; runs with --software-gpu")
