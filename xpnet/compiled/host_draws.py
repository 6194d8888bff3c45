"""The host's generators of random numbers that code in a recorded function may draw from: a replay draws nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Access = tuple[Callable[[], Any], Callable[[Any], None]]  # reads and writes a state


class HostDraws:
    """The states of Python's and NumPy's generators, and of some others, as they are now.

    A thread that draws from the generators of `random` or `numpy.random` meanwhile cannot be told from the function.
    """

    def __init__(self, generators: Iterable[Any]) -> None:
        found: list[Access] = [(random.getstate, random.setstate), (np.random.get_state, np.random.set_state)]
        found += [_access(generator) for generator in generators]
        self._states = [(access, access[0]()) for access in found]

    def moved(self) -> bool:
        """Return whether something has been drawn since."""
        return any(_frozen(access[0]()) != _frozen(state) for access, state in self._states)

    def restore(self) -> None:
        """Give all generators their states back: what was drawn will be drawn again."""
        for (_, write), state in self._states:
            write(state)


def _access(generator: Any) -> Access:
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    if isinstance(generator, np.random.RandomState):
        return generator.get_state, generator.set_state
    bits = generator.bit_generator
    return (lambda: bits.state), (lambda state: setattr(bits, "state", state))


def _frozen(state: Any) -> Any:
    """Return a state as something that can be compared."""
    if isinstance(state, dict):
        return {name: _frozen(part) for name, part in state.items()}
    if isinstance(state, (tuple, list)):
        return [_frozen(part) for part in state]
    return state.tobytes() if isinstance(state, np.ndarray) else state
