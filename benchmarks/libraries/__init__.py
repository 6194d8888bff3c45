"""The libraries to compare: one module each, imported only in the worker of that library."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Library:
    """Facts about a library, known without importing it.

    Attributes:
        name: on the command line, in tables and in files.
        module: in this package.
        imports: the module that a user imports.
        distributions: whose versions are reported.
        environment: in peers.py; several libraries may share one.
        devices: where it can run.
        settings: of this variant, passed to the module.
        variables: environment variables of its worker.
    """

    name: str
    module: str
    imports: str
    distributions: tuple[str, ...]
    environment: str
    devices: tuple[str, ...] = ("cpu",)
    settings: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def load(self) -> Any:
        """Import the module of the library."""
        return importlib.import_module(f"benchmarks.libraries.{self.module}")


BOTH = ("cpu", "cuda")
OURS = "xpnet"
ROOFLINE = "ceiling"  # its name in result files
TORCH_ON_GPU = ("torch", "torch-graphs", "torch-compile", "torch-compile-graphs")
"""Eager; the whole step as one CUDA graph; through torch.compile; both."""

LIBRARIES = {
    library.name: library
    for library in (
        Library(OURS, "ours", "xpnet", ("xpnet", "numpy", "cupy-cuda12x", "cupy-cuda13x"), "here", BOTH),
        Library("reference", "ours", "xpnet", ("xpnet", "numpy"), "here", BOTH, {}, {"XPNET_REFERENCE": "1"}),
        Library(ROOFLINE, "roofline", "numpy", ("numpy", "cupy-cuda12x", "cupy-cuda13x"), "here", BOTH),
        Library("torch", "pytorch", "torch", ("torch",), "torch", BOTH),
        Library("torch-compile", "pytorch", "torch", ("torch",), "torch", BOTH, {"mode": "compile"}),
        Library("torch-graphs", "pytorch", "torch", ("torch",), "torch", ("cuda",), {"mode": "graphs"}),
        Library("torch-compile-graphs", "pytorch", "torch", ("torch",), "torch", ("cuda",), {"mode": "compile-graphs"}),
        Library("chainer", "chainer_", "chainer", ("chainer", "numpy"), "chainer"),
        Library("sklearn", "sklearn_", "sklearn.neural_network", ("scikit-learn", "numpy"), "sklearn"),
        Library("keras", "keras_", "keras", ("keras", "torch", "jax"), "keras", BOTH),
        Library("jax", "jax_", "jax", ("jax", "jaxlib"), "jax", BOTH),
        Library("thinc", "thinc_", "thinc.api", ("thinc", "numpy"), "thinc"),
    )
}


def chosen(names: list[str], device: str) -> list[str]:
    """Return the requested peers; on a GPU "torch" means all of TORCH_ON_GPU.

    Raises:
        ValueError: a name that is not a peer.
    """
    peers = [name for name in LIBRARIES if name not in (OURS, ROOFLINE)]
    found: list[str] = []
    for name in names:
        if name not in peers:
            raise ValueError(f"unknown library {name!r}: expected some of {', '.join(peers)}")
        found += TORCH_ON_GPU if name == "torch" and device == "cuda" else [name]
    return list(dict.fromkeys(found))
