"""The trips of ARCHITECTURE.md are short, and it says how short."""

from __future__ import annotations

from pathlib import Path

import pytest

import xpnet as xn
from tests.moves import trips

PAGE = Path(__file__).resolve().parents[1] / "ARCHITECTURE.md"
MOST = {"model(x)": 25, "trainer.fit": 120}


@pytest.fixture(scope="module")
def found():
    return trips()


@pytest.mark.parametrize("name", MOST)
def test_a_trip_is_short(found, name):
    assert 0 < len(found[name]) <= MOST[name]


@pytest.mark.parametrize("name", MOST)
def test_the_page_gives_its_length(found, name):
    if xn.get_num_threads() == 1:
        pytest.skip("the page counts the moves of work that threads share")
    moves, files = len(found[name]), len({file for file, _ in found[name]})
    assert f"| `{name}` | {moves} | {files} |" in PAGE.read_text(encoding="utf-8")
