"""Callbacks do what they say, on runs small enough to check by hand."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from xpnet.training import (
    Checkpoint,
    ClipGradients,
    CSVLog,
    EarlyStopping,
    ExponentialMovingAverage,
    JSONLog,
    LambdaCallback,
    ReduceOnPlateau,
    TensorBoard,
    Timing,
)
from xpnet.training.arguments import check_callback


def run(*callbacks, optimizer=None, epochs=3, validation=False, **keywords):
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    model = xn.Sequential([xn.Dense(2)], input_shape=(5,), seed=1)
    trainer = xn.Trainer(
        model,
        loss="softmax_cross_entropy",
        optimizer=optimizer or xn.optim.SGD(0.5),
        metrics=["accuracy"],
        callbacks=callbacks,
        **keywords,
    )
    trainer.fit((x, y), validation=(x, y) if validation else None, epochs=epochs, batch_size=8, verbose=False)
    return trainer


def scripted(values):
    """A callback that writes a given val_loss into each epoch's values."""
    rest = iter(values)
    return LambdaCallback(epoch_end=lambda trainer, found: found.update(val_loss=next(rest)))


def test_early_stopping_waits_and_restores_the_best_weights():
    seen = []
    stop = EarlyStopping("val_loss", patience=1)
    remember = LambdaCallback(epoch_end=lambda t, v: seen.append(cast(Any, t.model).layers[0].kernel.array.copy()))
    trainer = run(scripted([3.0, 2.0, 2.5, 2.4, 1.0]), remember, stop, epochs=5)
    assert len(trainer.history["loss"]) == 4  # epochs 3 and 4 did not improve: one more than patience
    assert stop.best_epoch == 1
    np.testing.assert_array_equal(trainer.model.layers[0].kernel.array, seen[1])


def test_early_stopping_that_watches_nothing_says_so():
    with pytest.raises(ValueError, match=r"val_loss.*loss, accuracy"):
        run(EarlyStopping("val_loss"))


def test_largest_is_better_for_accuracy_and_smallest_for_loss():
    assert EarlyStopping("val_accuracy").mode == "max"
    assert EarlyStopping("val_loss").mode == "min"
    assert EarlyStopping("val_loss", mode="max").mode == "max"
    with pytest.raises(ValueError, match='EarlyStopping: mode must be "min", "max" or None'):
        EarlyStopping("val_loss", mode="largest")


def test_a_smaller_improvement_than_min_delta_does_not_count():
    stop = EarlyStopping("val_loss", patience=1, min_delta=0.6)
    trainer = run(scripted([3.0, 2.0, 1.5, 1.4, 1.0]), stop, epochs=5)
    assert (stop.best, len(trainer.history["loss"])) == (2.0, 4)


def test_old_names_of_arguments_work_for_now(tmp_path):
    with pytest.warns(DeprecationWarning, match=r"EarlyStopping\((least|largest)=\)"):
        old = EarlyStopping("val_loss", least=0.1, largest=True)  # type: ignore[call-arg]
    assert (old.min_delta, old.mode) == (0.1, "max")
    with pytest.warns(DeprecationWarning, match=r"ReduceOnPlateau\(largest=\)"):
        assert ReduceOnPlateau("val_accuracy", largest=False).mode == "min"  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match=r"Checkpoint\(largest=\)"):
        assert Checkpoint(tmp_path, best="val_loss", largest=None).mode == "min"  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="use xpnet.training.LambdaCallback"):
        assert xn.training.Call is LambdaCallback


def test_reduce_on_plateau():
    trainer = run(scripted([1.0, 1.0, 1.0, 1.0, 1.0]), ReduceOnPlateau("val_loss", 1, factor=0.5), epochs=5)
    assert trainer.history["learning_rate"] == [0.5, 0.5, 0.5, 0.25, 0.25]


def test_a_norm_limits_all_gradients_together():
    norms = []
    look: Any = LambdaCallback()
    look.on_before_optimizer_step = lambda t: norms.append(float(np.linalg.norm(t.model.flat_parameters.gradients)))
    run(look, ClipGradients(norm=0.1), look, epochs=1)
    before, after = np.array(norms[::2]), np.array(norms[1::2])
    np.testing.assert_allclose(after, np.minimum(before, 0.1), rtol=1e-6)
    assert (before > 0.1).any()


def test_the_norm_of_large_gradients_is_no_infinity():
    """The squares of 4e20 are not float32: all gradients became 0."""
    seen: list[np.ndarray] = []

    class Large(xn.training.Callback):
        def on_before_optimizer_step(self, trainer):
            trainer.model.flat_parameters.collect()
            trainer.model.flat_parameters.gradients[...] = np.float32(4e20)

    look: Any = LambdaCallback()
    look.on_before_optimizer_step = lambda t: seen.append(t.model.flat_parameters.gradients.copy())
    run(Large(), ClipGradients(norm=0.1), look, epochs=1)
    for gradients in seen:
        np.testing.assert_allclose(gradients, 0.1 / np.sqrt(gradients.size), rtol=1e-5)


def test_a_value_limits_each_element():
    seen = []
    look: Any = LambdaCallback()
    look.on_before_optimizer_step = lambda t: seen.append(t.model.flat_parameters.gradients.copy())
    run(look, ClipGradients(value=0.01), look, epochs=1)
    for before, after in zip(seen[::2], seen[1::2]):
        np.testing.assert_array_equal(after, np.clip(before, np.float32(-0.01), np.float32(0.01)))


def test_clipping_needs_one_positive_limit():
    for wrong in ({}, {"norm": 1, "value": 1}, {"norm": -1}):
        with pytest.raises(ValueError, match="one of them"):
            ClipGradients(**wrong)


def test_the_moving_average_is_the_recursion_and_the_model_gets_it():
    weights = []
    average = ExponentialMovingAverage(0.8)
    trainer = run(LambdaCallback(step_end=lambda t: weights.append(t.model.flat_parameters.values.copy())), average)
    start = run(epochs=0).model.flat_parameters.values.astype(np.float64)
    for w in weights:
        start = 0.8 * start + 0.2 * w
    np.testing.assert_allclose(trainer.model.flat_parameters.values, start, atol=1e-6)


def test_the_moving_average_follows_parameters_that_are_frozen_and_unfrozen_within_a_run():
    """Three layers of equal size, frozen in turn: each has the recursion over the steps in which it was trained."""
    model = xn.Sequential([xn.Dense(3), xn.Dense(3), xn.Dense(3)], input_shape=(3,), seed=1, dtype="float64")
    frozen: Iterator[tuple[int, ...]] = iter([(1,), (0, 2), (), (2,), (1, 2), (0,), (0,)])
    expected: dict[str, np.ndarray] = {}

    def freeze(t: xn.Trainer) -> None:
        now = {name: np.array(xn.to_numpy(p.array)) for name, p in model.parameters().items() if p.requires_grad}
        for name in [*expected]:
            if name not in now:
                del expected[name]
        for name, value in now.items():
            expected[name] = 0.75 * expected[name] + 0.25 * value if name in expected else value
        held = next(frozen)
        for k, layer in enumerate(model.layers):
            layer.trainable = k not in held

    expected.update({name: np.array(xn.to_numpy(p.array)) for name, p in model.parameters().items()})
    average = ExponentialMovingAverage(0.75)
    trainer = xn.Trainer(
        model,
        loss="mean_squared_error",
        optimizer=xn.optim.Adam(0.1),
        callbacks=[average, LambdaCallback(step_end=freeze)],
    )
    x = np.random.default_rng(0).normal(size=(14, 3))
    trainer.fit((x, -x), batch_size=2, epochs=1, verbose=False)
    for name, p in model.parameters().items():
        if p.requires_grad:
            np.testing.assert_allclose(xn.to_numpy(p.array), expected[name], rtol=1e-12, err_msg=name)
    assert [*expected] == ["1.kernel", "1.bias", "2.kernel", "2.bias"]

    model.unfreeze()
    average.load_state({"average": average.state()["average"]["values"]})  # of an earlier version: which values are these?
    with pytest.raises(ValueError, match=r"average of \d+ values.*frozen when the average was saved"):
        trainer.fit((x, -x), batch_size=2, epochs=1, verbose=False)


def test_averaged_weights_for_a_while():
    average = ExponentialMovingAverage(0.8, keep=False)
    trainer = run(average)
    before = trainer.model.flat_parameters.values.copy()
    with average.averaged(trainer):
        np.testing.assert_array_equal(trainer.model.flat_parameters.values, average.average)
    np.testing.assert_array_equal(trainer.model.flat_parameters.values, before)
    assert average.average is not None
    assert not np.array_equal(before, xn.to_numpy(average.average))


def test_accumulated_gradients_are_those_of_the_larger_batch():
    """Two batches of 8 with one update equal one batch of 16, to rounding."""
    x = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)
    y = np.arange(16) % 2
    results = []
    for size, accumulate in ((16, 1), (8, 2)):
        model = xn.Sequential([xn.Dense(2)], input_shape=(5,))
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(1.0), accumulate=accumulate)
        for start in range(0, 16, size):
            trainer.step(x[start : start + size], y[start : start + size])
        results.append(model.flat_parameters.values.copy())
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)
    assert trainer.optimizer.iterations == 1


@pytest.mark.parametrize("stream", [False, True], ids=["arrays", "stream"])
@pytest.mark.parametrize(("accumulate", "updates"), [(1, 10), (2, 6), (3, 4), (8, 2)])
def test_the_last_batches_of_an_epoch_are_averaged_for_an_update_of_their_own(accumulate, updates, stream):
    """Five batches an epoch: with accumulate=8 all of them, in the end the mean of their gradients."""
    x = np.random.default_rng(0).normal(size=(40, 5))
    y = (x[:, 0] > 0).astype(np.int64)
    model = xn.Sequential([xn.Dense(2)], input_shape=(5,), seed=1, dtype="float64")
    average = ExponentialMovingAverage(0.5, keep=False)
    trainer = xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.5), callbacks=[average], accumulate=accumulate
    )
    w = model.flat_parameters.values.copy()
    moved = w.copy()
    parts = [slice(k, k + 8) for k in range(0, 40, 8)]
    data: Any = [(x[part], y[part]) for part in parts] if stream else (x, y)
    trainer.fit(data, epochs=2, batch_size=8, shuffle=False, verbose=False)
    assert trainer.optimizer.iterations == updates
    assert trainer.pending == 0

    twin = xn.Sequential([xn.Dense(2)], input_shape=(5,), seed=1, dtype="float64")
    flat = twin.flat_parameters
    for _ in range(2):
        for first in range(0, 5, accumulate):
            group = parts[first : first + accumulate]
            for part in group:
                (xn.losses.softmax_cross_entropy(twin(x[part]), y[part]) * (1 / len(group))).backward()
            flat.collect()
            flat.values[...] -= 0.5 * flat.gradients
            flat.zero_grad()
            moved = 0.5 * moved + 0.5 * flat.values
    np.testing.assert_allclose(model.flat_parameters.values, flat.values, rtol=1e-12)
    # The average moves with every update, not with every batch.
    np.testing.assert_allclose(average.average, moved, rtol=1e-12)


def test_steps_of_ones_own_accumulate_as_well():
    trainer = run(epochs=0, accumulate=3)
    x, y = np.ones((4, 5), np.float32), np.zeros(4, np.int64)
    updates = []
    for _ in range(7):
        trainer.step(x, y)
        updates.append((trainer.pending, trainer.optimizer.iterations))
    assert updates == [(1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2)]


def test_logs(tmp_path):
    trainer = run(Timing(), CSVLog(tmp_path / "log.csv"), JSONLog(tmp_path / "log.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["loss"] for line in lines] == trainer.history["loss"]
    assert all(seconds > 0 for seconds in trainer.history["seconds"])
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == "epoch,loss,accuracy,seconds"
    assert rows[3].startswith("3,")
    assert float(rows[3].split(",")[1]) == trainer.history["loss"][2]


def test_a_user_function_may_stop_the_run():
    def stop(trainer):
        trainer.stop = trainer.iteration == 7

    trainer = run(LambdaCallback(step_end=stop))
    assert trainer.iteration == 7
    assert trainer.history.epochs == 1  # the second epoch was cut short


def test_tensorboard_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        run(TensorBoard(tmp_path))


def test_tensorboard_events_hold_the_history(tmp_path):
    pytest.importorskip("tensorboardX")
    trainer = run(TensorBoard(tmp_path))
    (path,) = tmp_path.iterdir()
    found = scalars(path)
    for name, values in {**trainer.history, "learning_rate": [0.5] * 3}.items():
        assert [step for step, _ in found[name]] == [1, 2, 3]
        np.testing.assert_allclose([value for _, value in found[name]], values, rtol=1e-6)


def test_tensorboard_runs_of_one_second_have_a_file_each(tmp_path, monkeypatch):
    """Also where the clock stands still; the names are in the order of the runs where it does not."""
    pytest.importorskip("tensorboardX")
    for epochs in (1, 2, 3):
        run(TensorBoard(tmp_path), epochs=epochs)
    assert [len(scalars(path)["loss"]) for path in sorted(tmp_path.iterdir())] == [1, 2, 3]
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    for _ in range(2):
        run(TensorBoard(tmp_path))
    assert [len(scalars(path)["loss"]) for path in tmp_path.glob("*.1.*")] == [3, 3]


def scalars(path):
    """The (step, value) of every scalar in an event file."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[Any, Any] = {}
    content = path.read_bytes()
    while content:  # records of length (8 bytes), its checksum (4), an event, its checksum (4)
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_is_closed_after_an_exception(tmp_path):
    pytest.importorskip("tensorboardX")
    board = TensorBoard(tmp_path)

    def crash(trainer):
        raise RuntimeError("crash")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="crash"):
        run(board, LambdaCallback(step_end=crash))
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:  # the writer's last thread ends by itself
        time.sleep(0.01)
    assert threading.active_count() == before
    assert board._writer.file_writer is None


def test_a_resumed_run_takes_back_the_epochs_that_it_repeats(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    trainer = run(TensorBoard(tmp_path / "a"))
    trainer.callbacks[:] = [TensorBoard(tmp_path / "b")]
    trainer.fit(trainer.batches, epochs=1, verbose=False)
    starts = []
    for path in (min((tmp_path / "a").iterdir()), *(tmp_path / "b").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                starts.append((path.parent.name, event.step))
    assert starts == [("b", 4)]  # what earlier files hold from there on is dropped


def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch):
    from pathlib import Path

    from xpnet.io import archive

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    real = Path.open

    def opened(path, mode="r", *rest, **keywords):
        return full() if mode == "a" else real(path, mode, *rest, **keywords)

    monkeypatch.setattr(archive.os, "fsync", full)  # type: ignore[attr-defined]
    monkeypatch.setattr(Path, "open", opened)
    with pytest.warns(RuntimeWarning, match="No space left on device.*the run goes on") as seen:
        trainer = run(CSVLog(tmp_path / "log.csv"), JSONLog(tmp_path / "log.jsonl"))
    assert trainer.history.epochs == 3
    assert {str(w.message).split(" could")[0] for w in seen} == {str(tmp_path / "log.csv"), str(tmp_path / "log.jsonl")}
    assert not list(tmp_path.glob("*.tmp"))


def test_hooks_under_their_old_names_are_called_for_now():
    calls: list[Any] = []
    with pytest.warns(DeprecationWarning, match=r"use Old\.on_") as seen:

        class Old(ClipGradients):
            def before_update(self, trainer):
                super().before_update(trainer)
                calls.append(float(np.abs(trainer.model.flat_parameters.gradients).max()))

            def save_point(self, trainer, epoch_ended):
                super().save_point(trainer, epoch_ended)
                calls.append(epoch_ended)

    assert [str(w.message).split()[0] for w in seen] == ["Old.before_update", "Old.save_point"]

    class Newer(Old):
        def on_checkpoint(self, trainer, epoch_ended):
            super().on_checkpoint(trainer, epoch_ended)
            calls.append("new")

    with pytest.warns(DeprecationWarning, match=r"ClipGradients.before_update|Callback.save_point"):
        run(Newer(value=1e-3), epochs=1)
    assert [c for c in calls if not isinstance(c, float)] == [False, "new"] * 5 + [True, "new"]
    assert [c for c in calls if isinstance(c, float)] == [np.float32(1e-3)] * 5


# -- hooks that nothing calls --


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_batch_end", "on_step_end"),
        ("on_train_begin", "on_fit_begin"),
        ("on_train_end", "on_fit_end"),
        ("on_epoch_ends", "on_epoch_end"),
        ("on_after_backward", "on_before_optimizer_step"),
    ],
)
def test_a_hook_that_would_never_be_called_is_refused(name, meant):
    kind = type("Mine", (xn.Callback,), {name: lambda self, *args: None})
    says = rf"^Mine: {name} would never be called: did you mean {meant}\?"
    with pytest.raises(TypeError, match=says):
        run(kind())
    trainer = run()
    trainer.callbacks.append(kind())
    with pytest.raises(TypeError, match=says):
        trainer.fit((np.ones((8, 5), np.float32), np.zeros(8, int)), epochs=4, verbose=False)
    run(type("Mine", (xn.Callback,), {"on_message": lambda self: None})())  # a method for another use


@pytest.mark.parametrize("hook", [lambda self: None, lambda self, trainer, logs, more: None, lambda trainer: None])
def test_a_hook_that_does_not_take_what_it_gets_is_refused_before_training(hook):
    kind = type("Mine", (xn.Callback,), {"on_epoch_end": hook})
    with pytest.raises(TypeError, match=r"Mine: the hook on_epoch_end is called with \(trainer, values\), and takes \("):
        run(kind())


@pytest.mark.parametrize(
    "hook",
    [lambda self, *args: None, lambda self, t, logs=None, more=1: None, lambda *args, **keywords: None, staticmethod(print)],
)
def test_a_hook_may_take_more(hook):
    run(type("Mine", (xn.Callback,), {"on_epoch_end": hook})())


def test_every_callback_of_the_package_has_hooks_that_are_called():
    kinds = [xn.Callback]
    for kind in kinds:
        kinds += [below for below in kind.__subclasses__() if below.__module__.startswith("xpnet.")]
    assert len(kinds) > 8
    for kind in kinds:
        check_callback(object.__new__(kind))


class Unbuilt(xn.Module):
    """Makes its Parameters at the first batch."""

    def __init__(self, seed=0):
        super().__init__(seed=seed)
        self.first, self.last = xn.Dense(8, "relu"), xn.Dense(3)

    def forward(self, x):
        return self.last(self.first(x))


@pytest.mark.parametrize("stream", [False, True])
def test_an_average_of_a_model_that_the_first_batch_builds(stream):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 5)).astype(np.float32), np.arange(24) % 3
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 24, 8)]

    def fit(model, *callbacks):
        run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.5), callbacks=callbacks)
        run.fit(iter(batches) if stream else (x, y), batch_size=8, shuffle=False, verbose=False)
        return run.model.state()

    weights = []
    after = xn.training.LambdaCallback(
        step_end=lambda trainer: weights.append({n: a.copy() for n, a in trainer.model.state().items()})
    )
    found = fit(Unbuilt(), after, ExponentialMovingAverage(0.8))
    first = Unbuilt()
    first(x)
    expected: Any = weights[0] if stream else first.state()
    for now in weights:
        expected = {name: 0.8 * expected[name] + 0.2 * now[name] for name in now}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7)
    run = xn.Trainer(Unbuilt(), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.5))
    average = ExponentialMovingAverage()
    with pytest.raises(ValueError, match="there is no average before the first update"), average.averaged(run):
        pass


CALLBACKS = {
    "average": lambda: ExponentialMovingAverage(0.9),
    "clip": lambda: xn.training.ClipGradients(norm=1.0),
    "early": lambda: xn.training.EarlyStopping("val_loss", patience=3),
    "plateau": lambda: xn.training.ReduceOnPlateau("val_loss"),
    "nothing": lambda: xn.Callback(),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_of_a_model_that_the_first_batch_builds(name):
    x, y = np.ones((8, 5), np.float32), np.zeros(8, int)
    history = []
    for built in (False, True):
        model = Unbuilt()
        if built:
            model(x)
        run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), callbacks=[CALLBACKS[name]()])
        history.append(run.fit((x, y), validation=(x, y), epochs=3, verbose=False))
    assert dict(history[0]) == dict(history[1])


def test_a_learning_rate_that_is_set_counts_as_it_is():
    """Also after ReduceOnPlateau; a reduced one that nobody sets stays reduced."""
    optimizer = xn.optim.SGD(1.0)
    plateau = xn.training.ReduceOnPlateau("loss", factor=0.5, patience=0, min_delta=100)
    model = xn.Sequential([xn.Dense(3)], input_shape=(5,))
    run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, callbacks=[plateau])
    data = np.ones((8, 5), np.float32), np.zeros(8, int)
    run.fit(data, epochs=3, verbose=False)
    assert optimizer.current_learning_rate == 0.25
    rates = xn.training.find_learning_rate(run, data, rates=[0.1, 0.2], steps=10)
    assert rates
    assert optimizer.current_learning_rate == 0.25
    run.callbacks = []
    run.fit(data, verbose=False)
    assert optimizer.current_learning_rate == 0.25
    optimizer.learning_rate = 0.5
    assert optimizer.current_learning_rate == 0.5
    optimizer.learning_rate = lambda step: 0.125
    assert optimizer.current_learning_rate == 0.125


def test_a_copied_trainer_trains_its_own_model():
    x, y = np.random.default_rng(0).standard_normal((24, 5)).astype(np.float32), np.arange(24) % 3
    model = xn.Sequential([xn.Dense(8, "relu"), xn.BatchNorm(), xn.Dropout(0.5), xn.Dense(3)], input_shape=(5,))
    run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01))
    run.fit((x, y), verbose=False)
    model.predict(x)
    twin = copy.deepcopy(run)
    before = model.predict(x)
    twin.fit((x, y), epochs=2, verbose=False)
    np.testing.assert_array_equal(model.predict(x), before)
    run.fit((x, y), epochs=2, verbose=False)
    np.testing.assert_array_equal(model.predict(x), twin.model.predict(x))


def test_what_is_put_into_the_list_later_is_checked():
    trainer = xn.Trainer(xn.Dense(2), loss="mean_squared_error", optimizer=xn.optim.SGD(0.1), callbacks=[xn.Callback()])
    trainer.callbacks.append(3)
    with pytest.raises(TypeError, match=r"Trainer: callbacks must be objects of subclasses of xn\.Callback, got 3"):
        trainer.fit((np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)), verbose=False)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    trainer = xn.Trainer(xn.Dense(2), loss="mean_squared_error", optimizer=xn.optim.SGD(0.1))
    with pytest.raises(FileNotFoundError, match=r'no such checkpoint, and no such folder; resume="auto".*nope'):
        trainer.fit((np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)), resume=tmp_path / "nope", verbose=False)
