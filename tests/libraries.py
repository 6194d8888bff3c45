"""The array libraries under which operations are tested, with conversions from NumPy and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_strict
import numpy as np
import pytest

from xpnet import backend


@dataclass(frozen=True)
class Library:
    """One kind of array."""

    name: str
    asarray: Callable[[np.ndarray], Any]
    of: Callable[[], type]
    marks: tuple[Any, ...] = ()

    @property
    def xp(self) -> ModuleType:
        """The namespace of these arrays."""
        xp: ModuleType = backend.namespace(self.asarray(np.zeros(1)))
        return xp

    @property
    def kind(self) -> type:
        """The type of these arrays."""
        return self.of()

    def to_numpy(self, array: Any) -> np.ndarray:
        """Convert `array`, which must be of this library, to a NumPy array."""
        assert isinstance(array, self.kind), f"expected {self.kind}, got {type(array)}"
        return backend.to_numpy(array)


def readonly(array: Any) -> np.ndarray:
    """Return a read-only copy."""
    copied: np.ndarray = np.array(array)
    copied.flags.writeable = False
    return copied


def _torch_array(array: np.ndarray) -> Any:
    import torch

    return torch.asarray(np.array(array))


def _torch_kind() -> type:
    import torch

    kind: type = torch.Tensor
    return kind


def _cupy_array(array: np.ndarray) -> Any:
    import cupy

    return cupy.asarray(array)


def _cupy_kind() -> type:
    import cupy

    kind: type = cupy.ndarray
    return kind


def _strict(device: str) -> Callable[[np.ndarray], Any]:
    return lambda array: array_api_strict.asarray(np.array(array), device=array_api_strict.Device(device))


NUMPY = Library("numpy", np.array, lambda: np.ndarray)

LIBRARIES = (
    NUMPY,
    Library("numpy-readonly", readonly, lambda: np.ndarray),
    Library("array_api_strict", _strict("CPU_DEVICE"), lambda: array_api_strict.asarray(0).__class__),
    # A device other than the default shows where an operation makes an array on the wrong one.
    Library("array_api_strict-device1", _strict("device1"), lambda: array_api_strict.asarray(0).__class__),
    Library("torch", _torch_array, _torch_kind, (pytest.mark.torch,)),
    Library("cupy", _cupy_array, _cupy_kind, (pytest.mark.cuda,)),
)
