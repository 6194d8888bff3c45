"""Training and evaluation mode, as one thread sees them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpnet.layers.module import Module


class _ThreadState(threading.local):
    """Modes set by :class:`eval_mode` blocks in this thread, which take precedence, and their number; a recording in it."""

    def __init__(self) -> None:
        self.modes: dict[Module, bool] = {}
        self.blocks: dict[Module, int] = {}
        self.recording = ""  # what of this thread is being recorded as a CUDA graph: "", "step", "prediction" or "function"


thread_state = _ThreadState()


class eval_mode:  # noqa: N801 - used like no_grad
    """A block in which a Module is in evaluation mode, in this thread only.

    Another thread may train it at the same time. A mode that is set within the block ends with the block.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.held: tuple[Module, ...] = ()

    def __enter__(self) -> None:
        self.held = self.module.modules()
        modes, blocks = thread_state.modes, thread_state.blocks
        for module in self.held:
            modes[module] = False
            blocks[module] = blocks.get(module, 0) + 1

    def __exit__(self, *exception: object) -> None:
        modes, blocks = thread_state.modes, thread_state.blocks
        for module in self.held:
            left = blocks[module] - 1
            if left:
                modes[module] = False
                blocks[module] = left
            else:
                del modes[module], blocks[module]


def stateful_layers(model: Module) -> list[Any]:
    """Return the layers that carry a state from call to call, in their attribute `carried`."""
    return [m for m in model.modules() if getattr(m, "stateful", False) and hasattr(m, "carried")]


@contextlib.contextmanager
def states_of_its_own(model: Module) -> Iterator[None]:
    """Let stateful layers begin at 0 within the block; after it they carry what they carried before."""
    layers = stateful_layers(model)
    before = [layer.carried for layer in layers]
    for layer in layers:
        layer.carried = None
    try:
        yield
    finally:
        for layer, states in zip(layers, before):
            layer.carried = states
