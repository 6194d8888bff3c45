"""Nothing within a step reads the host or calls CuPy's cuBLAS: all of it is captured as CUDA graphs and replayed.

The registry, all layers, losses, regularizers, optimizers and metrics run under capture, from lists that fail a test when
something new is missing. No fallback may happen, and a replay has the bits of the run launch by launch, on new data too.
What cannot be captured by nature is in the lists of this file with its reason, and docs/gpu.md names the same.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests import op_cases, test_losses
from tests.cases import Case, Input
from tests.layer_cases import LAYERS, LayerCase
from tests.op_contract import differentiable, evaluate, weights_for
from xpnet import losses, metrics, optim, regularizers
from xpnet.autograd.tensor import Tensor
from xpnet.backend import dtype_named, to_numpy
from xpnet.layers.execution import executor_of

pytestmark = pytest.mark.cuda

DTYPES = [pytest.param("float32"), pytest.param("float16"), pytest.param("bfloat16", marks=pytest.mark.bfloat16)]

OPS_NOT_CAPTURED = {
    "getitem(3x4,index=3x4)": "a boolean mask: how many elements it selects is known on the device only",
}
OPTIMIZERS_NOT_CAPTURED = {
    "LBFGS": "a line search decides on the host, and has no steps: FullBatch.minimize",
    "TruncatedNewton": "the inner iteration stops on the host, and has no steps: FullBatch.minimize",
}
UPDATED_OUTSIDE = {
    "Adagrad": "no kernel that reads the learning rate on the device",
    "Adamax": "no kernel that reads the learning rate and the step on the device",
    "Nadam": "no kernel that reads the learning rate and the step on the device",
    "Quickprop": "no kernel that reads the learning rate on the device",
    "RMSprop": "no kernel that reads the learning rate on the device",
    "Rprop": "no kernel that reads the learning rate on the device",
}
"""Optimizers whose update runs launch by launch behind the captured forward and backward pass."""


class Recordings:
    """How many graphs were recorded and replayed."""

    recorded = replayed = 0


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recordings]:
    """Count recordings and replays; what cannot be recorded is an error instead of a warning."""
    from xpnet.compiled.cuda_graph import CudaGraphs

    counts, record = Recordings(), CudaGraphs.record

    def counting(self: Any, function: Callable[[], Any]) -> Any:
        replay, result = record(self, function)
        counts.recorded += 1

        def counted() -> None:
            counts.replayed += 1
            replay()

        return counted, result

    monkeypatch.setattr(CudaGraphs, "record", counting)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield counts


def on_device(array: Any, dtype: str | None = None) -> Any:
    """Move an array to the GPU; floats are rounded to `dtype`."""
    import cupy

    if not isinstance(array, np.ndarray):
        return array
    if dtype is not None and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(dtype_named(np, dtype))
    return cupy.asarray(array)


def bits(value: Any) -> Any:
    """Return the bits, dtype and shape of arrays nested in tuples, lists and dicts."""
    if isinstance(value, (tuple, list)):
        return [bits(v) for v in value]
    if isinstance(value, dict):
        return {name: bits(v) for name, v in value.items()}
    array = to_numpy(value.array if isinstance(value, Tensor) else value)
    return str(array.dtype), array.shape, array.tobytes()


def captured(function: Callable[..., Any], batches: list[list[Any]], graphs: Recordings) -> None:
    """Assert that a function of arrays is captured, and gives the bits of the plain call for every batch."""
    expected = [bits(function(*batch)) for batch in batches]
    repeated = xn.cuda.capture(function)
    found = [bits(repeated(*batch)) for batch in (batches[0], *batches)]
    assert not repeated.failed
    assert (graphs.recorded, graphs.replayed) == (1, len(batches))
    assert found == [expected[0], *expected]


# -- operations --


def op_function(case: Case, dtype: str) -> tuple[Callable[..., Any], list[list[Any]]]:
    """Return a case, forward and backward, as a function of its arrays, and two batches of them."""
    options = case.options(dtype="float32", asarray=on_device)
    places = [n for n, given in enumerate(case.inputs) if isinstance(given, Input)]
    batches = [[on_device(a, dtype) for a in case.arrays(seed=seed)] for seed in (0, 1)]
    plain = case.call(batches[0], options)
    outputs = plain if isinstance(plain, tuple) else (plain,)
    weights = [on_device(w, str(y.dtype)) for w, y in zip(weights_for(tuple(map(_wide, outputs))), filter(_floating, outputs))]

    def function(*arrays: Any) -> Any:
        inputs = list(batches[0])
        for place, array in zip(places, arrays):
            inputs[place] = array
        found, gradients = evaluate(case, inputs, options, weights)
        return (*found, *(g for g in gradients if g is not None))

    return function, [[batch[n] for n in places] for batch in batches]


def _floating(array: Any) -> bool:
    return "float" in str(array.dtype)


def _wide(array: Any) -> np.ndarray:
    found = to_numpy(array)
    return found.astype(np.float32) if _floating(array) else found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in op_cases.CASES if c.id not in OPS_NOT_CAPTURED], ids=lambda c: c.id)
def test_every_operation(case: Case, dtype: str, graphs: Recordings) -> None:
    function, batches = op_function(case, dtype)
    captured(function, batches, graphs)
    if differentiable(case):
        assert len(function(*batches[0])) > 1


@pytest.mark.parametrize("name", OPS_NOT_CAPTURED)
def test_what_cannot_be_captured_says_so(name: str) -> None:
    (case,) = [c for c in op_cases.CASES if c.id == name]
    function, batches = op_function(case, "float32")
    repeated = xn.cuda.capture(function)
    repeated(*batches[0])
    with pytest.warns(RuntimeWarning, match="cannot be recorded as a CUDA graph"):
        found = bits(repeated(*batches[0]))
    assert repeated.failed
    assert found == bits(function(*batches[0]))
