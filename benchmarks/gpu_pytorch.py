"""What PyTorch would launch for the same training steps: from the operators that its dispatcher calls, without a GPU.

The networks are those of `libraries/pytorch.py`, on the device "meta", which has shapes and no numbers. Each operator is turned
into the kernels that PyTorch's CUDA implementation launches for it, by the table below; where an implementation may need
more than one (a reduction in two stages, a transposition before a product), it counts as one, which favours PyTorch. Times are
estimates by the model of `gpu_model.py`, with products at their peak; nothing was measured on a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.gpu_model import GPUS, Constant, Gpu, node_seconds
from benchmarks.gpu_nets import PRECISIONS, Counted, networks
from benchmarks.gpu_steps import COPY, Node

LAUNCH_SECONDS = Constant(
    5e-6,
    "for each kernel that an eager step launches from Python: operators take some 5 to 8 us of the host's time in PyTorch's "
    "profiler, forward and backward; the lower end",
)

COVERED = ("MLP 784-128-10", "MNIST ConvNet", "LeNet-5", "VGG-style", "ResNet-20", "MobileNet-like")
"""The networks whose operators are kernels. cuDNN's recurrent layers are a kernel or many, as it chooses."""

_NOTHING = frozenset(
    {"detach", "view", "t", "transpose", "permute", "reshape", "_unsafe_view", "expand", "as_strided", "squeeze", "unsqueeze",
     "select", "slice", "empty", "empty_like", "new_empty_strided", "alias"}
)  # fmt: skip
"""Operators that launch nothing: they make views, or memory without values."""

_ONE = frozenset(
    {"add", "add_", "addmm", "mm", "bmm", "relu", "threshold_backward", "max_pool2d_with_indices",
     "max_pool2d_with_indices_backward", "native_batch_norm", "native_batch_norm_backward", "_log_softmax",
     "_log_softmax_backward_data", "nll_loss_forward", "ones_like", "sum", "mean", "div", "mul", "_foreach_mul_",
     "_foreach_add_", "_fused_sgd_", "copy_", "clone", "zeros", "zero_", "fill_", "_to_copy"}
)  # fmt: skip
"""Operators that launch one kernel."""


class Eager(NamedTuple):
    """The kernels of a training step in PyTorch, and what they move and compute.

    Attributes:
        kernels: how many are launched.
        bytes: of the tensors that operators are given and return, each once an operator.
        graph: the estimated seconds as one CUDA graph.
        eager: the estimated seconds launched one by one: the host's or the device's time, whichever is longer.
    """

    kernels: int
    bytes: int
    graph: float
    eager: float


def _tensors(value: Any) -> Iterator[Any]:
    """Yield the tensors in the arguments or the result of an operator."""
    if hasattr(value, "element_size"):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _bytes(value: Any) -> int:
    seen = {id(t): t.numel() * t.element_size() for t in _tensors(value)}
    return sum(seen.values())


class UnknownOperatorError(ValueError):
    """An operator that the table does not know."""


def kernels_of(name: str, arguments: tuple[Any, ...], result: Any, precision: str) -> list[Node]:
    """Return the kernels of one call of an operator.

    Args:
        name: such as "convolution".
        arguments, result: with shapes.
        precision: of products.

    Raises:
        UnknownOperatorError: it is in no table here.
    """
    moved = _bytes(arguments) + _bytes(result)

    def product(moved: int, operations: int) -> Node:
        return Node(COPY, name, bytes=moved, operations=operations, precision=precision)

    if name in _NOTHING:
        return []
    if name == "convolution":
        x, kernel, bias = arguments[:3]
        multiplied = 2 * result.numel() * kernel.numel() // kernel.shape[0]
        found = [product(moved, multiplied)]
        return found if bias is None else [*found, Node(COPY, "bias", bytes=2 * _bytes(result))]
    if name == "convolution_backward":
        dy, x, kernel = arguments[:3]
        needs = arguments[-1]
        multiplied = 2 * dy.numel() * kernel.numel() // kernel.shape[0]
        found = [product(_bytes((dy, kernel, x)), multiplied)] * (bool(needs[0]) + bool(needs[1]))
        return [*found, Node(COPY, "bias", bytes=_bytes(dy))] if needs[2] else found
    if name in ("mm", "addmm"):
        left, right = arguments[-2:]
        return [product(moved, 2 * left.shape[0] * left.shape[1] * right.shape[1])]
    if name == "nll_loss_backward":  # the gradient is cleared first
        return [Node(COPY, "fill", bytes=_bytes(result)), Node(COPY, name, bytes=moved)]
    if name in _ONE:
        return [Node(COPY, name, bytes=moved)]
    raise UnknownOperatorError(f"PyTorch's operator {name} is in no table of benchmarks/gpu_pytorch.py: add what it launches")


def step_of(counted: Counted, precision: str) -> list[Node]:
    """Return the kernels of one training step: forward, loss, backward, SGD with momentum in its fused form."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from benchmarks.libraries.pytorch import Net

    class Log(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[str, Any, Any]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.namespace == "aten":
                self.calls.append((func.overloadpacket.__name__, args, result))
            return result

    net: Any = Net.__new__(Net)
    net.parts = {}
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    module = net._sequential(counted.net, counted.shape, "")[0].to(device="meta", dtype=dtype)
    N, *rest = counted.batch, *counted.shape
    shape = (N, rest[-1], *rest[:-1]) if len(rest) == 3 else (N, *rest)
    x = torch.empty(shape, device="meta", dtype=dtype)
    if len(rest) == 3:  # as in libraries/pytorch.py
        module, x = module.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    labels = torch.empty((N,), device="meta", dtype=torch.int64)
    with Log() as log:
        torch.nn.functional.cross_entropy(module(x), labels).backward()
    calls, kernels = log.calls, []
    for i, (name, arguments, result) in enumerate(calls):
        if name == "copy_" and i and calls[i - 1][0] == "new_empty_strided":
            continue  # of a gradient: without the log it is taken over as it is
        kernels += kernels_of(name, arguments, result, precision)
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    return [*kernels, Node(COPY, "fused SGD", bytes=5 * weights)]


def estimate(gpu: Gpu, kernels: list[Node]) -> Eager:
    """Return the counts of a step's kernels, and the estimated times."""
    graph = sum(node_seconds(gpu, kernel) for kernel in kernels)
    eager = max(graph, LAUNCH_SECONDS.value * len(kernels))
    return Eager(len(kernels), sum(kernel.bytes for kernel in kernels), graph, eager)


def budget() -> dict[str, dict[str, Any]]:
    """Return the counts and the estimated microseconds of the covered networks; {} where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    found: dict[str, dict[str, Any]] = {}
    for counted in networks():
        for precision in PRECISIONS if counted.name in COVERED else ():
            kernels = step_of(counted, precision)
            row: dict[str, Any] = {"version": torch.__version__.partition("+")[0]}
            for gpu in GPUS:
                made = estimate(gpu, kernels)
                row |= {"kernels": made.kernels, "bytes": made.bytes}
                row |= {gpu.name: round(1e6 * made.graph, 1), f"{gpu.name}, eager": round(1e6 * made.eager, 1)}
            found[f"{counted.name}, {precision}"] = row
    return found
