"""Recomputed parts of a model with 16-bit floats see the same rounded parameters as the first time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.test_mixed import HALVES, X, Y, network


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("parts", [True, ["1"], ["4"], ["4.body"], ["0", "1", "2"]])
def test_the_bits_are_the_same(name, parts):
    ends = []
    for recompute in (False, parts):
        optimizer = xn.optim.Adam(0.01)
        trainer = xn.Trainer(network(name), loss="softmax_cross_entropy", optimizer=optimizer, recompute=recompute)
        trainer.fit((X, Y), epochs=2, batch_size=10, verbose=False)
        model: Any = trainer.model
        ends.append((model.flat_parameters.values, model[1].running_mean, optimizer.iterations))
    for one, other in zip(*ends):
        np.testing.assert_array_equal(one, other)
