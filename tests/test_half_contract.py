"""The contract of every operation for 16-bit floats: computed in float32 or wider, rounded once.

Results are compared with the operation in float64 on the same rounded inputs, for the cases of the contract.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import op_cases, op_contract
from tests.cases import Case
from tests.op_contract import evaluate, running, weights_for
from xpnet.backend import dtype_named
from xpnet.ops.registry import registry

DIGITS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The largest relative error of rounding to nearest: half of the last digit."""

KINDS = [pytest.param("float16"), pytest.param("bfloat16", marks=pytest.mark.bfloat16)]

# What is computed in two parts is rounded between them on CuPy: then the rounding decides which is the largest of a window.
IN_PARTS = {"conv2d_max_pool2d"}
CASES = op_contract.matrix(op_cases.CASES)
CASES += [  # also without an acceleration for CuPy, which promotes dtypes by rules of its own
    pytest.param(case, "cupy", id=f"{case.id}-cupy", marks=pytest.mark.cuda)
    for case in op_cases.CASES
    if "cupy" not in op_contract.implementations(case) and case.name not in IN_PARTS
]


def rounded(arrays: list[Any], kind: Any) -> list[Any]:
    with np.errstate(over="ignore"):
        return [a.astype(kind) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arrays]


def wide(arrays: list[Any]) -> list[Any]:
    return [np.asarray(a, np.float64) if isinstance(a, np.ndarray) and a.dtype.kind in "fV" else a for a in arrays]


def assert_one_rounding(found: Any, expected: Any, digits: float, slack: float) -> None:
    """Assert that each element is off by one rounding at most, plus `slack` of the largest one for rounding in float32."""
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    error = np.abs(found.astype(np.float64) - expected)
    worst = error - (1.001 * digits * np.abs(expected) + slack * scale)
    assert np.all(worst <= 0), f"off by {error.max()} of {scale}"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("case", "implementation"), CASES)
def test_values_and_gradients(case: Case, implementation: str, name: str):
    kind = dtype_named(np, name)
    inputs = rounded(case.arrays(), kind)
    if any(isinstance(i, (int, float)) for i in case.inputs[:1]):
        pytest.skip("the first input is a Python number: the array library computes, and rounds once itself")
    options = case.options(dtype="float32")
    with running("reference"):
        outputs = op_contract.outputs_of(case.call(wide(inputs), options))
        # The gradients at the outputs are rounded as well.
        weights = [np.asarray(w.astype(kind), np.float64) for w in weights_for(outputs)]
        outputs, gradients = evaluate(case, wide(inputs), options, weights)
    with running(implementation) as place:
        found = op_contract.computed(case, inputs, options, place)
        starts = [w.astype(y.dtype) for w, y in zip(weights, [y for y in found if y.dtype.kind not in "ib"])]
        found, found_gradients = evaluate(case, inputs, options, starts, place)
    # Kernels keep an activation's rounded output for the backward pass; the references keep the unrounded one.
    kernels = implementation == "cupy"
    composite = case.name not in registry
    for number, (one, other) in enumerate(zip(found, outputs, strict=True)):
        if other.dtype.kind != "f":
            np.testing.assert_array_equal(one, other)
            continue
        statistic = number > 0 and case.name == "batch_norm_with_statistics"
        assert one.dtype == (np.float32 if statistic else kind)
        assert_one_rounding(one, other, DIGITS[name], 2 * DIGITS[name] if kernels or composite else 2e-6)
    for one, other in zip(found_gradients, gradients, strict=True):
        if other is not None:
            assert one.dtype == kind
            several = len(starts) > 1 or kernels or composite
            assert_one_rounding(one, other, DIGITS[name], 16 * DIGITS[name] if several else 1e-5)
