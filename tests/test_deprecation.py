"""Old public names work for one release and name the new ones."""

from __future__ import annotations

import abc
import importlib
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.runtime.deprecation import adopt_renamed_methods, renamed_arguments, renamed_attribute, renamed_names


@renamed_arguments(samples="samples_per_epoch")
def batches(data: object, *, samples_per_epoch: int = 1) -> int:
    """Return the argument."""
    return samples_per_epoch


class Hooks:
    def __init_subclass__(cls) -> None:
        adopt_renamed_methods(cls, {"save_point": "on_checkpoint"})

    def on_checkpoint(self) -> str:
        """Say who was called."""
        return "base"

    save_point = renamed_attribute("on_checkpoint")


class Layer:
    def __init__(self) -> None:
        self.rng_counters = 3

    def parameter_specs(self, n: int) -> int:
        """Return twice the argument."""
        return 2 * n

    specs = renamed_attribute("parameter_specs")
    counters = renamed_attribute("rng_counters")


def points_here(record: pytest.WarningsRecorder) -> None:
    assert [w.filename for w in record] == [__file__]
    assert "since xpnet 0.1.0 and will be removed in 0.2.0" in str(record[0].message)


def test_names_of_a_module() -> None:
    module = types.ModuleType("some.module")
    module.__dict__["ByteImages"] = Layer
    module.__getattr__ = renamed_names(  # type: ignore[method-assign]
        "some.module", {"Bytes": "ByteImages", "Old": "tests.test_deprecation:Hooks"}
    )
    sys.modules["some.module"] = module
    try:
        with pytest.warns(DeprecationWarning, match=r"some.module.Bytes .* use some.module.ByteImages") as record:
            assert module.Bytes is Layer
        points_here(record)
        with pytest.warns(DeprecationWarning, match="use tests.test_deprecation.Hooks"):
            assert module.Old.__name__ == "Hooks"
    finally:
        del sys.modules["some.module"]
    with pytest.raises(AttributeError, match=r"module 'some.module' has no attribute 'Other'"):
        _ = module.Other


def test_arguments() -> None:
    with pytest.warns(DeprecationWarning, match=r"batches\(samples=\) .* use batches\(samples_per_epoch=\)") as record:
        assert batches(0, samples=4) == 4  # type: ignore[call-arg]
    points_here(record)
    with pytest.raises(TypeError, match="give samples_per_epoch alone"):
        batches(0, samples=4, samples_per_epoch=4)  # type: ignore[call-arg]
    assert batches(0, samples_per_epoch=5) == 5
    assert batches.__doc__ == "Return the argument."


def test_attributes_and_methods() -> None:
    layer = Layer()
    with pytest.warns(DeprecationWarning, match=r"Layer.specs .* use Layer.parameter_specs") as record:
        assert layer.specs(2) == 4
    points_here(record)
    with pytest.warns(DeprecationWarning, match="use Layer.rng_counters") as record:
        layer.counters = 7
    points_here(record)
    assert layer.rng_counters == 7
    with pytest.warns(DeprecationWarning, match=r"Layer.specs"):
        assert Layer.specs is Layer.parameter_specs


def test_a_subclass_that_overrides_an_old_name() -> None:
    with pytest.warns(DeprecationWarning, match=r"Mine.save_point .* use Mine.on_checkpoint") as record:

        class Mine(Hooks):
            def save_point(self) -> str:
                return "mine"

    points_here(record)
    assert Mine().on_checkpoint() == "mine"

    with pytest.warns(DeprecationWarning, match=r"Asks.save_point"):

        class Asks(Hooks):
            def save_point(self) -> str:
                return str(super().save_point()) + " and mine"

    with pytest.warns(DeprecationWarning, match=r"Hooks.save_point"):
        assert Asks().on_checkpoint() == "base and mine"

    class Between(Hooks):
        def on_checkpoint(self) -> str:
            return "between"

    with pytest.warns(DeprecationWarning, match=r"Below.save_point"):

        class Below(Between):
            def save_point(self) -> str:
                return str(super().save_point()) + " and mine"

    with pytest.warns(DeprecationWarning, match=r"Between.save_point"):
        assert Below().on_checkpoint() == "between and mine"


def test_new_names_are_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Mine(Hooks):
            def on_checkpoint(self) -> str:
                return "mine"

        assert Mine().on_checkpoint() == "mine"
        assert Layer().parameter_specs(1) == 2


def test_a_layer_may_use_an_old_name_for_something_else() -> None:
    class Counts(xn.Module):
        def __init__(self) -> None:
            self.counters = [1, 2]
            self.arena = xn.Dense(2)

        def forward(self, x: Any) -> Any:
            return self.arena(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Counts()
        assert model.counters == [1, 2]
        assert model(np.ones((3, 4), np.float32)).shape == (3, 2)
        assert list(model.parameters()) == ["arena.kernel", "arena.bias"]


def test_old_methods_of_a_mixin_and_of_random_layers_are_adopted() -> None:
    seen = []

    class Mixin:
        def before_update(self, trainer: Any) -> None:
            seen.append("update")

    with pytest.warns(DeprecationWarning, match=r"Mixin.before_update"):

        class Watch(Mixin, xn.Callback):
            pass

    Watch().on_before_optimizer_step(None)  # type: ignore[arg-type]
    assert seen == ["update"]
    with pytest.warns(DeprecationWarning, match=r"Fixed.draw"):

        class Fixed(xn.Dropout):
            def draw(self) -> int:
                return 7

    model = xn.Sequential([Fixed(0.5)], input_shape=(6,)).train()
    x = np.ones((4, 6), np.float32)
    np.testing.assert_array_equal(model(x), model(x))


def test_an_attribute_with_an_old_name_can_be_used_and_deleted_silently() -> None:
    class Counting(xn.Dense):
        def __init__(self, units: int) -> None:
            super().__init__(units)
            self.counters = {"seen": 0}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = xn.Sequential([Counting(3)], input_shape=(6,))
        for _ in range(3):
            model.predict(np.ones((2, 6), np.float32))
        del model.layers[0].counters
        with pytest.raises(AttributeError):
            del model.layers[0].counters


def test_the_second_learning_rate_search_is_the_first_with_rates() -> None:
    from xpnet.training import find_learning_rate, search_decades

    def trainer() -> xn.Trainer:
        model = xn.Sequential([xn.Dense(3)], input_shape=(4,))
        return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))

    data = np.random.default_rng(0).standard_normal((20, 4), dtype=np.float32), np.arange(20) % 3
    with pytest.warns(DeprecationWarning, match="search_decades"):
        old = search_decades(trainer(), data, steps=10)
    new = find_learning_rate(trainer(), data, rates=old.rates, steps=10)
    assert len(old.rates) == 7
    assert old == new
    with pytest.warns(DeprecationWarning, match="LearningRates"):
        assert (old.best, old.scores) == (new.suggestion, dict(zip(new.rates, new.losses)))


@pytest.mark.parametrize(
    ("old", "name"), [("tape", "once"), ("tensor", "Tensor"), ("threads", "parallel"), ("capture", "Captured")]
)
def test_modules_that_moved_can_be_imported(old: str, name: str) -> None:
    module = importlib.import_module(f"xpnet.{old}")
    assert getattr(xn, old) is module
    with pytest.warns(DeprecationWarning, match=rf"xpnet\.{old}\.{name} is deprecated"):
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(f"xpnet.{xn._MOVED[old]}"), name)
    with pytest.raises(AttributeError, match="nothing"):
        getattr(module, "nothing")  # noqa: B009


def test_a_warning_points_past_abc() -> None:
    with pytest.warns(DeprecationWarning, match="Old.save_point") as record:

        class Old(Hooks, metaclass=abc.ABCMeta):
            def save_point(self) -> str:
                return "old"

    points_here(record)
    assert Old().on_checkpoint() == "old"


def test_a_module_that_moved_takes_assignments() -> None:
    old, new = importlib.import_module("xpnet.tape"), importlib.import_module("xpnet.autograd.tape")
    with pytest.warns(DeprecationWarning, match=r"xpnet.tape.made_up .* use xpnet.autograd.tape.made_up") as record:
        old.made_up = 3  # type: ignore[attr-defined]
    points_here(record)
    assert new.__dict__.pop("made_up") == 3


def test_everything_is_imported_from_a_module_that_moved() -> None:
    space: dict[str, Any] = {}
    with pytest.warns(DeprecationWarning, match="xpnet.tape"):
        exec("from xpnet.tape import *", space)
    assert space["no_grad"] is xn.no_grad


def test_a_subclass_that_overrides_the_old_name_of_a_property_is_asked() -> None:
    with pytest.warns(DeprecationWarning, match="use Own.flat_parameters"):

        class Own(xn.Dense):
            @property
            def arena(self) -> Any:
                return "own"

    assert Own(3).flat_parameters == "own"  # type: ignore[comparison-overlap]
