"""Gradients that a program leaves in the parameters between the steps of a captured fit: the next step adds to them."""

from __future__ import annotations

import pytest

import xpnet as xn
from tests.on_cuda.following import X, Y, assert_alike, network

pytestmark = pytest.mark.cuda


class Leaves(xn.Callback):
    """Leave the gradients of another batch, or assigned ones, after some steps."""

    def __init__(self, steps, assigned):
        self.steps = steps
        self.assigned = assigned

    def on_step_end(self, trainer):
        if trainer.iteration not in self.steps:
            return
        model, xp = trainer.model, trainer.model.context.device.xp
        if self.assigned:
            for parameter in model.parameters().values():
                parameter.grad = xp.ones_like(parameter.array)
        else:
            trainer.loss(model(xp.asarray(X[:8])), xp.asarray(Y[:8])).backward()


@pytest.mark.parametrize("optimizer", [lambda: xn.optim.SGD(0.1), lambda: xn.optim.Adam(0.01), lambda: xn.optim.RMSprop(0.01)])
@pytest.mark.parametrize("assigned", [False, True])
@pytest.mark.parametrize("steps", [(1,), (2,), (1, 2), (5,), range(100), range(0, 100, 4)])
def test_gradients_that_are_left_are_added_to(steps, assigned, optimizer, recordings):
    def make(capture):
        layers = xn.Dense(8, "tanh"), xn.Dense(3)
        callbacks = [Leaves(steps, assigned)]
        return xn.Trainer(
            network(*layers), loss="softmax_cross_entropy", optimizer=optimizer(), callbacks=callbacks, capture=capture
        )

    assert_alike(make, recordings, 0 if steps == range(100) else 1)
