"""Environments for the other libraries: ``python -m benchmarks.peers [NAME ...] [--device cpu|cuda]``.

A library that conflicts with xpnet's requirements (Chainer needs NumPy 1.23), or does not belong in a working environment,
gets its own virtual environment from the package index, in ``.venv-peers/NAME`` (or in the folder $XPNET_PEERS). A library
without one is looked up in the environment that runs the benchmarks.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Each entry is one call of pip install, in order.
RECIPES: dict[str, list[list[str]]] = {
    "torch": [["torch", "numpy"]],
    # Its setup.py needs pkg_resources, which rejects its version numbers from setuptools 66 on; NumPy 1.24 removed the aliases
    # (numpy.bool and others) that it uses.
    "chainer": [["setuptools<66", "wheel", "numpy==1.23.5"], ["--no-build-isolation", "chainer==7.8.1"]],
    "sklearn": [["scikit-learn", "numpy"]],
    "keras": [["keras", "jax", "numpy"]],
    "jax": [["jax", "numpy"]],
    "thinc": [["thinc", "numpy"]],
}
ON_CUDA: dict[str, list[list[str]]] = {
    "keras": [["keras", "jax[cuda12]", "numpy"]],
    "jax": [["jax[cuda12]", "numpy"]],
}
MODULES = {"torch": "torch", "chainer": "chainer", "sklearn": "sklearn", "keras": "keras", "jax": "jax", "thinc": "thinc"}


def folder() -> Path:
    """Return the folder of the environments."""
    return Path(os.environ.get("XPNET_PEERS") or ROOT / ".venv-peers")


def _python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def interpreter(environment: str) -> tuple[str | None, str]:
    """Return (interpreter, "") that can import a library, or (None, why there is none)."""
    if environment == "here":
        return sys.executable, ""
    own = _python(folder() / environment)
    if own.exists():
        return str(own), ""
    if importlib.util.find_spec(MODULES[environment]) is not None:
        return sys.executable, ""
    return None, f"not installed; python -m benchmarks.peers {environment} creates an environment for it"


def build(name: str, device: str = "cpu") -> str:
    """Create or update the environment of one peer; return the version of the library.

    Raises:
        subprocess.CalledProcessError: pip failed; its output is on the terminal.
    """
    where = folder() / name
    python = _python(where)
    if not python.exists():
        venv.create(where, with_pip=True)
    recipe = ON_CUDA.get(name, RECIPES[name]) if device == "cuda" else RECIPES[name]
    for packages in recipe:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    show = f"import importlib.metadata as m; print(m.version({packages_name(name)!r}))"
    return subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.strip()


def packages_name(name: str) -> str:
    """Return the distribution of a peer."""
    return "scikit-learn" if name == "sklearn" else name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(RECIPES)}; default: all of them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(RECIPES)
    if unknown:
        parser.error(f"unknown peers {', '.join(sorted(unknown))}: expected some of {', '.join(RECIPES)}")
    failed = []
    for name in options.names or RECIPES:
        try:
            print(f"{name} {build(name, options.device)}: {folder() / name}", flush=True)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: {' '.join(map(str, error.cmd))} failed with status {error.returncode}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
