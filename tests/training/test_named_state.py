"""What a checkpoint holds of each parameter is found again by the parameter's name; what is carried between calls is in it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.training import ExponentialMovingAverage, find_learning_rate, load_checkpoint, overfit_one_batch, save_checkpoint

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 40)
FIT: dict[str, Any] = {"batch_size": 8, "verbose": False}


def trainer_of(*callbacks: xn.Callback, optimizer: Any = None) -> xn.Trainer:
    layers = [xn.Dense(5, "tanh"), xn.Dense(5, "tanh"), xn.Dense(3)]
    model = xn.Sequential(layers, input_shape=(5,), seed=1)
    optimizer = optimizer or xn.optim.AdamW(0.05, weight_decay=0.1)
    return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, callbacks=callbacks)


def state_of(trainer: xn.Trainer) -> dict[str, Any]:
    return {name: xn.to_numpy(array).copy() for name, array in trainer.model.state().items()}


class Unfreeze(xn.Callback):
    def on_epoch_begin(self, trainer: xn.Trainer) -> None:
        trainer.model.freeze("0.*") if trainer.epoch < 1 else trainer.model.unfreeze()


class Alternate(xn.Callback):
    def on_epoch_begin(self, trainer: xn.Trainer) -> None:
        trainer.model.unfreeze()
        trainer.model.freeze(f"{trainer.epoch % 2}.*")


class Exempt(xn.Callback):
    def on_epoch_begin(self, trainer: xn.Trainer) -> None:
        trainer.model.parameters()["0.kernel"].decay = trainer.epoch < 1


class StopAt(xn.Callback):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_step_end(self, trainer: xn.Trainer) -> None:
        trainer.stop = trainer.iteration == self.iteration


@pytest.mark.parametrize("stop", [5, 8, 10, 13])
@pytest.mark.parametrize("kind", [Unfreeze, Alternate, Exempt])
def test_runs_that_freeze_and_exempt_parameters_resume_with_the_same_bits(kind, stop, tmp_path):
    whole = trainer_of(kind(), StopAt(0), ExponentialMovingAverage(0.9))
    whole.fit((X, Y), epochs=4, **FIT)
    part = trainer_of(kind(), StopAt(stop), ExponentialMovingAverage(0.9))
    part.fit((X, Y), epochs=4, **FIT)
    save_checkpoint(part, tmp_path / "c")
    resumed = trainer_of(kind(), StopAt(0), ExponentialMovingAverage(0.9))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the rest of the epoch goes on as it was saved")
        warnings.filterwarnings("ignore", ".*goes on as it was saved, with")
        resumed.fit((X, Y), epochs=4, resume=tmp_path / "c", **FIT)
    for name, values in state_of(whole).items():
        np.testing.assert_array_equal(state_of(resumed)[name], values, err_msg=name)


def test_moments_and_averages_go_to_the_parameters_that_they_are_of(tmp_path):
    """Two layers of equal size: a run that was saved with one frozen goes on with the other one frozen."""
    first = trainer_of(ExponentialMovingAverage(0.9, keep=False))
    first.model.freeze("1.*")
    first.fit((X, Y), epochs=2, **FIT)
    save_checkpoint(first, tmp_path / "c")
    average = ExponentialMovingAverage(0.9, keep=False)
    second = trainer_of(average)
    second.model.freeze("0.*")
    load_checkpoint(second, tmp_path / "c")
    second.fit((X, Y), epochs=0, **FIT)

    def parts(trainer: xn.Trainer, array: Any) -> dict[str, Any]:
        flat = trainer.model.flat_parameters
        return {p.path: xn.to_numpy(array)[where] for p, where in zip(flat.parameters, flat.slices)}

    moments, before = (parts(t, t.optimizer.slots["mean"]) for t in (second, first))
    assert not moments["1.kernel"].any()
    np.testing.assert_array_equal(moments["2.kernel"], before["2.kernel"])
    found = parts(second, average.average)
    np.testing.assert_array_equal(found["1.kernel"], xn.to_numpy(second.model.parameters()["1.kernel"].array).ravel())
    held = first.callbacks[0]
    assert isinstance(held, ExponentialMovingAverage)
    np.testing.assert_array_equal(found["2.kernel"], parts(first, held.average)["2.kernel"])


@pytest.mark.parametrize("use", ["find_learning_rate", "overfit_one_batch", "load_checkpoint"])
def test_an_optimizer_belongs_to_its_model_whatever_has_restored_its_state(use, tmp_path):
    optimizer = xn.optim.Adam(0.05)
    trainer = trainer_of(optimizer=optimizer)
    trainer.fit((X, Y), epochs=1, **FIT)
    if use == "find_learning_rate":
        find_learning_rate(trainer, (X, Y), steps=10)
    elif use == "overfit_one_batch":
        overfit_one_batch(trainer, X[:8], Y[:8], steps=3)
    else:
        save_checkpoint(trainer, tmp_path / "c")
        optimizer = xn.optim.Adam(0.05)
        trainer = trainer_of(optimizer=optimizer)
        load_checkpoint(trainer, tmp_path / "c")
    with pytest.raises(ValueError, match="has made 5 steps with another model"):
        trainer_of(optimizer=optimizer).fit((X, Y), epochs=1, **FIT)
    trainer.model.freeze("0.*")
    trainer.fit((X, Y), epochs=1, **FIT)
    assert optimizer.iterations == 10


@pytest.mark.parametrize("layer", [xn.RNN, xn.LSTM, xn.GRU])
@pytest.mark.parametrize("stop", [4, 6])
def test_the_state_that_a_stateful_layer_carries_is_in_the_checkpoint(layer, stop, tmp_path):
    sequences = RNG.normal(size=(24, 6, 4)).astype(np.float32)
    targets = RNG.normal(size=(24, 2)).astype(np.float32)
    settings: dict[str, Any] = {"batch_size": 4, "shuffle": False, "verbose": False}

    def make(at: int) -> xn.Trainer:
        model = xn.Sequential([layer(5, stateful=True), xn.Dense(2)], input_shape=(6, 4), seed=4)
        return xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.Adam(0.01), callbacks=[StopAt(at)])

    whole = make(0)
    whole.fit((sequences, targets), epochs=2, **settings)
    part = make(stop)
    part.fit((sequences, targets), epochs=2, **settings)
    save_checkpoint(part, tmp_path / "c")
    find_learning_rate(part, (sequences, targets), steps=10, batch_size=4)  # leaves the carried state as it is
    resumed = make(0)
    resumed.fit((sequences, targets), epochs=2, resume=tmp_path / "c", **settings)
    part.callbacks[0].iteration = 0
    part.fit((sequences, targets), epochs=2, **settings)
    for trainer in (resumed, part):
        for name, values in state_of(whole).items():
            np.testing.assert_array_equal(state_of(trainer)[name], values, err_msg=name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_minimiser_that_is_interrupted_leaves_the_model_as_it_was(error):
    pytest.importorskip("scipy")
    trainer = trainer_of()
    before = state_of(trainer)
    calls = []

    def loss(prediction: Any, target: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise error
        return xn.losses.softmax_cross_entropy(prediction, target)

    with pytest.raises(error):
        xn.optim.LBFGS(20).minimize(trainer.model, loss, (X, Y), batch_size=10)
    for name, values in before.items():
        np.testing.assert_array_equal(state_of(trainer)[name], values)
    assert all(p.grad is None for p in trainer.model.parameters().values())
    with pytest.raises(ValueError, match="minimize: batch_size must be at least 1"):
        xn.optim.LBFGS(3).minimize(trainer.model, "softmax_cross_entropy", (X, Y), batch_size=-1)


@pytest.mark.parametrize("form", ["arrays", "sequence", "stream"])
def test_a_model_that_waits_for_its_first_batch_resumes(form, tmp_path):
    def make() -> xn.Trainer:
        model = xn.Sequential([xn.Dense(4, "tanh"), xn.BatchNorm(), xn.Dense(3)], seed=1)
        return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.05))

    batches = [(X[k : k + 8], Y[k : k + 8]) for k in range(0, 40, 8)]
    data: Any = {"arrays": (X, Y), "sequence": xn.data.Batches([*zip(X, Y)], 8), "stream": batches}[form]
    whole, part, resumed = make(), make(), make()
    whole.fit(data, epochs=3, **FIT)
    part.fit(data, epochs=1, **FIT)
    save_checkpoint(part, tmp_path / "c")
    if form == "stream":
        with pytest.raises(ValueError, match="do not know the shape of their input yet; give the model an input_shape"):
            resumed.fit(data, epochs=3, resume=tmp_path / "c", **FIT)
        return
    resumed.fit(data, epochs=3, resume=tmp_path / "c", **FIT)
    for name, values in state_of(whole).items():
        np.testing.assert_array_equal(state_of(resumed)[name], values, err_msg=name)


def test_checks_before_a_run_take_a_model_that_waits_for_its_first_batch():
    for check in (
        lambda t: find_learning_rate(t, (X, Y), steps=10),
        lambda t: overfit_one_batch(t, X[:8], Y[:8], steps=3),
    ):
        model = xn.Sequential([xn.Dense(4, "tanh"), xn.Dense(3)], seed=1)
        check(xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.05)))
        fresh = xn.Sequential([xn.Dense(4, "tanh"), xn.Dense(3)], input_shape=(5,), seed=1)
        for name, array in fresh.state().items():
            np.testing.assert_array_equal(model.state()[name], array)


def test_a_checkpoint_whose_optimizer_does_not_fit_changes_nothing(tmp_path, monkeypatch):
    trainer, other = trainer_of(), trainer_of()
    trainer.fit((X, Y), epochs=1, **FIT)
    state = trainer.optimizer.state()
    state["parameters"] = [[path, start, stop - 1] for path, start, stop in state["parameters"]]
    monkeypatch.setattr(trainer.optimizer, "state", lambda: state)
    save_checkpoint(trainer, tmp_path / "c")
    before = state_of(other)
    with pytest.raises(ValueError, match="it is another model's"):
        load_checkpoint(other, tmp_path / "c")
    for name, values in before.items():
        np.testing.assert_array_equal(state_of(other)[name], values)
    assert other.optimizer.iterations == 0
    assert not other.optimizer.slots
