"""Run the cases of the contract under each implementation and library, forward and backward."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.cases import Case, Input
from tests.skipping import skipping
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


class Place:
    """Where a case is computed; this one: on NumPy arrays, as they are."""

    xp: Any = np

    def to(self, value: Any) -> Any:
        """Return NumPy arrays, also those in a tuple, list or dict, as arrays of this place with the same strides."""
        return value

    def back(self, value: Any) -> Any:
        """Return arrays of this place as NumPy arrays."""
        return value


class OnGpu(Place):
    """A CUDA device under watch."""

    def __init__(self, gpu: Any) -> None:
        self.gpu, self.xp = gpu, gpu.xp

    def to(self, value: Any) -> Any:
        if type(value) is dict:
            return {name: self.to(v) for name, v in value.items()}
        return type(value)(map(self.to, value)) if type(value) in (tuple, list) else self.gpu.array(value)

    def back(self, value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(map(self.back, value))
        assert value is None or type(value).__module__.partition(".")[0] == "cupy", type(value)
        return self.gpu.numpy(value)


NUMPY = Place()


@functools.cache
def accelerations() -> dict[str, tuple[str, ...]]:
    """Return, for every operation, the libraries that it has accelerated implementations for: "numpy", "cupy".

    If a library has several in order, "numpy+1" starts from the second one, and so on.
    """
    load_accelerations("numpy")
    import xpnet.accel.cupy  # noqa: F401 - registers its implementations; touches no device

    return {
        name: tuple(
            f"{library}+{skip}" if skip else library
            for library in ("numpy", "cupy")
            for skip in range(len(operation.implementations(library)))
        )
        for name, operation in registry.items()
    }


def implementations(case: Case) -> list[str]:
    """Return the implementations under which a case is run: the reference and the accelerated ones."""
    parts = (case.name,) if case.name in registry else COMPOSITES[case.name]
    return ["reference", *dict.fromkeys(name for part in parts for name in accelerations()[part])]


@contextlib.contextmanager
def running(implementation: str) -> Iterator[Place]:
    """Compute with "reference", "numpy", "numpy+1", ... or "cupy" within the block; yield where."""
    name, _, skip = implementation.partition("+")
    if name == "cupy":
        from tests.gpu import on_gpu

        with reference_only(False), on_gpu(skip=int(skip or 0)) as gpu:
            yield OnGpu(gpu)
        return
    with reference_only(name == "reference"), skipping(np, "numpy", int(skip or 0)):
        yield NUMPY


def matrix(cases: list[Case], where: Any = None) -> list[Any]:
    """Return parameters (case, implementation) for the cases for which `where` holds."""
    return [
        pytest.param(
            case,
            implementation,
            id=f"{case.id}-{implementation}",
            marks=(pytest.mark.cuda,) if implementation.startswith("cupy") else (),
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


def arrays_in(value: Any) -> Iterator[Any]:
    """Yield the arrays in tuples, lists and dicts of any depth."""
    if isinstance(value, (dict, list, tuple)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(one)
    elif hasattr(value, "dtype"):
        yield value


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
    case: Case, arrays: list[Any], options: dict[str, Any], weights: list[Any] | None = None, place: Place = NUMPY
) -> tuple[tuple[Any, ...], list[Any]]:
    """Return the outputs of a case and its gradients (None for inputs without one) as native arrays.

    NumPy arrays are moved to the place first, and the results back.
    """
    arrays, options = place.to(arrays), place.to(options)
    if not differentiable(case):
        return place.back(outputs_of(case.call(arrays, options))), []
    inputs = as_tensors(case, arrays)
    result = case.call(inputs, options)
    outputs = place.back(outputs_of(result))
    start_backward(result, place.to(weights_for(outputs) if weights is None else weights))
    return outputs, [place.back(i.grad) if isinstance(i, xn.Tensor) else None for i in inputs]


def computed(case: Case, arrays: list[Any], options: dict[str, Any], place: Place) -> tuple[Any, ...]:
    """Return the outputs of a case, computed at a place, as NumPy arrays."""
    found: tuple[Any, ...] = place.back(outputs_of(case.call(place.to(arrays), place.to(options))))
    return found


def close(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Assert equal shapes, and equal values to `tolerance` times the largest expected one."""
    actual = to_numpy(actual) if not isinstance(actual, np.ndarray) else actual
    expected = np.asarray(expected)
    assert actual.shape == expected.shape, f"{what} has shape {actual.shape}, expected {expected.shape}"
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=what)
