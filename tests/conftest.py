"""What all tests share: markers with their needs, the array libraries, and settings of hypothesis."""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.libraries import LIBRARIES, Library
from tests.software_gpu import device

if TYPE_CHECKING:
    from tests.gpu import Watched

pytest_plugins = ["tests.software_gpu.pytest_plugin"]
device.CACHES.append("XPNET_CACHE")

try:
    import hypothesis
except ImportError:  # the tests that need it import it themselves and say so
    pass
else:
    # The same examples on every run, whatever the machine's speed.
    hypothesis.settings.register_profile("xpnet", derandomize=True, deadline=None, database=None, max_examples=40)
    hypothesis.settings.load_profile("xpnet")

# A shell starts jobs in the background with SIGINT ignored; tests of Ctrl-C, and the processes that they start, need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where the data sets are is looked up before any test changes the environment.
_DATA = os.environ.get("XPNET_DATA")


@pytest.fixture(scope="module")
def force_threads() -> Iterator[None]:
    """Split work on the CPU over the threads whatever its size; otherwise only large inputs are."""
    from xpnet.accel.numpy import chunks
    from xpnet.runtime import threads

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MIN_PARALLEL_SECONDS", 0.0)
        patch.setattr(threads, "_worth_sharing", lambda threads, count, seconds, calls: True)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def _torch() -> str | None:
    return None if importlib.util.find_spec("torch") else "PyTorch is not installed"


def _nvrtc() -> str | None:
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except (RuntimeError, OSError, ImportError) as error:
        return f"the NVRTC library does not load: {error}"
    return None


def _cuda() -> str | None:
    from xpnet import backend

    try:
        backend.device("cuda")
    except backend.DeviceError as error:
        return str(error)
    return None


def _mnist() -> str | None:
    if not _DATA:
        return "$XPNET_DATA is not set"
    names = ("train-images-idx3-ubyte", "train-images.idx3-ubyte")
    places = [Path(_DATA) / folder / (name + end) for folder in ("", "mnist") for name in names for end in ("", ".gz")]
    return None if any(place.is_file() for place in places) else f"no MNIST files in {_DATA}"


def _bfloat16() -> str | None:
    return None if importlib.util.find_spec("ml_dtypes") else "ml_dtypes is not installed"


NEEDS = {"bfloat16": _bfloat16, "torch": _torch, "nvrtc": _nvrtc, "cuda": _cuda, "mnist": _mnist}
MAY_BE_ABSENT = ("cuda", "mnist")  # XPNET_REQUIRE_ALL=1 asks for everything that a package index can give


@functools.cache
def _missing(marker: str) -> str | None:
    """Why tests with this marker cannot run here, or None."""
    return NEEDS[marker]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slow") and not item.config.getoption("--slow"):
        pytest.skip("takes minutes; runs with --slow")
    for marker in NEEDS:
        if item.get_closest_marker(marker) and (reason := _missing(marker)):
            if os.environ.get("XPNET_REQUIRE_ALL", "") not in ("", "0") and marker not in MAY_BE_ABSENT:
                pytest.fail(f"XPNET_REQUIRE_ALL is set, and {reason}", pytrace=False)
            pytest.skip(reason)


@pytest.fixture(params=[pytest.param(library, id=library.name, marks=library.marks) for library in LIBRARIES])
def library(request: pytest.FixtureRequest) -> Library:
    """Every array library in turn: `library.asarray(numpy_array)`, `library.to_numpy(array)`, `library.xp`."""
    found: Library = request.param
    return found


@pytest.fixture
def xp(library: Library) -> Any:
    """The namespace of every array library in turn."""
    return library.xp


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda)])
def gpu() -> Iterator[Watched]:
    """A CUDA device under watch (`tests.gpu`) for the whole test, which is marked `cuda` by that."""
    from tests.accel.gpu import skip_without_gpu
    from tests.gpu import on_gpu

    skip_without_gpu()
    with on_gpu() as watched:
        yield watched
