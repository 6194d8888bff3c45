"""Who may import whom: the floors of xpnet, from the ground up. A file imports from its own floor or from a lower one.

Imports inside functions count; those under TYPE_CHECKING do not. DEBT holds what still runs up: it may shrink, never grow.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "xpnet"  # as tests/test_layering.py
FLOORS = (  # the first entry that fits a module decides: longer names come first
    ("backend", "threads", "random", "determinism", "accel.settings", "accel.cupy.memory"),
    ("ops", "initializers", "optim.rules", "optim.rules_adaptive", "optim.rules_batch", "optim.rules_half"),
    ("accel.cupy", "accel.numpy"),
    ("tape", "tensor", "gradients", "arena", "recomputation"),
    ("layers", "regularizers", "inspect.hooks"),
    ("losses", "metrics"),
    ("optim",),
    ("data",),
    ("capture", "cuda", "accel.numpy.plans", "accel.numpy.steps", "accel.cupy.graphs"),
    ("io", "models", "convert"),
    ("training", "inspect.finite"),
    ("inspect", "timeline", "shadow", "accel.shadow_numpy", "accel.shadow_cupy", "accel.cupy.planning"),
    ("",),
    ("report", "examples"),
    ("cli", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
DEBT = {
    ("accel.cupy.transfers", "timeline"),
    ("data.staging", "timeline"),
    ("training.trainer", "timeline"),
    ("layers.running", "accel.numpy.plans"),
    ("layers.running", "accel.numpy.steps"),
    ("layers.running", "accel.cupy.graphs"),
    ("layers.running", "capture"),
    ("layers.module", "io.model_file"),
    ("layers.module", "io.weights"),
    ("layers.module", "inspect.summary"),
}


def floor(module: str) -> int:
    while module not in RANK:
        module = module.rpartition(".")[0]
    return RANK[module]


def imports(path: Path):
    tree = ast.parse(path.read_text())
    typing = {
        id(n) for i in ast.walk(tree) if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test) for n in ast.walk(i)
    }
    package = path.relative_to(ROOT.parent).parts[:-1]
    for node in (n for n in ast.walk(tree) if id(n) not in typing):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
                if node.level
                else node.module
            )
            names = [f"{base}.{a.name}" for a in node.names]
        for name in names:
            where = ROOT.parent.joinpath(*name.split("."))
            if name.split(".")[0] == "xpnet":
                yield name if where.with_suffix(".py").exists() or where.is_dir() else name.rpartition(".")[0]


def test_imports_point_down():
    up = set()
    for path in ROOT.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        up |= {(module, t[6:]) for t in imports(path) if t[6:] != module and floor(t[6:]) > floor(module)}
    assert up <= DEBT, f"imports that run up: {sorted(up - DEBT)}"
    assert up >= DEBT, f"paid off, take it out of DEBT: {sorted(DEBT - up)}"


if __name__ == "__main__":
    test_imports_point_down()
    print("holds")
