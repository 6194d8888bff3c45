"""Old public names work for one release and name the new ones."""

from __future__ import annotations

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
