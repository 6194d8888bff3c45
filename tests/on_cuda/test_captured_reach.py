"""Whatever code in a step can reach is looked at: a replay never uses what has changed since, wherever it is kept."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import random
import types
import weakref
from collections import deque
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.alike import assert_alike, cross_entropy, fit, network
from tests.on_cuda.following import X, Y

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("schedule")]


class Settings:
    """Attributes of any name."""

    def __init__(self, **values):
        self.__dict__.update(values)


class Named(dict[str, float]):
    """A dict with attributes."""


@dataclasses.dataclass
class Typed:
    weight: float = 1.0
    dtype: str = "float32"


class WithSlots:
    __slots__ = ("weight",)

    def __init__(self):
        self.weight = 1.0


WEIGHT = 1.0
SETTINGS: Any = Settings(weight=1.0)
MODULE: Any = types.ModuleType("settings_of_mine")


def called_by_the_loss():
    return WEIGHT


@functools.lru_cache
def cached_settings():
    return SETTINGS


class Weighted:
    """A loss times a weight that something else holds."""

    def __init__(self, weight):
        self.weight_now = weight

    def __call__(self, prediction, target):
        return cross_entropy(prediction, target) * self.weight_now()


def changed(place, weight):
    """Return the loss that reads a weight, and a function that changes it."""

    def both(holder, read, write):
        return (lambda p, t: cross_entropy(p, t) * read(holder)), (lambda value: write(holder, value))

    def item(holder, value):
        holder["weight"] = value

    def attribute(holder, value):
        holder.weight = value

    if place == "global":
        return (lambda p, t: cross_entropy(p, t) * WEIGHT), lambda value: globals().update(WEIGHT=value)
    if place == "global of a function that is called":
        return (lambda p, t: cross_entropy(p, t) * called_by_the_loss()), lambda value: globals().update(WEIGHT=value)
    if place == "attribute of a global object":
        return (lambda p, t: cross_entropy(p, t) * SETTINGS.weight), lambda value: setattr(SETTINGS, "weight", value)
    if place == "behind lru_cache":
        return (lambda p, t: cross_entropy(p, t) * cached_settings().weight), lambda value: setattr(SETTINGS, "weight", value)
    if place == "module":
        return (lambda p, t: cross_entropy(p, t) * MODULE.weight), lambda value: setattr(MODULE, "weight", value)
    if place == "number of entries":
        return both([0], len, lambda holder, value: holder.append(value))
    if place == "number of many entries":
        return both([0] * 100, lambda h: len(h) / 100, lambda holder, value: holder.extend([0] * 50))
    if place == "set":
        return both({0}, lambda h: 1 + (2.0 in h), lambda holder, value: holder.add(value))
    if place == "dict in a tuple":
        return both(("a", {"weight": 1.0}), lambda h: h[1]["weight"], lambda holder, value: item(holder[1], value))
    if place == "list in a dict":
        return both({"a": [1.0]}, lambda h: h["a"][0], lambda holder, value: holder["a"].__setitem__(0, value))
    if place == "weak reference":
        held: Any = Settings(weight=1.0)
        changed.held = held  # type: ignore[attr-defined]
        return both(weakref.ref(held), lambda h: h().weight, lambda holder, value: attribute(holder(), value))
    if place == "bound method":
        return Weighted(types.MethodType(lambda self: self.weight, SETTINGS)), lambda value: attribute(SETTINGS, value)
    if place == "partial":
        held = Settings(weight=1.0)
        return functools.partial(lambda h, p, t: cross_entropy(p, t) * h.weight, held), lambda value: attribute(held, value)
    if place == "default argument":
        held = {"weight": 1.0}
        return (lambda p, t, h=held: cross_entropy(p, t) * h["weight"]), lambda value: item(held, value)
    if place == "getattr":
        held = Settings(weight=1.0)
        return (lambda p, t: cross_entropy(p, t) * getattr(held, "wei" + "ght")), lambda value: attribute(held, value)
    holder: Any = {
        "attribute": Settings(), "namespace": argparse.Namespace(), "simple": types.SimpleNamespace(), "with a dtype": Typed(),
        "slot": WithSlots(), "attribute of a dict": Named(),
    }[place]  # fmt: skip
    holder.weight = 1.0
    return both(holder, lambda h: h.weight, attribute)


PLACES = [
    "global", "global of a function that is called", "attribute of a global object", "behind lru_cache", "module",
    "number of entries", "number of many entries", "set", "dict in a tuple", "list in a dict", "weak reference", "bound method",
    "partial", "default argument", "getattr", "attribute", "namespace", "simple", "with a dtype", "slot", "attribute of a dict",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_weight_that_a_callback_changes(place, recordings, monkeypatch):
    """Twice within a run: recorded three times."""
    monkeypatch.setattr(SETTINGS, "weight", 1.0)
    monkeypatch.setattr(MODULE, "weight", 1.0, raising=False)
    monkeypatch.setitem(globals(), "WEIGHT", 1.0)

    def values(device, capture):
        loss, change = changed(place, 1.0)
        globals()["WEIGHT"] = SETTINGS.weight = MODULE.weight = 1.0

        def act(trainer):
            if trainer.iteration in (5, 10):
                change(float(trainer.iteration // 5 + 1))

        return fit(device, capture, loss=loss, act=act)[1]

    assert_alike(values, recordings, 3)


@pytest.mark.parametrize("held", ["trainer", "history", "callback"])
def test_objects_of_the_package_that_a_loss_holds(held, recordings):
    def values(device, capture):
        def loss(prediction, target):
            thing: Any = holder[0]
            if held == "trainer":
                return cross_entropy(prediction, target) * thing.weight
            if held == "history":
                return cross_entropy(prediction, target) * (1 + len(thing.get("loss", ())))
            return cross_entropy(prediction, target) * (1 if thing.best is None else thing.best)

        early = xn.training.EarlyStopping("loss", patience=9)
        run: Any = xn.Trainer(network(device), loss=loss, optimizer=xn.optim.SGD(0.1), callbacks=[early], capture=capture)
        run.weight = 1.0
        run.callbacks.append(
            xn.training.LambdaCallback(epoch_end=lambda trainer, values: setattr(run, "weight", run.weight + 1))
        )
        holder = [{"trainer": run, "history": run.history, "callback": early}[held]]
        run.fit((X, Y), epochs=4, batch_size=8, verbose=False)
        return run.history["loss"]

    assert_alike(values, recordings, 4)


GENERATOR = np.random.default_rng(3)
RANDOM = random.Random(3)


def drawing(place):
    """Return a function that draws a number from a generator of the host, kept in some place."""
    deep: dict[str, Any]
    rng, other, old = np.random.default_rng(3), random.Random(3), np.random.RandomState(3)
    deep = {"a": Settings(r=rng)}
    draws: dict[str, Any] = {
        "global": lambda: GENERATOR.random(),
        "of random": lambda: RANDOM.random(),
        "closure": lambda: rng.random(),
        "default argument": lambda r=rng: r.random(),
        "keyword": lambda *, r=rng: r.random(),
        "bound method": rng.random,
        "bound method of random": other.random,
        "partial": functools.partial(lambda r: r.uniform(), rng),
        "tuple": lambda pair=("a", rng): pair[1].random(),
        "object in a dict": lambda: deep["a"].r.random(),
        "old": lambda: old.random_sample(),
    }
    return draws[place]


DRAWS = [
    "global", "of random", "closure", "default argument", "keyword", "bound method", "bound method of random", "partial",
    "tuple", "object in a dict", "old",
]  # fmt: skip


@pytest.mark.parametrize("place", DRAWS)
def test_random_numbers_of_the_host(place, recordings):
    def values(device, capture):
        globals().update(GENERATOR=np.random.default_rng(3), RANDOM=random.Random(3))
        return fit(device, capture, loss=Weighted(drawing(place)))[1]

    assert_alike(values, recordings, 0, "random numbers are drawn on the host")


@pytest.mark.parametrize("place", DRAWS)
def test_random_numbers_of_the_host_in_predictions(place, recordings):
    class Noisy(xn.Module):
        def __init__(self, draw):
            self.draw = draw

        def forward(self, x):
            return x * self.draw()

    def values(device, capture):
        globals().update(GENERATOR=np.random.default_rng(3), RANDOM=random.Random(3))
        noisy = Noisy(drawing(place))
        model = xn.Sequential([xn.Dense(3), noisy], input_shape=(6,), device=device, seed=1)
        if not capture:
            noisy.capturable = False
        return [float(xn.to_numpy(model.predict(xn.to_device(X, device))).sum()) for _ in range(5)]

    assert_alike(values, recordings, 0, "random numbers are drawn on the host")


UNSEEN = {
    "iterator": lambda: itertools.cycle([1.0, 2.0, 3.0]).__next__,
    "next of an iterator": lambda: functools.partial(next, itertools.count(1)),
    "generator": lambda: functools.partial(next, (float(i) for i in range(1, 99))),
    "closed over": lambda: (lambda numbers: lambda: next(numbers))(iter([1.0, 2.0] * 30)),
    "array of bytes": lambda: (lambda b: lambda: float(b[0]))(bytearray(b"1")),
    "weak proxy": lambda: (lambda p: lambda: p.weight)(weakref.proxy(SETTINGS)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_nothing_is_recorded_with_what_changes_without_a_trace(name, recordings):
    def values(device, capture):
        return fit(device, capture, loss=Weighted(UNSEEN[name]()))[1]

    assert_alike(values, recordings, 0, r".* uses .*, whose changes cannot be seen; keep what changes in attributes")


class Keeping:
    """A loss that uses what the step before has left, in something that is empty at first."""

    def __init__(self, kind):
        self.kept: Any = {"dict": {}, "deque": deque(maxlen=3), "list": []}[kind]

    def __call__(self, prediction, target):
        mean = xn.ops.mean(prediction, axis=0)
        loss = cross_entropy(prediction, target)
        for old in list(self.kept.values() if isinstance(self.kept, dict) else self.kept):
            loss = loss + xn.ops.sum(xn.ops.square(mean - old))
        if isinstance(self.kept, dict):
            self.kept["previous"] = mean.array
        else:
            self.kept.append(mean.array)
        return loss


@pytest.mark.parametrize("kind", ["dict", "deque", "list"])
def test_what_the_step_before_has_put_into_something_empty(kind, recordings):
    def values(device, capture):
        loss = Keeping(kind)
        found = fit(device, capture, loss=loss)[1]
        return [*found, len(loss.kept)]

    assert_alike(values, recordings, 0, r"Keeping uses self\.kept\[.*\], which the call before has left")


def test_what_no_code_of_the_step_mentions_does_not_count(recordings):
    """An object with a log of a callback's, an iterator and a count, none of which the loss uses."""

    class Experiment:
        def __init__(self):
            self.scale, self.log, self.numbers, self.steps = 2.0, [], itertools.count(), 0

        def loss(self, prediction, target):
            return cross_entropy(prediction, target) * self.scale

        def after(self, trainer):
            self.steps += 1
            self.log.append(next(self.numbers))

    def values(device, capture):
        experiment = Experiment()
        found = fit(device, capture, loss=experiment.loss, act=experiment.after)[1]
        return [*found, experiment.steps, len(experiment.log)]

    assert_alike(values, recordings, 1)


@pytest.mark.parametrize("hook", ["step_end", "epoch_end"])
@pytest.mark.parametrize("shared", ["model", "model and optimizer", "layer"])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_a_fit_within_a_callback(hook, shared, batch_size, recordings):
    """Of the same model or optimizer: counters and clocks of both are in order."""

    def values(device, capture):
        model = network(device)
        encoder = model.layers[0]
        model = xn.Sequential([encoder, xn.Dropout(0.3), xn.Dense(3)], input_shape=(6,), device=device, seed=1)
        other = model
        if shared == "layer":
            other = xn.Sequential([encoder, xn.Dropout(0.3), xn.Dense(3)], device=device, seed=2)
        optimizer = xn.optim.Adam(0.01)
        second = optimizer if shared == "model and optimizer" else xn.optim.Adam(0.02)
        inner = xn.Trainer(other, loss="softmax_cross_entropy", optimizer=second, capture=capture)

        def act(trainer, *_):
            if trainer.iteration % 4 == 0:
                inner.fit((X[:8], Y[:8]), epochs=2, batch_size=batch_size, verbose=False)

        run = xn.Trainer(
            model,
            loss="softmax_cross_entropy",
            optimizer=optimizer,
            callbacks=[xn.training.LambdaCallback(**{hook: act})],
            capture=capture,
        )
        run.fit((X, Y), epochs=4, batch_size=8, verbose=False)
        weights = [xn.to_numpy(p.array).ravel() for p in model.parameters().values()]
        return [*run.history["loss"], *inner.history["loss"], optimizer.iterations, *np.concatenate(weights)]

    assert_alike(values, recordings, None)
