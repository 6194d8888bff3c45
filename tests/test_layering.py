"""Who may import whom: a file imports from its own floor or from a lower one, and no two files import each other.

Imports inside functions count; those under TYPE_CHECKING do not. The floors are those of ARCHITECTURE.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "xpnet"

# From the ground up. A module belongs to the longest of these names that it starts with; "" is the package itself.
FLOORS = (
    ("backend", "runtime"),
    ("random", "initializers"),
    ("ops",),
    ("accel",),
    ("autograd",),
    ("layers",),
    ("optim", "losses", "metrics", "regularizers"),
    ("data",),
    ("compiled",),
    ("io", "models", "convert", "cuda"),
    ("training",),
    ("inspect",),
    ("",),
    ("cli", "report", "examples", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
DEBT: set[tuple[str, str]] = set()
"""Imports that still run up, (from, to): may shrink, never grow."""
BY_NAME = {"", "cli.parser", "examples", "ops.operation", "runtime.deprecation", "runtime.late"}
"""Modules that import what a name says at run time: each has a table, and a reason in its docstring or comments."""
IMPORTERS = {"import_module", "__import__", "resolve_name", "exec"}
ENTRY_POINTS = {"__init__.py", "__main__.py", "py.typed"}


def floor(module: str) -> int:
    """The rank of a module's floor, by the longest name in RANK that it starts with."""
    while module not in RANK:
        module = module.rpartition(".")[0]
    return RANK[module]


def name_of(path: Path, root: Path = ROOT) -> str:
    """The name of a file's module without "xpnet.", "" for the package's own."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imported(path: Path, root: Path = ROOT) -> Iterator[str]:
    """The modules of the package that a file imports when it runs, without "xpnet."."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in guard.body
        for node in ast.walk(statement)
    }
    package = path.relative_to(root.parent).parts[:-1]
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*above, *filter(None, [node.module])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS:
            names = [str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)]
        for name in names:
            if name.split(".")[0] != root.name:
                continue
            # `from xpnet.ops import relu` imports xpnet.ops, `from xpnet.ops import pooling` xpnet.ops.pooling.
            place = root.parent.joinpath(*name.split("."))
            module = name if place.with_suffix(".py").exists() or place.is_dir() else name.rpartition(".")[0]
            yield module.partition(".")[2]


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """What every module of the package imports."""
    return {name_of(path, root): set(imported(path, root)) - {name_of(path, root)} for path in sorted(root.rglob("*.py"))}


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The modules that import each other: strongly connected components of more than one (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in imports.get(module, ()):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in imports:
        if module not in index:
            visit(module)
    return found


def test_imports_run_down():
    up = {(a, b) for a, names in graph().items() for b in names if floor(b) > floor(a)}
    assert up <= DEBT, f"imports that run up: {sorted(up - DEBT)}"
    assert up >= DEBT, f"paid off, take it out of DEBT: {sorted(DEBT - up)}"


def test_no_modules_import_each_other():
    assert circles(graph()) == []


def test_modules_are_imported_by_name_in_few_places():
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS) or (
                isinstance(node, ast.ImportFrom) and any(alias.name in IMPORTERS and alias.asname for alias in node.names)
            ):
                found.add(name_of(path))
    assert found == BY_NAME


def test_the_root_holds_the_public_modules_alone():
    loose = sorted(path.name for path in ROOT.iterdir() if path.is_file() and path.name not in ENTRY_POINTS)
    assert len(loose) <= 10
    assert not [name for name in loose if name.startswith("_")]


def test_the_readers_of_imports_work(tmp_path):
    root = tmp_path / "xpnet"
    (root / "ops").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "ops" / "__init__.py").write_text("from . import relu\nfrom xpnet.ops.relu import f\n")
    (root / "ops" / "relu.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import xpnet.cli\ndef f():\n    from ..layers import g\n"
    )
    (root / "layers.py").write_text("import xpnet.ops.relu, numpy\n")
    found = graph(root)
    assert found == {"": set(), "ops": {"ops.relu"}, "ops.relu": {"layers"}, "layers": {"ops.relu"}}
    assert circles(found) == [["layers", "ops.relu"]]
