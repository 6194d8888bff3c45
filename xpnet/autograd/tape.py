"""The tape: recorded operations, and the backward pass over them from the newest to the oldest.

Every operation on a Tensor that needs a gradient leaves one :class:`Node`: the operation, its inputs, its settings and
what its forward pass saved (arrays, not a closure). There is no second derivative.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from xpnet.backend import Array, array_types, as_array, is_floating
from xpnet.ops.registry import Implementation


class _Mode(threading.local):
    recording = True
    # What an operation asks for the arrays of its inputs: the 16-bit copies that stand for parameters
    # (xpnet.layers.mixed.HalfCopies), or a recording that notes them (xpnet.compiled.operands.Operands).
    operands: Any = None
    # Of the segment that runs now (see xpnet.recompute): the results of `once`, and in its second run those still unused.
    done: list[Any] | None = None
    again: Iterator[Any] | None = None
    touched = False  # whether anything with a gradient was used in it


mode = _Mode()
_order = itertools.count()
FREED = object()


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Record nothing within the block: operations on Tensors compute, and save nothing for a backward pass."""
    before, mode.recording = mode.recording, False
    try:
        yield
    finally:
        mode.recording = before


def once(make: Callable[[], Any]) -> Any:
    """Return make(); where a checkpointed segment is run again for its backward pass, the result of the first run.

    For whatever must not happen twice: drawing a random number, updating running statistics.
    """
    if mode.again is not None:
        made = next(mode.again, FREED)
        if made is FREED:
            raise RuntimeError("recompute: the second run of a segment drew more random numbers than the first")
    else:
        made = make()
    if mode.done is not None:
        mode.done.append(made)
    return made


def runs_again() -> bool:
    """Return whether a checkpointed segment is run again for its backward pass: see `once`."""
    return mode.again is not None


def tick() -> int:
    """Take the next number of a Node: those that are recorded from now on have larger ones."""
    return next(_order)


class Node:
    """One recorded operation.

    It holds what its backward pass needs, and no Tensor but leaves: an activation that no backward pass needs is freed as
    soon as the forward pass drops it.

    Attributes:
        inputs: the destination of each input's gradient: the Node that made it, an Output of one, a leaf Tensor, or None.
        outputs: None, or for an operation with several outputs the :func:`outline` of each.
    """

    __slots__ = ("grad", "implementation", "inputs", "needs", "op", "order", "outputs", "saved", "settings", "xp")

    def __init__(
        self,
        op: Any,
        implementation: Implementation,
        xp: Any,
        inputs: Sequence[Any],
        needs: tuple[bool, ...],
        saved: Any,
        settings: dict[str, Any] | None,
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
        self.outputs: tuple[Any, ...] | None = None

    def destination(self) -> None:
        """Return the array that a gradient could be written to: none."""
        return


class Output(NamedTuple):
    """One of the outputs of a Node that has several."""

    node: Node
    number: int

    def destination(self) -> None:
        """Return the array that a gradient could be written to: none."""
        return


def outline(xp: Any, array: Array) -> Any:
    """Return what makes zeros like an output, (shape, dtype, device); None for one that has no gradient."""
    return (tuple(array.shape), array.dtype, array.device) if is_floating(array) else None


def made_by(source: Any) -> Node | None:
    """Return the Node behind one of a Node's inputs; None for a leaf."""
    kind = type(source)
    return source if kind is Node else source.node if kind is Output else None


def reachable(source: Node | Output, since: int = 0) -> list[Node]:
    """Return the nodes that a result depends on, newest first: every node comes after all that used it.

    Nodes with a number below `since` are left out.
    """
    last = source.node if isinstance(source, Output) else source
    # Most networks are chains, which need no sorting.
    chain = [last]
    while True:
        parents = []
        for made in chain[-1].inputs:
            kind = type(made)
            if kind is Node:
                parents.append(made)
            elif kind is Output:
                parents.append(made.node)
        if since:
            parents = [node for node in parents if node.order >= since]
        if len(parents) != 1:
            break
        chain.append(parents[0])
    if not parents:
        return chain
    seen = {last}
    stack = [last]
    while stack:
        for made in stack.pop().inputs:
            node = made_by(made)
            if node is not None and node not in seen and node.order >= since:
                seen.add(node)
                stack.append(node)
    return sorted(seen, key=lambda node: node.order, reverse=True)


def leaves(nodes: Iterable[Node]) -> dict[int, Any]:
    """Return the leaf Tensors that some nodes would hand a gradient to, by their id."""
    sources = (source for node in nodes for source in node.inputs if source is not None)
    return {id(source): source for source in sources if type(source) not in (Node, Output)}


def ending(source: Any) -> str:
    """Return the name of the operation, or of the activation that is part of it, which gave a result its values; or "".

    Reshaping and casting change none.
    """
    node = made_by(source)
    while node is not None and node.settings is not None and node.op.__name__ in ("reshape", "cast"):
        node = made_by(node.inputs[0])
    if node is None or node.settings is None:
        return ""
    name: str = node.settings.get("activation") or node.op.__name__
    return name


def store(source: Node | Output, gradient: Array) -> None:
    """Add `gradient` to the gradient of an operation's output."""
    # Not in place: an operation may hand the same array to two inputs.
    if type(source) is Node:
        source.grad = gradient if source.grad is None else source.grad + gradient
        return
    node, number = cast(Output, source)
    if node.grad is None:
        node.grad = [None] * len(node.outputs or ())
    before = node.grad[number]
    if before is None:
        node.grad[number] = gradient
        return
    before = before[0] + before[1] if type(before) is list else before
    node.grad[number] = [before, gradient] if node.implementation.adds else before + gradient


def run_backward(node: Node) -> None:
    """Run one node's backward and pass the gradients on."""
    saved, gradient = node.saved, node.grad
    if saved is FREED:
        raise RuntimeError(
            f"backward() ran through this {node.op.__name__} before, and what it had saved is freed; run the forward pass again"
        )
    if node.settings is None:  # not an operation: a checkpointed segment
        node.op.walk(node)
        return
    node.saved = FREED
    node.grad = None
    inputs, node.inputs = node.inputs, ()
    if gradient is None:
        return
    if node.outputs is not None:
        filled = not (node.op.absent and node.implementation.ours)
        gradient = tuple(
            node.xp.zeros(like[0], dtype=like[1], device=like[2]) if filled and g is None and like is not None else g
            for like, g in zip(node.outputs, gradient)
        )
    into = None
    if node.implementation.wants_into:
        into = tuple([t.destination() if need else None for t, need in zip(inputs, node.needs)])
    gradients = node.op.gradients(node.implementation, node.xp, gradient, saved, node.settings, node.needs, into)
    del saved, gradient  # freed before sums of gradients are allocated
    for source, need, part in zip(inputs, node.needs, gradients):
        if need:
            if part is None:
                raise RuntimeError(f"{node.op.__name__} gave no gradient for an input that needs one")
            if type(part) not in array_types:
                part = as_array(node.xp, part)
            kind = type(source)
            if kind is Node:  # store(), inlined
                source.grad = part if source.grad is None else source.grad + part
            elif kind is Output:
                store(source, part)
            else:
                source._accumulate(part, node.implementation.owns_result)
