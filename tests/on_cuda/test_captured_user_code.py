"""What code of a user's in a step or prediction keeps, counts and reads: as on the CPU, whether it is recorded or not."""

from __future__ import annotations

import collections
import functools
import warnings
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.graphs import scheduled
from tests.on_cuda.following import X, Y

pytestmark = pytest.mark.cuda
cross_entropy = xn.losses.softmax_cross_entropy
CANNOT = "cannot be recorded as a CUDA graph and runs launch by launch: "


@pytest.fixture(autouse=True, params=["eager", "lazy"])
def schedule(request):
    with scheduled(request.param):
        yield


def network(device, outputs=3, seed=1, **settings):
    return xn.Sequential([xn.Dense(8, "tanh"), xn.Dense(outputs)], input_shape=(6,), device=device, seed=seed, **settings)


def on(device, array):
    return xn.to_device(np.asarray(array), device)


def number(value):
    return float(xn.to_numpy(getattr(value, "array", value)))


def fit(device, capture, model=None, *, batch_size=8, epochs=4, kind: Any = xn.Trainer, act=None, **settings):
    """Train, and return the trainer and the values of its history; `act` is called with the trainer after every step."""
    settings = {"loss": "softmax_cross_entropy", "optimizer": xn.optim.SGD(0.1), **settings}
    callbacks = [xn.training.LambdaCallback(step_end=act)] if act else []
    run = kind(model or network(device), capture=capture, callbacks=callbacks, **settings)
    run.fit((X, Y), epochs=epochs, batch_size=batch_size, verbose=False)
    return run, [value for values in run.history.values() for value in values]


def assert_alike(values, recordings, recorded, says=""):
    """Assert that values(device, capture) are those of the CPU: replayed, and launch by launch to the bit.

    recorded: the recordings of the replayed run. says: the warning where there are none.
    """
    expected = values("cpu", True)
    plain = values("cuda", False)
    before = recordings[0]
    if says:
        with pytest.warns(RuntimeWarning, match=CANNOT + says):
            found = values("cuda", True)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            found = values("cuda", True)
    assert found == plain
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert recordings[0] - before == recorded


# -- what is read again in the next step --


class Scaled:
    mean: Any = None

    def __call__(self, prediction, target):
        loss = cross_entropy(prediction, target)
        self.mean = loss.array if self.mean is None else 0.9 * self.mean + 0.1 * loss.array
        return loss * (1 / self.mean)


class InSlots:
    __slots__ = ("__mean",)

    def __init__(self):
        self.__mean: Any = None

    def __call__(self, prediction, target):
        loss = cross_entropy(prediction, target)
        self.__mean = loss.array if self.__mean is None else 0.9 * self.__mean + 0.1 * loss.array
        return loss * (1 / self.__mean)


class OfAModule(xn.Module):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.mean: Any = None

    forward = Scaled.__call__


class Buffered(xn.Module):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.add_buffer("mean", np.ones((), np.float32))

    forward = Scaled.__call__


class Held(xn.Module):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.parts = [Scaled()]

    def forward(self, prediction, target):
        return self.parts[0](prediction, target)


class OfTheClass:
    mean: Any = None

    @classmethod
    def loss(cls, prediction, target):
        return Scaled.__call__(cls, prediction, target)  # type: ignore[arg-type]


class OfATensor:
    def __init__(self, device):
        self.mean = xn.Tensor(on(device, np.float32(1)))

    def __call__(self, prediction, target):
        loss = cross_entropy(prediction, target)
        self.mean.array = 0.9 * self.mean.array + 0.1 * loss.array
        return loss * (1 / self.mean.array)


class InADict:
    def __init__(self):
        self.state: Any = {"mean": None}

    def __call__(self, prediction, target):
        loss = cross_entropy(prediction, target)
        mean = self.state["mean"]
        self.state["mean"] = loss.array if mean is None else 0.9 * mean + 0.1 * loss.array
        return loss * (1 / self.state["mean"])


class Window:
    """Divides by the oldest of the last losses."""

    def __init__(self, kind, device):
        self.last = kind([on(device, np.float32(1)), on(device, np.float32(1))])

    def __call__(self, prediction, target):
        loss = cross_entropy(prediction, target)
        oldest = self.last[0]
        del self.last[0]
        self.last.append(loss.array)
        return loss * (1 / oldest)


class Shifted:
    """Uses the value before last, which it moves to another attribute first."""

    last: Any = None
    before: Any = None

    def __call__(self, prediction, target):
        loss = cross_entropy(prediction, target)
        self.before, self.last = self.last, loss.array
        return loss


class Caught(Scaled):
    def __call__(self, prediction, target):
        loss = cross_entropy(prediction, target)
        try:
            self.mean = 0.9 * self.mean + 0.1 * loss.array
        except Exception:
            self.mean = loss.array
        return loss * (1 / self.mean)


def closed_over():
    mean = None

    def loss(prediction, target):
        nonlocal mean
        terms = cross_entropy(prediction, target)
        mean = terms.array if mean is None else 0.9 * mean + 0.1 * terms.array
        return terms * (1 / mean)

    return loss


def of_the_class():
    OfTheClass.mean = None
    return OfTheClass.loss


READS: dict[str, tuple[Any, str]] = {
    "an attribute": (lambda device: Scaled(), r"Scaled uses self\.mean, which the call before has left"),
    "a slot": (lambda device: InSlots(), r"InSlots uses self\._InSlots__mean"),
    "a Module's": (lambda device: OfAModule(device=device), r"OfAModule uses self\.mean"),
    "a buffer": (lambda device: Buffered(device=device), r"Buffered uses self\.mean"),
    "of what it holds": (lambda device: Held(device=device), r"Scaled uses self\.mean"),
    "of the class": (lambda device: of_the_class(), r"OfTheClass uses OfTheClass\.mean"),
    "of a partial": (lambda device: functools.partial(Scaled()), r"Scaled uses self\.mean"),
    "of a Tensor": (OfATensor, r"Tensor uses self\.array"),
    "in a dict": (lambda device: InADict(), r"InADict uses self\.state\['mean'\]"),
    "in a list": (lambda device: Window(list, device), r"Window uses self\.last\[0\]"),
    "in a deque": (lambda device: Window(collections.deque, device), r"Window uses self\.last\[0\]"),
    "closed over": (lambda device: closed_over(), "loss uses mean"),
    "moved": (lambda device: Shifted(), r"Shifted uses self\.last"),
    "in a try": (lambda device: Caught(), r"Caught uses self\.mean"),
}


@pytest.mark.parametrize("kind", READS)
def test_a_loss_that_uses_what_the_step_before_has_left(kind, recordings):
    make, says = READS[kind]
    assert_alike(lambda device, capture: fit(device, capture, loss=make(device))[1], recordings, 0, says)


class Stay:
    previous: Any = None

    def __call__(self, parameter):
        before, self.previous = self.previous, xn.Tensor(parameter.array.copy())
        distance = parameter if before is None else parameter - before
        return xn.ops.sum(distance * distance)


class Slow:
    previous: Any = None

    def project(self, w):
        if self.previous is not None:
            w[...] = 0.5 * w + 0.5 * self.previous
        self.previous = w.copy()


class Share:
    __name__ = "share"
    value = 0.0

    def __call__(self, prediction, target):
        self.value = 0.9 * self.value + 0.1 * (prediction.argmax(1) == target).mean()
        return self.value


class Running(xn.Trainer):
    mean: Any = 0.0

    def forward_backward(self, x, y):
        loss, prediction = super().forward_backward(x, y)
        self.mean = 0.9 * self.mean + 0.1 * loss
        return loss, prediction


def with_kernel(device, **settings):
    model = network(device)
    for name, value in settings.items():
        setattr(model.layers[0].kernel, name, value)
    return model


PARTS: dict[str, tuple[Any, str]] = {
    "penalty": (lambda device: {"model": with_kernel(device, regularizer=Stay())}, r"Stay uses self\.previous"),
    "constraint": (lambda device: {"model": with_kernel(device, constraint=Slow())}, r"Slow uses self\.previous"),
    "metric": (lambda device: {"metrics": [Share()]}, r"Share uses self\.value"),
    "trainer": (lambda device: {"kind": Running}, r"Running uses self\.mean"),
}


@pytest.mark.parametrize("part", PARTS)
def test_other_parts_that_use_what_the_step_before_has_left(part, recordings):
    def values(device, capture):
        run, found = fit(device, capture, **make(device))
        return [*found, number(getattr(run, "mean", 0.0))]

    make, says = PARTS[part]
    assert_alike(values, recordings, 0, says)


class InPlace:
    """A running mean in an array that changes in place, and a table that is made at first use."""

    weights: Any = None

    def __init__(self, device):
        self.mean = on(device, np.float32(1))

    def __call__(self, prediction, target):
        if self.weights is None:
            self.weights = xn.Tensor(0 * prediction.array[0] + 2)
        loss = cross_entropy(prediction * self.weights, target)
        self.mean[...] = 0.9 * self.mean + 0.1 * loss.array
        return loss * (1 / self.mean)


def test_arrays_that_change_in_place_and_are_made_at_first_use(recordings):
    assert_alike(lambda device, capture: fit(device, capture, loss=InPlace(device))[1], recordings, 1)


# -- what is counted --


class Warm(xn.Module):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.calls = 0

    def forward(self, prediction, target):
        self.calls += 1
        return cross_entropy(prediction, target) * min(1.0, self.calls / 15)


def warm_class(prediction_of=None):
    class WarmClass:
        calls = 0

        def __call__(self, prediction, target):
            type(self).calls += 1
            return cross_entropy(prediction, target) * min(1.0, self.calls / 15)

    return WarmClass()


def warm_closure():
    calls = 0

    def loss(prediction, target):
        nonlocal calls
        calls += 1
        return cross_entropy(prediction, target) * min(1.0, calls / 15)

    return loss


def warm_list():
    calls = [0]

    def loss(prediction, target):
        calls[0] += 1
        return cross_entropy(prediction, target) * min(1.0, calls[0] / 15)

    return loss


def warm_default():
    def loss(prediction, target, state={"calls": 0}):  # noqa: B006
        state["calls"] += 1
        return cross_entropy(prediction, target) * min(1.0, state["calls"] / 15)

    return loss


class Counter:
    calls = 0

    def next(self):
        self.calls += 1
        return min(1.0, self.calls / 15)


class Counting:
    def __init__(self):
        self.counters = {"warm": Counter()}

    def __call__(self, prediction, target):
        return cross_entropy(prediction, target) * self.counters["warm"].next()


class Critic:
    """A loss with a layer that carries a state."""

    def __init__(self, device):
        self.critic = xn.Sequential([xn.LSTM(3, stateful=True)], input_shape=(1, 3), device=device, seed=2).freeze()

    def __call__(self, prediction, target):
        h = self.critic(prediction.reshape(-1, 1, 3))
        return cross_entropy(prediction, target) + xn.ops.mean(h * h)


class WarmLayer(xn.Module):
    calls = 0

    def forward(self, x):
        if self.training:
            type(self).calls += 1
        return x * min(1.0, type(self).calls / 15)


def warm_layer(device):
    WarmLayer.calls = 0
    layers = [xn.Dense(8, "tanh"), WarmLayer(), xn.Dense(3)]
    return {"model": xn.Sequential(layers, input_shape=(6,), device=device, seed=1)}


COUNTS: dict[str, tuple[Any, str]] = {
    "a Module": (lambda device: {"loss": Warm(device=device)}, r"Warm assigns self\.calls"),
    "a class": (lambda device: {"loss": warm_class()}, r"WarmClass assigns WarmClass\.calls"),
    "a function": (lambda device: {"loss": warm_closure()}, "loss assigns calls"),
    "a list": (lambda device: {"loss": warm_list()}, r"loss assigns calls\[0\]"),
    "a default argument": (lambda device: {"loss": warm_default()}, r"loss assigns state\['calls'\]"),
    "what it holds": (lambda device: {"loss": Counting()}, r"Counter assigns self\.calls"),
    "a state": (lambda device: {"loss": Critic(device)}, r"layer '0' \(LSTM\) uses self\.carried"),
    "a layer's class": (warm_layer, r"WarmLayer assigns WarmLayer\.calls"),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_counters_are_not_recorded(kind, recordings):
    make, says = COUNTS[kind]
    assert_alike(lambda device, capture: fit(device, capture, **make(device))[1], recordings, 0, says)


def test_a_prediction_that_counts_is_not_recorded(recordings):
    class Fades(xn.Module):
        def __init__(self, fade, **settings):
            super().__init__(**settings)
            self.inner, self.fade = xn.Dense(2), fade

        def forward(self, x):
            return self.inner(x) * self.fade.next()

    def values(device, capture):
        model, x = Fades(Counter(), device=device, seed=1), on(device, X)
        return [number(model.predict(x)[0, 0]) if capture else number(model(x).array[0, 0]) for _ in range(4)]

    assert_alike(values, recordings, 0, r"Counter assigns self\.calls")


# -- what is kept for others --


class Kept(xn.Module):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.aux: Any = None

    def forward(self, prediction, target):
        self.aux = xn.ops.mean(prediction * prediction).array
        return cross_entropy(prediction, target)


class KeptInSlots:
    __slots__ = ("aux",)
    __call__ = Kept.forward


class KeptByTrainer(xn.Trainer):
    aux: Any = None

    def forward_backward(self, x, y):
        prediction: Any
        loss, prediction = super().forward_backward(x, y)
        self.aux = (prediction * prediction).mean()
        return loss, prediction


class KeptPenalty:
    aux: Any = None

    def __call__(self, parameter):
        value = xn.ops.sum(parameter * parameter)
        self.aux = value.array
        return value * 0.01


class KeptByClass:
    aux: Any = None

    @classmethod
    def metric(cls, prediction, target):
        cls.aux = (prediction * prediction).mean()
        return cls.aux


def kept_by_function():
    def loss(prediction, target):
        loss.aux = xn.ops.mean(prediction * prediction)  # type: ignore[attr-defined]
        return cross_entropy(prediction, target)

    return loss


class KeptInADict:
    def __init__(self):
        self.terms: Any = {}

    @property
    def aux(self):
        return self.terms["aux"]

    def __call__(self, prediction, target):
        self.terms.clear()
        self.terms["aux"] = xn.ops.mean(prediction * prediction)
        return cross_entropy(prediction, target)


KEEPERS: dict[str, Any] = {
    "a Module": lambda device: {"loss": Kept(device=device)},
    "slots": lambda device: {"loss": KeptInSlots()},
    "a dict": lambda device: {"loss": KeptInADict()},
    "a function": lambda device: {"loss": kept_by_function()},
    "a trainer": lambda device: {"kind": KeptByTrainer},
    "a penalty": lambda device: {"model": with_kernel(device, regularizer=KeptPenalty())},
    "a class": lambda device: {"metrics": [KeptByClass.metric]},
}


@pytest.mark.parametrize("keeper", KEEPERS)
def test_what_is_kept_is_that_of_the_batch(keeper, recordings):
    """With batches of two shapes, each of which has a recording."""

    def values(device, capture):
        def act(trainer):
            penalty = trainer.model.layers[0].kernel.regularizer
            owners = trainer, trainer.loss, penalty, KeptByClass
            seen.append(number(next(owner.aux for owner in owners if getattr(owner, "aux", None) is not None)))

        seen: list[float] = []
        KeptByClass.aux = None
        fit(device, capture, batch_size=12, act=act, **KEEPERS[keeper](device))
        return seen

    assert_alike(values, recordings, 2)


# -- what others change between two steps --


class Weighted:
    def __init__(self, factors):
        self.factors = factors

    def __call__(self, prediction, target):
        factors = self.factors.values() if isinstance(self.factors, dict) else self.factors
        return cross_entropy(prediction, target) * float(sum(factors))


def closing_over(factors):
    return lambda prediction, target: cross_entropy(prediction, target) * float(sum(factors))


@pytest.mark.parametrize("make", [Weighted, lambda factors: Weighted({**dict(enumerate(factors))}), closing_over])
def test_lists_and_dicts_that_a_callback_changes(make, recordings):
    def values(device, capture):
        def act(trainer):
            if trainer.iteration == 6:
                held = factors if not isinstance(loss, Weighted) else loss.factors
                held[1] = 0.5

        factors = [1.0, 2.0]
        loss = make(factors)
        return fit(device, capture, loss=loss, act=act)[1]

    assert_alike(values, recordings, 2)


def test_a_log_that_a_loss_writes_is_no_reason_not_to_record(recordings):
    def values(device, capture):
        def loss(prediction, target):
            sizes.append(len(target))
            return cross_entropy(prediction, target)

        sizes: list[int] = []
        return fit(device, capture, loss=loss)[1]

    assert_alike(values, recordings, 1)


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


@pytest.mark.parametrize("kind", [Annealed, AfterWarmUp])
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
        done = [0]

        def ratio(prediction, target):
            return wrap(len(done) / 8)

        return fit(device, capture, metrics=[ratio], act=lambda trainer: done.append(trainer.iteration))[1]

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


# -- other models --


class Learnt(xn.Module):
    def __init__(self, device):
        super().__init__(device=device)
        self.log = xn.Parameter(on(device, np.zeros(1, np.float32)))

    def forward(self, prediction, target):
        return cross_entropy(prediction, target) * xn.ops.exp(-self.log).reshape(()) + xn.ops.sum(self.log)


def test_gradients_of_other_parameters(recordings):
    def values(device, capture):
        loss, optimizer = Learnt(device), xn.optim.SGD(0.1)
        _, found = fit(device, capture, loss=loss, act=lambda trainer: optimizer.step([loss.log]))
        return [*found, number(loss.log.array[0])]

    says = r"it leaves a gradient in Parameter\(log, \(1,\), float32\), which is no parameter of the trained model.* freeze"
    assert_alike(values, recordings, 0, says)


def held_in_a_list(critic):
    class Loss:
        def __init__(self):
            self.critics = [critic]

        def __call__(self, fake, target):
            return xn.ops.mean(xn.ops.softplus(-self.critics[0](fake)))

    return Loss()


critics: dict[str, Any] = {}


def in_a_global(critic):
    critics["now"] = critic
    return lambda fake, target: xn.ops.mean(xn.ops.softplus(-critics["now"](fake)))


HOLDERS: dict[str, Any] = {
    "closure": lambda critic: lambda fake, target: xn.ops.mean(xn.ops.softplus(-critic(fake))),
    "list": held_in_a_list,
    "global": in_a_global,
}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_weights_that_an_update_moves(holder, dtype, frozen, recordings):
    """The critic's first update, after the step was recorded, puts its weights into one flat array."""

    def values(device, capture):
        generator = network(device, 2)
        critic = xn.Sequential([xn.Dense(8, "relu"), xn.Dense(1)], input_shape=(2,), device=device, seed=2, dtype=dtype)
        optimizer, x, real = xn.optim.SGD(0.5), on(device, X), on(device, X[:, :2])

        def train_critic(trainer):
            if trainer.batch != 3:
                return
            critic.unfreeze()
            critic.zero_grad()
            with xn.no_grad():
                fake = generator(x)
            score = critic(fake)
            loss = xn.ops.mean(xn.ops.softplus(-critic(real))) + xn.ops.mean(xn.ops.softplus(score))
            loss.backward()
            optimizer.step(critic)
            if frozen:
                critic.freeze()

        if frozen:
            critic.freeze()
        loss = HOLDERS[holder](critic)
        run, found = fit(device, capture, generator, loss=loss, act=train_critic)
        return [*found, *map(number, run.model.layers[1].bias.array)]

    if frozen:  # a global one is not watched as a whole, and its 16-bit copies are made anew
        assert_alike(values, recordings, 2 if (holder, dtype) == ("global", "float32") else 4)
    else:
        assert_alike(values, recordings, 0, "it leaves a gradient in Parameter")


def test_a_prediction_through_weights_that_a_training_moves():
    def values(device):
        encoder, x = network(device, 4, seed=4), on(device, X)

        class Head(xn.Module):
            def __init__(self, **settings):
                super().__init__(**settings)
                self.out = xn.Dense(2)

            def forward(self, x):
                return self.out(encoder(x))

        model = Head(device=device, seed=1)
        for _ in range(4):
            model.predict(x)
        run = xn.Trainer(encoder, loss="mean_squared_error", optimizer=xn.optim.SGD(0.1))
        run.fit((X, np.ones((32, 4), np.float32)), epochs=2, batch_size=8, verbose=False)
        return [xn.to_numpy(model.predict(x)) for _ in range(3)]

    for found, expected in zip(values("cuda"), values("cpu"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_function_of_ones_own_through_weights_that_move():
    model, x = network("cuda"), on("cuda", X)

    @xn.cuda.capture
    def forward(x):
        return model(x).array

    for _ in range(3):
        before = xn.to_numpy(forward(x))
    model.flat_parameters.values[...] *= 2
    for _ in range(3):
        found = xn.to_numpy(forward(x))
        np.testing.assert_array_equal(found, xn.to_numpy(model(x).array))
    assert not np.array_equal(found, before)


@pytest.mark.parametrize("captured", [False, True])
def test_predictions_within_a_step(captured, recordings):
    """Of a teacher: a part of the step's recording, with recordings of their own outside of it."""

    def values(device, capture):
        teacher = network(device, seed=7)

        def loss(prediction, target):
            error = prediction - teach(on(device, X[:8]) if device == "cpu" else x)
            return cross_entropy(prediction, target) + xn.ops.mean(error * error)

        x = on(device, X[:8])
        teach: Any = xn.cuda.capture(teacher.predict) if captured and device == "cuda" else teacher.predict
        found = fit(device, capture, loss=loss)[1]
        recorded = recordings[0]
        for _ in range(3):
            teacher.predict(x)
        if device == "cuda":
            assert recordings[0] - recorded == (0 if captured and not capture else 1) or not capture
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        expected, plain, found = values("cpu", True), values("cuda", False), values("cuda", True)
    assert found == plain
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
