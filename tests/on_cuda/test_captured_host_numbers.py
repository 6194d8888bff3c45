"""Numbers of the host that change from step to step: those that code in a step uses, and the optimizer's."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.alike import assert_alike, cross_entropy, fit, network, on_call
from tests.on_cuda.following import X, Y

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("schedule")]


# -- numbers of the host --


class Annealed(xn.Trainer):
    def __init__(self, model, loss=None, **settings):
        super().__init__(model, loss=self.annealed, **settings)

    def annealed(self, prediction, target):
        return cross_entropy(prediction, target) + self.epoch / 4 * xn.ops.mean(prediction * prediction)


class AfterWarmUp(xn.Trainer):
    def measure(self, prediction, y):
        best = min(self.history.get("loss", [9.0]))
        return {**super().measure(prediction, y), "best": (prediction * 0).mean() + best}


class Tighter(xn.Trainer):
    """Is a constraint of its own."""

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        model.layers[0].kernel.constraint = self

    def project(self, w):
        w *= 1 / (1 + self.epoch)


@pytest.mark.parametrize("kind", [Annealed, AfterWarmUp, Tighter])
def test_what_uses_the_epoch_is_recorded_in_every_epoch(kind, recordings):
    """The first epoch finds out, and runs one step more launch by launch."""
    assert_alike(lambda device, capture: fit(device, capture, kind=kind)[1], recordings, 4)


class Counted(xn.Trainer):
    name = "iteration"

    def measure(self, prediction, y):
        value = getattr(self, self.name)
        return {**super().measure(prediction, y), "it": (prediction * 0).mean() + value}


@pytest.mark.parametrize("name", ["iteration", "batch", "pending", "last_loss"])
def test_what_uses_a_number_of_the_step_is_not_recorded(name, recordings):
    kind = type("Counted", (Counted,), {"name": name})

    def values(device, capture):
        run = kind(network(device), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), capture=capture)
        run.last_loss = 0.0
        run.fit((X, Y), epochs=3, batch_size=8, verbose=False)
        return run.history["it"]

    assert_alike(values, recordings, 0, rf"Counted uses self\.{name}, which changes on the host")


def reading_loss(prediction, target):
    loss = cross_entropy(prediction, target)
    return loss * (1 + float(xn.to_numpy(loss.array)))


def reading_metric(prediction, target):
    return float(xn.to_numpy(xn.metrics.accuracy(prediction, target)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("reading_loss", {"loss": reading_loss}),
        ("reading_metric", {"metrics": [reading_metric]}),
        ("<lambda>", {"metrics": {"mean": lambda prediction, target: xn.to_numpy(prediction).mean()}}),
    ],
)
def test_the_warning_names_the_function_that_reads_the_device(name, settings, recordings):
    says = rf"{name} \(test_captured_host_numbers.py, line \d+\) did what is not possible"
    assert_alike(lambda device, capture: fit(device, capture, **settings)[1], recordings, 0, says)


def test_ctrl_c_while_a_step_is_recorded(recordings):
    def loss(prediction, target):
        call("loss")
        return cross_entropy(prediction, target)

    call = on_call(lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 2 else None)
    run, _ = fit("cuda", True, loss=loss)
    assert run.history.interrupted
    assert run.iteration == 2
    assert recordings == [1]


def test_a_loss_that_reaches_the_trainer_from_outside(recordings):
    def values(device, capture):
        def loss(prediction, target):
            return cross_entropy(prediction, target) * (1 / (1 + held[0].iteration))

        held = [xn.Trainer(network(device), loss=loss, optimizer=xn.optim.SGD(0.1), capture=capture)]
        return held[0].fit((X, Y), epochs=3, batch_size=8, verbose=False)["loss"]

    assert_alike(values, recordings, 0, r"Trainer uses self\.iteration")


def test_a_metric_that_reports_the_learning_rate(recordings):
    def values(device, capture):
        def learning_rate(prediction, target):
            return optimizer.current_learning_rate

        optimizer = xn.optim.SGD(lambda step: 1 / (1 + step))
        return fit(device, capture, optimizer=optimizer, metrics=[learning_rate])[1]

    assert_alike(values, recordings, 0, r"SGD uses self\.\w+, which changes on the host")


@pytest.mark.parametrize("wrap", [float, np.asarray, np.float32])
def test_a_metric_that_is_computed_on_the_host(wrap, recordings):
    def values(device, capture):
        def ratio(prediction, target):
            return wrap(len(prediction) / 8)

        return fit(device, capture, metrics=[ratio])[1]

    assert_alike(values, recordings, 0, "the metric ratio returned (the Python number|an array on the host)")


def test_a_schedule_that_sets_other_things(recordings):
    def values(device, capture):
        def rate(step):
            optimizer.momentum = 0.9 - 0.4 * min(step // 4 / 3, 1)
            return 0.1

        optimizer = xn.optim.SGD(rate, momentum=0.5)
        return fit(device, capture, optimizer=optimizer)[1]

    assert_alike(values, recordings, 4)


def test_a_schedule_is_asked_once_a_step():
    def calls(capture):
        def rate(step):
            seen.append(step)
            return 0.1

        seen: list[int] = []
        fit("cuda", capture, optimizer=xn.optim.SGD(rate))
        return seen

    assert calls(True) == calls(False) == list(range(16))


def test_weight_decay_that_is_turned_off(recordings):
    """`Parameter.decay` counts from the next step on."""

    def values(device, capture):
        def act(trainer):
            if trainer.iteration == 5:
                trainer.model.layers[0].kernel.decay = False

        return fit(device, capture, optimizer=xn.optim.SGD(0.1, weight_decay=0.5), act=act)[1]

    assert_alike(values, recordings, 2)


# -- the counts of updates in float16, of which the device skips some --


def test_the_counts_that_callbacks_see(recordings):
    def values(device, capture):
        def act(trainer):
            if trainer.iteration in (3, 4, 9):  # reading them costs nothing but time
                seen.extend([trainer.optimizer.iterations, trainer.optimizer.skipped])

        seen: list[float] = []
        scale = xn.optim.LossScale(2.0**24)
        run, _ = fit(device, capture, network(device, dtype="float16"), loss_scale=scale, act=act)
        return [*seen, run.optimizer.iterations, run.optimizer.skipped]

    assert_alike(values, recordings, 1)


def test_restarts_that_a_callback_counts(recordings):
    def values(device, capture):
        def act(trainer):
            if trainer.optimizer.iterations == 4:
                trainer.optimizer.iterations = 0

        scale, optimizer = xn.optim.LossScale(2.0**24), xn.optim.Adam(lambda step: 0.1 / (1 + step))
        run, found = fit(device, capture, network(device, dtype="float16"), optimizer=optimizer, loss_scale=scale, act=act)
        return [*found, run.optimizer.iterations, run.optimizer.skipped]

    assert_alike(values, recordings, 1)


def test_a_loss_scale_that_is_taken_away(recordings):
    def values(device, capture):
        def act(trainer):
            if trainer.iteration == 12:
                trainer.optimizer.loss_scale = None

        scale = xn.optim.LossScale(2.0**24)
        run, _ = fit(device, capture, network(device, dtype="float16"), loss_scale=scale, act=act)
        return [run.optimizer.iterations, run.optimizer.skipped]

    assert_alike(values, recordings, 2)
