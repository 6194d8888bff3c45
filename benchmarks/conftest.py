"""Fixtures of the pytest-benchmark suites: backends, and reference against accelerated operations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.ops.registry import load_accelerations

BACKENDS = {"numpy": "cpu", "cupy": "cuda"}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # pyproject.toml skips benchmarks to keep test runs short; naming this folder asks for them.
    config.option.benchmark_skip = False
    # 1 s for each of hundreds of cases is more than ranking them needs.
    if config.option.benchmark_max_time == "1.0":
        config.option.benchmark_max_time = "0.3"
    config.option.benchmark_warmup = True


@functools.cache
def why_not_cuda() -> str:
    """Return why a GPU cannot be used; "" if it can."""
    try:
        xn.backend.device("cuda")
    except xn.DeviceError as error:
        return str(error)
    return ""


@pytest.fixture(params=list(BACKENDS))
def device(request: pytest.FixtureRequest) -> str:
    """Return "cpu", and "cuda" if there is a GPU."""
    where = BACKENDS[request.param]
    if where == "cuda" and why_not_cuda():
        pytest.skip(why_not_cuda())
    return where


@pytest.fixture(params=["accelerated", "reference"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run with accelerated operations, and with the reference."""
    with xn.ops.reference_only(request.param == "reference"):
        yield request.param


def is_accelerated(op: Any, device: str) -> bool:
    """Return whether an operation has an accelerated implementation on a device."""
    library = next(name for name, where in BACKENDS.items() if where == device)
    load_accelerations(library)
    return library in op.accelerated


@pytest.fixture
def timed(benchmark: Any, device: str) -> Callable[..., Any]:
    """Return benchmark(function), which synchronizes after each call."""

    def run(function: Callable[[], Any]) -> Any:
        if device == "cpu":
            return benchmark(function)
        where = xn.backend.device(device)

        def waited() -> Any:
            result = function()
            where.synchronize()
            return result

        return benchmark(waited)

    return run


@pytest.fixture
def normal(device: str) -> Callable[..., Any]:
    """Return normal(*shape): float32 numbers on the device, the same in every run."""
    rng = np.random.default_rng(0)

    def make(*shape: int) -> Any:
        return xn.to_device(rng.standard_normal(shape, dtype=np.float32), device)

    return make
