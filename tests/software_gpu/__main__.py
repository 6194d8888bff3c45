"""Runs a program on the software device: ``python -m tests.software_gpu script.py ...`` or ``... -m module ...``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import build

SITE = Path(__file__).resolve().parent / "site"

if len(sys.argv) < 2:
    sys.exit(f"{__doc__}\n$SOFTWARE_GPU lists variables of packages that cache code for a GPU, as in SOFTWARE_GPU=XPNET_CACHE.")
try:
    build.ensure()
except build.MissingError as error:
    sys.exit(str(error))
os.environ.setdefault("SOFTWARE_GPU", "1")
os.environ["PYTHONPATH"] = os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
