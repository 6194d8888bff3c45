"""What a loss and a metric keep of a captured step: the terms of the batch, also where the last one is smaller."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.following import X, Y, network

pytestmark = pytest.mark.cuda


class Terms:
    term = None

    def __call__(self, prediction, target):
        self.term = xn.losses.softmax_cross_entropy(prediction, target)
        return self.term + 0.1 * xn.ops.mean(prediction * prediction)


class Largest:
    better = "min"
    largest = None

    def __call__(self, prediction, target):
        self.largest = xn.ops.max(prediction)
        return self.largest


class Logs(xn.Callback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, trainer):
        kept = trainer.loss.term, trainer.metrics["Largest"].largest
        self.seen.append([float(xn.to_numpy(getattr(value, "array", value))) for value in kept])


@pytest.mark.parametrize("size", [8, 12, 20, 32])  # of 32 examples
def test_what_a_loss_keeps_is_that_of_the_batch(size, recordings):
    seen = []
    for capture in (False, True):
        logs = Logs()
        metrics = [Largest()]
        run = xn.Trainer(
            network(), loss=Terms(), optimizer=xn.optim.SGD(0.1), metrics=metrics, callbacks=[logs], capture=capture
        )
        run.fit((X, Y), epochs=6, batch_size=size, verbose=False)
        seen.append(logs.seen)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert recordings == [2 if len(X) % size else 1]
