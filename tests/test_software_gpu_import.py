"""The software device is loaded by the first import of CuPy, whichever of its modules that is."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

PROGRAM = """
import sys
import {first}
import cupy, cupyx

module = sys.modules["{first}"]
assert module.__spec__.loader.__class__.__name__ == "SourceFileLoader", module.__spec__
for name, module in list(sys.modules.items()):
    parent, _, child = name.rpartition(".")
    if parent in ("cupy", "cupy.cuda", "cupy_backends", "cupy_backends.cuda"):
        assert getattr(sys.modules[parent], child) is module, name
print(cupyx.scipy.sparse.csr_matrix, (cupy.arange(4.0) - 1).sum())
"""


@pytest.mark.parametrize("first", ["cupy", "cupy.cuda", "cupy.random", "cupy_backends", "cupyx"])
def test_a_module_is_imported_once(first):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(first=first)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("2.0\n")
