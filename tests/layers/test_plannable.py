"""Which layers are planned: those whose class says so, and subclasses that leave alone what it said it of; by counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.layer_cases import LAYERS
from tests.layers.test_version import X, layer_calls, runs_planned
from xpnet import layers
from xpnet.backend import Array
from xpnet.layers.execution import is_plannable
from xpnet.layers.hooks import wrapped
from xpnet.ops.registry import Op, customized

Y = np.arange(2) % 2


def native(x):
    return x.array if isinstance(x, xn.Tensor) else x


class Named(xn.Dense):
    """Other arguments, the same layer."""

    def __init__(self, units, name):
        super().__init__(units, "relu")
        self.name = name


class Wide(xn.Dense):
    def parameter_specs(self, input_shape):
        return super().parameter_specs(input_shape)

    def output_shape(self, input_shape):
        return super().output_shape(input_shape)

    def more(self):
        return self.units


class Doubled(xn.Dense):
    """A forward pass of its own, which computes with arrays."""

    def forward(self, x):
        return xn.Tensor(native(super().forward(x)) * 2)


class Rounded(xn.Dense):
    """The inherited forward pass calls it."""

    def as_float(self, x):
        return np.round(native(x))


class Declared(xn.Dense):
    plannable = True

    def forward(self, x):
        return super().forward(x) * 2.0


class BelowDeclared(Declared):
    def __init__(self, units):
        super().__init__(units, "tanh")


class BelowDeclaredWithForward(Declared):
    def forward(self, x):
        return xn.Tensor(native(super().forward(x)))


class Mixin:
    def forward(self, x):
        return xn.Tensor(native(x) + 1)


class Mixed(Mixin, xn.Dense):
    pass


class Cube(xn.ReLU):
    operation = staticmethod(lambda x: xn.Tensor(native(x) ** 3))


class Declines(xn.Dense):
    plannable = False


class Chain(xn.Sequential):
    """A network as a class."""

    def __init__(self):
        super().__init__([xn.Dense(4, "relu"), xn.Dense(3)], input_shape=(5,))


@pytest.mark.parametrize(
    ("layer", "planned"),
    [
        (lambda: xn.Dense(3), True),
        (lambda: Named(3, "first"), True),
        (lambda: Wide(3), True),
        (lambda: Declared(3), True),
        (lambda: BelowDeclared(3), True),
        (Chain, True),
        (xn.InstanceNorm, True),
        (lambda: xn.GroupNorm(5), True),
        (lambda: Doubled(3), False),
        (lambda: Rounded(3), False),
        (lambda: BelowDeclaredWithForward(3), False),
        (lambda: Mixed(3), False),
        (Cube, False),
        (lambda: Declines(3), False),
        (lambda: xn.Dense(3, activation=lambda x: x * x), False),
    ],
)
def test_a_subclass_is_planned_where_it_computes_what_was_declared(layer, planned):
    model = xn.Sequential([layer()], input_shape=(5,))
    first = model.predict(X)
    assert runs_planned(model) == planned
    with xn.no_grad():
        for x in (X, -X):
            np.testing.assert_allclose(model.predict(x), native(model.eval()(x)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(X), first)


def test_a_function_put_in_the_place_of_forward_prevents_it():
    model = xn.Sequential([xn.Dense(3)], input_shape=(5,))
    model.predict(X)
    assert runs_planned(model)
    model.layers[0].forward = lambda x: xn.Tensor(np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(model.predict(X), 0)
    assert not runs_planned(model)
    del model.layers[0].forward
    assert np.abs(model.predict(X)).max() > 0
    assert runs_planned(model)


def test_a_hook_prevents_it():
    model = xn.Sequential([xn.Dense(3)], input_shape=(5,))
    model.predict(X)
    with wrapped(model, lambda layer, forward, inputs, keywords: forward(*inputs, **keywords)):
        model.predict(X)
        assert not runs_planned(model)
    model.predict(X)
    assert runs_planned(model)


def test_images_through_instance_norm():
    model = xn.Sequential([xn.Conv2D(4, 3), xn.InstanceNorm(), xn.LocalResponseNorm()], input_shape=(8, 8, 2))
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 2)).astype(np.float32)
    model.predict(x)
    with layer_calls() as calls:
        y = model.predict(x)
    assert not calls
    np.testing.assert_allclose(y, model.eval()(x).array, rtol=1e-4, atol=1e-5)


def steps_without_layers(*parts: xn.Module) -> bool:
    trainer = xn.Trainer(xn.Sequential(parts, input_shape=(5,)), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    for _ in range(3):
        trainer.step(X, Y)
    with layer_calls() as calls:
        trainer.step(X, Y)
    return not calls


class Relu(xn.ReLU):
    pass


class Negated(xn.ReLU):
    operation = staticmethod(xn.ops.negative)


@pytest.mark.parametrize(
    ("parts", "planned"),
    [
        (lambda: [Named(4, "a"), Wide(3)], True),
        (lambda: [xn.Dense(4), Relu(), xn.Dense(3)], True),
        (lambda: [Chain(), xn.Dense(3)], True),
        (lambda: [Declared(4), xn.Dense(3)], False),
        pytest.param(
            lambda: [Doubled(4), xn.Dense(3)], False, marks=pytest.mark.filterwarnings("ignore:not trained:RuntimeWarning")
        ),
        (lambda: [xn.Dense(4), Negated(), xn.Dense(3)], False),
    ],
)
def test_steps(parts, planned):
    assert steps_without_layers(*parts()) == planned


class Filters(xn.Conv2D):
    """Other arguments, the same layer."""

    def __init__(self):
        super().__init__(2, 3)


class Shown(Filters):
    def forward(self, x):  # type: ignore[override]
        return super().forward(x)


@pytest.mark.parametrize(("layer", "calls"), [(lambda: xn.Conv2D(2, 3), 1), (Filters, 2), (Shown, 2)])
def test_only_the_layer_itself_is_one_operation_with_the_pooling_behind_it(layer, calls):
    model = xn.Sequential([layer(), xn.MaxPool2D(2)], input_shape=(8, 8, 1))
    with layer_calls() as called:
        model(np.ones((1, 8, 8, 1), np.float32))
    assert len(called) == 1 + calls


def test_every_layer_says_whether_it_may_be_planned():
    """A layer of the package that has a forward pass and is left out was forgotten, or carries a state."""
    out = {"Module", "Embedding", "RNN", "LSTM", "GRU", "Bidirectional"}
    for name in layers.__all__:
        kind = getattr(layers, name)
        if isinstance(kind, type) and issubclass(kind, xn.Module):
            assert kind.plannable == (name not in out), (
                f"{name}: write plannable = True in the class if its forward pass only calls operations in evaluation mode; "
                f"otherwise add it to `out` in this test"
            )
    for case in LAYERS:
        if case.name not in out | {"Sequential", "Residual"}:
            assert is_plannable(case.make()) or not takes_operations_alone(case.make()), case.id


def takes_operations_alone(layer: xn.Module) -> bool:
    """Return whether all functions that a layer was given are operations."""
    held = [getattr(layer, name, None) for name in layer._functions]
    return all(
        f is None or isinstance(f, (Op, xn.Module)) for value in held for f in (value if type(value) is tuple else (value,))
    )


class AlwaysDropping(xn.Dropout):
    training = property(lambda self: True, lambda self, value: None)


class Property(xn.LeakyReLU):
    steepness = 0.3
    slope = property(lambda self: type(self).steepness, lambda self, value: None)


class ClassAttribute(xn.LeakyReLU):
    def __init__(self) -> None:
        pass

    slope = 0.3


class Triples(xn.Module):
    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        return super().__call__(*inputs, **keywords) * 3.0


class BesideDense(xn.Dense, Triples):
    pass


class BesidePool(xn.MaxPool2D, Triples):
    pass


class BesideConv(xn.Conv2D, Triples):
    pass


def test_a_mask_that_is_drawn_in_evaluation_is_drawn_each_time():
    model = xn.Sequential([xn.Dense(16), AlwaysDropping(0.5), xn.Dense(3)], input_shape=(6,))
    assert len({model.predict(np.ones((4, 6), np.float32)).tobytes() for _ in range(6)}) == 6


@pytest.mark.parametrize(("kind", "name"), [(Property, "steepness"), (ClassAttribute, "slope")])
def test_settings_of_a_class_that_change_are_seen(kind, name, monkeypatch):
    model = xn.Sequential([xn.Dense(3), kind()], input_shape=(6,))
    x = -np.ones((2, 6), np.float32)
    for value in (0.3, 0.9):
        monkeypatch.setattr(kind, name, value)
        for _ in range(3):
            np.testing.assert_allclose(model.predict(x), model.eval()(x).array, rtol=1e-6)


def test_a_class_beside_the_layer_counts():
    """In the method resolution order it stands behind the layer and before Module, whose methods it overrides."""
    x = np.random.default_rng(0).standard_normal((8, 6), dtype=np.float32)
    y = np.arange(8) % 3

    def losses(layers: list[Any]) -> Any:
        trainer = xn.Trainer(xn.Sequential(layers, input_shape=(6,)), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
        return [float(trainer.step(x, y)) for _ in range(4)]

    tripled = losses([BesideDense(4, activation="relu"), xn.Dense(3)])
    with xn.ops.reference_only():
        np.testing.assert_allclose(tripled, losses([BesideDense(4, activation="relu"), xn.Dense(3)]), rtol=1e-5)
    assert tripled[0] != losses([xn.Dense(4, activation="relu"), xn.Dense(3)])[0]
    image = np.ones((1, 8, 8, 1), np.float32)
    plain = xn.Sequential([xn.Conv2D(2, 3), xn.MaxPool2D(2)], input_shape=(8, 8, 1))(image).array
    for parts in ([xn.Conv2D(2, 3), BesidePool(2)], [BesideConv(2, 3), xn.MaxPool2D(2)]):
        np.testing.assert_allclose(xn.Sequential(parts, input_shape=(8, 8, 1))(image).array, 3 * plain, rtol=1e-5)


def test_a_user_s_acceleration_is_planned_as_it_is():
    """One that is to be tried first must not be passed over by what a plan knows of the operation."""
    operation = xn.ops.relu
    before = operation.accelerated["numpy"]
    planned = xn.Sequential([xn.Dense(3), xn.ReLU()], input_shape=(6,))
    planned.predict(np.ones((2, 6), np.float32))

    @operation.accelerate("numpy", first=True)
    def shifted(xp: Any, x: Any) -> Any:
        return np.maximum(x, 0) + 100, x > 0

    try:
        model = xn.Sequential([xn.Dense(3), xn.ReLU()], input_shape=(6,))
        for _ in range(3):
            assert model.predict(np.ones((2, 6), np.float32)).min() >= 100
            assert planned.predict(np.ones((2, 6), np.float32)).min() >= 100
    finally:
        customized.remove(operation)
        operation.accelerated["numpy"] = before
        operation._chosen.clear()


def test_a_class_that_is_patched_after_planning_is_run_as_it_is_now():
    class Tripled(xn.Dense):
        pass

    class Rectified(xn.ReLU):
        pass

    x, y = np.random.default_rng(0).standard_normal((4, 5), dtype=np.float32), np.array([0, 1, 2, 0])
    model = xn.Sequential([Tripled(6), Rectified(), xn.Dense(3)], input_shape=(5,))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.0))
    for _ in range(3):
        model.predict(x)
        before = float(trainer.step(x, y))
    with layer_calls() as calls:
        model.predict(x)
    assert not calls
    for kind, name, value in (
        (Tripled, "forward", lambda self, x: xn.Dense.forward(self, x) * 3),
        (Rectified, "operation", staticmethod(xn.ops.tanh)),
    ):
        setattr(kind, name, value)
        np.testing.assert_allclose(model.predict(x), model.eval()(x).array, rtol=1e-6)
        after = float(trainer.step(x, y))
        assert after != before
        assert after == float(xn.losses.softmax_cross_entropy(model(x), y))
        before = after


def test_an_operation_of_a_users_is_run_each_time():
    """It may return its input, or another shape, depending on the values."""

    @xn.ops.op
    def drop_nan(xp, x: Array):
        bad = xp.isnan(x)
        return (xp.where(bad, xp.zeros_like(x), x) if xp.any(bad) else x), bad

    @drop_nan.backward
    def _(xp, dy, bad):
        return xp.where(bad, xp.zeros_like(dy), dy)

    good = np.ones((1, 3), np.float32)
    bad = good * np.array([1, np.nan, 1], np.float32)
    for parts in ([drop_nan, xn.Dense(2)], [xn.Activation(drop_nan), xn.Dense(2)]):
        model = xn.Sequential(parts, input_shape=(3,), seed=1)
        model.predict(good)
        model.predict(good)
        np.testing.assert_array_equal(model.predict(bad), model.predict(good * np.array([1, 0, 1], np.float32)))
