"""The training loop: what a step does, shuffling, history, Ctrl-C, losses that are not finite, reproducibility."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from xpnet import ops

ROOT = Path(xn.__file__).parent.parent


def data(n=90, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, 4)).astype(np.float32)
    return x, (x @ random.standard_normal((4, 3))).argmax(axis=1)


def trainer(seed=0, callbacks=(), **keywords):
    model = xn.Sequential([xn.Dense(8, "tanh"), xn.Dropout(0.2), xn.Dense(3)], input_shape=(4,), seed=seed)
    settings = {"loss": "softmax_cross_entropy", "optimizer": xn.optim.SGD(0.1, momentum=0.9), "metrics": ["accuracy"]}
    return xn.Trainer(model, **{**settings, **keywords}, callbacks=callbacks, seed=seed)


class Watch(xn.Callback):
    """Writes down what the loop does."""

    def __init__(self):
        self.calls = []
        self.orders = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *args, **keywords: self.calls.append(name)
        return super().__getattribute__(name)


# -- a step --


def test_step_is_one_update_and_returns_the_loss_before_it():
    t = trainer(optimizer=xn.optim.SGD(0.5))
    x, y = data(10)
    t.model.layers[1].rate = 0.0
    w, b = (p.array.astype(np.float64) for p in (t.model.layers[2].kernel, t.model.layers[2].bias))
    h = np.tanh(x @ t.model.layers[0].kernel.array + t.model.layers[0].bias.array).astype(np.float64)

    def loss(p):
        return xn.losses.softmax_cross_entropy(ops.dense(h, p[0], p[1]), y)

    expected, (dw, db) = xn.value_and_grad(loss)([w, b])
    value = t.step(x, y)
    assert isinstance(value, np.ndarray)
    assert value.shape == ()
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(t.model.layers[2].kernel.array, w - 0.5 * dw, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(t.model.layers[2].bias.array, b - 0.5 * db, rtol=1e-4, atol=1e-6)
    assert t.iteration == 1
    assert all(p.grad is None for p in t.model.parameters().values())


def test_step_goes_back_to_training_mode():
    t = trainer()
    t.model.eval()
    t.step(*data(10))
    assert t.model.training


def test_penalties_are_part_of_the_loss():
    def loss_of(regularizer):
        model = xn.Sequential([xn.Dense(3, kernel_regularizer=regularizer)], input_shape=(4,))
        return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.0)), model

    plain, model = loss_of(None)
    heavy, _ = loss_of(xn.regularizers.L2(0.3))
    x, y = data(10)
    w = model.layers[0].kernel.array.astype(float)
    difference = float(heavy.step(x, y)) - float(plain.step(x, y))
    assert difference == pytest.approx(0.15 * (w**2).sum(), rel=1e-4)


def test_a_loss_and_metrics_of_ones_own():
    def far(prediction, target):
        return ops.mean(ops.abs(prediction - target))

    def largest(prediction, target):
        return np.max(prediction)

    model = xn.Sequential([xn.Dense(2)], input_shape=(4,))
    t = xn.Trainer(model, loss=far, optimizer=xn.optim.SGD(0.01), metrics=[largest, "mae"])
    x = data()[0]
    history = t.fit((x, x[:, :2]), epochs=2, verbose=False)
    assert set(history) == {"loss", "largest", "mean_absolute_error"} or set(history) == {"loss", "largest", "mae"}
    assert history["loss"][1] < history["loss"][0]


# -- fit --


def test_history_has_one_float_an_epoch_for_every_name():
    t = trainer()
    history = t.fit(data(), validation=data(30, seed=1), epochs=3, batch_size=16, verbose=False)
    assert history is t.history
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    for values in history.values():
        assert len(values) == 3
        assert all(type(v) is float and np.isfinite(v) for v in values)
    assert history["loss"][-1] < history["loss"][0]
    assert history.epochs == 3
    assert not history.interrupted
    t.fit(data(), epochs=2, batch_size=16, verbose=False)
    assert len(history["loss"]) == 5
    assert t.epoch == 5
    assert t.iteration == 5 * 6
    assert history.to_csv().splitlines()[0] == "epoch,loss,accuracy,val_loss,val_accuracy"


def test_the_loss_of_an_epoch_is_the_mean_over_examples():
    """Not over batches: the last one is smaller."""
    t = trainer(optimizer=xn.optim.SGD(0.0))
    t.model.layers[1].rate = 0.0
    x, y = data(10)
    history = t.fit((x, y), batch_size=4, verbose=False)
    whole = t.evaluate((x, y))
    assert history["loss"][0] == pytest.approx(whole["loss"], rel=1e-5)
    assert history["accuracy"][0] == pytest.approx(whole["accuracy"])


def test_shuffles_are_a_function_of_seed_and_epoch():
    def orders(seed, epochs, shuffle=True):
        seen = []

        class Model(xn.Module):
            def __init__(self):
                super().__init__(dtype="float64")
                self.w = xn.Parameter(np.zeros((1, 1)))

            def forward(self, x):
                seen.extend(np.asarray(x).ravel().tolist())
                return x @ self.w

        x = np.arange(20.0)[:, None]
        t = xn.Trainer(Model(), loss="mean_squared_error", optimizer=xn.optim.SGD(0.0), seed=seed)
        t.fit((x, x), epochs=epochs, batch_size=6, shuffle=shuffle, verbose=False)
        return np.reshape(seen, (epochs, 20)).astype(int).tolist()

    first, again, other = orders(0, 3), orders(0, 3), orders(1, 3)
    assert first == again
    assert first != other
    assert len({tuple(order) for order in first}) == 3
    for epoch, order in enumerate(first):
        assert sorted(order) == list(range(20))
        assert order == xn.random.permutation(0, epoch, 20).tolist()
    assert orders(0, 2, shuffle=False) == [list(range(20))] * 2


def test_the_same_seed_gives_the_same_bits():
    """Weights, losses and dropout of two runs are equal, and of two short ones those of a long one."""
    one, two, parts = trainer(3), trainer(3), trainer(3)
    a = one.fit(data(), epochs=4, batch_size=16, verbose=False)
    b = two.fit(data(), epochs=4, batch_size=16, verbose=False)
    parts.fit(data(), epochs=1, batch_size=16, verbose=False)
    c = parts.fit(data(), epochs=3, batch_size=16, verbose=False)
    assert dict(a) == dict(b) == dict(c)
    for path, array in one.model.state().items():
        np.testing.assert_array_equal(array, two.model.state()[path])
        np.testing.assert_array_equal(array, parts.model.state()[path])
    assert trainer(4).fit(data(), epochs=4, batch_size=16, verbose=False)["loss"] != a["loss"]


def test_the_same_seed_gives_the_same_bits_in_another_process():
    code = textwrap.dedent("""
        import sys; sys.path.insert(0, "tests")
        import numpy as np
        from tests.test_trainer import data, trainer
        t = trainer(3)
        t.fit(data(), epochs=2, batch_size=16, verbose=False)
        print([float.hex(float(v)) for v in t.model.flat_parameters.values])
    """)
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    t = trainer(3)
    t.fit(data(), epochs=2, batch_size=16, verbose=False)
    assert eval(outputs[0]) == [float.hex(float(v)) for v in t.model.flat_parameters.values]


def test_callbacks_are_called_in_order():
    watch = Watch()
    trainer(callbacks=[watch]).fit(data(20), epochs=2, batch_size=10, verbose=False)
    steps = ["on_before_optimizer_step", "on_step_end", "on_checkpoint"] * 2
    epoch = ["on_epoch_begin", *steps, "on_epoch_end", "on_checkpoint"]
    assert watch.calls == ["on_fit_begin", *epoch, *epoch, "on_fit_end"]


def test_stop_ends_the_run_after_its_step():
    class Stop(xn.Callback):
        def on_step_end(self, trainer):
            trainer.stop = trainer.iteration == 8

    t = trainer(callbacks=[Stop()])
    history = t.fit(data(), epochs=5, batch_size=16, verbose=False)
    assert t.iteration == 8
    assert len(history["loss"]) == 1  # the second epoch was cut short
    assert not history.interrupted


def test_batches_from_an_iterable():
    x, y = data()
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 90, 10)]
    t = trainer()
    history = t.fit(batches, epochs=2, verbose=False)
    assert t.iteration == 18
    assert history["loss"][1] < history["loss"][0]
    assert set(t.evaluate(batches)) == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"data": (np.zeros((3, 4)), np.zeros(2, int))}, "x holds 3 examples and y 2"),
        ({"data": (np.zeros((0, 4)), np.zeros(0, int))}, "at least 1"),
        ({"data": np.zeros((3, 4))}, "ndarray"),
        ({"data": (np.zeros((3, 4)),)}, "pair (x, y)"),
        ({"data": (1, 2)}, "pair (x, y)"),
        ({"data": data(), "batch_size": 0}, "batch_size must be at least 1"),
        ({"data": data(), "validation": (np.zeros((3, 4)), np.zeros(2, int))}, "x holds 3 examples and y 2"),
    ],
)
def test_wrong_data_are_explained_before_anything_happens(arguments, says):
    t = trainer()
    with pytest.raises(ValueError) as raised:
        t.fit(arguments.pop("data"), **arguments, verbose=False)
    assert says in str(raised.value)
    assert t.iteration == 0


@pytest.mark.parametrize(
    ("keywords", "says"),
    [({"loss": "crossentropy"}, "unknown loss 'crossentropy'"), ({"metrics": ["precision?"]}, "unknown metric 'precision?'")],
)
def test_unknown_names_are_explained(keywords, says):
    with pytest.raises(ValueError) as raised:
        trainer(**keywords)
    assert says in str(raised.value)


# -- evaluate --


def test_evaluate_changes_nothing():
    t = trainer()
    t.fit(data(), verbose=False)
    before = {k: v.copy() for k, v in t.model.state().items()}
    counters = t.model.rng_counters()
    x, y = data(33, seed=1)
    result = t.evaluate((x, y), batch_size=7)
    assert t.evaluate((x, y))["loss"] == pytest.approx(result["loss"], rel=1e-5)
    logits = t.model.predict(x)
    assert result["accuracy"] == pytest.approx((logits.argmax(axis=1) == y).mean())
    assert result["loss"] == pytest.approx(float(xn.losses.softmax_cross_entropy(logits, y)), rel=1e-5)
    assert all(type(v) is float for v in result.values())
    assert t.model.training
    assert t.model.rng_counters() == counters
    for name, array in t.model.state().items():
        np.testing.assert_array_equal(array, before[name])


# -- not finite --


def test_a_loss_that_is_not_finite_names_epoch_batch_and_layer():
    class Break(xn.Callback):
        def on_step_end(self, trainer):
            if trainer.iteration == 8:  # the second batch of the second epoch, at six an epoch, is done
                trainer.model.layers[2].bias.array[...] = np.inf

    t = trainer(callbacks=[Break()])
    with np.errstate(invalid="ignore"), pytest.raises(xn.NotFiniteError) as raised:
        t.fit(data(), epochs=3, batch_size=16, verbose=False)
    message = str(raised.value)
    assert "epoch 2, batch 3" in message
    assert "'2.bias'" in message
    assert "learning rate" in message
    assert len(t.history["loss"]) == 1


def test_the_first_layer_that_overflows_is_named():
    model = xn.Sequential([xn.Dense(4), xn.Residual([xn.Dense(4), xn.Activation(ops.exp)]), xn.Dense(3)], input_shape=(4,))
    model.layers[1].body.layers[0].bias.array[...] = 1e4
    t = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(xn.NotFiniteError, match=r"not finite is '1\.body\.1' \(Activation\)"),
    ):
        t.fit(data(), verbose=False)
    assert "forward" not in model.layers[1].body.layers[1].__dict__  # the watch is taken off again


def test_a_batch_that_is_not_finite_is_named():
    x, y = data(20)
    x[3, 1] = np.nan
    with pytest.raises(xn.NotFiniteError, match=r"the inputs hold NaN: 1 of 20 examples .* take such examples out") as caught:
        trainer().fit((x, y), batch_size=20, verbose=False)
    assert "learning rate" not in str(caught.value)


# -- Ctrl-C --

LONG_RUN = """
import sys, json
import numpy as np
import xpnet as xn

x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
y = (x[:, 0] > 0).astype(int)
model = xn.Sequential([xn.Dense(2)], input_shape=(4,))

class Tell(xn.Callback):
    ended = False
    def on_epoch_end(self, trainer, values):
        if trainer.epoch == 2:
            print("ready", flush=True)
    def on_fit_end(self, trainer):
        Tell.ended = True

trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), callbacks=[Tell()])
history = trainer.fit((x, y), epochs=10**9, batch_size=8, verbose=False)
again = trainer.fit((x, y), epochs=1, verbose=False)
print(json.dumps([history.interrupted, len(history["loss"]), trainer.epoch, Tell.ended]), flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_returns_what_was_learnt():
    """A process that would train for years gets SIGINT: fit returns its history, and the program goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_RUN], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().strip() == "ready", process.stderr.read()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    interrupted, recorded, epoch, ended = json.loads(output)
    assert recorded == epoch >= 4
    assert interrupted is False  # of the second fit, which ran to its end
    assert ended
    assert "KeyboardInterrupt" not in errors


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_in_this_process():
    class Press(xn.Callback):
        def on_step_end(self, trainer):
            if trainer.iteration == 8:
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    t = trainer(callbacks=[Press()])
    history = t.fit(data(), epochs=5, batch_size=16, verbose=False)
    assert history.interrupted
    assert t.iteration == 8
    assert len(history["loss"]) == 1
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_a_second_ctrl_c_leaves_at_once():
    class Press(xn.Callback):
        def on_step_end(self, trainer):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer(callbacks=[Press()]).fit(data(), verbose=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_fit_in_another_thread():
    """Only the main thread may set signal handlers; training elsewhere works all the same."""
    results = []
    thread = threading.Thread(target=lambda: results.append(trainer().fit(data(), epochs=2, verbose=False)))
    thread.start()
    thread.join()
    assert len(results[0]["loss"]) == 2


# -- what a person sees --


def test_one_line_an_epoch_in_a_log_and_nothing_if_asked(capsys):
    trainer().fit(data(), validation=data(10), epochs=2)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  loss ")
    for text in ("accuracy", "val_loss", "examples/s"):
        assert text in lines[1]
    trainer().fit(data(), epochs=2, verbose=False)
    assert capsys.readouterr() == ("", "")
