"""The mode of a Module (training or evaluation) as one thread sees it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xpnet.layers.module import Module


class _ThreadState(threading.local):
    """The modes that :class:`eval_mode` blocks set in this thread, which precede the Modules' own, and how many blocks do."""

    def __init__(self) -> None:
        self.modes: dict[Module, bool] = {}
        self.blocks: dict[Module, int] = {}


thread_state = _ThreadState()


class eval_mode:  # noqa: N801 - used like no_grad
    """Within the block a Module is in evaluation mode, in this thread alone; afterwards it is in its own mode again.

    Another thread may train it meanwhile. A mode that is set within the block, of a part that the block holds, ends with it.
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
