"""Models beside the trained one in a step: their gradients, weights that move, and predictions."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.alike import assert_alike, cross_entropy, fit, network, number, on
from tests.on_cuda.following import X

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("schedule")]


class Learnt(xn.Module):
    def __init__(self, device):
        super().__init__(device=device)
        self.log = xn.Parameter(on(device, np.zeros(1, np.float32)))

    def forward(self, prediction, target):
        return cross_entropy(prediction, target) * xn.ops.exp(-self.log).reshape(()) + xn.ops.sum(self.log)


def test_gradients_of_other_parameters(recordings):
    def values(device, capture):
        loss, optimizer = Learnt(device), xn.optim.SGD(0.1)
        _, found = fit(device, capture, loss=loss, act=lambda trainer: optimizer.step([loss.log]))
        return [*found, number(loss.log.array[0])]

    says = r"it leaves a gradient in Parameter\(log, \(1,\), float32\), which is no parameter of the trained model.* freeze"
    assert_alike(values, recordings, 0, says)


def held_in_a_list(critic):
    class Loss:
        def __init__(self):
            self.critics = [critic]

        def __call__(self, fake, target):
            return xn.ops.mean(xn.ops.softplus(-self.critics[0](fake)))

    return Loss()


critics: dict[str, Any] = {}


def in_a_global(critic):
    critics["now"] = critic
    return lambda fake, target: xn.ops.mean(xn.ops.softplus(-critics["now"](fake)))


HOLDERS: dict[str, Any] = {
    "closure": lambda critic: lambda fake, target: xn.ops.mean(xn.ops.softplus(-critic(fake))),
    "list": held_in_a_list,
    "global": in_a_global,
}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_weights_that_an_update_moves(holder, dtype, frozen, recordings):
    """The critic's first update, after the step was recorded, puts its weights into one flat array."""

    def values(device, capture):
        generator = network(device, 2)
        critic = xn.Sequential([xn.Dense(8, "relu"), xn.Dense(1)], input_shape=(2,), device=device, seed=2, dtype=dtype)
        optimizer, x, real = xn.optim.SGD(0.5), on(device, X), on(device, X[:, :2])

        def train_critic(trainer):
            if trainer.batch != 3:
                return
            critic.unfreeze()
            critic.zero_grad()
            with xn.no_grad():
                fake = generator(x)
            score = critic(fake)
            loss = xn.ops.mean(xn.ops.softplus(-critic(real))) + xn.ops.mean(xn.ops.softplus(score))
            loss.backward()
            optimizer.step(critic)
            if frozen:
                critic.freeze()

        if frozen:
            critic.freeze()
        loss = HOLDERS[holder](critic)
        run, found = fit(device, capture, generator, loss=loss, act=train_critic)
        return [*found, *map(number, run.model.layers[1].bias.array)]

    if frozen:
        assert_alike(values, recordings, 4)
    else:
        assert_alike(values, recordings, 0, "it leaves a gradient in Parameter")


def test_a_prediction_through_weights_that_a_training_moves():
    def values(device):
        encoder, x = network(device, 4, seed=4), on(device, X)

        class Head(xn.Module):
            def __init__(self, **settings):
                super().__init__(**settings)
                self.out = xn.Dense(2)

            def forward(self, x):
                return self.out(encoder(x))

        model = Head(device=device, seed=1)
        for _ in range(4):
            model.predict(x)
        run = xn.Trainer(encoder, loss="mean_squared_error", optimizer=xn.optim.SGD(0.1))
        run.fit((X, np.ones((32, 4), np.float32)), epochs=2, batch_size=8, verbose=False)
        return [xn.to_numpy(model.predict(x)) for _ in range(3)]

    for found, expected in zip(values("cuda"), values("cpu"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_function_of_ones_own_through_weights_that_move():
    model, x = network("cuda"), on("cuda", X)

    @xn.cuda.capture
    def forward(x):
        return model(x).array

    for _ in range(3):
        before = xn.to_numpy(forward(x))
    model.flat_parameters.values[...] *= 2
    for _ in range(3):
        found = xn.to_numpy(forward(x))
        np.testing.assert_array_equal(found, xn.to_numpy(model(x).array))
    assert not np.array_equal(found, before)


@pytest.mark.parametrize("captured", [False, True])
def test_predictions_within_a_step(captured, recordings):
    """Of a teacher: a part of the step's recording, with recordings of their own outside of it."""

    def values(device, capture):
        teacher = network(device, seed=7)

        def loss(prediction, target):
            error = prediction - teach(on(device, X[:8]) if device == "cpu" else x)
            return cross_entropy(prediction, target) + xn.ops.mean(error * error)

        x = on(device, X[:8])
        teach: Any = xn.cuda.capture(teacher.predict) if captured and device == "cuda" else teacher.predict
        found = fit(device, capture, loss=loss)[1]
        recorded = recordings[0]
        for _ in range(3):
            teacher.predict(x)
        if device == "cuda":
            assert recordings[0] - recorded == (0 if captured and not capture else 1) or not capture
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        expected, plain, found = values("cpu", True), values("cuda", False), values("cuda", True)
    assert found == plain
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
