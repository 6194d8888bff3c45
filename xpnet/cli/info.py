"""``xpnet summary`` and ``xpnet info``."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform

from xpnet import __version__, backend
from xpnet.backend import DeviceError
from xpnet.cli.argument_types import UsageError
from xpnet.cli.model_argument import example_shape, new_network, saved_model
from xpnet.cli.readings import quoted_list
from xpnet.layers.context import meta_init
from xpnet.ops.registry import load_accelerations, reference_is_forced, registry
from xpnet.ops.shapes import ShapeError
from xpnet.ops.updates.rule import rules

_LIBRARIES = ("numpy", "array-api-compat", "safetensors", "scipy", "matplotlib", "pillow")
_CUPY = ("cupy-cuda12x", "cupy-cuda13x", "cupy")


def summary(args: argparse.Namespace) -> int:
    """Print the table of a saved or a new network."""
    saved = saved_model(args)
    if saved is not None:
        if saved.metadata:
            values = ((key, f"{v:.4g}" if isinstance(v, float) else v) for key, v in saved.metadata.items())
            print(", ".join(f"{key} {value}" for key, value in values))
        if saved.inputs is not None:
            print(f"inputs: {saved.inputs.describe()}")
        if saved.class_names:
            print(f"classes: {quoted_list(saved.class_names)}")
        shape = args.input or example_shape(saved, args.model)
        try:
            print(saved.model.summary(shape, batch_size=args.batch_size, show=False))
        except ShapeError as error:
            raise UsageError(f"{args.model}, for examples of shape {shape}: {error}") from error
        return 0
    make = new_network(args)
    with meta_init():
        print(make(args.input, args.classes, 0, "cpu").summary(args.input, batch_size=args.batch_size, show=False))
    return 0


def info(args: argparse.Namespace) -> int:
    """Print versions, devices and accelerations, or the autotuned algorithm of each convolution."""
    if args.convolutions:
        from xpnet.accel.cupy import autotune

        print(autotune.report())
        return 0
    print(f"xpnet {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    versions = [(name, _version(name)) for name in _LIBRARIES]
    print("libraries  " + ", ".join(f"{name} {version}" for name, version in versions if version))
    missing = [name for name, version in versions if not version]
    if missing:
        print("  missing  " + ", ".join(missing))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"cpu        {cores} core{'s' if cores > 1 else ''}; {_blas()}")
    cupy = next((f"{name} {version}" for name in _CUPY if (version := _version(name))), None)
    print(f"cuda       {_gpus()}" + (f"; {cupy}" if cupy else ""))
    if reference_is_forced():
        print("accelerations are off: XPNET_REFERENCE is set")
        return 0
    for library in ("numpy", "cupy") if cupy else ("numpy",):
        load_accelerations(library)
        names = [op.__name__ for op in registry.values() if library in op.accelerated]
        names += [f"optim {name}" for name, rule in rules.items() if library in rule.accelerated]
        print(f"accelerations for {library}: {', '.join(names) or 'none'}")
    return 0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _blas() -> str:
    """Name the library behind NumPy's matrix products and its number of threads."""
    import threadpoolctl

    found = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    if not found:
        return "BLAS unknown"
    return ", ".join(f"{p['internal_api']} {p['version']} with {p['num_threads']} threads" for p in found)


def _gpus() -> str:
    try:
        backend.device("cuda")
    except DeviceError as error:
        return str(error).removeprefix('device "cuda"').lstrip(": ")
    import cupy

    names = []
    for i in range(cupy.cuda.runtime.getDeviceCount()):
        properties = cupy.cuda.runtime.getDeviceProperties(i)
        memory = properties["totalGlobalMem"] / 2**30
        capability = f"{properties['major']}.{properties['minor']}"
        names.append(f"cuda:{i} {properties['name'].decode()}, {memory:.0f} GiB, compute capability {capability}")
    return "; ".join(names)
