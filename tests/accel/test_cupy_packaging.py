"""The CUDA sources are part of the package, and are found in a checkout and in an installed package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from xpnet.accel.cupy import source

ROOT = Path(__file__).resolve().parents[2]


def test_the_list_of_packages_is_complete():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "xpnet").rglob("__init__.py")}
    assert set(settings["packages"]) == folders | {"xpnet.kernels.cuda"}
    assert settings["package-dir"]["xpnet.kernels.cuda"] == "kernels/cuda"
    suffixes = {path.suffix for path in (ROOT / "kernels" / "cuda").iterdir()}
    assert {f"*{suffix}" for suffix in suffixes} == set(settings["package-data"]["xpnet.kernels.cuda"])


def test_a_checkout_finds_its_kernels():
    assert source.kernel_folder() == ROOT / "kernels" / "cuda"


def test_an_installed_package_finds_its_kernels(tmp_path):
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "xpnet", tmp_path / "xpnet", ignore=skip)
    shutil.copytree(ROOT / "kernels", tmp_path / "xpnet" / "kernels", ignore=skip)
    program = "from xpnet.accel.cupy import source, im2col\nprint(source.kernel_folder(), im2col._im2col['float', 4, 3, 3])\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[0] == str(tmp_path / "xpnet" / "kernels" / "cuda"), done.stderr


def test_missing_kernels_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "__file__", str(tmp_path / "xpnet" / "accel" / "cupy" / "source.py"))
    with pytest.raises(FileNotFoundError, match="the CUDA sources are neither in"):
        source.kernel_folder.__wrapped__()
