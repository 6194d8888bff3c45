"""`Array` stays a type that mypy can check: what must be accepted is, and what must be refused is."""

import re
import subprocess
import sys
from pathlib import Path

from tests.optional import optional

ROOT = Path(__file__).parents[1]

SNIPPET = """
from typing import Any

import numpy as np

import xpnet as xn
from xpnet.backend import Array
from xpnet.ops.shapes import expect_rank, unbroadcast


def halved(x: Array) -> Array:
    small = (x - x.T) / 2 @ x[..., 0] ** 2
    small[x > 0] = -abs(x)
    return 1 - small


def of_numpy(x: np.ndarray[tuple[int, int], np.dtype[np.float32]], y: np.ndarray[Any, Any]) -> Array:
    expect_rank("test", "x", x, "NC")
    x = unbroadcast(np, halved(x), y.shape)  # refused: assignment
    return unbroadcast(np, y, halved(y).shape)


def of_tensor(t: xn.Tensor) -> int:
    of_numpy(np.zeros((2, 3), np.float32), t.array)  # refused: arg-type
    return halved(t.array).ndim


def wrong(x: Array) -> None:
    x.foo()  # refused: attr-defined
    x.astype("float32")  # refused: attr-defined
    halved("text")  # refused: arg-type
    halved([1.0, 2.0])  # refused: arg-type
    halved(None)  # refused: arg-type
    xn.to_device(x, "cpu").bar  # refused: attr-defined
"""


def test_mypy_checks_arrays(tmp_path):
    optional("mypy")
    file = tmp_path / "snippet.py"
    file.write_text(SNIPPET)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "pyproject.toml",
        "--cache-dir",
        str(tmp_path / "cache"),
        str(file),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    expected = {
        (number, code)
        for number, line in enumerate(SNIPPET.splitlines(), 1)
        for code in re.findall(r"# refused: ([a-z-]+)", line)
    }
    found = re.findall(r"snippet\.py:(\d+): error: .*\[([a-z-]+)\]", done.stdout)
    assert {(int(number), code) for number, code in found} == expected, done.stdout + done.stderr
    assert f"Found {len(expected)} errors in 1 file" in done.stdout
