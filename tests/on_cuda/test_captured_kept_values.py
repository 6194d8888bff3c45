"""What code of a user's in a step keeps for others, and what others change: as on the CPU."""

from __future__ import annotations

from typing import Any

import pytest

import xpnet as xn
from tests.on_cuda.alike import assert_alike, cross_entropy, fit, number, on, with_kernel
from tests.on_cuda.following import X

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("schedule")]


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


def test_what_a_layer_holds_that_changes_between_predictions(recordings):
    class Scale:
        factor = 1.0

    class Scales(xn.Module):
        def __init__(self, scale, factors, **settings):
            super().__init__(**settings)
            self.inner, self.scale, self.factors = xn.Dense(2), scale, factors

        def forward(self, x):
            return self.inner(x) * self.scale.factor * self.factors["all"]

    def values(device, capture):
        scale, factors = Scale(), {"all": 1.0}
        model, x, found = Scales(scale, factors, device=device, seed=1), on(device, X), []
        for i in range(12):
            if i == 4:
                scale.factor = 2.0
            if i == 8:
                factors["all"] = 3.0
            with xn.no_grad():
                found.append(number((model.predict(x) if capture else model(x).array)[0, 0]))
        return found

    assert_alike(values, recordings, 3)


@pytest.mark.parametrize("kind", ["append", "key", "set", "global"])
def test_a_log_that_a_loss_writes_is_whole(kind, recordings):
    def values(device, capture):
        def loss(prediction, target):
            if kind == "append":
                log.append(len(target))
            elif kind == "key":
                keyed[len(keyed)] = prediction.array
            elif kind == "set":
                seen.add(len(seen))
            else:
                LOG.append(len(target))
            return cross_entropy(prediction, target)

        LOG.clear()
        log: list[int] = []
        keyed: dict[int, Any] = {}
        seen: set[int] = set()
        found = fit(device, capture, loss=loss)[1]
        return [*found, len(log) + len(keyed) + len(seen) + len(LOG)]

    assert_alike(values, recordings, 0, r"loss assigns (log|keyed|seen|LOG)\[\d+\] in its call.*; collect values in a callback")


LOG: list[int] = []
