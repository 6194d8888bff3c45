"""Late imports: the only place where a lower floor may name a higher one.

Everything else imports downwards (tests/test_layering.py). An entry is imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import Any

TABLE = {
    "save": "xpnet.io.model_file:save",
    "save_weights": "xpnet.io.weights:save_weights",
    "load_weights": "xpnet.io.weights:load_weights",
    "summarize": "xpnet.inspect.summary:summarize",
    "cpu executor": "xpnet.compiled.numpy_executor:NumpyExecutor",
    "cupy namespace": "xpnet.accel.cupy.namespace",
    "cuda executor": "xpnet.compiled.cuda_executor:CudaExecutor",
}


def late(name: str) -> Any:
    """Import and return the module or function of TABLE called `name`."""
    module, _, attribute = TABLE[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
