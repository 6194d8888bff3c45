"""The counters of random layers on the device, while training steps are captured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xpnet.backend import Array
from xpnet.layers.module import Module


class DeviceCounter:
    """The counter of a random layer on the device."""

    def __init__(self, xp: Any, value: int) -> None:
        self.array = xp.asarray(value, dtype=xp.uint64)

    def take(self) -> Array:
        """Return the current value as a new 0-d uint64 array, and increment the counter."""
        step: Array = self.array.copy()
        self.array += 1
        return step

    @property
    def value(self) -> int:
        """The counter on the host (waits for the device)."""
        return int(self.array)

    @value.setter
    def value(self, value: int) -> None:
        self.array[...] = value


class DeviceCounters:
    """The counters of a model's layers, whichever layers it has."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self._counted: dict[int, Module] = {}

    def follow(self, modules: Iterable[Module]) -> None:
        """Put the counters of these layers on the device, where they are not there, and give those of others back."""
        now = {id(module): module for module in modules}
        for key in self._counted.keys() - now.keys():
            self._counted.pop(key)._counter_to_host()
        for module in now.values():
            if module.device_counter is None:
                module.device_counter = DeviceCounter(self.xp, module.counter)
        self._counted.update(now)

    def close(self) -> None:
        """Give all counters back to the host."""
        self.follow(())
