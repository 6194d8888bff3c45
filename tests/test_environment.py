"""Settings from the environment: what a variable may hold, and that nothing else is taken for a default in silence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xpnet.runtime.environment import VARIABLES, setting

SOURCES = Path(__file__).resolve().parents[1] / "xpnet"
FLAGS = [name for name, variable in VARIABLES.items() if isinstance(variable.unset, bool)]
WRONG = {**dict.fromkeys(FLAGS, "maybe"), "XPNET_NUM_THREADS": "abc", "XPNET_CONVOLUTION": "fastest"}
TEXTS = {"XPNET_CACHE", "XPNET_DATA", "XPNET_DATA_MIRROR"}


def test_every_variable_that_the_package_reads_is_in_the_table():
    used: dict[str, Path] = {}
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"environ(\.get)?\W+XPNET_|getenv\W+XPNET_", text), path
        for name in re.findall(r"setting\(\"(\w+)\"\)", text):
            used.setdefault(name, path)
    assert used.keys() == VARIABLES.keys()
    assert WRONG.keys() | TEXTS == VARIABLES.keys()


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("False", False), ("no", False), (" off ", False)],
)
def test_every_flag_is_on_or_off(name, value, expected, monkeypatch):
    monkeypatch.setenv(name, value)
    assert setting(name) is expected


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_without_a_value_is_not_set(name, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    assert setting(name) == VARIABLES[name].unset
    monkeypatch.setenv(name, "")
    assert setting(name) == VARIABLES[name].unset


@pytest.mark.parametrize(("name", "value"), [*WRONG.items(), ("XPNET_NUM_THREADS", "-3"), ("XPNET_NUM_THREADS", "0")])
def test_every_variable_that_means_nothing_is_an_error(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} must be .*{re.escape(VARIABLES[name].expected)}.*got '{value}'"):
        setting(name)


def test_an_import_says_so():
    result = subprocess.run(
        [sys.executable, "-c", "import xpnet"],
        capture_output=True,
        text=True,
        env={**os.environ, "XPNET_DETERMINISTIC": "maybe"},
    )
    assert result.returncode
    assert "XPNET_DETERMINISTIC must be 1, true, yes or on; or 0, false, no or off, got 'maybe'" in result.stderr
