"""The host's generators of random numbers that code in a recorded function may draw from: a replay draws nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from xpnet.compiled.owners import Owner
from xpnet.layers.module import Module

Access = tuple[Callable[[], Any], Callable[[Any], None]]  # reads and writes a state


class HostDraws:
    """The states of Python's and NumPy's generators, and of those that owners and layers hold, as they are now.

    A thread that draws from the generators of `random` or `numpy.random` meanwhile cannot be told from the function.
    """

    def __init__(self, owners: Iterable[Owner], layers: Iterable[Module] = ()) -> None:
        found: list[Access] = [(random.getstate, random.setstate), (np.random.get_state, np.random.set_state)]
        known: set[int] = set()
        for held in (*(owner.read() for owner in owners), *map(vars, layers)):
            for value in held.values():
                if id(value) not in known and (access := _access(value)) is not None:
                    known.add(id(value))
                    found.append(access)
        self._states = [(access, access[0]()) for access in found]

    def moved(self) -> bool:
        """Return whether something has been drawn since."""
        return any(_frozen(access[0]()) != _frozen(state) for access, state in self._states)

    def restore(self) -> None:
        """Give all generators their states back: what was drawn will be drawn again."""
        for (_, write), state in self._states:
            write(state)


def _access(value: Any) -> Access | None:
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    if isinstance(value, np.random.RandomState):
        return value.get_state, value.set_state
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return (lambda: bits.state), (lambda state: setattr(bits, "state", state))
    return None


def _frozen(state: Any) -> Any:
    """Return a state as something that can be compared."""
    if isinstance(state, dict):
        return {name: _frozen(part) for name, part in state.items()}
    if isinstance(state, (tuple, list)):
        return [_frozen(part) for part in state]
    return state.tobytes() if isinstance(state, np.ndarray) else state
