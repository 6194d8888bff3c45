"""A captured fit does what one that runs launch by launch does, whatever a program changes between its steps."""

from __future__ import annotations

import copy
import functools
import warnings

import numpy as np
import pytest

import xpnet as xn
from xpnet.compiled.dependencies import update_is_declared
from xpnet.layers.hooks import wrapped
from xpnet.optim.optimizer import Optimizer

pytestmark = pytest.mark.cuda

X = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
Y = np.arange(32) % 3
EPOCHS = 4


@pytest.fixture
def recordings(monkeypatch):
    """The number of graphs that were recorded: a list of one number."""
    from xpnet.compiled.cuda_graph import CudaGraphs

    count, record = [0], CudaGraphs.record

    def counting(self, function):
        done = record(self, function)
        count[0] += 1
        return done

    monkeypatch.setattr(CudaGraphs, "record", counting)
    return count


def network(*layers, device="cuda", **settings):
    layers = layers or (xn.Dense(8, "tanh"), xn.Dropout(0.5), xn.Dense(3))
    return xn.Sequential(list(layers), input_shape=(6,), device=device, seed=1, **settings)


class At(xn.Callback):
    """Call a function at the beginning of every epoch."""

    def __init__(self, act):
        self.act = act

    def on_epoch_begin(self, trainer):
        self.act(trainer)


def bits(arrays):
    return {name: xn.to_numpy(array).tobytes() for name, array in arrays.items()}


def outcome(trainer, data=(X, Y), epochs=EPOCHS, batch_size=8):
    """Train, and return everything that came of it."""
    trainer.fit(data, epochs=epochs, batch_size=batch_size, verbose=False)
    model, optimizer = trainer.model, trainer.optimizer
    assert all(module.device_counter is None for module in model.modules())
    assert optimizer.clock is None
    state = bits(model.state()), bits(optimizer.slots), optimizer.iterations, optimizer.skipped, model.rng_counters()
    return {name: [v.hex() for v in values] for name, values in trainer.history.items()}, *state


def assert_alike(make, recordings, recorded, **fit):
    """Assert that the trainers of make(capture=...) have the same outcome, and how many recordings that takes."""
    expected = outcome(make(capture=False), **fit)
    assert recordings == [0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = outcome(make(capture=True), **fit)
    assert found == expected
    assert recordings == [recorded]
    return found


# -- settings --


class Loss:
    """A user's loss with a setting."""

    beta = 1.0

    def __init__(self):
        self.beta = 1.0

    def __call__(self, prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(np.sum(self.beta))

    def method(self, prediction, target):
        return self(prediction, target)

    def of_three(self, scale, prediction, target):
        return self(prediction, target) * scale


class Slotted:
    """The like without a __dict__."""

    __slots__ = ("beta",)

    def __init__(self):
        self.beta = 1.0

    def __call__(self, prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(self.beta)


class OfTheClass:
    """The like with a setting of the class."""

    beta = 1.0

    def __call__(self, prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(type(self).beta)


class Holder(xn.Module):
    """A model with a loss of its own."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.inner, self.beta = xn.Dense(3), 1.0

    def forward(self, x):
        return self.inner(x)

    def loss(self, prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(self.beta)


def function_loss():
    def loss(prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * float(loss.beta)

    loss.beta = 1.0
    return loss


def with_loss(make):
    """Return what makes (model, loss, the object with beta)."""

    def made():
        loss, owner = make()
        return network(), loss, owner

    return made


def partial_loss():
    owner = Loss()
    return functools.partial(owner.of_three, 2.0), owner


def method_loss():
    owner = Loss()
    return owner.method, owner


def of_the_class():
    OfTheClass.beta = 1.0
    return OfTheClass(), OfTheClass


def holder():
    model = Holder(device="cuda", seed=1)
    return model, model.loss, model


def itself(make):
    def made():
        owner = make()
        return owner, owner

    return with_loss(made)


LOSSES = {
    "an attribute": itself(Loss),
    "of a function": itself(function_loss),
    "a slot": itself(Slotted),
    "of the class": with_loss(of_the_class),
    "of a bound method's object": with_loss(method_loss),
    "of a partial's object": with_loss(partial_loss),
    "of the model": holder,
}
NUMBERS = {
    "float": float,
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "int64": lambda value: np.int64(8 * value),
    "0-d array": lambda value: np.asarray(value),
}
VALUES = (1.0, 0.5, 0.5, 0.125)
DIFFERENT = 3


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", LOSSES)
def test_a_setting_of_the_loss(kind, number, recordings):
    def make(capture):
        model, loss, owner = LOSSES[kind]()
        anneal = At(lambda trainer: setattr(owner, "beta", NUMBERS[number](VALUES[trainer.epoch])))
        return xn.Trainer(model, loss=loss, optimizer=xn.optim.SGD(0.1), callbacks=[anneal], capture=capture)

    # Assigning to a layer always counts, and so does another array; equal numbers are the same.
    again = number == "0-d array" or kind == "of the model"
    assert_alike(make, recordings, len(VALUES) if again else DIFFERENT)


@pytest.mark.parametrize("value", [(np.float32(0.5), 1), ((1, np.float64(0.25)), 0.5), np.float32(1.5)])
def test_a_tuple_with_a_numpy_number(value, recordings):
    class Sum(Loss):
        def __call__(self, prediction, target):
            flat = np.sum([np.sum(part) for part in self.beta]) if isinstance(self.beta, tuple) else self.beta
            return xn.losses.softmax_cross_entropy(prediction, target) * float(flat)

    def make(capture):
        def act(trainer):
            trainer.loss.beta = copy.deepcopy(value) if trainer.epoch else (np.float32(2.0),)

        return xn.Trainer(network(), loss=Sum(), optimizer=xn.optim.SGD(0.1), callbacks=[At(act)], capture=capture)

    assert_alike(make, recordings, 2)


SETTINGS = {
    "momentum": lambda trainer, value: setattr(trainer.optimizer, "momentum", value),
    "weight_decay": lambda trainer, value: setattr(trainer.optimizer, "weight_decay", value),
    "regularizer": lambda trainer, value: setattr(trainer.model.layers[0].kernel.regularizer, "strength", value),
    "constraint": lambda trainer, value: setattr(trainer.model.layers[0].kernel.constraint, "limit", value),
    "metric": lambda trainer, value: setattr(trainer.metrics["scaled"], "factor", value),
}


class Penalty:
    """A user's penalty."""

    strength = 0.1

    def __call__(self, parameter):
        return xn.ops.sum(parameter * parameter) * float(self.strength)


class Limit:
    """A user's constraint."""

    limit = 1.0

    def project(self, w):
        w *= float(self.limit)


class Scaled:
    """A user's metric."""

    __name__ = "scaled"
    factor = 1.0

    def __call__(self, prediction, target):
        return xn.metrics.accuracy(prediction, target) * float(self.factor)


@pytest.mark.parametrize("number", ["float", "float64", "float32"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_another_setting(setting, number, recordings):
    def make(capture):
        model = network()
        model.layers[0].kernel.regularizer, model.layers[0].kernel.constraint = Penalty(), Limit()
        act = At(lambda trainer: SETTINGS[setting](trainer, NUMBERS[number](VALUES[trainer.epoch] * 0.5)))
        optimizer = xn.optim.SGD(0.05, momentum=0.5, weight_decay=0.1)
        settings = {"loss": "softmax_cross_entropy", "metrics": [Scaled()], "callbacks": [act]}
        return xn.Trainer(model, optimizer=optimizer, capture=capture, **settings)

    assert_alike(make, recordings, DIFFERENT)


def test_settings_of_the_package_in_a_fit(recordings):
    def act(trainer):
        if trainer.epoch == 1:
            xn.set_matmul_precision("tf32")
        if trainer.epoch == 2:
            xn.set_deterministic(True)
        if trainer.epoch == 3:
            xn.set_deterministic(False)
            xn.set_matmul_precision("float32")

    def make(capture):
        return xn.Trainer(
            network(), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), callbacks=[At(act)], capture=capture
        )

    assert_alike(make, recordings, 4)


def test_settings_of_the_package_in_predictions(recordings):
    model, x = network(), xn.to_device(X, "cuda")

    def predictions():
        return {xn.to_numpy(model.predict(x)).tobytes() for _ in range(3)}

    plain = predictions()
    try:
        xn.set_matmul_precision("tf32")
        with xn.no_grad():
            wanted = xn.to_numpy(model.eval()(x).array).tobytes()
        assert predictions() == {wanted} != plain
        assert recordings == [2]
        xn.set_deterministic(True)
        predictions()
        assert recordings == [3]
    finally:
        xn.set_deterministic(False)
        xn.set_matmul_precision("float32")
    assert predictions() == plain
    assert recordings == [4]


class Counting:
    """A loss with a warm-up that it counts itself."""

    def __init__(self):
        self.calls = 0

    def __call__(self, prediction, target):
        self.calls += 1
        return xn.losses.softmax_cross_entropy(prediction, target) * (1 / self.calls)


def test_a_loss_that_counts_its_calls_is_not_recorded_and_named(recordings):
    def make(capture):
        return xn.Trainer(network(), loss=Counting(), optimizer=xn.optim.SGD(0.1), capture=capture)

    expected, run = outcome(make(False)), make(True)
    with pytest.warns(RuntimeWarning, match=r"Counting assigns self.calls in its call, which a replay does not"):
        found = outcome(run)
    assert found == expected
    assert run.loss.calls == EPOCHS * 4
    assert recordings == [0]


def test_a_loss_that_keeps_its_terms_is_recorded(recordings):
    seen = {}

    class Keeping:
        def __call__(self, prediction, target):
            self.terms = {"cross entropy": xn.losses.softmax_cross_entropy(prediction, target)}
            return self.terms["cross entropy"] * 2.0

    def make(capture):
        def act(trainer):
            if trainer.epoch:
                seen.setdefault(capture, []).append(float(trainer.loss.terms["cross entropy"].array))

        return xn.Trainer(network(), loss=Keeping(), optimizer=xn.optim.SGD(0.1), callbacks=[At(act)], capture=capture)

    assert_alike(make, recordings, 1)
    assert seen[True] == seen[False]


class Distance:
    """A loss with a model of its own."""

    def __init__(self, *layers):
        self.teacher = network(*layers)

    def __call__(self, prediction, target):
        return xn.losses.mean_squared_error(prediction, self.teacher(target))


TEACHER_CHANGES = {
    "mode": lambda teacher: teacher.eval(),
    "weights": lambda teacher: setattr(teacher.layers[0].kernel, "array", 2 * teacher.layers[0].kernel.array),
    "attribute": lambda teacher: setattr(teacher.layers[1], "slope", 0.7),
}


@pytest.mark.parametrize("change", TEACHER_CHANGES)
def test_a_model_that_the_loss_holds(change, recordings):
    def make(capture):
        def act(trainer):
            if trainer.epoch == 2:
                TEACHER_CHANGES[change](trainer.loss.teacher)

        loss = Distance(xn.Dense(4), xn.LeakyReLU(0.1), xn.BatchNorm(), xn.Dense(3))
        for parameter in loss.teacher.parameters().values():
            parameter.requires_grad = False
        return xn.Trainer(network(), loss=loss, optimizer=xn.optim.SGD(0.1), callbacks=[At(act)], capture=capture)

    assert_alike(make, recordings, 2, data=(X, X))


def test_random_layers_outside_the_model_are_not_recorded_and_named(recordings):
    def make(capture):
        return xn.Trainer(network(), loss=Distance(), optimizer=xn.optim.SGD(0.1), capture=capture)

    expected, run = outcome(make(False), data=(X, X)), make(True)
    says = r"layer '1' \(Dropout\) draws random numbers and is not a part of the trained model"
    with pytest.warns(RuntimeWarning, match=says):
        found = outcome(run, data=(X, X))
    assert found == expected
    assert recordings == [0]


# -- optimizers --


class Half(xn.optim.SGD):
    def update(self, w, g, learning_rate):
        super().update(w, g, learning_rate * 0.5)


class Warm(xn.optim.Adam):
    def update(self, w, g, learning_rate):
        if self.iterations <= 6:
            g *= 0.1
        super().update(w, g, learning_rate)


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


WITHOUT_STEPS = {Optimizer, *(k for k in vars(xn.optim).values() if isinstance(k, type) and hasattr(k, "minimize"))}


def optimizers():
    names = [name for name in xn.optim.__all__ if isinstance(getattr(xn.optim, name), type)]
    kinds = [getattr(xn.optim, name) for name in names]
    return [kind for kind in kinds if issubclass(kind, Optimizer) and kind not in WITHOUT_STEPS]


@pytest.mark.parametrize("kind", optimizers())
def test_every_optimizer_is_recorded_as_its_class_says(kind):
    assert update_is_declared(kind(0.1)) is kind(0.1).capturable

    class Same(kind):
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
    calls = {}

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
        scale = {"loss_scale": xn.optim.LossScale(2.0**30)} if dtype == "float16" else {}
        settings = {"loss": "softmax_cross_entropy", "optimizer": xn.optim.Adam(rate), "callbacks": [At(act())]}
        return xn.Trainer(model, capture=capture, **settings, **scale)

    found = assert_alike(make, recordings, recorded)
    assert (found[4] > 0) is (dtype == "float16")


def test_a_copy_of_the_optimizer_in_a_fit(recordings):
    copies = {True: [], False: []}

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

        settings = {"optimizer": xn.optim.Adam(lambda step: 0.1 * 0.9**step), "callbacks": [At(act)]}
        return xn.Trainer(network(), loss="softmax_cross_entropy", capture=capture, **settings)

    assert_alike(make, recordings, 1)


# -- the loop --


def scaled_update(self):
    self.model.flat_parameters.collect()
    self.model.flat_parameters.gradients[...] *= float(self.factor)
    xn.Trainer.update(self)


def scaled_input(self, x, y):
    return xn.Trainer.forward_backward(self, x * float(self.factor), y)


def scaled_metric(self, prediction, target):
    return {name: value * float(self.factor) for name, value in xn.Trainer.measure(self, prediction, target).items()}


def scaled_penalty(self):
    kernel = self.model.layers[0].kernel
    return xn.ops.sum(kernel * kernel) * float(self.factor)


def scaled_step(self, x, y):
    return xn.Trainer._train(self, x * float(self.factor), y)


LOOPS = {
    "update": (scaled_update, 1),
    "forward_backward": (scaled_input, DIFFERENT),
    "measure": (scaled_metric, DIFFERENT),
    "_penalty": (scaled_penalty, DIFFERENT),
    "_train": (scaled_step, 0),
}


@pytest.mark.parametrize("place", ["class", "instance"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_method_of_the_loop_that_is_overridden(name, place, recordings):
    function, recorded = LOOPS[name]

    def make(capture):
        kind = type("Own", (xn.Trainer,), {"factor": 1.0, **({name: function} if place == "class" else {})})
        act = At(lambda trainer: setattr(trainer, "factor", np.float64(VALUES[trainer.epoch])))
        settings = {"optimizer": xn.optim.SGD(0.1), "metrics": ["accuracy"], "callbacks": [act]}
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

        settings = {"optimizer": xn.optim.SGD(0.1), "metrics": ["accuracy"], "callbacks": [At(act)]}
        run = xn.Trainer(network(), loss="softmax_cross_entropy", capture=capture, **settings)
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

        callback = xn.Callback()
        callback.on_before_optimizer_step = halve
        settings = {"optimizer": xn.optim.SGD(0.1), "callbacks": [callback]}
        return xn.Trainer(network(), loss="softmax_cross_entropy", capture=capture, **settings)

    assert_alike(make, recordings, 1)
    assert len(calls) == 2 * EPOCHS * 4


# -- random layers --


class Draws(xn.Module):
    """A layer that drops in evaluation, too."""

    def forward(self, x):
        key = xn.random.key(self.context.seed, self.path or "", "draws")
        return xn.ops.dropout(x, 0.5, key=key, step=self.next_random_step())

    def output_shape(self, input_shape):
        return input_shape


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
        settings = {"optimizer": xn.optim.SGD(0.1), "callbacks": [act]}
        return xn.Trainer(model, loss="softmax_cross_entropy", capture=capture, **settings)

    expected = outcome(make(False), epochs=2)
    assert outcome(make(True), epochs=2) == expected
    assert recordings == [1]
    assert expected[-1] == {"1": 2 * (4 + 3), "2": 2 * 4}


def test_a_copy_of_a_model_in_a_fit_has_its_counters_on_the_host(recordings):
    copies = {True: [], False: []}

    def make(capture):
        act = At(lambda trainer: copies[capture].append(copy.deepcopy(trainer.model)))
        settings = {"optimizer": xn.optim.SGD(0.1), "callbacks": [act]}
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
    trainers = {}

    def make(capture):
        settings = {"optimizer": xn.optim.SGD(0.1), "callbacks": [At(act)]}
        trainers[capture] = xn.Trainer(Net(device="cuda"), loss="softmax_cross_entropy", capture=capture, **settings)
        return trainers[capture]

    assert_alike(make, recordings, recorded)
    if act is other_layer:
        taken = [trainers[capture].taken for capture in (True, False)]
        assert [layer.counter for layer in taken] == [8, 8]
        assert taken[0].device_counter is None


# -- models without an input shape --


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


# -- batches --


class TwoHeads(xn.Module):
    """Takes one array or a dict of them, and has two outputs."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.first, self.left, self.right = xn.Dense(8, "tanh"), xn.Dense(3), xn.Dense(1)

    def forward(self, x):
        y = self.first(x["x"] if isinstance(x, dict) else x)
        return self.left(y), self.right(y)


def two_losses(prediction, target):
    labels, values = (target["labels"], target["values"]) if isinstance(target, dict) else target[:2]
    left = xn.losses.softmax_cross_entropy(prediction[0], labels)
    return left + xn.losses.mean_squared_error(prediction[1], values)


Z = X[:, :1].copy()


def in_batches(make):
    places = [slice(start, start + 8) for start in range(0, 32, 8)]
    return [make(*(xn.to_device(a[place], "cuda") for a in (X, Y, Z))) for place in places]


TREES = {
    "arrays": lambda: (X, (Y, Z)),
    "batches": lambda: in_batches(lambda x, y, z: (x, (y, z))),
    "dicts": lambda: in_batches(lambda x, y, z: ({"x": x}, {"labels": y, "values": z})),
    "on the host": lambda: [(X[i : i + 8], (Y[i : i + 8], Z[i : i + 8])) for i in range(0, 32, 8)],
}


@pytest.mark.parametrize("tree", TREES)
def test_batches_of_several_arrays(tree, recordings):
    def make(capture):
        return xn.Trainer(TwoHeads(device="cuda"), loss=two_losses, optimizer=xn.optim.Adam(0.05), capture=capture)

    assert_alike(make, recordings, 1, data=TREES[tree]())


def test_batches_with_something_else_run_launch_by_launch(recordings):
    data = in_batches(lambda x, y, z: (x, (y, z, "a name")))

    def make(capture):
        return xn.Trainer(TwoHeads(device="cuda"), loss=two_losses, optimizer=xn.optim.Adam(0.05), capture=capture)

    expected = outcome(make(False), data=data)
    with pytest.warns(
        RuntimeWarning, match="batches that hold other things than arrays of numbers: got an array of <U6"
    ) as caught:
        assert outcome(make(True), data=data) == expected
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert recordings == [0]


# -- outputs --


class Outputs(xn.Module):
    """Returns trees of arrays."""

    def __init__(self, form, **settings):
        super().__init__(**settings)
        self.dense, self.form = xn.Dense(3), form

    def forward(self, x):
        y = self.dense(x)
        return self.form(y, y * 2.0)


FORMS = {
    "dict": lambda y, z: {"y": y, "z": z},
    "nested": lambda y, z: (y, {"both": (y, z)}),
    "list": lambda y, z: [y, z],
}


def leaves(output):
    if isinstance(output, dict):
        return {name: leaves(part) for name, part in output.items()}
    if isinstance(output, tuple):
        return tuple(leaves(part) for part in output)
    assert xn.backend.name_of(xn.backend.namespace(output)) in ("numpy", "cupy")
    return xn.to_numpy(output).round(4).tolist()


@pytest.mark.parametrize("batch_size", [256, 10])
@pytest.mark.parametrize("form", FORMS)
def test_predictions_of_several_outputs(form, batch_size, recordings):
    expected = leaves(Outputs(FORMS[form], device="cpu").predict(X, batch_size))
    model = Outputs(FORMS[form], device="cuda")
    for x in (X, xn.to_device(X, "cuda")):
        for _ in range(3):
            assert leaves(model.predict(x, batch_size)) == expected
    assert recordings[0] == (1 if batch_size == 256 else 2)


@pytest.mark.parametrize("capture", [False, True])
def test_an_index_out_of_range_is_among_the_causes_of_a_loss_that_is_not_finite(capture):
    model = xn.Sequential([xn.Embedding(10, 4), xn.Flatten(), xn.Dense(3)], input_shape=(2,), device="cuda")
    run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), capture=capture)
    with pytest.raises(xn.training.NotFiniteError, match="labels and indices out of range"):
        run.fit((np.full((8, 2), 3), np.full(8, 7)), epochs=1, batch_size=8, verbose=False)
