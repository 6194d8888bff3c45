"""The in-place update rules for NumPy against the reference rules, in one block and in many."""

import numpy as np
import pytest

from xpnet.accel.numpy import rules as fast
from xpnet.ops.updates import rule as rules

CASES = [
    (rules.sgd, 0, {"learning_rate": 0.1}),
    (rules.momentum, 1, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": False}),
    (rules.momentum, 1, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
    (rules.adam, 2, {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-6, "step": 3}),
    (rules.adam, 2, {"learning_rate": 0.01, "beta1": 0.0, "beta2": 0.5, "epsilon": 1e-3, "step": 1}),
]


@pytest.mark.parametrize(("rule", "slots", "settings"), CASES)
@pytest.mark.parametrize("size", [0, 1, 1000, fast._BLOCK, 3 * fast._BLOCK + 17])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_update(rule, slots, settings, size, dtype):
    rng = np.random.default_rng(size)
    arrays = [rng.normal(size=size).astype(dtype) for _ in range(2 + slots)]
    if slots == 2:
        arrays[3] = np.abs(arrays[3])  # a mean of squares
    ours = [a.copy() for a in arrays]
    theirs = [a.copy() for a in arrays]
    rule.accelerated["numpy"](np, *ours, **settings)
    rule.reference(np, *theirs, **settings)
    for i in (0, *range(2, 2 + slots)):  # not the gradient
        # A few roundings in a different order, of values of about 1.
        np.testing.assert_allclose(ours[i], theirs[i], rtol=0, atol=40 * np.finfo(dtype).eps)
        assert ours[i].dtype == dtype
