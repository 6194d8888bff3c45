"""The GPU budget: ``python -m benchmarks gpu-budget [--write]``.

Counts what a GPU will do in training steps and predictions, without one: the nodes of their CUDA graphs, the bytes, the matrix
products, and what the compiler makes of their kernels. `gpu_budget.json` holds the counts, and a test compares. A number that
rises is a regression; one that falls is an improvement, which is kept by writing the budget again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import gpu_kernels, gpu_model, gpu_page, gpu_pytorch
from benchmarks.gpu_nets import STEP, least_bytes, networks
from benchmarks.gpu_steps import COPY, CUPY, FILL, OTHER, OWN, PRODUCT, Node, Steps, nodes_of_every_step
from benchmarks.peers import ROOT
from benchmarks.report import write
from tests.software_gpu.build import MissingError

BUDGET = Path(__file__).parent / "gpu_budget.json"
PAGE = ROOT / "docs" / "gpu_budget.md"
WRITE = "python -m benchmarks gpu-budget --write"
NO_DISASSEMBLER = "nvdisasm was not found ($NVDISASM, PATH, an installed triton): the instructions of kernels are left out"
COMPARED = ("registers", "shared", "spills", "block")
"""What is compared of kernels, for one version of NVRTC."""
_NEUTRAL = ("block", "least bytes", "of which used")  # neither better nor worse
_KINDS = {"kernels": (OWN, CUPY), "copies": (COPY,), "fills": (FILL,), "products": (PRODUCT,), "others": (OTHER,)}
_BYTES = {"own kernels": OWN, "CuPy's kernels": CUPY, "copies": COPY, "fills": FILL, "products": PRODUCT}


def step_title(name: str, precision: str, kind: str) -> str:
    """Return the name of a step in the budget, such as "LeNet-5, training step in tf32"."""
    return f"{name}, {'training step' if kind == STEP else 'prediction'} in {precision}"


def counts(nodes: list[Node], least: int) -> dict[str, Any]:
    """Return the counts of one step."""
    kinds = Counter(node.kind for node in nodes)
    moved: Counter[str] = Counter()
    for node in nodes:
        moved[node.kind] += node.bytes
    computed: Counter[str] = Counter()
    for node in nodes:
        if node.operations:
            computed[node.precision] += node.operations
    return {
        "nodes": {"all": len(nodes), **{name: sum(kinds[k] for k in some) for name, some in _KINDS.items()}},
        "bytes": {"all": sum(moved.values()), **{name: moved[kind] for name, kind in _BYTES.items()}},
        "least bytes": least,
        "operations": dict(sorted(computed.items())),
        "in tiles": sum(node.in_tiles for node in nodes),
        "of which used": sum(node.operations for node in nodes if node.in_tiles),
        "kernels": dict(sorted(Counter(node.name for node in nodes if node.kind in (OWN, CUPY)).items())),
        "products": dict(sorted(Counter(node.name for node in nodes if node.kind == PRODUCT).items())),
    }


def counts_of(steps: Steps) -> dict[str, dict[str, Any]]:
    """Return the counts of every step, by its title."""
    nets = {counted.name: counted for counted in networks()}
    return {
        step_title(name, precision, kind): counts(nodes, least_bytes(nets[name], precision, kind))
        for (name, precision, kind), nodes in steps.items()
    }


def estimates(steps: Steps, kernels: gpu_kernels.Kernels) -> dict[str, dict[str, float]]:
    """Return the estimated microseconds of every step on every GPU of the model, and those of the least that it could do."""
    found: dict[str, dict[str, float]] = {}
    nets = {counted.name: counted for counted in networks()}
    for (name, precision, kind), nodes in steps.items():
        computed: Counter[str] = Counter()
        for node in nodes:
            if node.operations:
                computed[node.precision] += node.operations
        least = least_bytes(nets[name], precision, kind)
        row: dict[str, float] = {}
        for gpu in gpu_model.GPUS:
            seconds = sum(
                gpu_model.node_seconds(gpu, node, kernels.get(node.name, {}).get(str(gpu.architecture))) for node in nodes
            )
            row[gpu.name] = round(1e6 * seconds, 1)
            row[f"{gpu.name}, least"] = round(1e6 * gpu_model.least_seconds(gpu, least, computed), 1)
        found[step_title(name, precision, kind)] = row
    return found


def launched(steps: Steps) -> dict[str, int]:
    """Return this package's kernels that the steps launch, each with the threads of its largest block."""
    found: dict[str, int] = {}
    for nodes in steps.values():
        for node in nodes:
            if node.kind == OWN:
                found[node.name] = max(node.threads, found.get(node.name, 0))
    return found


def cupy_version() -> str:
    """Return the version of the installed CuPy."""
    import cupy

    return str(cupy.__version__)


def collect(steps: Steps, tool: str | None) -> dict[str, Any]:
    """Return a whole budget."""
    kernels = gpu_kernels.compiled(launched(steps), tool=tool)
    peer = gpu_pytorch.budget() or (load()["PyTorch"] if BUDGET.exists() else {})
    versions = {
        "CuPy": cupy_version(),
        "NVRTC": gpu_kernels.nvrtc_version(),
        "nvdisasm": gpu_kernels.disassembler_version(tool) if tool else "",
    }
    return {
        "made with": versions,
        "steps": counts_of(steps),
        "estimated": estimates(steps, kernels),
        "PyTorch": peer,
        "kernels": kernels,
    }


def dump(budget: dict[str, Any]) -> str:
    """Return a budget as JSON with a line for each step and each kernel on each architecture."""

    def lines(value: Any, depth: int) -> str:
        if depth == 0 or not isinstance(value, dict) or not value:
            return json.dumps(value)
        inner = ",\n".join(f"{'  '}{json.dumps(key)}: {lines(item, depth - 1)}" for key, item in value.items())
        return "{\n" + inner + "\n}"

    parts = {"made with": 0, "steps": 2, "estimated": 1, "PyTorch": 1, "kernels": 2}
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {lines(budget[name], depth)}" for name, depth in parts.items()) + "\n}\n"


def load() -> dict[str, Any]:
    """Return the budget in the repository."""
    return json.loads(BUDGET.read_text(encoding="utf-8"))


class Change:
    """A number that is not what the budget says."""

    def __init__(self, where: str, what: str, was: int, now: int, neutral: bool = False) -> None:
        self.where, self.what, self.was, self.now, self.neutral = where, what, was, now, neutral

    @property
    def worse(self) -> bool:
        return self.now > self.was and not self.neutral

    def __str__(self) -> str:
        return f"{self.what.removesuffix(' all')}: was {self.was:,}, is {self.now:,}"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    for name, item in value.items():
        where = f"{path} {name}".strip()
        if isinstance(item, dict):
            yield from _flat(item, where)
        else:
            yield where, item


def step_changes(found: dict[str, Any], budget: dict[str, Any]) -> list[Change]:
    """Return every count of a step that is not the budget's, in the order of the steps, totals first."""
    changes = []
    for title in {**budget, **found}:
        was, now = (dict(_flat(steps.get(title, {}))) for steps in (budget, found))
        changes += [Change(title, what, was.get(what, 0), now.get(what, 0), what in _NEUTRAL) for what in {**was, **now}]
    return [change for change in changes if change.was != change.now]


def kernel_changes(found: gpu_kernels.Kernels, budget: gpu_kernels.Kernels) -> list[Change]:
    """Return every number of `COMPARED` that is not the budget's, on the architectures of `found`."""
    changes = [Change(name, "kernels in the budget", 0, 1) for name in found if name not in budget]
    for name, by_architecture in found.items():
        for architecture, now in by_architecture.items() if name in budget else ():
            was, number = budget[name].get(architecture) or {}, int(architecture)
            for what in COMPARED:
                where = f"{what} on {number // 10}.{number % 10}"
                changes.append(Change(name, where, was.get(what, 0), (now or {}).get(what, 0), what in _NEUTRAL))
    return [change for change in changes if change.was != change.now]


def verdict(changes: list[Change], made_with: dict[str, str] | None = None, shown: int = 40) -> str:
    """Say what has changed and what to do about it; "" where nothing has.

    Args:
        changes: see `step_changes` and `kernel_changes`.
        made_with: the versions that the budget was made with.
        shown: of so many steps and kernels the changes are listed.
    """
    if not changes:
        return ""
    worse = [change for change in changes if change.worse]
    neutral = [change for change in changes if change.neutral]
    better = [change for change in changes if not change.worse and not change.neutral]
    lines = []
    for head, some in (
        ("The GPU would do more than its budget (benchmarks/gpu_budget.json) allows:", worse),
        ("These differ from the budget:", neutral),
        ("Well done, these are lower than the budget:", better),
    ):
        by_place: dict[str, list[str]] = {}
        for change in some:
            by_place.setdefault(change.where, []).append(str(change))
        places = [f"  {where}: {'; '.join(texts)}" for where, texts in by_place.items()]
        lines += [head] * bool(some) + places[:shown] + [f"  ... and {len(places) - shown} more"] * (len(places) > shown)
    if worse:
        lines.append(f"If that is meant, change the budget on purpose: {WRITE}")
    else:
        lines.append(f"Please write it down, so that it cannot be lost unseen: {WRITE}")
    if made_with is not None and made_with["CuPy"] != (installed := cupy_version()):
        lines.append(
            f"The budget was made with CuPy {made_with['CuPy']}, this is {installed}: the cause may be CuPy's own kernels."
        )
    return "\n".join(lines)


def run(*, update: bool = False) -> int:
    """Count and compare with the budget, or write budget and page; return the exit status."""
    tool = gpu_kernels.nvdisasm()
    if tool is None:
        print(NO_DISASSEMBLER)
    try:
        steps = nodes_of_every_step()
    except MissingError as reason:
        print(f"nothing can be counted here: {reason}")
        return 2
    found = collect(steps, tool)
    if update:
        write(BUDGET, dump(found))
        write(PAGE, gpu_page.render(found))
        print(f"wrote {len(found['steps'])} steps and {len(found['kernels'])} kernels to {BUDGET} and {PAGE}")
        return 0
    if not BUDGET.exists():
        print(f"there is no budget yet; write it: {WRITE}")
        return 2
    budget = load()
    guessed = found["estimated"] if tool else estimates(steps, budget["kernels"])  # with the instructions in the budget
    for title, row in found["steps"].items():
        nodes, moved, estimated = row["nodes"]["all"], row["bytes"]["all"], guessed[title]
        times = ", ".join(f"{gpu.name} {estimated[gpu.name]:,.0f} us" for gpu in gpu_model.GPUS)
        print(f"{title}: {nodes} nodes, {moved / 1e6:.1f} MB of at least {row['least bytes'] / 1e6:.1f}, estimated {times}")
    changes = step_changes(found["steps"], budget["steps"])
    before, now = (versions["made with"]["NVRTC"] for versions in (budget, found))
    if before == now:
        changes += kernel_changes(found["kernels"], budget["kernels"])
    else:
        print(f"kernels are not compared: the budget is of NVRTC {before}, this is {now}")
    print(verdict(changes, budget["made with"]) or "everything is as in the budget")
    return 1 if changes else 0
