"""Which changes make a model's plans and flat parameters stale: those in the model, wherever; counted, never timed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import xpnet as xn

X = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)


@contextmanager
def layer_calls() -> Iterator[list[xn.Module]]:
    """The Modules that are called within the block: none where a plan runs."""
    calls: list[xn.Module] = []
    original = xn.Module.__call__

    def counted(self, *inputs, **keywords):
        calls.append(self)
        return original(self, *inputs, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xn.Module, "__call__", counted)
        yield calls


def runs_planned(model: xn.Module) -> bool:
    """Whether a prediction runs by its plan."""
    with layer_calls() as calls:
        model.predict(X)
    return not calls


def nested(*last: xn.Module) -> xn.Sequential:
    layers = [xn.Dense(5, "relu"), xn.Residual([xn.BatchNorm(), xn.Sequential([xn.Dense(5), xn.LeakyReLU()])]), *last]
    model = xn.Sequential(layers, input_shape=(5,))
    model.predict(X)
    assert runs_planned(model)
    return model


def test_another_models_changes_leave_plans_and_flat_parameters_alone():
    model, other = nested(), nested()
    flat = model.flat_parameters  # moves the parameters
    model.predict(X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(flat), "holds", lambda *_: pytest.fail("the parameters were collected again"))
        other.layers[0].units_before = 3
        other.layers = [*other.layers, xn.Dense(2)]  # type: ignore[assignment]
        other.predict(X)
        xn.Dense(4).anything = 1
        del other.layers[0].units_before
        assert model.flat_parameters is flat
    assert runs_planned(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "note", 1),
        lambda m: setattr(m.layers[0], "use_bias", False),
        lambda m: setattr(m.layers[1].body.layers[1].layers[1], "slope", 0.5),
        lambda m: setattr(m.layers[1].body.layers[1], "layers", [xn.Dense(5), xn.Tanh()]),
        lambda m: setattr(m.layers[1], "shortcut", xn.Dense(5)),
        lambda m: setattr(m.layers[1].body.layers[1].layers[0], "kernel", xn.Parameter(np.ones((5, 5), np.float32))),
        lambda m: setattr(m.layers[1].body.layers[0], "running_mean", np.ones(5, np.float32)),
        lambda m: m.to("cpu"),
    ],
)
def test_a_change_anywhere_in_the_model_counts(change):
    model = nested()
    before = model.predict(X)
    change(model)
    after = model.predict(X)
    with xn.no_grad():
        np.testing.assert_allclose(after, model.eval()(X).array, rtol=1e-5, atol=1e-6)
    assert after.shape == before.shape
    assert runs_planned(model)


def test_a_shared_layer_belongs_to_every_model_that_holds_it():
    shared = xn.LeakyReLU()
    one, two, other = nested(shared), nested(xn.Sequential([shared])), nested()
    shared.slope = 0.9
    for model in (one, two):
        assert not runs_planned(model)
        assert runs_planned(model)
    assert runs_planned(other)


def test_a_layer_that_was_taken_out_is_another_models():
    model = nested(xn.LeakyReLU())
    old = model.layers[-1]
    model.layers = [*model.layers[:-1], xn.LeakyReLU()]  # type: ignore[assignment]
    model.predict(X)
    old.slope = 0.9
    assert runs_planned(model)
    model.layers[-1].slope = 0.9
    assert not runs_planned(model)


def test_a_layer_twice_in_a_model_stays_when_one_is_replaced():
    layer = xn.LeakyReLU()
    model = nested(layer, xn.Dense(5), layer)
    model.layers = [*model.layers[:-1], xn.Tanh()]  # type: ignore[assignment]
    model.predict(X)
    layer.slope = 0.9
    assert not runs_planned(model)


class Listed(xn.Module):
    """Layers in a list, all of which do nothing but operations."""

    plannable = True

    def __init__(self):
        self.parts = [xn.Dense(5), xn.LeakyReLU()]

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_a_change_before_the_tree_is_run_and_in_a_list():
    model = Listed()
    model.parts[1].slope = 0.7
    model.predict(X)
    np.testing.assert_allclose(model.predict(X), model.eval()(X).array, rtol=1e-5)
    structure = model._tree_version.structure
    changes = model._tree_version.changes
    model.parts[1].slope = 0.2
    assert model._tree_version.changes == changes + 1
    assert model._tree_version.structure == structure
    model.parts = [*model.parts, xn.Dense(3)]
    assert model._tree_version.structure == structure + 1
    assert model.predict(X).shape == (2, 3)


def test_flat_parameters_follow_a_layer_that_comes_later_and_deeper():
    model = nested()
    flat = model.flat_parameters
    model.layers[1].body.layers[1].layers = [xn.Dense(5), xn.Dense(5)]
    model.predict(X)
    assert model.flat_parameters is not flat
    assert len(model.flat_parameters.parameters) == 8


def test_a_copy_counts_its_own_changes():
    model = nested()
    twin = copy.deepcopy(model)
    twin.predict(X)
    assert runs_planned(twin)
    twin.layers[1].body.layers[1].layers[1].slope = 0.9
    assert not runs_planned(twin)
    assert runs_planned(model)


def test_a_layer_keeps_no_model_alive():
    shared = xn.LeakyReLU()
    for _ in range(3):
        model = nested(shared)
        version = model._tree_version
        gc.disable()
        try:
            del model
            assert len([a for a in shared._tree_version._above.values() if a() is not None]) == 1
            del version
            assert not [a for a in shared._tree_version._above.values() if a() is not None]
        finally:
            gc.enable()
    assert len(shared._tree_version._above) == 0


class OwnCopy(xn.Module):
    """A Module that copies its instances in its own way."""

    def __init__(self):
        self.body = xn.Sequential([xn.Dense(4, "relu"), xn.Dense(3)])

    def forward(self, x):
        return self.body(x)


class OwnState(OwnCopy):
    def __setstate__(self, state):
        self.__dict__.update(state)


class OwnDeepCopy(OwnCopy):
    def __deepcopy__(self, memo):
        twin = type(self)()
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin


@pytest.mark.parametrize("kind", [OwnState, OwnDeepCopy])
def test_a_copy_made_in_its_own_way_counts_changes_below_it(kind):
    x, y = np.ones((6, 4), np.float32), np.arange(6) % 3
    model = kind()
    model(x)
    twin = copy.deepcopy(model)
    xn.Trainer(twin, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.5)).step(x, y)
    twin.body.layers = [twin.body.layers[0], xn.Dense(3)]
    twin(x)
    before = twin.body.layers[1].kernel.array.copy()
    xn.Trainer(twin, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.5)).step(x, y)
    assert (before != twin.body.layers[1].kernel.array).any()
    twin.eval()
    assert not twin.body.layers[1].training
    assert model.body.layers[1] is not twin.body.layers[1]


def test_a_patched_class_of_a_user_is_not_taken_for_what_it_was():
    class Pool(xn.MaxPool2D):
        pass

    class Conv(xn.Conv2D):
        pass

    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    model = xn.Sequential([Conv(4, 3), Pool(2), xn.Flatten()], input_shape=(8, 8, 3))
    model.predict(x)
    Pool.forward = lambda self, x: xn.ops.average_pool2d(x, self.window)  # type: ignore[method-assign]
    inner = model.layers[0](x)
    expected = xn.ops.average_pool2d(inner, 2).array.reshape(2, -1)
    np.testing.assert_allclose(model(x).array, expected, rtol=1e-5)
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-5)


def test_no_thread_is_told_that_a_prediction_cannot_be_planned_while_another_plans_it(monkeypatch):
    from xpnet.compiled import numpy_executor

    seen: list[Any] = []
    plan = numpy_executor.Plan  # type: ignore[attr-defined]

    class Watched(plan):  # type: ignore[misc,valid-type]
        def __init__(self, model, x):
            seen.append(dict(model._model_executor.plans))
            super().__init__(model, x)

    monkeypatch.setattr(numpy_executor, "Plan", Watched)
    model = nested()
    model.predict(X)
    assert seen == [{}]


class Silent(xn.Parameter):
    """A Parameter whose gradient is dropped by its own code."""

    def _accumulate(self, gradient, fresh=False):
        super()._accumulate(gradient * 0, fresh)

    def destination(self):
        return None


class OwnKernel(xn.Dense):
    def build(self, input_shape):
        super().build(input_shape)
        array = self.kernel.array
        del self.kernel
        self.kernel = array if self.units == 5 else Silent(array)  # type: ignore[assignment]


@pytest.mark.parametrize("units", [5, 6])
def test_a_step_is_not_planned_with_kernels_of_another_kind(units):
    model = xn.Sequential([OwnKernel(units), xn.Dense(3)], input_shape=(6,))
    before = np.array(xn.to_numpy(getattr(model.layers[0].kernel, "array", model.layers[0].kernel)))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    for _ in range(3):
        trainer.step(np.ones((8, 6), np.float32), np.arange(8) % 3)
    np.testing.assert_array_equal(getattr(model.layers[0].kernel, "array", model.layers[0].kernel), before)


def test_a_class_whose_bases_change_is_planned_again():
    class Loud(xn.LeakyReLU):
        def forward(self, x):
            return super().forward(x) * 2.0

    class Layer(xn.LeakyReLU):
        pass

    model = xn.Sequential([xn.Dense(3), Layer()], input_shape=(4,))
    x = np.ones((2, 4), np.float32)
    first = model.predict(x)
    Layer.__bases__ = (Loud,)
    np.testing.assert_allclose(model.predict(x), 2 * first, rtol=1e-6)
