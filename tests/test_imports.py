"""What imports what: the architecture's rules about dependencies, read from the source and seen in a fresh process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xpnet

ROOT = Path(xpnet.__file__).parent
ALL = sorted(ROOT.rglob("*.py"))
PURE = sorted([*(ROOT / "ops").rglob("*.py"), *(ROOT / "layers").rglob("*.py")])
HEAVY = (
    "cupy", "matplotlib", "scipy", "onnx", "sklearn", "mpi4py", "rich", "PIL", "pooch", "safetensors", "torch", "tensorboard",
)  # fmt: skip
RUNS_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def name(path: Path) -> str:
    return path.relative_to(ROOT.parent).as_posix()


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, also inside functions, and whether only a type checker does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in checked
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT.parent).with_suffix("").parts
            above = [*package[: len(package) - node.level]] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # `from xpnet import backend` imports xpnet.backend
                yield f"{start}.{alias.name}", id(node) in checked
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value), False


def test_the_files_are_there():
    assert len(PURE) > 20
    assert any(m == "numpy" for m, _ in imports(ROOT / "backend.py"))  # the reader of imports works


@pytest.mark.parametrize("path", [pytest.param(p, id=name(p)) for p in PURE])
def test_operations_and_layers_know_no_array_library(path: Path):
    found = {module for module, _ in imports(path) if module.split(".")[0] in ("numpy", "cupy", "cupyx", "array_api_compat")}
    assert not found


@pytest.mark.parametrize("path", [pytest.param(p, id=name(p)) for p in PURE])
def test_operations_and_layers_load_no_accelerations(path: Path):
    """The registry imports them by the library's name when the first array of it comes; no file does at its top."""
    top = ast.parse(path.read_text(encoding="utf-8")).body
    names = [n.module or "" for n in top if isinstance(n, ast.ImportFrom)]
    names += [alias.name for n in top if isinstance(n, ast.Import) for alias in n.names]
    assert not [n for n in names if n.startswith("xpnet.accel")]


@pytest.mark.parametrize("path", [pytest.param(p, id=name(p)) for p in ALL])
def test_nothing_is_pickled(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {module for module, _ in imports(path) if RUNS_CODE & set(module.split("."))}
    if name(path) == "xpnet/data/workers.py":
        # What goes to a worker process is pickled by multiprocessing; the module is named for its exception alone.
        uses = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "pickle"]
        assert set(uses) <= {"PicklingError"}
        found.discard("pickle")
    assert not found
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant), name(path)
            assert node.value.value is False, name(path)


def fresh(code: str) -> str:
    """What a new Python prints."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True
    ).stdout


def test_importing_xpnet_is_light():
    """None of the heavy libraries, and at most 0.3 s of processor time: the least of three, NumPy's third included.

    On a machine where NumPy alone takes longer than usual, 3.5 times as long as NumPy.
    """
    code = (
        "import json, sys, time; start = time.process_time(); import numpy; middle = time.process_time(); import xpnet; "
        "end = time.process_time(); "
        f"print(json.dumps([middle - start, end - start, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    results = [json.loads(fresh(code)) for _ in range(3)]
    assert results[0][2] == []
    assert min(total for _, total, _ in results) < max(0.3, 3.5 * min(numpy for numpy, _, _ in results))


def test_a_whole_training_run_imports_no_heavy_library():
    """Training on NumPy needs NumPy alone (and threadpoolctl): no matplotlib, no SciPy, no progress bar off a terminal."""
    code = (
        "import sys, numpy as np, xpnet as xn\n"
        "x = np.zeros((8, 3), np.float32); y = np.zeros(8, int)\n"
        "model = xn.Sequential([xn.Dense(4, 'relu'), xn.Dense(2)], input_shape=(3,))\n"
        "xn.Trainer(model, loss='softmax_cross_entropy', optimizer=xn.optim.SGD(0.1)).fit((x, y), verbose=False)\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert fresh(code).strip() == "[]"


def test_everything_exported_exists():
    for module in (xpnet, xpnet.ops, xpnet.layers, xpnet.optim):
        assert len(set(module.__all__)) == len(module.__all__), module
        for exported in module.__all__:
            assert getattr(module, exported) is not None
    missing = set(xpnet.layers.__all__) - set(xpnet.__all__) - {"reset_states"}
    assert not missing, "layers that xpnet itself does not export"


@pytest.mark.parametrize("library", ["numpy", "cupy"])
def test_every_file_of_accelerations_is_loaded(library: str):
    """What a package of accelerations does not import is never registered, and no other test would miss it."""
    code = (
        f"import sys, xpnet.accel.{library}; "
        f"print(' '.join(m.rpartition('.')[2] for m in sys.modules if m.startswith('xpnet.accel.{library}.')))"
    )
    files = {path.stem for path in (ROOT / "accel" / library).glob("*.py")} - {"__init__"}
    if library == "cupy":
        # These import CuPy itself: xpnet.data.prefetch asks for the first, xpnet.backend for the others.
        files -= {"transfers", "namespace", "capturable"}
    assert sorted(files - set(fresh(code).split())) == [], f"import these in xpnet/accel/{library}/__init__.py"
