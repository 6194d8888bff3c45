"""The page of the GPU budget, docs/gpu_budget.md, made of `gpu_budget.json` alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import gpu_model
from benchmarks.gpu_kernels import ARCHITECTURES, CLASSES
from benchmarks.gpu_nets import PRECISIONS, networks
from benchmarks.gpu_pytorch import LAUNCH_SECONDS

INTRO = """# What a GPU does in a step

This page is made by `python -m benchmarks gpu-budget --write` and holds what can be known of a step's work on a GPU without
having one. **Counts are exact; times are estimates by a model, and nothing here was measured on a GPU.** The counts are in
`benchmarks/gpu_budget.json`, and a test fails when one of them changes.

A step is recorded as a CUDA graph, by real CuPy on the device in software (`tests/software_gpu`), with the compute capability
(9.0) and the number of multiprocessors (132) of an H100. Training steps are those of `Trainer.fit` with softmax cross-entropy
and SGD with momentum, the data on the GPU; predictions are those of `Module.predict`. Convolutions are implicit GEMMs
(`XPNET_CONVOLUTION=implicit`): on a GPU the autotuner may choose another way for a shape. The copy of a batch into the
graph's buffer, which `predict` makes before each replay, is not part of the graph.
"""

STEPS = """| column | meaning |
| --- | --- |
| nodes | what the graph consists of; each costs time of its own, however little it does |
| kernels, copies, fills, products | the nodes by kind: kernels of this package and of CuPy, copies and fills of memory, matrix products of cuBLAS |
| MB | bytes read and written at least once: for each of this package's kernels the sizes of the arrays that it is given, each once, also if it is updated in place; copies twice their size, fills and products by their size; for CuPy's elementwise kernels at most, an element of each array for each thread; CuPy's reductions are left out |
| least MB | what has to be read and written if nothing stays on the chip between layers, and each layer reads what it needs once and writes what it yields once, with activations, sums and statistics done by the layer before (`least_bytes` in `benchmarks/gpu_nets.py`) |
| times | MB over least MB |
| tiles used | of what the tiles of implicit GEMMs (convolutions) compute, the part that is in the result |
| estimated us | the time of all nodes, one after another, by the model below |
| of nodes | the part of it that the nodes cost even if they did nothing |
| least us | the estimated time of a single node that moves the least bytes and computes the products at their peak |
"""  # noqa: E501

KERNELS = """Of every kernel that these steps launch, as NVRTC compiles it for four architectures.

| column | meaning |
| --- | --- |
| registers | of a thread |
| shared | bytes of shared memory of a block |
| spills | bytes that are stored and loaded because registers do not suffice |
| block | threads of a block, of the largest launch |
| blocks, threads | how many a multiprocessor holds at a time, as registers, shared memory and threads allow |
"""

INSTRUCTIONS = """| loop | instructions of the main loop: the innermost loop with most tensor instructions, else the longest with global loads |
| around | further instructions in the loop around it |
| tensor ... other | the main loop's instructions by class: tensor cores; additions and multiplications of floats; loads from shared and from global memory (with asynchronous copies); integers and addresses; others |
| widths | of the whole kernel: the global loads by their bytes for each thread, as number x bytes |
"""  # noqa: E501


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """Return a Markdown table whose first `left` columns are words and the others numbers."""
    lines = [heads, ["---"] * left + ["---:"] * (len(heads) - left), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.2f}" if count < 1e7 else f"{count / 1e6:,.0f}"


def _us(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _title(name: str, precision: str, kind: str) -> str:
    return f"{name}, {kind} in {precision}"


def _steps(budget: dict[str, Any], kind: str) -> str:
    heads = ["network", "batch", "precision", "nodes", "kernels", "copies", "fills", "products", "MB", "least MB", "times"]
    heads.append("tiles used")
    for gpu in gpu_model.GPUS:
        heads += [f"{gpu.name}: estimated us", "of nodes", "least us"]
    rows = []
    for counted in networks():
        for precision in PRECISIONS:
            title = _title(counted.name, precision, kind)
            row, estimated = budget["steps"][title], budget["estimated"][title]
            nodes, moved, least = row["nodes"], row["bytes"]["all"], row["least bytes"]
            cells: list[object] = [counted.name, counted.batch, precision, nodes["all"]]
            cells += [nodes[k] for k in ("kernels", "copies", "fills", "products")]
            cells += [_mb(moved), _mb(least), f"{moved / least:.2f}"]
            cells.append(f"{row['of which used'] / row['in tiles']:.0%}" if row["in tiles"] else "")
            for gpu in gpu_model.GPUS:
                share = 1e6 * nodes["all"] * gpu_model.NODE_SECONDS.value
                cells += [_us(estimated[gpu.name]), _us(share), _us(estimated[f"{gpu.name}, least"])]
            rows.append(cells)
    return table(heads, rows)


def _short(name: str) -> str:
    """Return a kernel's name without template arguments and dtypes."""
    return re.sub(r"<.*|__.*", "", name)


def _names(budget: dict[str, Any], name: str, kinds: Sequence[str]) -> str:
    columns = [(kind, precision) for kind in kinds for precision in PRECISIONS]
    counted = []
    for kind, precision in columns:
        by_name: Counter[str] = Counter()
        for kernel, count in budget["steps"][_title(name, precision, kind)]["kernels"].items():
            by_name[_short(kernel)] += count
        counted.append(by_name)
    names = sorted({n for by_name in counted for n in by_name}, key=lambda n: (-max(c[n] for c in counted), n))
    heads = ["kernel", *(f"{kind}, {precision}" for kind, precision in columns)]
    return table(heads, [[f"`{n}`", *(c[n] or "" for c in counted)] for n in names])


def _products(budget: dict[str, Any], kinds: Sequence[str]) -> str:
    rows: list[Sequence[object]] = []
    for counted in networks():
        shapes: dict[str, list[int]] = {}
        for i, kind in enumerate(kinds):
            for precision in PRECISIONS:
                for shape, count in budget["steps"][_title(counted.name, precision, kind)]["products"].items():
                    row = shapes.setdefault(shape, [0] * len(kinds))
                    row[i] = max(row[i], count)
        rows += [[counted.name, shape.replace(",", ", "), *(n or "" for n in row)] for shape, row in shapes.items()]
    return table(["network", "batch x rows, columns, inner", *kinds], rows, 2)


def _kernels(budget: dict[str, Any], architecture: int) -> str:
    with_loops = bool(budget["made with"]["nvdisasm"])
    heads = ["kernel", "registers", "shared", "spills", "block", "blocks", "threads"]
    heads += ["loop", "around", *CLASSES, "widths"] if with_loops else []
    rows = []
    for name, by_architecture in budget["kernels"].items():
        made = by_architecture[str(architecture)]
        if made is None:
            rows.append([f"`{name}`", "does not compile for it", *[""] * (len(heads) - 2)])
            continue
        cells = [f"`{name}`", *(made[key] for key in heads[1:7])]
        if with_loops:
            loop = made["loop"]
            widths = ", ".join(f"{count} x {width}" for width, count in made["widths"].items())
            cells += [loop["instructions"], loop["around"], *(loop[c] for c in CLASSES), widths]
        rows.append(cells)
    return table(heads, rows)


PEER = f"""What PyTorch would launch for the same training steps (channels last, fused SGD, for bfloat16 all weights in bfloat16): the
operators that its dispatcher calls, each with the kernels that its CUDA implementation launches for it (`benchmarks/gpu_pytorch.py`;
where that may be several it counts as one), by the same model of time, with products at their peak: as one CUDA graph, and
launched from Python one by one ({1e6 * LAUNCH_SECONDS.value:.0f} us {LAUNCH_SECONDS.source}). The last two columns are PyTorch's estimated time over ours.
"""  # noqa: E501


def _peer(budget: dict[str, Any]) -> str:
    gpu = gpu_model.H100.name
    heads = ["network", "precision", "nodes", "estimated us", "PyTorch: kernels", "MB", "as a graph, us", "eager, us"]
    rows = []
    for title, peer in budget["PyTorch"].items():
        name, precision = title.rsplit(", ", 1)
        own = _title(name, precision, "training step")
        ours, graph, eager = budget["estimated"][own][gpu], peer[gpu], peer[f"{gpu}, eager"]
        cells: list[object] = [name, precision, budget["steps"][own]["nodes"]["all"], _us(ours), peer["kernels"]]
        rows.append([*cells, _mb(peer["bytes"]), _us(graph), _us(eager), f"{graph / ours:.2f}", f"{eager / ours:.2f}"])
    return table([*heads, "graph / ours", "eager / ours"], rows, 2)


def _model() -> str:
    constants = (
        ("issue", gpu_model.ISSUE, f"{gpu_model.ISSUE.value:.0f}"),
        ("bandwidth reached", gpu_model.REACHED, f"{gpu_model.REACHED.value:.0%}"),
        ("latency of the L2 cache", gpu_model.L2_CYCLES, f"{gpu_model.L2_CYCLES.value:.0f}"),
        ("a node", gpu_model.NODE_SECONDS, f"{1e6 * gpu_model.NODE_SECONDS.value:.1f} us"),
    )
    lines = [f"* **{name}: {text}.** {constant.source[0].upper()}{constant.source[1:]}." for name, constant, text in constants]
    for gpu in gpu_model.GPUS:
        peaks = ", ".join(f"{name} {value / 1e12:g}" for name, value in gpu.peaks.items())
        lines.append(
            f"* **{gpu.name}:** {gpu.multiprocessors} multiprocessors at {gpu.clock / 1e9:g} GHz, "
            f"{gpu.bandwidth / 1e12:g} TB/s; tera-operations a second: {peaks}. Source: {gpu.source}."
        )
    return "\n".join(lines)


def render(budget: dict[str, Any]) -> str:
    """Return the page."""
    kinds = ("training step", "prediction")
    versions = budget["made with"]
    parts = [INTRO, "## Training steps", STEPS, _steps(budget, kinds[0]), "## Predictions", _steps(budget, kinds[1])]
    document = (gpu_model.__doc__ or "").strip()
    if budget["PyTorch"]:
        parts += [f"## Beside PyTorch, {gpu_model.H100.name}", PEER, _peer(budget)]
    parts += ["## The model of time", document, _model(), "## Kernels by name"]
    parts.append("How often a graph launches each kernel, its instances together; names that begin with `cupy_` are CuPy's.")
    for counted in networks():
        parts += [f"### {counted.name}", _names(budget, counted.name, kinds)]
    parts += ["## Matrix products of cuBLAS", "Of row-major arrays: (rows, inner) by (inner, columns)."]
    parts += [_products(budget, kinds), "## Kernels on architectures"]
    disassembled = bool(versions["nvdisasm"])
    parts.append(KERNELS + (INSTRUCTIONS if disassembled else ""))
    with_tool = f", nvdisasm {versions['nvdisasm']}" if disassembled else "; nvdisasm was not found: no instructions"
    parts.append(f"Made with CuPy {versions['CuPy']}, NVRTC {versions['NVRTC']}{with_tool}.")
    for architecture in ARCHITECTURES:
        parts += [f"### Compute capability {architecture // 10}.{architecture % 10}", _kernels(budget, architecture)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"
