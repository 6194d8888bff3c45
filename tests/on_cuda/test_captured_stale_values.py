"""Code of a user's that uses what the step before has left, or counts: it is not recorded, and named."""

from __future__ import annotations

import collections
import functools
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.alike import assert_alike, cross_entropy, fit, number, on, with_kernel
from tests.on_cuda.following import X

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("schedule")]


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
