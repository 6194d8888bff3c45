"""Settings of losses, metrics, penalties and of the package that change between captured steps and predictions."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.following import DIFFERENT, EPOCHS, VALUES, At, X, assert_alike, network, outcome

pytestmark = pytest.mark.cuda


class Loss:
    """A user's loss with a setting."""

    beta = 1.0

    def __init__(self):
        self.beta = 1.0

    def __call__(self, prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(np.sum(self.beta))

    def method(self, prediction, target):
        return self(prediction, target)

    def of_three(self, scale, prediction, target):
        return self(prediction, target) * scale


class Slotted:
    """The like without a __dict__."""

    __slots__ = ("beta",)

    def __init__(self):
        self.beta = 1.0

    def __call__(self, prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(self.beta)


class OfTheClass:
    """The like with a setting of the class."""

    beta = 1.0

    def __call__(self, prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(type(self).beta)


class Holder(xn.Module):
    """A model with a loss of its own."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.inner, self.beta = xn.Dense(3), 1.0

    def forward(self, x):
        return self.inner(x)

    def loss(self, prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(self.beta)


def function_loss() -> Any:
    def scaled(prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(scaled.beta)  # type: ignore[attr-defined]

    loss: Any = scaled
    loss.beta = 1.0
    return loss


def with_loss(make):
    """Return what makes (model, loss, the object with beta)."""

    def made():
        loss, owner = make()
        return network(), loss, owner

    return made


def partial_loss():
    owner = Loss()
    return functools.partial(owner.of_three, 2.0), owner


def method_loss():
    owner = Loss()
    return owner.method, owner


def of_the_class():
    OfTheClass.beta = 1.0
    return OfTheClass(), OfTheClass


def holder():
    model = Holder(device="cuda", seed=1)
    return model, model.loss, model


def itself(make):
    def made():
        owner = make()
        return owner, owner

    return with_loss(made)


LOSSES: Any = {
    "an attribute": itself(Loss),
    "of a function": itself(function_loss),
    "a slot": itself(Slotted),
    "of the class": with_loss(of_the_class),
    "of a bound method's object": with_loss(method_loss),
    "of a partial's object": with_loss(partial_loss),
    "of the model": holder,
}
NUMBERS: Any = {
    "float": float,
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "int64": lambda value: np.int64(8 * value),
    "0-d array": lambda value: np.asarray(value),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", LOSSES)
def test_a_setting_of_the_loss(kind, number, recordings):
    def make(capture):
        model, loss, owner = LOSSES[kind]()
        anneal = At(lambda trainer: setattr(owner, "beta", NUMBERS[number](VALUES[trainer.epoch])))
        return xn.Trainer(model, loss=loss, optimizer=xn.optim.SGD(0.1), callbacks=[anneal], capture=capture)

    # Assigning to a layer always counts, and so does another array; equal numbers are the same.
    again = number == "0-d array" or kind == "of the model"
    assert_alike(make, recordings, len(VALUES) if again else DIFFERENT)


@pytest.mark.parametrize("value", [(np.float32(0.5), 1), ((1, np.float64(0.25)), 0.5), np.float32(1.5)])
def test_a_tuple_with_a_numpy_number(value, recordings):
    class Sum(Loss):
        def __call__(self, prediction, target):
            flat = np.sum([np.sum(part) for part in self.beta]) if isinstance(self.beta, tuple) else self.beta
            return xn.losses.softmax_cross_entropy(prediction, target) * float(flat)

    def make(capture):
        def act(trainer):
            trainer.loss.beta = copy.deepcopy(value) if trainer.epoch else (np.float32(2.0),)

        return xn.Trainer(network(), loss=Sum(), optimizer=xn.optim.SGD(0.1), callbacks=[At(act)], capture=capture)

    assert_alike(make, recordings, 2)


SETTINGS = {
    "momentum": lambda trainer, value: setattr(trainer.optimizer, "momentum", value),
    "weight_decay": lambda trainer, value: setattr(trainer.optimizer, "weight_decay", value),
    "regularizer": lambda trainer, value: setattr(trainer.model.layers[0].kernel.regularizer, "strength", value),
    "constraint": lambda trainer, value: setattr(trainer.model.layers[0].kernel.constraint, "limit", value),
    "metric": lambda trainer, value: setattr(trainer.metrics["scaled"], "factor", value),
}


class Penalty:
    """A user's penalty."""

    strength = 0.1

    def __call__(self, parameter):
        return xn.ops.sum(parameter * parameter) * float(self.strength)


class Limit:
    """A user's constraint."""

    limit = 1.0

    def project(self, w):
        w *= float(self.limit)


class Scaled:
    """A user's metric."""

    __name__ = "scaled"
    factor = 1.0

    def __call__(self, prediction, target):
        return xn.metrics.accuracy(prediction, target) * float(self.factor)


@pytest.mark.parametrize("number", ["float", "float64", "float32"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_another_setting(setting, number, recordings):
    def make(capture):
        model = network()
        model.layers[0].kernel.regularizer, model.layers[0].kernel.constraint = Penalty(), Limit()
        act = At(lambda trainer: SETTINGS[setting](trainer, NUMBERS[number](VALUES[trainer.epoch] * 0.5)))
        optimizer = xn.optim.SGD(0.05, momentum=0.5, weight_decay=0.1)
        settings: Any = {"loss": "softmax_cross_entropy", "metrics": [Scaled()], "callbacks": [act]}
        return xn.Trainer(model, optimizer=optimizer, capture=capture, **settings)

    assert_alike(make, recordings, DIFFERENT)


def test_settings_of_the_package_in_a_fit(recordings):
    def act(trainer):
        if trainer.epoch == 1:
            xn.set_matmul_precision("tf32")
        if trainer.epoch == 2:
            xn.set_deterministic(True)
        if trainer.epoch == 3:
            xn.set_deterministic(False)
            xn.set_matmul_precision("float32")

    def make(capture):
        return xn.Trainer(
            network(), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), callbacks=[At(act)], capture=capture
        )

    assert_alike(make, recordings, 4)


def test_settings_of_the_package_in_predictions(recordings):
    model, x = network(), xn.to_device(X, "cuda")

    def predictions():
        return {xn.to_numpy(model.predict(x)).tobytes() for _ in range(3)}

    plain = predictions()
    try:
        xn.set_matmul_precision("tf32")
        with xn.no_grad():
            wanted = xn.to_numpy(model.eval()(x).array).tobytes()
        assert predictions() == {wanted} != plain
        assert recordings == [2]
        xn.set_deterministic(True)
        predictions()
        assert recordings == [3]
    finally:
        xn.set_deterministic(False)
        xn.set_matmul_precision("float32")
    assert predictions() == plain
    assert recordings == [4]


class Counting:
    """A loss with a warm-up that it counts itself."""

    def __init__(self):
        self.calls = 0

    def __call__(self, prediction, target):
        self.calls += 1
        return xn.losses.softmax_cross_entropy(prediction, target) * (1 / self.calls)


def test_a_loss_that_counts_its_calls_is_not_recorded_and_named(recordings):
    def make(capture):
        return xn.Trainer(network(), loss=Counting(), optimizer=xn.optim.SGD(0.1), capture=capture)

    expected, run = outcome(make(False)), make(True)
    with pytest.warns(RuntimeWarning, match=r"Counting assigns self.calls in its call, which a replay does not"):
        found = outcome(run)
    assert found == expected
    assert run.loss.calls == EPOCHS * 4
    assert recordings == [0]


def test_a_loss_that_keeps_its_terms_is_recorded(recordings):
    seen: Any = {}

    class Keeping:
        def __call__(self, prediction, target):
            self.terms = {"cross entropy": xn.losses.softmax_cross_entropy(prediction, target)}
            return self.terms["cross entropy"] * 2.0

    def make(capture):
        def act(trainer):
            if trainer.epoch:
                seen.setdefault(capture, []).append(float(trainer.loss.terms["cross entropy"].array))

        return xn.Trainer(network(), loss=Keeping(), optimizer=xn.optim.SGD(0.1), callbacks=[At(act)], capture=capture)

    assert_alike(make, recordings, 1)
    assert seen[True] == seen[False]


class Distance:
    """A loss with a model of its own."""

    def __init__(self, *layers):
        self.teacher = network(*layers)

    def __call__(self, prediction, target):
        return xn.losses.mean_squared_error(prediction, self.teacher(target))


TEACHER_CHANGES = {
    "mode": lambda teacher: teacher.eval(),
    "weights": lambda teacher: setattr(teacher.layers[0].kernel, "array", 2 * teacher.layers[0].kernel.array),
    "attribute": lambda teacher: setattr(teacher.layers[1], "slope", 0.7),
}


@pytest.mark.parametrize("change", TEACHER_CHANGES)
def test_a_model_that_the_loss_holds(change, recordings):
    def make(capture):
        def act(trainer):
            if trainer.epoch == 2:
                TEACHER_CHANGES[change](trainer.loss.teacher)

        loss = Distance(xn.Dense(4), xn.LeakyReLU(0.1), xn.BatchNorm(), xn.Dense(3))
        for parameter in loss.teacher.parameters().values():
            parameter.requires_grad = False
        return xn.Trainer(network(), loss=loss, optimizer=xn.optim.SGD(0.1), callbacks=[At(act)], capture=capture)

    assert_alike(make, recordings, 2, data=(X, X))


def test_random_layers_outside_the_model_are_not_recorded_and_named(recordings):
    def make(capture):
        return xn.Trainer(network(), loss=Distance(), optimizer=xn.optim.SGD(0.1), capture=capture)

    expected, run = outcome(make(False), data=(X, X)), make(True)
    says = r"layer '1' \(Dropout\) draws random numbers and is not a part of the trained model"
    with pytest.warns(RuntimeWarning, match=says):
        found = outcome(run, data=(X, X))
    assert found == expected
    assert recordings == [0]
