"""Training and evaluation mode, as one thread sees them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xpnet.layers.module import Module


class _ThreadState(threading.local):
    """Modes set by :class:`eval_mode` blocks in this thread, which take precedence, and their number; a recording in it."""

    def __init__(self) -> None:
        self.modes: dict[Module, bool] = {}
        self.blocks: dict[Module, int] = {}
        self.recording = ""  # what of this thread is being recorded as a CUDA graph: "", "step" or "prediction"


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
