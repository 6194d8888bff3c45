"""Gives the software device to every Python that has this folder in PYTHONPATH, where $SOFTWARE_GPU is set.

$SOFTWARE_GPU lists environment variables of packages that cache code for a GPU, such as "XPNET_CACHE"; "1" for none.
"""

import importlib.util
import os
import sys
from pathlib import Path

if os.environ.get("SOFTWARE_GPU"):
    package = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        "_software_gpu", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    sys.modules["_software_gpu"] = importlib.util.module_from_spec(spec)
    from _software_gpu import device  # type: ignore[import-not-found]

    device.install([name for name in os.environ["SOFTWARE_GPU"].split() if name != "1"])
