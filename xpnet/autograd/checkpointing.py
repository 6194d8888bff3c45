"""Gradient checkpointing: activations of a part of a network are not kept but recomputed in the backward pass.

A network of n layers keeps n activations from the forward pass to the backward pass. Cut into about sqrt(n) segments that
are recomputed, it keeps the segments' inputs and, while a segment's backward pass runs, the activations of that one.

Source: Griewank and Walther, "Algorithm 799: revolve", 2000; Chen et al., "Training deep nets with sublinear memory cost",
2016.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xpnet.autograd.functional import map_structure
from xpnet.autograd.tape import FREED, Node, Output, made_by, mode, outline, reachable, run_backward, store, tick
from xpnet.autograd.tensor import Tensor
from xpnet.ops.registry import Implementation
from xpnet.runtime.threads import own_threads_preferred, prefer_own_threads


def recompute(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `function` with gradient checkpointing: only its inputs are kept, and the backward pass runs it again.

        y = xn.recompute(self.block)(x)

    The gradients are bit for bit the same. Random layers drop the same elements in the second run, and running statistics
    are updated in the first only. It costs the time of one more forward pass of `function`.

    Args:
        function: a Module, or any function of Tensors, native arrays and other things, nested in lists, tuples and dicts. A
            Tensor with a gradient that is not a leaf must be passed as an argument. What must not happen twice goes
            through :func:`xpnet.autograd.tape.once`.

    Returns:
        A function of the same arguments with the same results. Where nothing is recorded (under no_grad, in predict) it
        only calls `function`.

    Raises:
        TypeError: `function` is not callable.
        RuntimeError: (in the backward pass) the second run differs from the first, or uses a Tensor from outside.
    """
    if not callable(function):
        raise TypeError(f"recompute: expected a Module or a function, got {type(function).__name__}")

    @functools.wraps(function, updated=())
    def wrapped(*args: Any, **keywords: Any) -> Any:
        return _first_run(function, args, keywords) if mode.recording else function(*args, **keywords)

    return wrapped


class SegmentInput:
    """An input Tensor of a segment, reduced to its array and the destination of its gradient."""

    __slots__ = ("array", "requires_grad", "source")

    def __init__(self, tensor: Tensor) -> None:
        self.array = tensor.array
        self.requires_grad = tensor.requires_grad
        self.source: Any = (tensor.node or tensor) if tensor.requires_grad else None

    def tensor(self) -> Tensor:
        """Return a Tensor with this array and destination; the leaf itself for a leaf."""
        if isinstance(self.source, Tensor):
            return self.source
        made = Tensor(self.array)
        made.requires_grad, made.node = self.requires_grad, self.source
        return made


class _Saved(NamedTuple):
    """What is kept of a segment's first run."""

    function: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    sources: tuple[Any, ...]
    done: list[Any]
    own_threads: bool
    operands: Any  # what its operations asked for the arrays of their inputs, if anything


@contextlib.contextmanager
def _run(recording: bool, done: list[Any] | None, again: Iterator[Any] | None) -> Iterator[None]:
    before = mode.recording, mode.done, mode.again, mode.touched
    mode.recording, mode.done, mode.again = recording, done, again
    try:
        yield
    finally:
        mode.recording, mode.done, mode.again, mode.touched = before


def _first_run(function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    done: list[Any] = []
    with _run(False, done, mode.again):
        mode.touched = False
        result = function(*args, **keywords)
        touched = mode.touched
    found: list[Tensor] = []
    map_structure(lambda part: found.append(part) if isinstance(part, Tensor) else None, result)
    if not touched or not found:
        return result
    sources: list[Any] = []

    def keep(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        given = SegmentInput(value)
        if given.source is not None:
            sources.append(given.source)
        return given

    kept = map_structure(keep, args), map_structure(keep, keywords)
    saved = _Saved(function, kept, tuple(sources), done, own_threads_preferred(), mode.operands)
    xp = _namespace(found[0])
    node = Node(_SEGMENT, _NO_IMPLEMENTATION, xp, saved.sources, (), saved, None)
    outlines = node.outputs = tuple(outline(xp, tensor.array) for tensor in found)

    def output(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        made = Tensor(value.array)
        number = next(numbers)
        if outlines[number] is not None:
            made.node, made.requires_grad = Output(node, number), True
        return made

    numbers = iter(range(len(found)))
    return map_structure(output, result)


def _namespace(tensor: Tensor) -> Any:
    from xpnet.backend import namespace

    return namespace(tensor.array)


class _Segment:
    """A pseudo-operation: a function that is run again, recorded, for its backward pass."""

    __name__ = "recomputed segment"

    def walk(self, node: Node) -> None:
        """Run the backward pass of a segment; its gradients go straight to the nodes and leaves before it."""
        saved: _Saved = node.saved
        gradients = node.grad
        node.saved, node.grad, node.inputs = FREED, None, ()
        if gradients is None:
            return
        began = tick()
        last = self._again(saved, gradients)
        del gradients
        allowed = {made_by(source) for source in saved.sources}
        del saved
        found = {inner for made in last for inner in reachable(made, began)}
        # An output that is an input has its node outside; that one is processed later.
        ordered = sorted((inner for inner in found if inner.order >= began), key=lambda inner: inner.order, reverse=True)
        for inner in ordered:
            for source in inner.inputs:
                before = made_by(source)
                if before is not None and before.order < began and before not in allowed:
                    raise RuntimeError(
                        f"recompute: the function uses the output of {before.op.__name__} from outside, which is none of its "
                        f"arguments; pass that Tensor as an argument, so that its gradient has a way back"
                    )
        for inner in ordered:
            run_backward(inner)

    def _again(self, saved: _Saved, gradients: list[Any]) -> list[Any]:
        """Run the function, recorded, and store the gradients of its outputs. Return the nodes that made them."""
        args, keywords = (
            map_structure(lambda value: value.tensor() if isinstance(value, SegmentInput) else value, part)
            for part in saved.arguments
        )
        own = own_threads_preferred()
        prefer_own_threads(saved.own_threads)
        again = iter(saved.done)
        operands, mode.operands = mode.operands, saved.operands
        try:
            with _run(True, None, again):
                result = saved.function(*args, **keywords)
        finally:
            mode.operands = operands
            prefer_own_threads(own)
        found: list[Tensor] = []
        map_structure(lambda part: found.append(part) if isinstance(part, Tensor) else None, result)
        if len(found) != len(gradients) or next(again, FREED) is not FREED:
            raise RuntimeError(
                f"recompute: the second run of {getattr(saved.function, '__name__', type(saved.function).__name__)} was not as "
                f"the first: it gave {len(found)} Tensors after {len(gradients)}, or drew fewer random numbers; what it "
                f"computes may depend on its arguments only"
            )
        last = []
        for tensor, gradient in zip(found, gradients):
            if gradient is None:
                continue
            if tensor.node is None:
                if tensor.requires_grad:
                    tensor._accumulate(gradient)
                continue
            store(tensor.node, gradient)
            last.append(tensor.node)
        return last


_SEGMENT: Any = _Segment()
_NO_IMPLEMENTATION = Implementation(lambda: None)
