"""Compilation of kernels/cuda/*.cu with g++ into shared libraries with one C function an instance."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xpnet.accel.cupy import source

HEADERS = Path(__file__).parents[1] / "software_gpu" / "csrc" / "include"
FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-w")


def compiler() -> str | None:
    """Return the C++ compiler, or None."""
    return shutil.which("g++")


def folder() -> Path:
    """Return the folder where the libraries are cached."""
    root = os.environ.get("XPNET_CACHE") or str(Path.home() / ".cache" / "xpnet")
    return Path(root) / "emulator"


def files() -> list[str]:
    """Return every kernel file in use."""
    return sorted({kernel.file for kernel in source.every_kernel})


def instances(file: str) -> list[source.Instance]:
    return [i for kernel in source.every_kernel if kernel.file == file for i in kernel.instances()]


def generated(file: str) -> str:
    lines = ['#include "cuda_emulator.hpp"', f'#include "{file}.cu"']
    lines += [
        f'extern "C" const char* run_{number}(const unsigned* grid, const unsigned* block, void** arguments) '
        f"{{ return emulator::launch(&{instance.expression}, grid, block, arguments); }}"
        for number, instance in enumerate(instances(file))
    ]
    return "\n".join(lines) + "\n"


def _key(text: str, file: str) -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    digest.update(text.encode())
    digest.update(source.read_source(file).encode())
    for header in source.read_headers().values():
        digest.update(header.encode())
    digest.update((HEADERS / "cuda_emulator.hpp").read_bytes())
    return digest.hexdigest()[:24]


@functools.cache
def library(file: str) -> tuple[ctypes.CDLL, dict[str, int]]:
    """Return the library of one kernel file, and the number of each instance's function in it."""
    text = generated(file)
    target = folder() / f"{file}-{_key(text, file)}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            main = Path(work) / "main.cpp"
            main.write_text(text)
            made = Path(work) / "made.so"
            command = [compiler() or "g++", *FLAGS, f"-I{HEADERS}", f"-I{source.kernel_folder()}", str(main), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{file}.cu does not compile as C++:\n{done.stderr[:6000]}")
            os.replace(made, target)
    numbers = {instance.expression: number for number, instance in enumerate(instances(file))}
    return ctypes.CDLL(str(target)), numbers


def build_all() -> None:
    """Compile every file that is not compiled yet, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda file: library(file), files()))
