"""A model of time that turns counts into estimates. Nothing here was measured on a GPU by this project.

The time of a node is what every node costs, and two waits for the L2 cache (the first load, the last store), and the longest of

* memory: its bytes at the speed that memory reaches, or that the loads under way allow (Little's law: bytes under way divided
  by the latency), if that is less;
* issue: the instructions of its main loop, one a cycle on each of the four quarters of the multiprocessors that have a block;
* arithmetic: its floating-point operations at the peak of its precision, with those for the empty parts of tiles.

Nodes run one after another. What the model leaves out makes real times longer: loops around the main loop, bank conflicts,
instructions that wait for each other, uneven last waves, cuBLAS's choice of tiles. Two things make them shorter: data that the
node before has left in the L2 cache, and nodes that overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Constant(NamedTuple):
    """A number with the public source that it is from."""

    value: float
    source: str


ISSUE = Constant(
    4.0,
    "warp instructions a cycle and multiprocessor: one for each of the four schedulers (NVIDIA A100 and H100 Tensor Core GPU "
    "Architecture whitepapers, the multiprocessor)",
)
REACHED = Constant(
    0.9,
    "of the data sheet's memory bandwidth: streaming kernels reach about nine tenths on A100 and H100 (W. Luo et al., "
    "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, 2024, arXiv:2402.13499, memory throughput), rounded",
)
L2_CYCLES = Constant(
    270.0,
    "cycles for a load that hits the L2 cache: pointer chases give some 200 to 280 on A100 and H100 (the same paper, memory "
    "latency; Chips and Cheese, Nvidia's H100: Funny L2, and Tons of Bandwidth, 2023), the upper end",
)
NODE_SECONDS = Constant(
    2.5e-6,
    "for a node that does nothing: a node takes 0.5 us beyond its kernel (A. Gray, Getting Started with CUDA Graphs, NVIDIA "
    "developer blog, 2019, on a V100), and profilers show some 2 us for an empty kernel; the most uncertain of these numbers",
)


@dataclass(frozen=True)
class Gpu:
    """A GPU as its data sheet tells; speeds of products without sparsity."""

    name: str
    architecture: int
    multiprocessors: int
    clock: float  # Hz, boost
    bandwidth: float  # bytes a second
    peaks: dict[str, float] = field(hash=False)  # operations a second by precision
    source: str

    @property
    def l2_seconds(self) -> float:
        """The latency of the L2 cache."""
        return L2_CYCLES.value / self.clock


H100 = Gpu(
    "H100 SXM",
    90,
    132,
    1.83e9,
    3.35e12,
    {"bfloat16": 989e12, "float16": 989e12, "tf32": 494e12, "float32": 67e12, "float64": 67e12},
    "NVIDIA H100 Tensor Core GPU data sheet and Architecture whitepaper (SXM5, 80 GB, HBM3)",
)
A100 = Gpu(
    "A100 SXM",
    80,
    108,
    1.41e9,
    2.039e12,
    {"bfloat16": 312e12, "float16": 312e12, "tf32": 156e12, "float32": 19.5e12, "float64": 19.5e12},
    "NVIDIA A100 Tensor Core GPU data sheet and Architecture whitepaper (SXM4, 80 GB, HBM2e)",
)
GPUS = (H100, A100)

_WARP = 32
_THREADS = 2048  # of a multiprocessor of both
_UNKNOWN_LOADS = 16  # bytes under way for each thread of a kernel whose instructions are not known: one wide load


def memory_seconds(gpu: Gpu, moved: float, under_way: float) -> float:
    """Return the estimated time to move bytes, with so many bytes under way at a time; 0: as many as it takes."""
    speed = gpu.bandwidth * REACHED.value
    return moved / (min(speed, under_way / gpu.l2_seconds) if under_way else speed)


def issue_seconds(gpu: Gpu, instructions: float, blocks: int) -> float:
    """Return the estimated time to issue instructions of warps, in so many blocks."""
    busy = min(max(blocks, 1), gpu.multiprocessors)
    return instructions / (ISSUE.value * busy * gpu.clock)


def warp_instructions(loop: dict[str, int], operations: int, moved: int, of_node: tuple[int, int]) -> float:
    """Return how many instructions of warps a kernel issues in its main loop; 0 where nothing tells how often it is run.

    Args:
        loop: of the kernel.
        operations: floating-point operations of a warp in the loop.
        moved: bytes of a thread in the loop.
        of_node: the operations and the bytes of the node.
    """
    if of_node[0] and operations:
        return loop["instructions"] * of_node[0] / operations
    return loop["instructions"] * of_node[1] / (_WARP * moved) if moved else 0.0


def node_seconds(gpu: Gpu, node: Any, kernel: dict[str, Any] | None = None) -> float:
    """Return the estimated time of a node (see gpu_steps.Node) with what is known of its kernel (see gpu_kernels.compiled)."""
    computed = max(node.operations, node.in_tiles)
    arithmetic = computed / gpu.peaks[node.precision] if computed else 0.0
    if not node.blocks:  # a copy, a fill, or a product, whose kernel is cuBLAS's choice
        work = max(memory_seconds(gpu, node.bytes, 0), arithmetic)
        return NODE_SECONDS.value + 2 * gpu.l2_seconds + work
    resident = kernel["blocks"] if kernel else max(_THREADS // max(node.threads, 1), 1)
    threads = min(node.blocks, gpu.multiprocessors * resident) * node.threads
    issue, ahead = 0.0, _UNKNOWN_LOADS
    if kernel and "loop" in kernel:
        instructions = warp_instructions(kernel["loop"], kernel["operations"], kernel["moved"], (computed, node.bytes))
        issue = issue_seconds(gpu, instructions, node.blocks)
        ahead = kernel["ahead"] or _UNKNOWN_LOADS
    work = max(memory_seconds(gpu, node.bytes, threads * ahead), issue, arithmetic)
    return NODE_SECONDS.value + 2 * gpu.l2_seconds + work


def least_seconds(gpu: Gpu, least_bytes: int, operations: dict[str, int]) -> float:
    """Return the estimated time of a step that is one node, moves the least bytes and computes the operations at the peak."""
    arithmetic = sum(count / gpu.peaks[precision] for precision, count in operations.items())
    return NODE_SECONDS.value + max(memory_seconds(gpu, least_bytes, 0), arithmetic)
