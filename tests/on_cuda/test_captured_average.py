"""The moving average of a float16 model, whose skipped updates only the device knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.following import X, Y, network

pytestmark = pytest.mark.cuda


class Reads(xn.Callback):
    """Read the optimizer's state after every step, as a checkpoint does."""

    def on_step_end(self, trainer):
        trainer.optimizer.state()


@pytest.mark.parametrize("capture", [False, True])
def test_reading_the_optimizers_state_does_not_change_the_average(capture):
    averages = []
    for others in ((), (Reads(),)):
        average = xn.training.ExponentialMovingAverage(0.9, keep=False)
        model = network(dtype="float16")
        scale = xn.optim.LossScale(2.0**16, growth_interval=5)
        settings: dict[str, Any] = {"loss": "softmax_cross_entropy", "capture": capture, "loss_scale": scale}
        run = xn.Trainer(model, optimizer=xn.optim.Adam(0.01), callbacks=[*others, average], **settings)
        run.fit((X * 8, Y), epochs=6, batch_size=8, verbose=False)
        assert run.optimizer.skipped > 0
        averages.append(xn.to_numpy(average.average))
    np.testing.assert_array_equal(averages[0], averages[1])
