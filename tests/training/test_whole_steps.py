"""A training step happens wholly or not at all: whatever raises, a run that goes on has the bits of one undisturbed."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.alike import on_call
from xpnet import ops
from xpnet.backend import Array
from xpnet.ops import op
from xpnet.training.interrupt import Terminated

X = np.random.default_rng(0).normal(size=(38, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 1)
EPOCHS = 3


class Trouble:
    """Raises once, when the code of a user at one place is called for the n-th time."""

    def __init__(self, place: str = "", number: int = 1, kind: type[BaseException] = RuntimeError) -> None:
        self.place, self.number, self.kind = place, number, kind
        self.call = on_call(self._raise)  # a count of its own would be seen to change, and the step not be recorded
        self.done = 0

    def _raise(self, number: int) -> None:
        self.done = number
        if number == self.number:
            raise self.kind(f"trouble in {self.place}")

    def __call__(self, place: str) -> None:
        if place == self.place:
            self.call(place)


class Layer(xn.Module):
    """A user's layer."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, x: Any) -> Any:
        if self.training:
            self.trouble("forward")
        else:
            self.trouble("evaluation")
        return troubled(x, trouble=self.trouble)


@op
def troubled(xp: Any, x: Array, *, trouble: Any) -> Any:
    """Return x."""
    return xp.asarray(x, copy=True), None


@troubled.backward
def _(xp, dy, saved, *, trouble):
    trouble("backward")
    return dy


class Penalty:
    """A user's penalty, and a constraint."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble

    def __call__(self, w):
        self.trouble("regularizer")
        return ops.sum(w * w) * 0.001

    def project(self, w):
        w *= 0.99
        self.trouble("constraint")


class Momentum(xn.optim.SGD):
    """A user's optimizer: it raises when the weights are changed."""

    trouble = Trouble()

    def update(self, w, g, learning_rate):
        super().update(w, g, learning_rate)
        self.trouble("optimizer")


class Hooks(xn.Callback):
    """A user's callback, which changes the gradients."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble
        self.began = self.ended = 0

    def on_fit_begin(self, trainer):
        self.trouble("on_fit_begin")
        self.began += 1

    def on_epoch_begin(self, trainer):
        self.trouble("on_epoch_begin")

    def on_before_optimizer_step(self, trainer):
        trainer.model.flat_parameters.collect()
        trainer.model.flat_parameters.gradients[...] *= 0.5
        self.trouble("on_before_optimizer_step")

    def on_step_end(self, trainer):
        self.trouble("on_step_end")

    def on_epoch_end(self, trainer, values):
        self.trouble("on_epoch_end")

    def on_checkpoint(self, trainer, epoch_ended):
        self.trouble("on_checkpoint")

    def on_fit_end(self, trainer):
        self.ended += 1
        self.trouble("on_fit_end")


PLACES = {
    "data": 3, "transform": 3, "forward": 3, "loss": 3, "regularizer": 3, "backward": 3, "schedule": 2, "optimizer": 2,
    "constraint": 2, "metric": 3, "evaluation": 1, "validation metric": 2, "on_fit_begin": 1, "on_epoch_begin": 2,
    "on_before_optimizer_step": 2, "on_step_end": 3, "on_epoch_end": 2, "on_checkpoint": 4, "on_fit_end": 1,
}  # fmt: skip
"""Where a user's code runs, and in which call it raises: within an epoch, with accumulated gradients."""


class Run:
    """A run with dropout, running statistics, momentum, a moving average, penalties, and a user's code everywhere."""

    def __init__(self, trouble: Trouble, accumulate: int, stream: bool) -> None:
        self.trouble, self.stream = trouble, stream
        penalty = Penalty(trouble)
        layers = [
            xn.Dense(8, "tanh", kernel_regularizer=penalty, kernel_constraint=penalty), xn.BatchNorm(), xn.Dropout(0.3),
            Layer(trouble), xn.Dense(3),
        ]  # fmt: skip
        self.model = xn.Sequential(layers, input_shape=(6,), seed=2)
        optimizer = Momentum(self.rate, momentum=0.9)
        optimizer.trouble = trouble
        self.hooks = Hooks(trouble)
        self.average = xn.training.ExponentialMovingAverage(0.8, keep=False)
        self.plateau = xn.training.ReduceOnPlateau("val_loss", 0, min_delta=10.0)
        self.trainer = xn.Trainer(
            self.model,
            loss=self.loss,
            optimizer=optimizer,
            metrics=[self.metric],
            callbacks=[self.plateau, self.hooks, self.average],
            seed=5,
            accumulate=accumulate,
        )
        self.batches: Any = xn.data.Batches((X, Y), 8, seed=5, transform=self.transform)

    def rate(self, step):
        self.trouble("schedule")
        return 0.1 * 0.9**step

    def loss(self, prediction, target):
        self.trouble("loss")
        return xn.losses.softmax_cross_entropy(prediction, target)

    def metric(self, prediction, target):
        self.trouble("metric" if self.model.training else "validation metric")
        return xn.metrics.accuracy(prediction, target)

    def transform(self, batch):
        self.trouble("transform")
        return batch

    def read(self):
        for start in range(0, len(X), 8):
            self.trouble("data")
            yield X[start : start + 8], Y[start : start + 8]

    def fit(self):
        data = self.read if self.stream else self.batches
        return self.trainer.fit(data, validation=(X, Y), epochs=EPOCHS - self.trainer.epoch, verbose=False)

    def bits(self) -> dict[str, Any]:
        """Every bit of what the run has left."""
        t = self.trainer
        found: dict[str, Any] = {name: np.asarray(a).tobytes() for name, a in self.model.state().items()}
        found |= {f"slot {name}": np.asarray(a).tobytes() for name, a in t.optimizer.slots.items()}
        found |= {f"history {name}": values for name, values in t.history.items()}
        found["average"] = np.asarray(self.average.average).tobytes()
        found["gradients"] = [name for name, p in self.model.parameters().items() if p.grad is not None]
        found["counters"] = self.model.rng_counters(), t.epoch, t.batch, t.iteration, t.pending, t.optimizer.iterations
        found["rate"] = t.optimizer.factor, self.plateau.best, self.plateau.waited
        return found


@pytest.fixture(scope="module")
def undisturbed():
    """The bits of runs that nothing disturbs, by (accumulate, stream)."""
    found: dict[Any, dict[str, Any]] = {}
    for accumulate in (1, 3, 8):
        for stream in (False, True):
            run = Run(Trouble(), accumulate, stream)
            run.fit()
            found[accumulate, stream] = run.bits()
    return found


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("accumulate", [1, 3, 8])
@pytest.mark.parametrize(
    ("place", "stream"),
    [(p, s) for p in PLACES for s in (False, True) if p not in ("transform" if s else "data",)],
)
def test_a_run_goes_on_as_if_undisturbed(place, stream, accumulate, kind, undisturbed):
    once = accumulate == 8 and place in ("schedule", "optimizer", "constraint", "on_before_optimizer_step")
    number = 1 if once else PLACES[place]
    run = Run(Trouble(place, number, kind), accumulate, stream)
    with pytest.raises(kind, match=f"trouble in {place}"):
        run.fit()
    assert run.hooks.began == run.hooks.ended
    assert run.trainer.error is None
    if run.trainer.epoch < EPOCHS:
        run.fit()
    assert run.bits() == undisturbed[accumulate, stream]
    assert run.hooks.began == run.hooks.ended


def small(trouble: Trouble, layers: Any, **settings: Any) -> tuple[xn.Trainer, Any]:
    """A run without a user's layers."""
    hooks = Hooks(trouble)

    def rate(step):
        trouble("schedule")
        return 0.05 * 0.9**step

    def metric(prediction, target):
        trouble("metric")
        return xn.metrics.accuracy(prediction, target)

    def transform(batch):
        trouble("transform")
        return batch

    model = xn.Sequential(layers, seed=2, **settings)
    trainer = xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(rate), metrics=[metric], callbacks=[hooks], seed=5
    )
    return trainer, xn.data.Batches((X, Y), 8, seed=5, transform=transform)


def left(trainer: xn.Trainer) -> dict[str, Any]:
    found: dict[str, Any] = {name: np.asarray(a).tobytes() for name, a in trainer.model.state().items()}
    found |= {f"slot {name}": np.asarray(a).tobytes() for name, a in trainer.optimizer.slots.items()}
    found["history"] = dict(trainer.history)
    found["gradients"] = [name for name, p in trainer.model.parameters().items() if p.grad is not None]
    found["counters"] = trainer.model.rng_counters(), trainer.epoch, trainer.batch, trainer.iteration
    return found


NETS: dict[str, Any] = {
    "planned": lambda: ([xn.Dense(8, "relu"), xn.Dense(3)], {"input_shape": (6,)}),
    "unbuilt": lambda: ([xn.Dense(8), xn.BatchNorm(), xn.Dropout(0.3), xn.Dense(3)], {}),
    "half": lambda: ([xn.Dense(8, "relu"), xn.Dropout(0.3), xn.Dense(3)], {"input_shape": (6,), "dtype": "float16"}),
}


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("place", ["transform", "schedule", "metric", "on_before_optimizer_step", "on_step_end"])
@pytest.mark.parametrize("net", NETS)
def test_other_networks_go_on_as_if_undisturbed(net, place, number):
    """A planned step, a model that is built by its first batch, and one with a loss scale."""

    def fit(trouble):
        layers, settings = NETS[net]()
        trainer, batches = small(trouble, layers, **settings)
        if trouble.place:
            with pytest.raises(RuntimeError, match="trouble"):
                trainer.fit(batches, epochs=2, verbose=False)
        trainer.fit(batches, epochs=2 - trainer.epoch, verbose=False)
        return left(trainer)

    assert fit(Trouble(place, number)) == fit(Trouble())


class Carrying(xn.Module):
    """A user's network whose last layer raises after a stateful one has moved on."""

    def __init__(self, trouble):
        super().__init__(seed=1)
        self.trouble = trouble
        self.recurrent, self.last = xn.GRU(4, stateful=True), xn.Dense(3)

    def forward(self, x):
        y = self.recurrent(x)
        self.trouble("forward")
        return self.last(y)


def test_the_state_of_a_recurrent_layer_is_put_back():
    x, y = X[:32].reshape(32, 3, 2), Y[:32]

    def fit(trouble):
        trainer = xn.Trainer(Carrying(trouble), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
        if trouble.place:
            with pytest.raises(RuntimeError, match="trouble"):
                trainer.fit((x, y), batch_size=8, epochs=1, verbose=False)
        trainer.fit((x, y), batch_size=8, epochs=1 - trainer.epoch, verbose=False)
        return left(trainer)

    for number in (1, 3):
        assert fit(Trouble("forward", number)) == fit(Trouble())


def test_a_single_step_is_whole_as_well():
    trouble = Trouble("metric", 99)
    layers, settings = NETS["half"]()
    trainer, _ = small(trouble, layers, **settings)
    trainer.step(X[:8], Y[:8])
    kernel = trainer.model.parameters()["0.kernel"]
    kernel.set_gradient(np.ones((6, 8), np.float32))  # somebody's own gradient
    before, gradient = left(trainer), kernel.grad
    with pytest.raises(ValueError, match="softmax_cross_entropy"):
        trainer.step(X[:8], Y[:7])
    trouble.place, trouble.number = "on_before_optimizer_step", trouble.done + 1
    with pytest.raises(RuntimeError, match="trouble"):
        trainer.step(X[:8], Y[:8])
    assert left(trainer) == before
    assert kernel.grad is gradient
    np.testing.assert_array_equal(gradient, 1)


class Pressed(xn.optim.SGD):
    """A user's optimizer, in whose update a signal comes twice, such as of Ctrl-C."""

    pressed = False
    number = signal.SIGINT

    def update(self, w, g, learning_rate):
        super().update(w[:10], g[:10], learning_rate)
        if self.pressed:
            type(self).pressed = False
            signal.raise_signal(self.number)
            signal.raise_signal(self.number)
        super().update(w[10:], g[10:], learning_rate)


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="raises a signal")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize(("own", "done"), [(True, 0), (False, 1)], ids=["undone", "waits"])
def test_a_second_signal_within_an_update(own, done, number, error, monkeypatch):
    """It undoes the step where the weights were copied before, and waits for the end of the update otherwise."""
    monkeypatch.setattr("xpnet.training.interrupt._AT_ONCE", -1.0)  # as if it came later

    def fit(press):
        left_to_press = [press]

        def rate(step):
            if left_to_press[0] and not own:
                left_to_press[0] = False
                signal.raise_signal(number)
                signal.raise_signal(number)
            return 0.1

        Pressed.pressed, Pressed.number = press and own, number
        layers, settings = NETS["planned"]()
        trainer, batches = small(Trouble(), layers, **settings)
        trainer.optimizer = Pressed(0.1) if own else xn.optim.SGD(rate)
        if press:
            with pytest.raises(error):
                trainer.fit(batches, epochs=2, verbose=False)
            assert trainer.iteration == trainer.batch == trainer.optimizer.iterations == done
        trainer.fit(batches, epochs=2 - trainer.epoch, verbose=False)
        return left(trainer)

    assert fit(True) == fit(False)


def test_every_callback_is_told_of_a_step_that_happened_and_gets_an_end():
    calls = []

    class Bad(xn.Callback):
        def on_step_end(self, trainer):
            raise RuntimeError("first")

        def on_fit_end(self, trainer):
            calls.append(type(trainer.error).__name__)
            raise ValueError("in the end")

    class Good(xn.Callback):
        def on_step_end(self, trainer):
            calls.append(trainer.iteration)

        def on_fit_end(self, trainer):
            calls.append("end")

    class NotBegun(xn.Callback):
        def on_fit_begin(self, trainer):
            raise OSError("no folder")

        def on_fit_end(self, trainer):
            calls.append("never")

    layers, settings = NETS["planned"]()
    trainer, batches = small(Trouble(), layers, **settings)
    trainer.callbacks = [Bad(), Good()]
    with pytest.raises(RuntimeError, match="first") as caught:
        trainer.fit(batches, verbose=False)
    assert calls == [1, "RuntimeError", "end"]
    assert "in the end" in caught.value.__notes__[0]
    calls.clear()
    trainer.callbacks = [Good(), NotBegun(), Good()]
    with pytest.raises(OSError, match="no folder"):
        trainer.fit(batches, verbose=False)
    assert calls == ["end"]
    trainer.callbacks = [Bad(), Good()]
    trainer.callbacks[0].on_step_end = lambda trainer: None
    with pytest.raises(ValueError, match="in the end"):
        trainer.fit(batches, verbose=False)
    assert calls[-2:] == ["NoneType", "end"]


def test_another_model_in_the_same_trainer_is_undone_as_well():
    """Two models that were put together alike have the same version number."""
    trouble = Trouble("metric", 99)
    layers, settings = NETS["unbuilt"]()
    trainer, _ = small(trouble, layers, **settings, input_shape=(6,))
    trainer.step(X[:8], Y[:8])
    layers, settings = NETS["unbuilt"]()
    trainer.model = xn.Sequential(layers, seed=3, input_shape=(6,))
    trainer.optimizer = xn.optim.SGD(0.1)
    trainer.step(X[:8], Y[:8])
    before = left(trainer)
    trouble.place, trouble.number = "on_before_optimizer_step", trouble.done + 1
    with pytest.raises(RuntimeError, match="trouble"):
        trainer.step(X[:8], Y[:8])
    assert left(trainer) == before


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("number", [1, 2, 4])
@pytest.mark.parametrize("place", ["method", "callback"])
def test_an_update_of_ones_own_that_raises_after_the_weights_were_changed(place, number, device):
    """A loop that overrides `update`, and a callback whose method was set on the instance."""

    def trained(trouble: Trouble) -> Any:
        class Own(xn.Trainer):
            def update(self) -> None:
                if place == "method":
                    self.optimizer.step(self.model)
                    trouble("update")
                else:
                    super().update()

        def double(trainer: Any) -> None:
            trainer.model.flat_parameters.collect()
            trainer.model.flat_parameters.gradients[...] *= 2
            trouble("update")

        callback: Any = xn.Callback()
        if place == "callback":
            callback.on_before_optimizer_step = double
        model = xn.Sequential([xn.Dense(8, "tanh"), xn.Dropout(0.3), xn.Dense(3)], input_shape=(6,), seed=2, device=device)
        kind = Own if place == "method" else xn.Trainer
        run = kind(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.05), callbacks=[callback])
        data = xn.to_device(X, device), xn.to_device(Y, device)
        if trouble.place:
            with pytest.raises(RuntimeError, match="trouble"):
                run.fit(data, epochs=EPOCHS, batch_size=8, verbose=False)
        run.fit(data, epochs=EPOCHS - run.epoch, batch_size=8, verbose=False)
        arrays = [*model.state().values(), *run.optimizer.slots.values()]
        return [xn.to_numpy(a).tobytes() for a in arrays], model.rng_counters(), run.optimizer.iterations, dict(run.history)

    assert trained(Trouble("update", number)) == trained(Trouble())
