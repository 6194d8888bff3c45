"""Run the cases of the contract under each implementation and library, forward and backward."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.cases import Case, Input
from xpnet.backend import to_numpy
from xpnet.ops.registry import load_accelerations, reference_only, registry

COMPOSITES = {
    "conv1d": ("conv2d",),
    "conv_transpose2d": ("col2im", "matmul"),
    "batch_norm": ("batch_norm_with_statistics", "batch_norm_inference"),
    "global_average_pool2d": ("mean",),
    "where": ("select",),
}
"""Public functions that are composed of operations, and which."""


def _has_emulator() -> bool:
    """Return whether the CuPy implementations and the emulator that runs their kernels on NumPy arrays exist."""
    names = ("xpnet.accel.cupy.launch", "tests.cuda_emulator.emulator")
    with contextlib.suppress(ModuleNotFoundError):
        return all(importlib.util.find_spec(name) is not None for name in names)
    return False


@functools.cache
def accelerations() -> dict[str, tuple[str, ...]]:
    """Return, for every operation, its accelerated implementations that can run on NumPy arrays: "numpy", "emulated".

    If a library has several in order, "numpy+1" starts from the second one, and so on.
    """
    load_accelerations("numpy")
    libraries = {"numpy": "numpy"}
    if _has_emulator():
        import xpnet.accel.cupy  # noqa: F401 - registers its implementations; touches no device

        libraries["emulated"] = "cupy"
    return {
        name: tuple(
            f"{label}+{skip}" if skip else label
            for label, library in libraries.items()
            for skip in range(len(operation.implementations(library)))
        )
        for name, operation in registry.items()
    }


def implementations(case: Case) -> list[str]:
    """Return the implementations under which a case is run: the reference and the accelerated ones."""
    parts = (case.name,) if case.name in registry else COMPOSITES[case.name]
    return ["reference", *dict.fromkeys(name for part in parts for name in accelerations()[part])]


@contextlib.contextmanager
def running(implementation: str) -> Iterator[None]:
    """Compute NumPy arrays with "reference", "numpy", "numpy+1", ... or "emulated" within the block."""
    name, _, skip = implementation.partition("+")
    if name == "reference":
        with reference_only():
            yield
    elif name == "numpy":
        with reference_only(False), skipping(int(skip or 0)):
            yield
    else:
        from tests.cuda_emulator.emulator import emulated_ops

        with reference_only(False), emulated_ops(int(skip or 0)):
            yield


@contextlib.contextmanager
def skipping(count: int) -> Iterator[None]:
    """Skip the first `count` implementations for NumPy of operations that have more, within the block."""
    changed = []
    for operation in registry.values():
        if count and len(found := operation.implementations("numpy")) > count:
            changed.append((operation, operation.implementation(np)))
            operation._chosen[np] = found[count]
    try:
        yield
    finally:
        for operation, before in changed:
            operation._chosen[np] = before


def matrix(cases: list[Case], where: Any = None) -> list[Any]:
    """Return parameters (case, implementation) for the cases for which `where` holds."""
    return [
        pytest.param(
            case,
            implementation,
            id=f"{case.id}-{implementation}",
            marks=(pytest.mark.emulator,) if implementation.startswith("emulated") else (),
        )
        for case in cases
        if where is None or where(case)
        for implementation in implementations(case)
    ]


def differentiable(case: Case) -> bool:
    """Return whether the case has a gradient to check."""
    return case.differentiable and any(isinstance(i, Input) and i.grad for i in case.inputs)


def outputs_of(result: Any) -> tuple[Any, ...]:
    """Return the output or outputs as native arrays."""
    outputs = result if isinstance(result, tuple) else (result,)
    return tuple(o.array if isinstance(o, xn.Tensor) else o for o in outputs)


def is_float(array: Any) -> bool:
    return "float" in str(array.dtype)


def weights_for(outputs: tuple[Any, ...], seed: int = 0) -> list[np.ndarray]:
    """Return gradients to start backward with: NumPy arrays in the shape and dtype of each output."""
    random = np.random.default_rng(seed)
    return [random.standard_normal(o.shape).astype(str(o.dtype).rpartition(".")[2]) for o in outputs if is_float(o)]


def as_tensors(case: Case, arrays: list[Any]) -> list[Any]:
    """Return the inputs, as Tensors where a gradient is required."""
    return [xn.Tensor(a, requires_grad=True) if isinstance(i, Input) and i.grad else a for i, a in zip(case.inputs, arrays)]


def start_backward(result: Any, weights: list[Any]) -> None:
    """Run backward from every floating output, each weighted."""
    outputs = result if isinstance(result, tuple) else (result,)
    floats = [o for o in outputs if is_float(o)]
    if len(floats) == 1:
        floats[0].backward(weights[0])
        return
    total: Any = None
    for output, weight in zip(floats, weights):
        term = xn.ops.sum(output * weight)
        total = term if total is None else total + term
    total.backward()


def evaluate(
    case: Case, arrays: list[Any], options: dict[str, Any], weights: list[Any] | None = None
) -> tuple[tuple[Any, ...], list[Any]]:
    """Return the outputs of a case and its gradients (None for inputs without one) as native arrays."""
    if not differentiable(case):
        return outputs_of(case.call(arrays, options)), []
    inputs = as_tensors(case, arrays)
    result = case.call(inputs, options)
    outputs = outputs_of(result)
    start_backward(result, weights_for(outputs) if weights is None else weights)
    return outputs, [i.grad if isinstance(i, xn.Tensor) else None for i in inputs]


def close(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Assert equal shapes, and equal values to `tolerance` times the largest expected one."""
    actual = to_numpy(actual) if not isinstance(actual, np.ndarray) else actual
    expected = np.asarray(expected)
    assert actual.shape == expected.shape, f"{what} has shape {actual.shape}, expected {expected.shape}"
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=what)
