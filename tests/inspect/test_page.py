"""docs/looking_inside.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from tests.optional import optional

PAGE = Path(__file__).parents[2] / "docs" / "looking_inside.md"


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    optional("matplotlib")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"activations.png", "gradients.png", "filters.png", "network.png"}
