"""Every call of xpnet that orders work on a GPU, found in its source, and the same function without one of them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
CALLS = {
    "wait_event", "record", "synchronize", "copies_wait", "computations_wait", "finish", "get_current_stream",
    "cublasSetStream_v2", "set_stream",
}  # fmt: skip
BLOCKS = {"self._stream", "cupy.cuda.using_allocator(self._allocate)"}


class Place(NamedTuple):
    """A call, or a `with` block, that orders work.

    Attributes:
        file: its path in the repository.
        function: the class and the function around it.
        what: the name of what is called, or "with " and what the block enters.
        number: among those of the same name in the function, from 0.
    """

    file: str
    function: str
    what: str
    number: int = 0


class _Finder(ast.NodeTransformer):
    """Goes through a file; replaces one place by an expression if it is given one."""

    def __init__(self, file: str, target: Place | None = None, instead: str = "None") -> None:
        self.file, self.target, self.instead = file, target, instead
        self.inside: list[str] = []
        self.counts: dict[tuple[str, str], int] = {}
        self.found: list[Place] = []
        self.function: ast.FunctionDef | None = None

    def _within(self, node: Any) -> Any:
        self.inside.append(node.name)
        self.generic_visit(node)
        if self.target is not None and ".".join(self.inside) == self.target.function:
            self.function = node
        self.inside.pop()
        return node

    visit_ClassDef = visit_FunctionDef = _within  # noqa: N815 - ast's own names

    def _is_target(self, what: str) -> bool:
        function = ".".join(self.inside)
        number = self.counts.get((function, what), 0)
        self.counts[function, what] = number + 1
        self.found.append(Place(self.file, function, what, number))
        return self.found[-1] == self.target

    def visit_Call(self, node: ast.Call) -> Any:
        hit = False
        if isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            hit = self._is_target(node.func.attr)
        self.generic_visit(node)
        return ast.parse(self.instead, mode="eval").body if hit else node

    def visit_withitem(self, node: ast.withitem) -> Any:
        text = ast.unparse(node.context_expr)
        hit = text in BLOCKS and self._is_target(f"with {text}")
        self.generic_visit(node)
        if hit:
            node.context_expr = ast.parse("__import__('contextlib').nullcontext()", mode="eval").body
        return node


def places() -> Iterator[Place]:
    """Find every place in the package."""
    for path in sorted((ROOT / "xpnet").rglob("*.py")):
        finder = _Finder(str(path.relative_to(ROOT)))
        finder.visit(ast.parse(path.read_text(encoding="utf-8")))
        yield from finder.found


def remove(place: Place, patch: pytest.MonkeyPatch, instead: str = "None") -> None:
    """Replace the function around a place by the same one without it: with the value of `instead` in its stead."""
    finder = _Finder(place.file, place, instead)
    finder.visit(ast.parse((ROOT / place.file).read_text(encoding="utf-8")))
    assert place in finder.found
    assert finder.function is not None
    module: Any = importlib.import_module(place.file.removesuffix(".py").replace("/", "."))
    code = ast.fix_missing_locations(ast.Module([finder.function], []))
    made: dict[str, Any] = {}
    exec(compile(code, f"{place.file} without {place.what}", "exec"), vars(module), made)
    owner = module
    *outer, name = place.function.split(".")
    for part in outer:
        owner = getattr(owner, part)
    patch.setattr(owner, name, made[name])
