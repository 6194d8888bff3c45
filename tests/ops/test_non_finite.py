"""Infinities and NaNs: each reaches what is computed from it, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import op_cases
from tests.cases import Case, Input
from tests.op_contract import differentiable, evaluate, matrix, outputs_of, running, weights_for
from xpnet import ops
from xpnet.ops.registry import registry

VALUES = (np.nan, np.inf, -np.inf)


def is_data(one: Any) -> bool:
    return isinstance(one, Input) and one.kind not in ("integers", "booleans")


def spoiled(array: np.ndarray, value: float, random: np.random.Generator) -> np.ndarray:
    """Return a copy with the value in a random place."""
    array = np.array(array)
    array.reshape(-1)[random.integers(array.size)] = value
    return array


def kinds(array: np.ndarray, exact: bool) -> np.ndarray:
    """Return for each element 0 if it is finite, else 1 for an infinity, -1 for a negative one, 2 for NaN; 2 unless `exact`."""
    found = np.where(np.isnan(array), 2, np.where(np.isinf(array), np.sign(np.nan_to_num(array.real)), 0))
    return found if exact else np.where(found != 0, 2, 0)


def assert_same_places(found: Any, expected: Any, exact: bool = True) -> None:
    """Assert infinities and NaNs in the same places, and close numbers everywhere else."""
    if expected is None or np.asarray(expected).dtype.kind not in "fc":
        return
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_array_equal(kinds(found, exact), kinds(expected, exact))
    finite = np.isfinite(expected)
    scale = max(1.0, float(np.abs(expected[finite]).max(initial=0)))
    np.testing.assert_allclose(found[finite], expected[finite], rtol=0, atol=1e-9 * scale)


CASES = [c for c in op_cases.CASES if any(map(is_data, c.inputs))]
MATRIX = [made for made in matrix(CASES) if made.values[1] != "reference"]

# The gradient of a sum over a whole channel or row: which of its terms meet first decides between an infinity and inf - inf.
LOOSE = {"batch_norm_with_statistics", "batch_norm_training", "batch_norm", "softmax_cross_entropy"}


@pytest.mark.parametrize(("case", "implementation"), MATRIX)
def test_every_implementation_agrees_with_the_reference(case: Case, implementation: str):
    """Values and gradients, for one element of an input, or of the gradient that comes in, that is infinite or NaN."""
    random, exact = np.random.default_rng(0), case.name not in LOOSE
    places: list[int | None] = [n for n, one in enumerate(case.inputs) if is_data(one) and np.prod(one.shape)]
    if differentiable(case):
        places.append(None)
    with np.errstate(all="ignore"):
        for value in VALUES:
            for place in places:
                arrays, weights = case.arrays(), None
                if place is None:
                    weights = weights_for(outputs_of(case.call(arrays, case.options())))
                    if not weights or not weights[0].size:
                        continue
                    weights[0] = spoiled(weights[0], value, random)
                else:
                    arrays[place] = spoiled(arrays[place], value, random)
                with running("reference"):
                    expected = evaluate(case, arrays, case.options(), weights)
                with running(implementation) as where:
                    found = evaluate(case, arrays, case.options(), weights, where)
                for one, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
                    assert_same_places(one, other, exact)


def test_rows_are_added_to_their_own_place_only():
    rows, index = np.ones((6, 2)), np.array([0, 1, 1, 2, 9, 4])
    rows[2], rows[3, 0], rows[4], rows[5, 1] = (np.inf, -np.inf), np.nan, np.nan, -np.inf
    expected = [[1, 1], [np.inf, -np.inf], [np.nan, 1], [0, 0], [1, -np.inf]]
    np.testing.assert_array_equal(ops.scatter_rows(rows, index, size=5), expected)
    rows[1, 0] = -np.inf
    assert np.isnan(ops.scatter_rows(rows, index, size=5)[1, 0])


def test_complex_rows_are_added_to_their_own_place_only():
    rows = np.array([[1 + 1j], [complex(np.nan, 2)], [3j]])
    found = ops.scatter_rows(rows, np.array([0, 1, 0]), size=3)
    np.testing.assert_array_equal(np.isnan(found[:, 0]), [False, True, False])
    assert found[0, 0] == 1 + 4j
    assert found[2, 0] == 0


@pytest.mark.parametrize("value", VALUES)
def test_gradients_of_embedding_and_indexing_stay_in_their_row(value: float):
    dy = np.ones((4, 3), np.float32)
    dy[1, 2] = value
    table = registry["embedding"].run(np, (np.array([3, 0, 3, 5]), np.ones((6, 3), np.float32)), {}, True)
    gradient = registry["embedding"].gradients(table[2], np, dy, table[1], {}, (False, True))[1]
    expected = np.zeros((6, 3), np.float32)
    np.add.at(expected, [3, 0, 3, 5], dy)
    np.testing.assert_array_equal(gradient, expected)


def test_a_nan_stays_one_in_hard_sigmoid():
    np.testing.assert_array_equal(ops.hard_sigmoid(np.array([np.nan, np.inf, -np.inf, 0.0])), [np.nan, 1, 0, 0.5])


def test_lp_pooling_of_infinities():
    x = np.ones((1, 2, 4, 1))
    x[0, 0, 0], x[0, 1, 3] = -np.inf, np.nan
    np.testing.assert_array_equal(ops.lp_pool2d(x, 2)[0, 0, :, 0], [np.inf, np.nan])
