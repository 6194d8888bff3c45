"""The folder stands for itself: it can be copied into another project."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
PYTHON = sorted(path for path in FOLDER.rglob("*.py"))


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_nothing_here_imports_the_project(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        for module in modules:
            parts = module.split(".")
            assert parts[0] != "xpnet"
            assert parts[0] != "tests" or parts[1:2] == ["software_gpu"], f"{path.name} imports {module}"


def test_every_setting_is_in_the_readme() -> None:
    sources = [path for end in ("py", "cpp", "hpp") for path in FOLDER.rglob(f"*.{end}") if not path.name.startswith("test_")]
    read = re.compile(r'(?:getenv\(|setting\(|environ\.get\(|environ\[)"(SOFTWARE_GPU\w*)"')
    settings = {name for path in sources for name in read.findall(path.read_text())}
    assert "SOFTWARE_GPU_ARCH" in settings
    readme = (FOLDER / "README.md").read_text()
    assert {name for name in settings if not re.search(rf"`{name}(=1)?`", readme)} == set()


def test_every_folder_of_sources_is_in_the_readme() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert [path.name for path in (FOLDER / "csrc").iterdir() if path.is_dir() and f"csrc/{path.name}/" not in readme] == []
