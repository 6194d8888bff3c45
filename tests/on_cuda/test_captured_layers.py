"""Random layers, and layers that come and go, in captured fits and predictions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.following import EPOCHS, At, Draws, X, assert_alike, network, outcome
from xpnet.layers.hooks import wrapped

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("where", ["host", "device"])
def test_predictions_that_draw_random_numbers(where, recordings):
    def predicted(model, x):
        return [xn.to_numpy(model.predict(x)) for _ in range(5)], model.rng_counters()

    layers = [xn.Dense(8, "tanh"), Draws(), xn.Dense(3)]
    expected, counters = predicted(network(*copy.deepcopy(layers), device="cpu"), X)
    assert counters == {"1": 5}
    says = r"prediction cannot be recorded .* layer '1' \(Draws\) draws random numbers in evaluation mode"
    with pytest.warns(RuntimeWarning, match=says) as caught:
        found, now = predicted(network(*layers), X if where == "host" else xn.to_device(X, "cuda"))
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert now == counters
    assert recordings == [0]


@pytest.mark.filterwarnings("ignore:prediction cannot be recorded")
def test_predictions_that_draw_random_numbers_in_a_fit(recordings):
    def make(capture):
        act = At(lambda trainer: [trainer.model.predict(X[:8]) for _ in range(3)])
        model = network(xn.Dense(8, "tanh"), Draws(), xn.Dropout(0.5), xn.Dense(3))
        settings: Any = {"optimizer": xn.optim.SGD(0.1), "callbacks": [act]}
        return xn.Trainer(model, loss="softmax_cross_entropy", capture=capture, **settings)

    expected = outcome(make(False), epochs=2)
    assert outcome(make(True), epochs=2) == expected
    assert recordings == [1]
    assert expected[-1] == {"1": 2 * (4 + 3), "2": 2 * 4}


def test_a_copy_of_a_model_in_a_fit_has_its_counters_on_the_host(recordings):
    copies: Any = {True: [], False: []}

    def make(capture):
        act = At(lambda trainer: copies[capture].append(copy.deepcopy(trainer.model)))
        settings: Any = {"optimizer": xn.optim.SGD(0.1), "callbacks": [act]}
        return xn.Trainer(network(), loss="softmax_cross_entropy", capture=capture, **settings)

    def further(model, device):
        run = xn.Trainer(model.to(device), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
        return outcome(run, epochs=2)

    assert_alike(make, recordings, 1)
    for found, expected in zip(copies[True], copies[False], strict=True):
        assert all(module.device_counter is None for module in found.modules())
        assert found.rng_counters() == expected.rng_counters()
        assert further(copy.deepcopy(found), "cpu") == further(copy.deepcopy(expected), "cpu")
        assert further(found, "cuda") == further(expected, "cuda")
    assert copies[True][-1].rng_counters() == {"1": 12 + 8}


def there_and_back(trainer):
    trainer.model.to("cpu")
    trainer.model.predict(X)
    trainer.model.to("cuda")


def observed(trainer):
    with wrapped(trainer.model, lambda layer, forward, inputs, keywords: forward(*inputs, **keywords)), xn.no_grad():
        trainer.model(xn.to_device(X, "cuda"))


def new_dropout(trainer):
    if trainer.epoch == 2:
        trainer.model.drop = xn.Dropout(0.2)


def other_layer(trainer):
    """Take a random layer out of the model, which others may use then."""
    if trainer.epoch == 2:
        trainer.taken = trainer.model.drop
        trainer.model.drop = xn.Flatten()


def added(trainer):
    if trainer.epoch == 2:
        trainer.model.more = xn.Sequential([xn.Dropout(0.3), xn.Dropout(0.3)])


class Net(xn.Module):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.first, self.drop, self.more, self.last = xn.Dense(8, "tanh"), xn.Dropout(0.5), None, xn.Dense(3)

    def forward(self, x):
        y = self.drop(self.first(x))
        return self.last(y if self.more is None else self.more(y))


@pytest.mark.parametrize(
    ("act", "recorded"), [(there_and_back, 4), (observed, EPOCHS), (new_dropout, 2), (other_layer, 2), (added, 2)]
)
def test_the_random_layers_of_a_model_that_changes(act, recorded, recordings):
    trainers: Any = {}

    def make(capture):
        settings: Any = {"optimizer": xn.optim.SGD(0.1), "callbacks": [At(act)]}
        trainers[capture] = xn.Trainer(Net(device="cuda"), loss="softmax_cross_entropy", capture=capture, **settings)
        return trainers[capture]

    assert_alike(make, recordings, recorded)
    if act is other_layer:
        taken = [trainers[capture].taken for capture in (True, False)]
        assert [layer.counter for layer in taken] == [8, 8]
        assert taken[0].device_counter is None


class Fixed(xn.Module):
    """Takes batches of one size only."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.first, self.last = xn.Dense(8, "tanh"), xn.Dense(3)

    def forward(self, x):
        y = xn.ops.reshape(self.first(x), (4, 2, 8))
        return self.last(xn.ops.reshape(y, (8, 8)))


class Unbuilt(Fixed):
    """Draws and normalises in evaluation, too."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.draws, self.norm = Draws(), xn.BatchNorm()

    def forward(self, x):
        return self.last(self.norm(self.draws(self.first(x))))


@pytest.mark.parametrize("kind", [Fixed, Unbuilt])
@pytest.mark.parametrize("optimizer", [lambda: xn.optim.Adam(0.05), lambda: xn.optim.RMSprop(0.05)])
def test_the_first_batch_creates_the_parameters(kind, optimizer, recordings):
    def make(capture):
        model = kind(device="cuda")
        return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer(), capture=capture)

    assert_alike(make, recordings, 1)
