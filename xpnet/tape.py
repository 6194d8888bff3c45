"""The tape: what was recorded, and the walk over it from the newest operation to the oldest.

Every operation on a Tensor that needs a gradient leaves one :class:`Node`: the operation, its inputs, its settings and
what its forward pass saved (arrays, not a closure). There is no second derivative.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

from xpnet.backend import Array, as_array, is_floating
from xpnet.ops.registry import Implementation, Op, Recorder


class _Mode(threading.local):
    recording = True
    lowered: Any = None  # the 16-bit copies of parameters that take part in their place: xpnet.layers.mixed.Lowered


mode = _Mode()
_order = itertools.count()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Within the block nothing is recorded: operations on Tensors compute, and save nothing for a backward pass."""
    before, mode.recording = mode.recording, False
    try:
        yield
    finally:
        mode.recording = before


class Node:
    """One recorded operation."""

    __slots__ = ("grad", "implementation", "inputs", "needs", "op", "order", "saved", "settings", "shapes", "xp")

    def __init__(
        self,
        op: Op,
        implementation: Implementation,
        xp: Any,
        inputs: tuple[Any, ...],
        needs: tuple[bool, ...],
        saved: Any,
        settings: dict[str, Any],
    ) -> None:
        self.op = op
        self.implementation = implementation
        self.xp = xp
        self.inputs = inputs
        self.needs = needs
        self.saved = saved
        self.settings = settings
        self.order = next(_order)
        self.grad: Any = None
        self.shapes: tuple[Array, ...] | None = None  # of an operation with several outputs: the outputs


FREED = object()


def reachable(last: Node) -> list[Node]:
    """The nodes that `last` depends on, newest first: an order in which every node comes after all that used it."""
    # Most networks are chains, where nothing has to be sorted.
    chain = [last]
    while True:
        parents = [t.node for t in chain[-1].inputs if isinstance(t, Recorder) and t.node is not None]
        if len(parents) != 1:
            break
        chain.append(parents[0])
    if not parents:
        return chain
    seen = {last}
    stack = [last]
    while stack:
        for tensor in stack.pop().inputs:
            if isinstance(tensor, Recorder):
                node = tensor.node
                if node is not None and node not in seen:
                    seen.add(node)
                    stack.append(node)
    return sorted(seen, key=lambda node: node.order, reverse=True)


def store(tensor: Any, gradient: Array) -> None:
    """Add `gradient` to what has arrived for `tensor` at the node that made it."""
    node = tensor.node
    if node.shapes is None:
        # Not in place: an operation may hand the same array to two inputs.
        node.grad = gradient if node.grad is None else node.grad + gradient
    else:
        if node.grad is None:
            node.grad = [None] * len(node.shapes)
        before = node.grad[tensor.index]
        node.grad[tensor.index] = gradient if before is None else before + gradient


def run_backward(node: Node) -> None:
    """Run one node's backward and pass the gradients on."""
    saved, gradient = node.saved, node.grad
    if saved is FREED:
        raise RuntimeError(
            f"backward() ran through this {node.op.__name__} before, and what it had saved is freed; run the forward pass again"
        )
    node.saved = FREED
    node.grad = None
    if gradient is None:
        return
    if node.shapes is not None:
        outputs, node.shapes = node.shapes, ()
        gradient = tuple(node.xp.zeros_like(y) if g is None and is_floating(y) else g for y, g in zip(outputs, gradient))
    # The inputs are let go of: the activations before this node are freed as backward passes it.
    inputs, node.inputs = node.inputs, ()
    into = None
    if node.implementation.wants_into:
        into = tuple([t.destination() if need else None for t, need in zip(inputs, node.needs)])
    gradients = node.op.gradients(node.implementation, node.xp, gradient, saved, node.settings, node.needs, into)
    for tensor, need, part in zip(inputs, node.needs, gradients):
        if need:
            if part is None:
                raise RuntimeError(f"{node.op.__name__} gave no gradient for an input that needs one")
            part = as_array(node.xp, part)
            if tensor.node is None:
                tensor._accumulate(part)
            else:
                store(tensor, part)
