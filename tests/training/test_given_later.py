"""Settings of a run that could not count are refused; what is watched changes with what was remembered of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import Batches
from xpnet.training import Checkpoint, EarlyStopping, ReduceOnPlateau
from xpnet.training.checkpoint import load_checkpoint, save_checkpoint

X = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 64)


def trainer(optimizer: Any = None, loss: Any = "softmax_cross_entropy", units: int = 3, **more: Any) -> xn.Trainer:
    model = xn.Sequential([xn.Dense(8, "relu"), xn.Dense(units)], input_shape=(4,))
    return xn.Trainer(model, loss=loss, optimizer=optimizer or xn.optim.SGD(0.1), metrics=["accuracy"] * (units == 3), **more)


class Loader:
    """Batches as a DataLoader gives them."""

    batch_size = 16

    def __iter__(self):
        return ((X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16))


@pytest.mark.parametrize("make", [lambda: Batches((X, Y), 16), Loader])
def test_a_batch_size_beside_batches_is_refused(make):
    for call in ("fit", "evaluate"):
        with pytest.raises(ValueError, match=rf"^{call}: batch_size=8 would do nothing, .* of 16; leave it out"):
            getattr(trainer(), call)(make(), batch_size=8, **({"verbose": False} if call == "fit" else {}))
    assert trainer().fit(make(), batch_size=16, verbose=False).epochs == 1
    assert trainer().fit(make(), verbose=False).epochs == 1
    assert trainer().fit(make(), validation=(X, Y), batch_size=8, verbose=False).epochs == 1  # of the validation
    assert trainer().evaluate(make())["loss"] > 0


def test_an_order_beside_batches_is_refused():
    for data, shuffle in ((Batches((X, Y), 16), False), (Batches((X, Y), 16, shuffle=False), True), (Loader(), True)):
        with pytest.raises(ValueError, match=rf"^fit: shuffle={shuffle} would do nothing, .* have an order of their own"):
            trainer().fit(data, shuffle=shuffle, verbose=False)
    for data, shuffle in ((Batches((X, Y), 16), True), (Loader(), False)):
        trainer().fit(data, shuffle=shuffle, verbose=False)


@pytest.mark.parametrize(
    "name",
    ["batch_size", "shuffle", "seed", "drop_last", "weights", "samples_per_epoch", "transform", "augment", "device", "workers",
     "processes", "prefetch", "buffer", "num_workers"],
)  # fmt: skip
def test_batches_are_fixed_once_they_are_made(name):
    batches: Any = Batches((X, Y), 16)
    with pytest.raises(AttributeError, match=rf"Batches: setting '{name}' would do nothing; (make new Batches|it is called)"):
        setattr(batches, name, 3)
    batches.note = "mine"

    class Own(Batches):
        def __init__(self) -> None:
            super().__init__((X, Y), 16)
            self.weights = 3

    assert Own().weights == 3


@pytest.mark.parametrize("change", [("monitor", "val_accuracy"), ("mode", "max")])
@pytest.mark.parametrize("kind", [EarlyStopping, ReduceOnPlateau])
def test_what_is_watched_from_now_on_begins_without_a_best_value(kind, change):
    watching = kind("val_loss", 3)
    run = trainer(callbacks=[watching])
    run.fit((X, Y), validation=(X, Y), epochs=2, verbose=False)
    assert watching.best is not None
    setattr(watching, *change)
    assert watching.best is None
    run.fit((X, Y), validation=(X, Y), epochs=2, verbose=False)
    name = watching.monitor
    best = max if watching.mode == "max" else min
    assert watching.best == best(run.history[name][2:])
    watching.patience = 5
    assert watching.best is not None


def test_a_checkpoint_of_the_best_epoch_follows_what_is_watched(tmp_path):
    keeping = Checkpoint(tmp_path, best="val_loss")
    run = trainer(callbacks=[keeping])
    run.fit((X, Y), validation=(X, Y), epochs=3, verbose=False)
    keeping.best = "val_accuracy"
    assert keeping.best_value is None
    run.fit((X, Y), validation=(X, Y), epochs=3, verbose=False)
    assert keeping.best_value == max(run.history["val_accuracy"][3:])


def test_an_optimizer_whose_state_is_not_there_begins_afresh(tmp_path):
    first = trainer()
    first.fit((X, Y), epochs=40, verbose=False)
    save_checkpoint(first, tmp_path / "a.ckpt")
    other = trainer(xn.optim.Adam(0.001))
    with pytest.warns(RuntimeWarning, match="does not keep mean, square: Adam begins afresh"):
        load_checkpoint(other, tmp_path / "a.ckpt")
    assert other.optimizer.iterations == 0
    before = other.model[0].kernel.array.copy()
    other.step(X, Y)
    moved = np.abs(other.model[0].kernel.array - before).max()
    assert 0.0009 < moved <= 0.00101
    with pytest.raises(ValueError, match=r"Adam: what `state` returned was expected, got \{\}"):
        other.optimizer.load_state({})


def test_the_lowest_rate_is_reached():
    run = trainer(xn.optim.SGD(0.01), callbacks=[ReduceOnPlateau("loss", 0, factor=0.1, lowest=0.005, min_delta=100.0)])
    run.fit((X, Y), epochs=6, verbose=False)
    assert run.optimizer.current_learning_rate == pytest.approx(0.005)


@pytest.mark.parametrize("loss", [lambda p, t: ((p - t) * (p - t)).mean(), lambda p, t: xn.ops.mean((p - t) ** 2)])
def test_a_loss_that_pairs_all_predictions_with_all_targets_is_named(loss):
    with pytest.warns(RuntimeWarning, match=r"broadcasts \(32, 1\) and \(32,\) to \(32, 32\): every prediction meets"):
        trainer(loss=loss, units=1).fit((X, X[:, 0]), verbose=False)
    trainer(loss=loss, units=1).fit((X, X[:, :1]), verbose=False)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: setattr(t.optimizer, "loss_scale", 3), TypeError, "loss_scale must be an xn.optim.LossScale or None, got 3"),
        (lambda t: setattr(t, "metrics", 1), TypeError, "Trainer: metrics must be a list of names and functions"),
        (lambda t: xn.training.ClassWeighted("softmax_cross_entropy", np.zeros(3)), ValueError, "not all 0"),
    ],
)
def test_mistakes_are_one_clear_line(change, error, says):
    with pytest.raises(error, match=says):
        change(trainer())
