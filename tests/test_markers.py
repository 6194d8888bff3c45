"""The rules of tests/conftest.py: what is absent is skipped with a reason, or fails where everything is required."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def setup(request, monkeypatch):
    """The hook of conftest, on a test with one marker whose need is absent."""
    here = str(Path(__file__).parent / "conftest.py")
    conftest = next(p for p in request.config.pluginmanager.get_plugins() if getattr(p, "__file__", "") == here)
    monkeypatch.setattr(conftest, "_missing", lambda marker: f"{marker} is absent")

    def run(marker, slow=False):
        item = SimpleNamespace(
            get_closest_marker=lambda name: name == marker, config=SimpleNamespace(getoption=lambda name: slow)
        )
        conftest.pytest_runtest_setup(item)

    return run


@pytest.mark.parametrize("marker", ["torch", "nvrtc", "cuda", "mnist"])
@pytest.mark.parametrize("required", ["", "0", "1"])
def test_what_is_absent_is_skipped_or_fails(setup, monkeypatch, marker, required):
    monkeypatch.setenv("XPNET_REQUIRE_ALL", required)
    fails = required == "1" and marker not in ("cuda", "mnist")
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match=f"{marker} is absent") as raised:
        setup(marker)
    assert raised.type is (pytest.fail.Exception if fails else pytest.skip.Exception)


def test_slow_tests_run_with_slow(setup):
    with pytest.raises(pytest.skip.Exception, match="--slow"):
        setup("slow")
    setup("slow", slow=True)
