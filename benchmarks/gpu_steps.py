"""Records training steps and predictions on the software device, and lists the nodes of their CUDA graphs.

    python -m tests.software_gpu -m benchmarks.gpu_steps FILE        # with the settings of `ENVIRONMENT`

writes FILE, which `nodes_of_every_step` reads. Nothing is computed, and this package's kernels are not even compiled: an empty
kernel is launched in the place of each, so that the graph holds the node, and what was to be launched is logged.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from benchmarks.gpu_nets import PRECISIONS, PREDICT, STEP, Counted, build, networks
from benchmarks.peers import ROOT
from xpnet.accel.cupy.source import declarations

ENVIRONMENT = {
    "SOFTWARE_GPU_COUNTS_ONLY": "1",
    "SOFTWARE_GPU_MULTIPROCESSORS": "132",
    "SOFTWARE_GPU_ARCH": "90",
    # Nothing can be timed here. On a GPU "auto" times all ways; this one is fixed, so that counts can be compared.
    "XPNET_CONVOLUTION": "implicit",
}
CUPY, OWN, COPY, FILL, PRODUCT, OTHER = "cupy", "own", "copy", "fill", "product", "other"
_EMPTY = "xpnet_budget_launch"
_SIZES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4}
_SIZES |= {"float32": 4, "int64": 8, "uint64": 8, "float64": 8}


class Node(NamedTuple):
    """One node of a graph.

    Attributes:
        kind: OWN (a kernel of this package), CUPY (one of CuPy's), COPY, FILL, PRODUCT (cuBLAS) or OTHER.
        name: of the kernel, or the product's shape.
        blocks: of the launch.
        threads: in a block.
        bytes: read and written at least once: of OWN the sizes of the arrays it is given, each once; of CUPY what as many
            elements as threads take at most; of a COPY twice its size.
        operations: floating-point operations of products and implicit products, two per multiply-add.
        precision: what these are computed in, "" without.
        in_tiles: the operations of an implicit product with those for the parts of its tiles that are outside the result;
            0 where the tiles are not known.
    """

    kind: str
    name: str
    blocks: int = 0
    threads: int = 0
    bytes: int = 0
    operations: int = 0
    precision: str = ""
    in_tiles: int = 0


Steps = dict[tuple[str, str, str], list[Node]]
"""By network, precision and kind of step: the nodes in the order of recording."""


class Recorder:
    """A runtime (see xpnet.accel.cupy.runtime) that logs launches and puts an empty kernel in the place of each."""

    cudnn = None

    def __init__(self, inner: Any) -> None:
        import cupy

        self.inner = inner
        self.launches: list[Node] = []
        self.products: list[Node] = []
        self._bytes = 0
        self._empty = cupy.RawKernel(f'extern "C" __global__ void {_EMPTY}() {{}}', _EMPTY)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # what a runtime tells of its device

    def addresses(self, instance: Any, arrays: list[Any]) -> list[int]:
        addresses: list[int] = self.inner.addresses(instance, arrays)
        self._bytes = sum({at: a.nbytes for at, a in zip(addresses, arrays) if a is not None}.values())
        return addresses

    def launch(self, instance: Any, grid: Sequence[int], block: Sequence[int], arguments: Any) -> None:
        computed = _implicit_product(instance, grid, arguments)
        self.launches.append(Node(OWN, instance.expression, math.prod(grid), math.prod(block), self._bytes, *computed))
        self._empty(tuple(grid), tuple(block), ())

    def gemm(self, call: Any) -> None:
        size, c_size = call.a.dtype.itemsize, call.c.dtype.itemsize
        m, n, k, batch = call.m, call.n, call.k, call.batch
        moved = batch * ((m * k + k * n) * size + m * n * c_size * (2 if call.beta else 1))
        precision = "tf32" if call.tf32 else call.dtype
        self.products.append(Node(PRODUCT, f"{batch} x {n},{m},{k}", 0, 0, moved, 2 * batch * m * n * k, precision))
        self.inner.gemm(call)

    def can_measure(self) -> bool:
        return False

    def milliseconds(self, function: Any) -> float:
        raise RuntimeError("the software device has no times")


def _implicit_product(instance: Any, grid: Sequence[int], arguments: Any) -> tuple[int, str, int]:
    """Return the last three attributes of the Node of a convolution that is an implicit product; 0, "", 0 for other kernels."""
    sizes = {}
    for i, parameter in enumerate(instance.parameters):
        if parameter.name in ("positions", "inner", "outer") and parameter.dtype is None:
            width = struct.calcsize("=" + parameter.format)
            sizes[parameter.name] = struct.unpack("=" + parameter.format, ctypes.string_at(arguments[i], width))[0]
    if len(sizes) < 3:
        return 0, "", 0
    kind = next(p.dtype for p in instance.parameters if p.dtype is not None)
    names = [name for _, name in declarations(instance.file)[instance.name].template]
    template = dict(zip(names, re.findall(r"[\w.]+", instance.expression)[1:]))
    tensor = "mma" in instance.name
    BM, BN = (int(template.get(name, size)) for name, size in (("BM", 64 if kind == "float64" else 128), ("BN", 64)))
    rows, depth = sizes["positions"], sizes["inner"]
    if template.get("WGRAD") == "true":
        rows, depth = depth, rows
    tiles = -(-rows // BM) * -(-sizes["outer"] // BN)
    in_tiles = 2 * tiles * BM * BN * depth * grid[1] if tiles == grid[0] else 0
    precision = "tf32" if tensor and kind == "float32" else kind if tensor else "float32"
    return 2 * grid[1] * math.prod(sizes.values()), precision, in_tiles


def _nodes(lines: Sequence[str], launches: Sequence[Node], products: Sequence[Node]) -> list[Node]:
    """Return the nodes that the device lists, with what is known of them."""
    own, gemms = iter(launches), iter(products)
    found = []
    for line in lines:
        word, *rest = line.split(" ", 4)
        if word == "kernel":
            blocks, threads = (math.prod(map(int, size.split(","))) for size in rest[:2])
            if rest[3] != _EMPTY:
                found.append(Node(CUPY, rest[3], blocks, threads, blocks * threads * _element_bytes(rest[3])))
                continue
            launch = next(own)
            if (launch.blocks, launch.threads) != (blocks, threads):
                raise RuntimeError(f"the graph has another launch than {launch}: {line}")
            found.append(launch)
        elif word == "product":
            found.append(next(gemms))
        elif word in (COPY, FILL):
            count = int(rest[0])
            found.append(Node(word, " ".join([word, *rest[1:]]), bytes=2 * count if word == COPY and len(rest) == 1 else count))
        else:
            found.append(Node(OTHER, line))
    if next(own, None) is not None or next(gemms, None) is not None:
        raise RuntimeError("the graph lacks launches that were made while it was recorded")
    return found


def _element_bytes(name: str) -> int:
    """Return the bytes of an element of each array of one of CuPy's elementwise kernels, which end in the arrays' dtypes."""
    _, _, types = name.partition("__")
    return sum(_SIZES.get(t, 0) for t in re.split("_+", types))


@contextlib.contextmanager
def _recordings(recorder: Recorder) -> Iterator[list[list[Node]]]:
    """Collect the nodes of every graph that is recorded within the block."""
    from tests.software_gpu import device
    from xpnet.compiled.cuda_graph import CudaGraphs

    found: list[list[Node]] = []
    original = CudaGraphs.record

    def record(self: Any, function: Any) -> Any:
        recorder.launches.clear()
        recorder.products.clear()
        made = original(self, function)
        found.append(_nodes(device.last_graph(), recorder.launches, recorder.products))
        return made

    CudaGraphs.record = record  # type: ignore[method-assign]
    try:
        yield found
    finally:
        CudaGraphs.record = original  # type: ignore[method-assign]


def recorded(counted: Counted, precision: str, kind: str, recorder: Recorder) -> list[Node]:
    """Return the nodes of one step: of `Trainer.fit` with SGD and momentum, the data on the GPU, or of `Module.predict`."""
    import numpy as np

    import xpnet as xn

    model = build(counted, precision)
    # One batch is the whole data set, so that the kernel that gathers a batch is given no more than one.
    x = xn.to_device(np.zeros((counted.batch, *counted.shape), np.float32), "cuda")
    with _recordings(recorder) as found:
        if kind == PREDICT:
            for _ in range(3):
                model.predict(x, batch_size=counted.batch)
        else:
            y = xn.to_device(np.zeros(counted.batch, np.int64), "cuda")
            trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.01, 0.9))
            trainer.fit((x, y), batch_size=counted.batch, epochs=4, verbose=False)
    if not found:
        raise RuntimeError(f"{counted.name}, {precision}, {kind}: no graph was recorded")
    return found[-1]


def main(target: str) -> None:
    """Record every step, and write the nodes to a file."""
    from xpnet.accel.cupy import launch as launching

    warnings.simplefilter("error", RuntimeWarning)  # a step that cannot be captured warns
    recorder = Recorder(launching.runtime())
    with launching.use_runtime(cast(launching.Runtime, recorder)):
        steps = [
            [counted.name, precision, kind, recorded(counted, precision, kind, recorder)]
            for counted in networks()
            for precision in PRECISIONS
            for kind in (STEP, PREDICT)
        ]
    Path(target).write_text(json.dumps(steps))


def nodes_of_every_step() -> Steps:
    """Run this module on the software device; return the nodes of every step.

    Raises:
        tests.software_gpu.build.MissingError: CuPy or g++ is missing.
        RuntimeError: the recording failed.
    """
    from tests.software_gpu import build as device

    device.ensure()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SOFTWARE_GPU_", "XPNET_"))}
    kept |= {name: os.environ[name] for name in ("SOFTWARE_GPU_CACHE",) if name in os.environ}
    with tempfile.TemporaryDirectory() as folder:
        # What the package caches for this device must not meet a real one.
        environment = {**kept, **ENVIRONMENT, "SOFTWARE_GPU": "XPNET_CACHE"}
        target = Path(folder) / "steps.json"
        command = [sys.executable, "-m", "tests.software_gpu", "-m", "benchmarks.gpu_steps", str(target)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the steps could not be recorded:\n{done.stdout}{done.stderr}")
        steps = json.loads(target.read_text())
    return {(name, precision, kind): [Node(*node) for node in nodes] for name, precision, kind, nodes in steps}


if __name__ == "__main__":
    main(sys.argv[1])
