"""Optimizers and loops of a user's own, and what is assigned to an optimizer, in captured fits."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.following import DIFFERENT, EPOCHS, VALUES, At, X, Y, assert_alike, bits, network, outcome
from xpnet.compiled.dependencies import update_is_declared
from xpnet.optim.optimizer import Optimizer

pytestmark = pytest.mark.cuda


class Half(xn.optim.SGD):
    def update(self, w, g, learning_rate):
        super().update(w, g, learning_rate * 0.5)


class Warm(xn.optim.Adam):
    def update(self, w, g, learning_rate, **settings):
        if self.iterations <= 6:
            g *= 0.1
        super().update(w, g, learning_rate, **settings)


class Lookahead(xn.optim.SGD):
    calls = 0

    def step(self, target):
        super().step(target)
        values = self.bind(target).values
        if self.calls == 0:
            self.slow = values.copy()
        self.calls += 1
        if self.calls % 3 == 0:
            self.slow += 0.5 * (values - self.slow)
            values[...] = self.slow


class Decaying(xn.optim.SGD):
    def decay(self, flat, learning_rate):
        flat.gradients[: flat.decayed] += 0.1 / (1 + self.iterations) * flat.values[: flat.decayed]

    @property
    def rule(self):
        return None

    def update(self, w, g, learning_rate):
        w -= learning_rate * g


class Noisy(Warm):
    """Of a class that overrides."""


@pytest.mark.parametrize("kind", [Half, Warm, Lookahead, Decaying, Noisy])
def test_an_optimizer_that_overrides_is_updated_behind_the_replay(kind, recordings):
    def make(capture):
        optimizer = kind(0.1, weight_decay=0.1)
        return xn.Trainer(network(), loss="softmax_cross_entropy", optimizer=optimizer, capture=capture)

    assert not update_is_declared(kind(0.1))
    assert_alike(make, recordings, 1)


def optimizers():
    names = [name for name in xn.optim.__all__ if isinstance(getattr(xn.optim, name), type)]
    kinds = [getattr(xn.optim, name) for name in names]
    kinds = [kind for kind in kinds if issubclass(kind, Optimizer) and kind is not Optimizer]
    return [kind for kind in kinds if not issubclass(kind, xn.optim.FullBatch)]  # which make no steps


@pytest.mark.parametrize("kind", optimizers())
def test_every_optimizer_is_recorded_as_its_class_says(kind):
    assert update_is_declared(kind(0.1)) is kind(0.1).capturable

    class Same(kind):  # type: ignore[valid-type, misc]
        """Overrides nothing that an update calls."""

        def __init__(self, rate=0.2):
            super().__init__(rate)

        def describe(self):
            return "another method"

    assert update_is_declared(Same()) is kind(0.1).capturable


METHODS = ["update", "step", "decay", "bind", "rule", "initial_slot", "decoupled"]


@pytest.mark.parametrize("name", METHODS)
def test_a_subclass_of_an_optimizer_says_for_itself_whether_it_is_capturable(name):
    inherited = type("Inherited", (xn.optim.Adam,), {name: getattr(xn.optim.Adam, name)})
    declared = type("Declared", (xn.optim.Adam,), {name: getattr(xn.optim.Adam, name), "capturable": True})
    assert not update_is_declared(inherited(0.1))
    assert update_is_declared(declared(0.1))
    if callable(getattr(xn.optim.Adam, name)):
        instance = xn.optim.Adam(0.1)
        setattr(instance, name, getattr(instance, name))
        assert not update_is_declared(instance)


def test_a_method_of_the_optimizer_that_is_wrapped_in_a_fit(recordings):
    calls: Any = {}

    def make(capture):
        def act(trainer):
            if trainer.epoch == 1:
                step, seen = trainer.optimizer.step, calls.setdefault(capture, [])
                trainer.optimizer.step = lambda target: (seen.append(1), step(target))
            if trainer.epoch == 3:
                del trainer.optimizer.step

        optimizer = xn.optim.Adam(0.05)
        return xn.Trainer(network(), loss="softmax_cross_entropy", optimizer=optimizer, callbacks=[At(act)], capture=capture)

    assert_alike(make, recordings, 2)
    assert len(calls[True]) == len(calls[False]) == 8


def begin_again(trainer):
    trainer.optimizer.iterations = 0


def kept_state(states):
    def act(trainer):
        if trainer.epoch == 1:
            states.append(trainer.optimizer.state())
        if trainer.epoch == 3:
            trainer.optimizer.load_state(states[-1])

    return act


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("act", "recorded"), [(lambda: begin_again, 1), (lambda: kept_state([]), 2)])
@pytest.mark.parametrize("rate", [0.05, lambda step: 0.1 * 0.9**step])
def test_the_steps_of_the_optimizer_are_those_of_the_host(act, recorded, rate, dtype, recordings):
    def make(capture):
        model = network(dtype=dtype)
        # Its first gradients overflow: updates are skipped on the device.
        scale: Any = {"loss_scale": xn.optim.LossScale(2.0**30)} if dtype == "float16" else {}
        settings: Any = {"loss": "softmax_cross_entropy", "optimizer": xn.optim.Adam(rate), "callbacks": [At(act())]}
        return xn.Trainer(model, capture=capture, **settings, **scale)

    found = assert_alike(make, recordings, recorded)
    assert (found[4] > 0) is (dtype == "float16")


def test_a_copy_of_the_optimizer_in_a_fit(recordings):
    copies: Any = {True: [], False: []}

    def make(capture):
        act = At(lambda trainer: copies[capture].append(copy.deepcopy(trainer.optimizer)))
        optimizer = xn.optim.Adam(0.05)
        return xn.Trainer(network(), loss="softmax_cross_entropy", optimizer=optimizer, callbacks=[act], capture=capture)

    assert_alike(make, recordings, 1)
    for found, expected in list(zip(copies[True], copies[False], strict=True))[1:]:
        assert found.clock is None
        assert found.iterations == expected.iterations
        assert bits(found.slots) == bits(expected.slots)


def test_a_step_of_ones_own_between_captured_ones(recordings):
    def make(capture):
        def act(trainer):
            x, y = (xn.to_device(a[:8], "cuda") for a in (X, Y))
            trainer.step(x, y)

        settings: Any = {"optimizer": xn.optim.Adam(lambda step: 0.1 * 0.9**step), "callbacks": [At(act)]}
        return xn.Trainer(network(), loss="softmax_cross_entropy", capture=capture, **settings)

    assert_alike(make, recordings, 1)


def scaled_update(self):
    self.model.flat_parameters.collect()
    self.model.flat_parameters.gradients[...] *= float(self.factor)
    xn.Trainer.update(self)


def scaled_input(self, x, y):
    return xn.Trainer.forward_backward(self, x * float(self.factor), y)


def scaled_metric(self, prediction, target):
    return {name: value * float(self.factor) for name, value in xn.Trainer.measure(self, prediction, target).items()}


def scaled_step(self, x, y):
    return xn.Trainer._train(self, x * float(self.factor), y)


LOOPS: Any = {
    "update": (scaled_update, 1),
    "forward_backward": (scaled_input, DIFFERENT),
    "measure": (scaled_metric, DIFFERENT),
    "_train": (scaled_step, 0),
}


@pytest.mark.parametrize("place", ["class", "instance"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_method_of_the_loop_that_is_overridden(name, place, recordings):
    function, recorded = LOOPS[name]

    def make(capture):
        kind = type("Own", (xn.Trainer,), {"factor": 1.0, **({name: function} if place == "class" else {})})
        act = At(lambda trainer: setattr(trainer, "factor", np.float64(VALUES[trainer.epoch])))
        settings: Any = {"optimizer": xn.optim.SGD(0.1), "metrics": ["accuracy"], "callbacks": [act]}
        run = kind(network(), loss="softmax_cross_entropy", capture=capture, **settings)
        if place == "instance":
            setattr(run, name, functools.partial(function, run))
        return run

    assert_alike(make, recordings, recorded)


@pytest.mark.parametrize(("name", "recorded"), [("forward_backward", 2), ("measure", 2), ("update", 2)])
def test_a_method_of_the_loop_that_is_replaced_in_a_fit(name, recorded, recordings):
    def make(capture):
        def act(trainer):
            if trainer.epoch == 2:
                setattr(trainer, name, functools.partial(LOOPS[name][0], trainer))

        settings: Any = {"optimizer": xn.optim.SGD(0.1), "metrics": ["accuracy"], "callbacks": [At(act)]}
        run: Any = xn.Trainer(network(), loss="softmax_cross_entropy", capture=capture, **settings)
        run.factor = 0.5
        return run

    assert_alike(make, recordings, recorded)


def test_a_callback_on_gradients_that_is_set_on_the_instance(recordings):
    calls = []

    def make(capture):
        def halve(trainer):
            calls.append(1)
            trainer.model.flat_parameters.collect()
            trainer.model.flat_parameters.gradients[...] *= 0.5

        callback: Any = xn.Callback()
        callback.on_before_optimizer_step = halve
        settings: Any = {"optimizer": xn.optim.SGD(0.1), "callbacks": [callback]}
        return xn.Trainer(network(), loss="softmax_cross_entropy", capture=capture, **settings)

    assert_alike(make, recordings, 1)
    assert len(calls) == 2 * EPOCHS * 4


# -- refused recordings --


class Assigns(xn.Module):
    def forward(self, x):
        self.seen = float(len(x))
        return x


class CountsItself:
    def __init__(self):
        self.calls = 0

    def __call__(self, prediction, target):
        self.calls += 1
        return xn.losses.softmax_cross_entropy(prediction, target)


def reads(prediction, target):
    """A metric that reads the device."""
    return float(xn.ops.mean(prediction))


REFUSED: Any = {
    "layer": lambda: {"layer": Assigns()},
    "loss": lambda: {"loss": CountsItself()},
    "metric": lambda: {"metrics": [reads]},
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("why", REFUSED)
def test_a_refused_recording_counts_no_step(why, dtype, recordings):
    """The update within it was not executed."""

    def make(capture):
        parts = {"loss": "softmax_cross_entropy", **REFUSED[why]()}
        layers = [xn.Dense(8, "tanh"), parts.pop("layer", xn.Dropout(0.5)), xn.Dense(3)]
        optimizer = xn.optim.Adam(lambda step: 0.1 * 0.9**step)
        return xn.Trainer(network(*layers, dtype=dtype), optimizer=optimizer, capture=capture, **parts)

    expected = outcome(make(False))
    with pytest.warns(RuntimeWarning, match="the training step cannot be recorded as a CUDA graph"):
        found = outcome(make(True))
    assert found == expected
    assert recordings == [0]


@pytest.mark.parametrize("settings", [{"norm": 1.0}, {"value": 0.01}])
def test_clipping_is_recorded_with_its_present_limit(settings, recordings):
    (name,) = settings

    def make(capture):
        clip = xn.training.ClipGradients(**settings)

        def act(trainer):
            setattr(clip, name, VALUES[trainer.epoch] / 100)

        callbacks = [At(act), clip]
        run = xn.Trainer(
            network(), loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.05), callbacks=callbacks, capture=capture
        )
        assert not run.watches_gradients
        assert run.recorded_callbacks == [clip]
        return run

    assert_alike(make, recordings, DIFFERENT)


class Halves(xn.training.ClipGradients):
    def on_before_optimizer_step(self, trainer):
        super().on_before_optimizer_step(trainer)
        trainer.model.flat_parameters.gradients *= 0.5 if trainer.iteration % 2 else 1.0


class Declared(xn.Callback):
    capturable = True

    def on_before_optimizer_step(self, trainer):
        flat = trainer.model.flat_parameters
        flat.collect()
        flat.gradients *= 0.5


class Inherits(Declared):
    """Overrides nothing."""


def test_a_callback_says_for_itself_whether_it_is_recorded(recordings):
    def make(kind, capture, **settings):
        optimizer = xn.optim.SGD(0.5)
        return xn.Trainer(
            network(), loss="softmax_cross_entropy", optimizer=optimizer, callbacks=[kind(**settings)], capture=capture
        )

    assert make(Halves, True, norm=0.1).watches_gradients
    assert_alike(lambda capture: make(Halves, capture, norm=0.1), recordings, 1)
    assert not make(Inherits, True).watches_gradients
    recordings[0] = 0
    found = assert_alike(lambda capture: make(Inherits, capture), recordings, 1)
    assert found != outcome(xn.Trainer(network(), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.5)))
    instance = Inherits()
    instance.on_before_optimizer_step = lambda trainer: None  # type: ignore[method-assign]
    assert xn.Trainer(network(), loss="mae", optimizer=xn.optim.SGD(0.5), callbacks=[instance]).watches_gradients
