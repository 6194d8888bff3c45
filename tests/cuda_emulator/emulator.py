"""A runtime for xpnet.accel.cupy that runs kernels on NumPy arrays.

Every array that a kernel gets is copied to a buffer of its own with guard bytes on both sides; after the launch the guards
are checked and the results copied back. GEMMs are computed as cuBLAS defines them, from the arguments that cuBLAS would get.
`emulated_ops` makes the registry run the CuPy versions of operations on NumPy arrays.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

import numpy as np

from tests.cuda_emulator import build
from xpnet.accel.cupy import launch as launching
from xpnet.ops.registry import Implementation, registry
from xpnet.ops.updates.rule import rules

GUARD = 1024
GUARD_BYTE = 0xFF  # NaN as a float, so that out-of-bounds reads show in the result, too


class Buffer:
    """A copy of an array between two guards, with the same alignment."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.address = array.ctypes.data
        self.bytes = array.nbytes
        self.memory = np.full(self.bytes + 2 * GUARD + 128, GUARD_BYTE, np.uint8)
        start = (self.memory.ctypes.data + GUARD + 63) // 64 * 64 + self.address % 64
        self.start = start - self.memory.ctypes.data
        self.data = self.memory[self.start : self.start + self.bytes]
        self.data[:] = array.reshape(-1).view(np.uint8) if self.bytes else 0

    def finish(self, label: str) -> None:
        before, after = self.memory[: self.start], self.memory[self.start + self.bytes :]
        for where, guard in (("before", before), ("after", after)):
            if (guard != GUARD_BYTE).any():
                offsets = np.flatnonzero(guard != GUARD_BYTE)
                raise AssertionError(f"{label} wrote {where} the array {self.array.shape} at guard offset {offsets[:4]}")
        if self.bytes and self.array.flags.writeable:
            self.array.reshape(-1).view(np.uint8)[:] = self.data


class Emulator:
    """The runtime. Few multiprocessors and a small cache, so that grid-stride loops and chunks iterate."""

    device_name = "emulator"
    cudnn: Any = None

    def __init__(self, multiprocessors: int = 1, chunk_bytes: int = 8 * 1024, architecture: int = 80) -> None:
        self.multiprocessors = multiprocessors
        self.chunk_bytes = chunk_bytes
        self.architecture = architecture
        self.launches: list[str] = []
        self.products: list[Any] = []
        self._buffers: list[Buffer] = []

    def addresses(self, instance: Any, arrays: list[np.ndarray | None]) -> list[int]:
        self._buffers = []
        found = []
        for array in arrays:
            if array is None:
                found.append(0)
                continue
            assert isinstance(array, np.ndarray), type(array)
            for other in self._buffers:  # the kernels are compiled with --restrict: no argument may alias another
                assert not np.shares_memory(array, other.array), f"{instance}: two arguments share memory"
            buffer = Buffer(array)
            self._buffers.append(buffer)
            found.append(buffer.data.ctypes.data if array.nbytes else 0)
        return found

    def launch(self, instance: Any, grid: Any, block: Any, arguments: Any) -> None:
        library, numbers = build.library(instance.file)
        function = getattr(library, f"run_{numbers[instance.expression]}")
        function.restype = ctypes.c_char_p
        three = ctypes.c_uint * 3
        problem = function(three(*grid), three(*block), arguments)
        if problem:
            raise AssertionError(f"{instance.expression}: {problem.decode()}")
        for buffer in self._buffers:
            buffer.finish(instance.expression)
        self.launches.append(instance.expression)

    def can_measure(self) -> bool:
        """Return False: times of the emulator mean nothing."""
        return False

    def milliseconds(self, function: Any) -> float:
        raise NotImplementedError("the emulator does not measure")

    def gemm(self, call: Any) -> None:
        """Compute C = alpha op(A) op(B) + beta C on column-major matrices that start at the arrays' first elements."""
        self.products.append(call)
        assert call.ldc >= call.m
        assert call.lda >= (call.k if call.transpose_a else call.m)
        assert call.ldb >= (call.n if call.transpose_b else call.k)
        c = _columns(call.c, call.m, call.n, call.ldc, call.stride_c, call.batch)
        a = _columns(call.a, call.m, call.k, call.lda, call.stride_a, call.batch, call.transpose_a)
        b = _columns(call.b, call.k, call.n, call.ldb, call.stride_b, call.batch, call.transpose_b)
        wide = np.float64 if call.dtype == "float64" else np.float32
        result = call.alpha * (a.astype(wide) @ b.astype(wide))
        if call.beta:
            result += call.beta * c
        c[...] = result


def _columns(array: np.ndarray, m: int, n: int, ld: int, stride: int, batch: int, transposed: bool = False) -> np.ndarray:
    size = array.dtype.itemsize
    shape, strides = ((n, m), (size, ld * size)) if transposed else ((m, n), (size, ld * size))
    view = np.lib.stride_tricks.as_strided(array, (batch, *shape), (stride * size, *strides))
    return view.swapaxes(1, 2) if transposed else view


class PoisonedNamespace:
    """NumPy, except that new arrays are full of NaN (or a large number) until something is written into them."""

    __name__ = "cupy"

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = np.float64, **_: Any) -> np.ndarray:
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[...] = 0xFF
        return array

    def empty_like(self, other: np.ndarray, dtype: Any = None, **_: Any) -> np.ndarray:
        return self.empty(other.shape, dtype or other.dtype)


xp = PoisonedNamespace()


@contextlib.contextmanager
def emulated(**settings: Any):
    """Run launches within the block on the emulator; yield it, with a log of launches."""
    runtime = Emulator(**settings)
    with launching.use_runtime(runtime):
        yield runtime


@contextlib.contextmanager
def emulated_ops(skip: int = 0, **settings: Any):
    """Run the CuPy version of every operation that has one on NumPy arrays, within the block.

    Where several stand in order, the first `skip` of them are left out.
    """
    import xpnet.accel.cupy  # noqa: F401  (registers them)

    changed, changed_rules = [], []
    try:
        for operation in registry.values():
            implementations = operation.implementations("cupy")[skip:]
            if not implementations:
                continue
            operation.implementation(np)  # whatever is loaded lazily is loaded before its choice is replaced
            changed.append((operation, operation._chosen.get(np)))
            operation._chosen[np] = _on_numpy(implementations[0], operation.reference)
        for rule in rules.values():
            if "cupy" in rule.accelerated:
                changed_rules.append((rule, rule.accelerated.get("numpy")))
                rule.accelerate("numpy", decays=True)(_with_poison(rule.accelerated["cupy"]))
        with emulated(**settings) as runtime:
            yield runtime
    finally:
        for rule, before in changed_rules:
            if before is None:
                del rule.accelerated["numpy"]
            else:
                rule.accelerated["numpy"] = before
            rule._chosen.clear()
        for operation, chosen in changed:
            operation._chosen[np] = chosen


def _with_poison(rule: Any) -> Any:
    return lambda _, *arrays, **settings: rule(xp, *arrays, **settings)


def _on_numpy(implementation: Any, reference: Any) -> Any:
    """Return `implementation` with the poisoned namespace instead of NumPy's."""

    def forward(_: Any, *inputs: Any, **settings: Any) -> Any:
        return implementation.forward(xp, *inputs, **settings)

    def backward(_: Any, *inputs: Any, **settings: Any) -> Any:
        return implementation.backward_function(xp, *inputs, **settings)

    wrapped = Implementation(forward, reference)
    wrapped.fallback = None if implementation.fallback is None else _on_numpy(implementation.fallback, reference)
    wrapped.wants_save = implementation.wants_save
    wrapped.takes_half = implementation.takes_half
    if implementation.backward_function is not reference.backward_function:
        wrapped.backward_function = backward
        wrapped.wants_needs = implementation.wants_needs
        wrapped.wants_into = implementation.wants_into
    return wrapped
