"""What "better" means: a metric says it, or `mode` does; and what callbacks that look for the best value do with it."""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from xpnet.training import Checkpoint, EarlyStopping, LambdaCallback, ReduceOnPlateau, Timing
from xpnet.training.monitors import is_better, known_mode

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [2.0], [-1.0]], np.float32)


@xn.metrics.better("min")
def rmse(prediction, target):
    return np.sqrt(np.mean((prediction - target) ** 2))


@xn.metrics.better("max")
def loss_ratio(prediction, target):
    return -np.mean((prediction - target) ** 2)


def largest_error(prediction, target):
    return np.max(np.abs(prediction - target))


class Score:
    """A metric that is an object."""

    better = "max"
    __name__ = "score"

    def __call__(self, prediction, target):
        return -np.mean((prediction - target) ** 2)


def trainer(*callbacks: xn.Callback, metrics: Any = ("mae",), rate: float = 0.05, seed: int = 0) -> xn.Trainer:
    model = xn.Sequential([xn.Dense(1)], input_shape=(3,), seed=seed)
    return xn.Trainer(model, loss="mse", optimizer=xn.optim.SGD(rate), metrics=metrics, callbacks=callbacks)


def fit(run: xn.Trainer, epochs: int = 6, **settings: Any) -> xn.History:
    return run.fit((X, Y), **{"validation": (X, Y), "epochs": epochs, "verbose": False, **settings})


def scripted(name: str, values: list[float]) -> LambdaCallback:
    """A callback that writes given values into the epochs."""
    rest = iter(values)
    return LambdaCallback(epoch_end=lambda trainer, found: found.update({name: next(rest)}))


def test_every_metric_of_the_package_says_what_is_better():
    expected = {"accuracy": "max", "binary_accuracy": "max", "mean_absolute_error": "min", "mae": "min"}
    assert {name: xn.metrics.mode_of(metric) for name, metric in xn.metrics.NAMES.items()} == expected


def test_every_loss_is_better_when_smaller():
    assert {known_mode(f"val_{name}") for name in [*xn.losses.NAMES, "loss"]} == {"min"}


METRICS: list[Any] = ["mae", rmse, loss_ratio, Score(), xn.losses.huber, xn.losses.mean_squared_error]


@pytest.mark.parametrize("prefix", ["", "val_"])
@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m if isinstance(m, str) else getattr(m, "__name__", str(m)))
def test_a_value_that_gets_better_stops_nothing(metric, prefix, tmp_path):
    """Every value here gets better in every epoch, whichever way that is."""
    name = prefix + (metric if isinstance(metric, str) else metric.__name__)
    stop, plateau = EarlyStopping(name, patience=0), ReduceOnPlateau(name, patience=0)
    keep = Checkpoint(tmp_path, best=name)
    run = trainer(stop, plateau, keep, metrics=[metric])
    history = fit(run)
    assert len(history[name]) == 6
    assert min(history["learning_rate"]) == 0.05
    assert stop.best == plateau.best == keep.best_value == history[name][-1]
    again = trainer(stop, plateau, Checkpoint(tmp_path / "other", best=name), metrics=[metric])
    xn.training.load_checkpoint(again, tmp_path / "best.ckpt")
    assert again.epoch == 6


def test_partial_of_a_metric_and_a_mode_that_is_given():
    first = functools.partial(rmse)
    first.__name__ = "rmse"  # type: ignore[attr-defined]
    stop = EarlyStopping("val_rmse", patience=0)
    assert len(fit(trainer(stop, metrics=[first]))["loss"]) == 6
    stop = EarlyStopping("val_largest_error", patience=0, mode="min")
    assert len(fit(trainer(stop, metrics=[largest_error]))["loss"]) == 6
    stop = EarlyStopping("val_mae", patience=0, mode="max")  # as given
    assert len(fit(trainer(stop))["loss"]) == 2


@pytest.mark.parametrize("make", [EarlyStopping, ReduceOnPlateau, lambda name: Checkpoint("never made", best=name)])
@pytest.mark.parametrize(
    ("name", "metrics", "settings", "says"),
    [
        ("val_largest_error", [largest_error], {}, "which way it is better.*mode=.*known are loss, val_loss"),
        ("val_mea", ["mae"], {}, "loss, mae, val_loss, val_mae, seconds.*; did you mean 'val_mae'"),
        ("acuracy", ["mae"], {}, "'acuracy'.*loss, mae"),
        ("val_loss", ["mae"], {"validation": None}, "give `fit` validation data"),
        ("seconds", ["mae"], {}, "which way it is better"),
    ],
)
def test_a_name_that_cannot_work_is_an_error_before_anything_happens(
    make, name, metrics, settings, says, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log.json"
    log.write_text("kept\n")
    run = trainer(xn.training.JSONLog(log), Timing(), make(name), metrics=metrics)
    with pytest.raises(ValueError, match=says):
        fit(run, **settings)
    assert run.iteration == 0
    assert [path.name for path in tmp_path.iterdir()] == ["log.json"]
    assert log.read_text() == "kept\n"


def test_a_user_s_callback_may_add_the_value():
    stop = EarlyStopping("val_score", patience=0, mode="max")
    assert len(fit(trainer(scripted("val_score", [1.0, 2.0, 3.0, 2.0, 5.0]), stop))["loss"]) == 4
    with pytest.raises(ValueError, match="which way"):
        fit(trainer(scripted("val_score", [1.0]), EarlyStopping("val_score")))

    class Adds(Timing):
        def on_epoch_end(self, trainer, values):
            super().on_epoch_end(trainer, values)
            values["own"] = 1.0

    assert len(fit(trainer(Adds(), EarlyStopping("own", mode="min", patience=0)))["own"]) == 2


def test_nan_is_never_the_best():
    nan = float("nan")
    for mode in ("min", "max"):
        assert not is_better(nan, None, mode)
        assert not is_better(nan, 1.0, mode)
        assert is_better(1.0, nan, mode)
        assert is_better(1.0, None, mode)
    assert is_better(1.0, float("inf"), "min")
    assert is_better(1.0, -float("inf"), "max")
    stop = EarlyStopping("val_own", patience=2, mode="max")
    run = trainer(scripted("val_own", [nan, 1.0, nan, 2.0, nan, 1.5]), stop)
    fit(run)
    assert (stop.best, stop.best_epoch, run.history.restored) == (2.0, 3, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1])
def test_settings_out_of_range(value):
    with pytest.raises(ValueError, match="min_delta must be at least 0"):
        EarlyStopping(min_delta=value)
    if value != float("inf"):
        with pytest.raises(ValueError, match="patience"):
            ReduceOnPlateau(patience=value)


# -- state that outlives its run --


class Fold(xn.Callback):
    """A user's callback that was told to forget."""

    def __init__(self):
        self.forgotten = 0

    def reset_state(self):
        self.forgotten += 1


def test_callbacks_begin_afresh_with_another_model(tmp_path):
    def callbacks(folder):
        return [
            EarlyStopping("val_loss", patience=0),
            ReduceOnPlateau("val_loss", patience=0, factor=0.5, mode="max"),  # reduces in every epoch
            xn.training.ExponentialMovingAverage(0.5),
            Checkpoint(tmp_path / folder, best="val_loss"),
        ]

    def bits(run):
        weights = {name: array.tobytes() for name, array in run.model.state().items()}
        return {**weights, **run.history}

    shared, told = callbacks("shared"), Fold()
    fit(trainer(*shared, told))
    with pytest.warns(RuntimeWarning, match="renamed to"):
        fit(second := trainer(*shared, told, seed=1, rate=0.02))
    fit(alone := trainer(*callbacks("alone"), Fold(), seed=1, rate=0.02))
    assert bits(second) == bits(alone)
    assert (tmp_path / "shared" / "best.ckpt").exists()
    assert told.forgotten == 1


def test_the_next_fit_of_the_same_run_goes_on():
    told, stop = Fold(), EarlyStopping("val_loss", patience=9)
    run = trainer(told, stop)
    fit(run)
    best = cast(float, stop.best)
    fit(run)
    assert cast(float, stop.best) < best
    assert told.forgotten == 0
    run.model = xn.Sequential([xn.Dense(1)], input_shape=(3,), seed=1)
    with pytest.raises(ValueError, match="make a new optimizer"):
        fit(run)
    run.optimizer = xn.optim.SGD(0.05)
    fit(run, epochs=1)
    assert told.forgotten == 1
    assert cast(float, stop.best) > best


def test_a_loaded_state_is_kept(tmp_path):
    first = trainer(EarlyStopping("val_loss", patience=9))
    fit(first)
    xn.training.save_checkpoint(first, tmp_path / "a.ckpt")
    stop = EarlyStopping("val_loss", patience=9)
    fit(trainer(stop))  # of another run
    second = trainer(stop)
    xn.training.load_checkpoint(second, tmp_path / "a.ckpt")
    fit(second, epochs=0)
    assert (stop.best, stop.waited) == (first.callbacks[0].best, 0)


# -- which weights the numbers are of --


def test_numbers_of_the_weights_that_the_model_has():
    stop = EarlyStopping("val_own", patience=1, mode="min")
    run = trainer(scripted("val_own", [3.0, 1.0, 2.0, 2.5]), stop)
    history = fit(run)
    assert (history.epochs, history.restored, history.averaged) == (4, 1, False)
    assert history.of_the_model()["val_loss"] == history["val_loss"][1] == pytest.approx(run.evaluate((X, Y))["loss"])
    stop.patience = 99
    run.callbacks = [stop]
    stop.monitor = "loss"
    stop.best = None
    fit(run)
    assert history.restored is None
    assert history.of_the_model()["val_loss"] == history["val_loss"][-1]
    averaged = trainer(xn.training.ExponentialMovingAverage(0.5))
    assert fit(averaged).averaged
    assert averaged.history.of_the_model() == {}
    assert trainer().history.of_the_model() == {}


def test_the_report_says_which_epoch_the_weights_are_from(tmp_path):
    from xpnet.report import RunReport, read_record

    stop = EarlyStopping("val_own", patience=1, mode="min")
    history = fit(trainer(scripted("val_own", [3.0, 1.0, 2.0, 2.5]), stop, RunReport(tmp_path)))
    record = read_record(tmp_path)
    assert record["weights"] == {"epoch": 2, "restored": True, "averaged": False}
    assert record["better"] == {"loss": "min", "mae": "min"}
    page = (tmp_path / "report.html").read_text()
    assert "weights of epoch 2" in page
    assert "in epoch 2, whose weights the model has" in page or history["val_loss"].index(min(history["val_loss"])) == 3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_best_weights_come_back_when_the_loss_is_not_finite():
    class Explode(xn.Callback):
        def on_epoch_begin(self, trainer):
            if trainer.epoch == 3:
                trainer.optimizer.learning_rate = 1e20

    stop = EarlyStopping("val_loss", patience=5)
    run = trainer(stop, Explode())
    with pytest.raises(xn.training.NotFiniteError):
        fit(run)
    assert stop.best_epoch == 2
    assert run.evaluate((X, Y))["loss"] == pytest.approx(stop.best)
    assert run.history.restored == 2


def test_weights_that_came_back_early_do_not_disturb_an_epoch_that_goes_on():
    def run(cut):
        average = xn.training.ExponentialMovingAverage(0.9)
        stop = EarlyStopping("val_own", patience=9, mode="min")
        cutting = LambdaCallback(step_end=lambda t: setattr(t, "stop", t.iteration == cut))
        made = trainer(scripted("val_own", [1.0, 2.0, 3.0, 4.0]), *([stop] if cut % 2 else [average]), cutting)
        fit(made, epochs=4, batch_size=8)
        if cut > 0:
            assert (made.epoch, made.batch) == divmod(cut, 5)
            assert made.history.restored == 0 or made.history.averaged
            fit(made, epochs=4 - made.epoch, batch_size=8)
        return [xn.to_numpy(values).tobytes() for values in made.model.state().values()], dict(made.history)

    assert run(12) == run(-2)
    assert run(13) == run(-1)


def test_a_value_that_a_later_callback_adds_is_refused_before_the_first_epoch():
    stopping = xn.training.EarlyStopping("learning_rate", mode="max")
    reducing = xn.training.ReduceOnPlateau("loss")
    x, y = np.zeros((4, 2), np.float32), np.zeros(4, np.int64)

    def run(*callbacks: xn.Callback) -> xn.History:
        model = xn.Sequential([xn.Dense(2)], input_shape=(2,))
        optimizer = xn.optim.SGD(0.1)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, callbacks=callbacks)
        return trainer.fit((x, y), verbose=False)

    with pytest.raises(ValueError, match="ReduceOnPlateau adds it: put that callback before EarlyStopping"):
        run(stopping, reducing)
    assert run(reducing, stopping)["learning_rate"] == [0.1]


def test_the_same_callback_twice_is_refused():
    model = xn.Sequential([xn.Dense(2)], input_shape=(2,))
    stopping = xn.training.EarlyStopping()
    with pytest.raises(ValueError, match="the same EarlyStopping is among the callbacks twice"):
        xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.SGD(0.1), callbacks=[stopping, stopping])
