"""How code in a step gets at what it uses: ways that a recording has to follow, and others that are no matter for it."""

from __future__ import annotations

import dataclasses
import functools
import operator
import random
import sys
import types
import warnings
import weakref
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.alike import assert_alike, cross_entropy, fit, network
from tests.on_cuda.following import X, Y
from xpnet.layers.hooks import hooked

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("schedule")]

SCALE = 1.0
Number = int | float
MISSING = object()
Pair = namedtuple("Pair", "name weight")


class Term:
    """A part of a loss."""

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, prediction, target):
        return cross_entropy(prediction, target) * self.weight


class Made:
    def __init__(self):
        self.weight = SCALE


@dataclasses.dataclass
class MadeLater:
    weight: float = 0.0

    def __post_init__(self):
        self.weight = SCALE


class Written:
    def __init__(self):
        self.hidden = 1.0

    def __str__(self):
        return str(self.hidden)


@dataclasses.dataclass(eq=False)
class Fields:
    hidden: float = 1.0


class Named:
    def __init__(self):
        self._weight = 1.0

    weight = property(operator.attrgetter("_weight"))


class Matched:
    def __init__(self):
        self.hidden = 1.0


class Shadowed:
    weight, other = 1.0, 0

    def __init__(self):
        self.other = 1


class Meta(type):
    weight = 1.0


class OfMeta(metaclass=Meta):
    pass


class Tuple(tuple[Any, ...]):
    __slots__ = ()


class Property(property):
    pass


class WithProperty:
    def __init__(self):
        self.hidden = 1.0

    weight = Property(lambda self: self.hidden)


def matching(thing):
    match thing:
        case Matched(hidden=weight):
            return weight
    return 0.0


def looked_up(name):
    return globals()[name]


def local_import():
    import settings_of_this_test  # type: ignore[import-not-found]

    return settings_of_this_test.weight


def weight_of(make, read, write):
    """Return a loss that reads a weight from something, and a function that changes it there."""
    held = make()
    return (lambda p, t: cross_entropy(p, t) * read(held)), lambda value: write(held, value)


def attribute(name):
    return lambda thing, value: setattr(thing, name, value)


def other_class(thing, value):
    thing.__class__ = type("Other", (Term,), {"weight": value})
    thing.__dict__.pop("weight", None)


def new_and_deleted(thing, value):
    thing.__dict__.clear()
    thing.weight = value


def defaults(function, value):
    function.__defaults__ = (value,)


def with_default(value=1.0):
    return value


def scale(_, value):
    globals()["SCALE"] = value


def module():
    found: Any = types.ModuleType("settings_of_this_test")
    found.weight = 1.0
    sys.modules["settings_of_this_test"] = found
    return found


WAYS: dict[str, Any] = {
    "made in the step": (lambda: None, lambda _: Made().weight, scale),
    "made later": (lambda: None, lambda _: MadeLater().weight, scale),
    "written": (Written, lambda h: float(str(h)), attribute("hidden")),
    "formatted": (Written, lambda h: float(f"{h}"), attribute("hidden")),
    "format string": (Fields, lambda h: float("{.hidden}".format(h)), attribute("hidden")),  # noqa: UP032
    "astuple": (Fields, lambda h: dataclasses.astuple(h)[0], attribute("hidden")),
    "attrgetter": (Named, lambda h: h.weight, attribute("_weight")),
    "match": (Matched, matching, attribute("hidden")),
    "property subclass": (WithProperty, lambda h: h.weight, attribute("hidden")),
    "keys of a dict": (lambda: {Term(): 1}, lambda h: next(iter(h)).weight, lambda h, v: setattr(next(iter(h)), "weight", v)),
    "members of a set": (lambda: {Term()}, lambda h: next(iter(h)).weight, lambda h, v: setattr(next(iter(h)), "weight", v)),
    "order": (lambda: OrderedDict(a=1.0, b=3.0), lambda h: next(iter(h.values())), lambda h, v: h.move_to_end(next(iter(h)))),
    "factory": (lambda: defaultdict(functools.partial(Term.__call__, Term())), lambda h: h.default_factory.args[0].weight,
                lambda h, v: setattr(h.default_factory.args[0], "weight", v)),
    "local import": (module, lambda _: local_import(), attribute("weight")),
    "globals()": (lambda: None, lambda _: globals()["SCALE"], scale),
    "keywords of a partial": (lambda: functools.partial(with_default, value=1.0), lambda h: h(),
                              lambda h, v: h.keywords.update(value=v)),
    "mapping proxy": (lambda: [{"a": 1.0}], lambda h: types.MappingProxyType(h[0])["a"], lambda h, v: h[0].update(a=v)),
    "tuple subclass": (lambda: Tuple([Term()]), lambda h: h[0].weight, lambda h, v: setattr(h[0], "weight", v)),
    "class": (Term, lambda h: h.weight, other_class),
    "shadowed": (Shadowed, lambda h: h.weight, new_and_deleted),
    "defaults": (lambda: types.FunctionType(with_default.__code__, globals(), "f", (1.0,)), lambda h: h(), defaults),
    "metaclass": (lambda: OfMeta, lambda h: h.weight, lambda h, v: setattr(Meta, "weight", v)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_changes_between_steps(way, recordings, monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", 1.0)

    def values(device, capture):
        globals()["SCALE"] = Meta.weight = 1.0
        loss, change = weight_of(*WAYS[way])

        def act(trainer):
            if trainer.iteration in (5, 10):
                change(float(trainer.iteration // 5 + 1))

        return fit(device, capture, loss=loss, act=act)[1]

    assert_alike(values, recordings, None)
    Meta.weight = 1.0


@pytest.mark.parametrize("look", [lambda: looked_up("SCALE"), lambda: eval("SCA" + "LE")])
def test_a_global_variable_that_is_looked_up_by_name(look, monkeypatch):
    """All of the file's count then; the step may run launch by launch."""
    monkeypatch.setitem(globals(), "SCALE", 1.0)

    def values(capture):
        globals()["SCALE"] = 1.0
        act = lambda trainer: globals().update(SCALE=1.0 + trainer.epoch)  # noqa: E731
        return fit("cuda", capture, loss=lambda p, t: cross_entropy(p, t) * look(), act=act)[1]

    expected = values(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert values(True) == expected


def test_a_proxy_of_a_weight(recordings):
    def values(device, capture):
        held = Term()
        kept = weakref.WeakValueDictionary(a=held)
        act = lambda trainer: setattr(held, "weight", 1.0 + trainer.epoch)  # noqa: E731
        return fit(device, capture, loss=lambda p, t: kept["a"](p, t), act=act)[1]

    assert_alike(values, recordings, None)


@pytest.mark.parametrize("what", ["optimizer", "trainer", "callback"])
def test_objects_of_another_loop(what, recordings):
    """Their numbers change in no step of this one: a critic's."""

    def values(device, capture):
        other = xn.Trainer(network(device, seed=5), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(1.0), capture=capture)

        class Own(xn.Trainer):
            def forward_backward(self, x, y):
                self.gain = self.callbacks[-1].gain
                return super().forward_backward(x, y)

        class Gain(xn.Callback):
            gain = 1.0

            def on_epoch_begin(self, trainer):
                self.gain = 1.0 + trainer.epoch

        def loss(prediction, target):
            weight = {"optimizer": lambda: other.optimizer.learning_rate, "trainer": lambda: other.epoch + 1}.get(what)
            return cross_entropy(prediction, target) * (run[0].gain if weight is None else weight())

        def change(trainer, *_):
            other.optimizer.learning_rate = 1.0 / (1 + trainer.epoch)
            other.fit((X[:8], Y[:8]), verbose=False)

        kind = Own if what == "callback" else xn.Trainer
        callbacks = [xn.training.LambdaCallback(epoch_end=change), Gain()]
        run: list[Any] = [kind(network(device), loss=loss, optimizer=xn.optim.SGD(0.1), callbacks=callbacks, capture=capture)]
        return run[0].fit((X, Y), epochs=4, batch_size=8, verbose=False)["loss"]

    assert_alike(values, recordings, None)


@pytest.mark.parametrize("training", [True, False])
def test_settings_that_a_hook_finds_on_a_layer(training, recordings):
    def values(device, capture):
        model = network(device)
        model.layers[0].settings = {"weight": 1.0}
        model.layers[0].capturable = capture

        def change(trainer):
            model.layers[0].settings["weight"] = 1.0 + trainer.epoch

        def hook(layer, forward, inputs, keywords):
            return forward(*inputs) * layer.settings["weight"]

        with hooked([model.layers[0]], hook):
            if training:
                return fit(device, capture, model, act=change)[1]
            found = []
            for i in range(6):
                model.layers[0].settings["weight"] = 1.0 + i // 3
                found.append(float(xn.to_numpy(model.predict(xn.to_device(X, device))).sum()))
            return found

    assert_alike(values, recordings, None)


class Keeps:
    """Keeps what a batch of one size gives, for those of another."""

    def __init__(self):
        self.kept: Any = None

    def __call__(self, prediction, target):
        loss = cross_entropy(prediction, target)
        if len(target) == 8:
            self.kept = xn.ops.mean(prediction).array
            return loss
        return loss if self.kept is None else loss * (1 + 0.1 * self.kept)


@pytest.mark.parametrize("sizes", [(8, 4), (8, 8, 8, 4), (8, 4, 6, 4), (4, 8, 4, 8)])
def test_what_a_step_of_another_shape_has_left(sizes, recordings):
    def values(device, capture):
        ends = np.cumsum(sizes)
        batches = [(X[e - s : e], Y[e - s : e]) for s, e in zip(sizes, ends)]
        run = xn.Trainer(network(device), loss=Keeps(), optimizer=xn.optim.SGD(0.1), capture=capture)
        return run.fit(batches, epochs=6, verbose=False)["loss"]

    assert_alike(values, recordings, -1, "Keeps uses self.kept")


# -- what is no reason not to record --


class Terms(NamedTuple):
    weight: float = 1.0


@dataclasses.dataclass
class Mode:
    mode: Literal["a", "b"] = "a"
    weight: float = 1.0


class Slot:
    __slots__ = ("weight",)


class OverSlot(Slot):
    weight = 1.0


class Busy:
    """Holds much that its loss does not use, and prints."""

    def __init__(self):
        self.scale, self.mean, self.numbers, self.seen = 1.0, [], iter([1, 2, 3]), 0

    def loss(self, prediction, target):
        if getattr(self, "verbose", False):
            print(self.scale, file=sys.stderr)
        return cross_entropy(prediction, target) * getattr(self, "scale", 2.0) + 0 * xn.ops.mean(prediction)

    def after(self, trainer):
        self.seen += 1
        self.mean.append(self.seen)


FREE: dict[str, Any] = {
    "sentinel": lambda p, t, mask=MISSING: cross_entropy(p, t) * (1.0 if mask is MISSING else 2.0),
    "union": lambda p, t: cross_entropy(p, t) * (1.0 if isinstance(1.0, Number) else 2.0),
    "named tuple": (lambda terms: lambda p, t: cross_entropy(p, t) * terms.weight)(Terms()),
    "old named tuple": (lambda pair: lambda p, t: cross_entropy(p, t) * pair.weight)(Pair("a", 1.0)),
    "literal": (lambda mode: lambda p, t: cross_entropy(p, t) * mode.weight)(Mode()),
    "slot": (lambda held: lambda p, t: cross_entropy(p, t) * held.weight)(OverSlot()),
}


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_change_is_recorded_with(name, recordings):
    assert_alike(lambda device, capture: fit(device, capture, loss=FREE[name])[1], recordings, 1)


def test_a_loss_of_a_busy_object_is_recorded_once(recordings):
    def values(device, capture):
        busy = Busy()
        return fit(device, capture, loss=busy.loss, act=busy.after)[1]

    assert_alike(values, recordings, 1)


def test_draws_without_a_state():
    """From the system: never the same twice, so the step is not recorded."""
    numbers: Any = random.SystemRandom()
    with pytest.warns(RuntimeWarning, match=r"uses numbers \(SystemRandom\), whose changes cannot be seen"):
        run, _ = fit("cuda", True, loss=lambda p, t: cross_entropy(p, t) * (1 + numbers.random()))
    assert len(set(run.history["loss"])) == len(run.history["loss"])


class Rude:
    """Raises wherever Python asks it about itself."""

    __slots__ = ("weight",)

    def __init__(self):
        self.weight = 1.0

    def __getattr__(self, name):
        raise KeyError(name)

    def __repr__(self):
        raise OSError("no")

    __class__: Any = property(lambda self: 1 / 0)


def test_objects_that_raise_when_they_are_asked(recordings):
    def values(device, capture):
        rude = Rude()
        keyed = {rude: 2.0}
        return fit(device, capture, loss=lambda p, t: cross_entropy(p, t) * keyed[rude] * rude.weight)[1]

    assert_alike(values, recordings, 1)
