"""What a run leaves in the model, and with which weights one that was cut short goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.report import RunReport
from xpnet.training import EarlyStopping, ExponentialMovingAverage, LambdaCallback, load_checkpoint, save_checkpoint
from xpnet.training.not_finite import NotFiniteError

RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 5)).astype(np.float32)
Y = np.arange(40) % 3
CHECKS = X[:16], (Y[:16] + 1) % 3


class StopAt(xn.Callback):
    """Cuts a run short after some iterations, or in the hook at the end of an epoch."""

    def __init__(self, iteration: int, hook: str = "step") -> None:
        self.iteration, self.hook = iteration, hook

    def on_step_end(self, trainer: xn.Trainer) -> None:
        if self.hook == "step" and trainer.iteration == self.iteration:
            trainer.stop = True

    def on_epoch_end(self, trainer: xn.Trainer, values: dict[str, float]) -> None:
        if self.hook == "epoch" and trainer.iteration == self.iteration:
            self.hook = ""
            raise KeyboardInterrupt


def average(decay: float = 0.9) -> ExponentialMovingAverage:
    return ExponentialMovingAverage(decay)


def best() -> EarlyStopping:
    return EarlyStopping("val_loss", patience=10)


COMBINATIONS: dict[str, Callable[[], list[xn.Callback]]] = {
    "average": lambda: [average()],
    "two averages": lambda: [average(), average(0.5)],
    "best": lambda: [best()],
    "average, best": lambda: [average(), best()],
    "best, average": lambda: [best(), average()],
}


def trainer_with(callbacks: list[xn.Callback], **settings: Any) -> xn.Trainer:
    model = xn.Sequential([xn.Dense(4, "tanh"), xn.BatchNorm(), xn.Dense(3)], input_shape=(5,), seed=2)
    settings = {"loss": "softmax_cross_entropy", "optimizer": xn.optim.SGD(0.3), **settings}
    return xn.Trainer(model, callbacks=callbacks, metrics=["accuracy"], **settings)


def train(trainer: xn.Trainer, epochs: int = 4) -> xn.Trainer:
    while trainer.epoch < epochs:
        try:
            trainer.fit((X, Y), validation=CHECKS, epochs=epochs - trainer.epoch, batch_size=8, verbose=False)
        except KeyboardInterrupt:
            assert trainer.epoch < epochs
    return trainer


def state_of(trainer: xn.Trainer) -> dict[str, Any]:
    return {name: xn.to_numpy(array).copy() for name, array in trainer.model.state().items()}


@pytest.mark.parametrize("cut", [StopAt(17), StopAt(3), StopAt(10, "epoch")], ids=["epoch 4", "epoch 1", "end of an epoch"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_run_that_was_cut_short_goes_on_with_its_own_weights(name, cut):
    whole = train(trainer_with(COMBINATIONS[name]()))
    parts = train(trainer_with([*COMBINATIONS[name](), StopAt(cut.iteration, cut.hook)]))
    assert dict(parts.history) == dict(whole.history)
    for key, values in state_of(whole).items():
        np.testing.assert_array_equal(state_of(parts)[key], values, err_msg=key)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_checkpoint_of_a_run_that_was_cut_short_has_its_own_weights(name, tmp_path):
    whole = train(trainer_with([*COMBINATIONS[name](), StopAt(0)]))
    parts = trainer_with([*COMBINATIONS[name](), StopAt(12)])
    parts.fit((X, Y), validation=CHECKS, epochs=4, batch_size=8, verbose=False)
    save_checkpoint(parts, tmp_path / "c")
    resumed = trainer_with([*COMBINATIONS[name](), StopAt(0)])
    load_checkpoint(resumed, tmp_path / "c")
    train(resumed)
    for key, values in state_of(whole).items():
        np.testing.assert_array_equal(state_of(resumed)[key], values, err_msg=key)


def test_weights_that_a_user_has_changed_since_are_not_taken_back():
    trainer = trainer_with([average(), StopAt(7)])
    trainer.fit((X, Y), epochs=3, batch_size=8, verbose=False)
    kernel = trainer.model.parameters()["0.kernel"]
    kernel.array[...] = 0
    seen = []
    trainer.callbacks.append(LambdaCallback(step_end=lambda t: seen.append((t.batch, bool(xn.to_numpy(kernel.array).any())))))
    trainer.optimizer.learning_rate = 0.0
    trainer.fit((X, Y), epochs=1, batch_size=8, verbose=False)
    assert seen == [(3, False), (4, False), (5, False)]  # the epoch went on


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["best first", "average first"])
def test_the_best_weights_go_before_an_average(order):
    made: list[xn.Callback] = [EarlyStopping("val_loss", patience=1), average()]
    trainer = train(trainer_with([made[k] for k in order]))
    stopping = made[0]
    assert isinstance(stopping, EarlyStopping)
    assert not trainer.history.averaged
    assert trainer.history.restored == (None if stopping.best_epoch == trainer.epoch - 1 else stopping.best_epoch)
    found = trainer.evaluate(CHECKS)["loss"]
    assert found == pytest.approx(min(trainer.history["val_loss"]), rel=1e-6)
    assert trainer.history.of_the_model()["val_loss"] == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["best first", "average first"])
def test_no_average_of_what_diverged(order):
    made: list[xn.Callback] = [EarlyStopping("val_loss", patience=50), average(0.5)]
    trainer = trainer_with(
        [made[k] for k in order], loss="mean_squared_error", optimizer=xn.optim.SGD(lambda s: 0.01 if s < 10 else 1e8)
    )
    targets = np.eye(3, dtype=np.float32)[Y]
    with np.errstate(all="ignore"), pytest.raises(NotFiniteError):
        trainer.fit((X, targets), validation=(X, targets), epochs=30, batch_size=8, verbose=False)
    assert max(float(np.abs(values).max()) for values in state_of(trainer).values()) < 10


@pytest.mark.parametrize("first", [True, False], ids=["report first", "report last"])
@pytest.mark.parametrize("make", [best, average])
def test_a_report_measures_the_weights_that_the_model_keeps(make, first, tmp_path):
    report = RunReport(tmp_path)
    trainer = train(trainer_with([report, make()] if first else [make(), report]))
    found = json.loads((tmp_path / "run.json").read_text())
    confusion = np.array(found["predictions"]["confusion"])
    assert np.trace(confusion) / confusion.sum() == pytest.approx(trainer.evaluate(CHECKS)["accuracy"])
    assert found["weights"]["averaged"] == trainer.history.averaged
    assert found["weights"]["restored"] == (trainer.history.restored is not None)


def test_a_run_that_was_cut_short_says_that_no_epoch_has_measured_its_weights(tmp_path):
    report = RunReport(tmp_path)
    trainer = trainer_with([StopAt(7), report])
    trainer.fit((X, Y), validation=CHECKS, epochs=3, batch_size=8, verbose=False)
    assert trainer.history.of_the_model() == {}
    assert report.record(trainer, "interrupted")["weights"]["epoch"] is None
    trainer.fit((X, Y), validation=CHECKS, epochs=1, batch_size=8, verbose=False)
    assert trainer.history.of_the_model()["val_loss"] == pytest.approx(trainer.evaluate(CHECKS)["loss"], rel=1e-6)
