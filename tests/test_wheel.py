import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("xpnet", "kernels", "pyproject.toml", "README.md", "LICENSE")

CHECK = """
import sys
from pathlib import Path
import xpnet, xpnet.data
from xpnet.accel.cupy import source

home = Path(xpnet.__file__).parent
assert Path(sys.prefix) in home.parents, home
kernels = source.kernel_folder()
assert kernels == home / "kernels" / "cuda", kernels
print(*sorted(path.name for path in kernels.iterdir() if path.suffix in (".cu", ".cuh")))
assert xpnet.data.load("digits").train[0].shape == (1438, 8, 8, 1)
assert xpnet.data.load("iris").train[0].shape == (120, 4)
assert (home / "py.typed").is_file()
"""


def _setuptools():
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if _setuptools() < 77:
        pytest.skip("building a wheel without the network needs setuptools 77 or later")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for part in PARTS:  # a build leaves its intermediate files beside the sources
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source / part)
    build = "import os, sys, setuptools.build_meta as backend\nos.chdir(sys.argv[1])\nbackend.build_wheel(sys.argv[2])\n"
    done = subprocess.run([sys.executable, "-c", build, str(source), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("xpnet-*.whl"))


def test_the_wheel_holds_what_it_should(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "kernels" / "cuda").iterdir():
        if path.suffix in (".cu", ".cuh"):
            assert f"xpnet/kernels/cuda/{path.name}" in names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "xpnet").rglob("*.py")}
    assert modules <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "kernels"))]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_wheel_finds_kernels_and_data(wheel, tmp_path):
    # The wheel is unpacked into an empty environment that borrows the dependencies of this one: no network.
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    if not python.exists():
        python = tmp_path / "env" / "Scripts" / "python.exe"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
    )
    site = Path(where.stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run([python, "-I", "-c", CHECK], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = sorted(p.name for p in (ROOT / "kernels" / "cuda").iterdir() if p.suffix in (".cu", ".cuh"))
    assert done.stdout.split() == expected
