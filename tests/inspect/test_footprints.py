"""What the accelerations for NumPy declare to allocate: all of them do, and they make the arrays of the implementation."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from tests import op_cases
from tests.cases import Case
from xpnet.inspect.footprint import AllocationLog, FakeNumpyArray, counting
from xpnet.inspect.footprint.operations import use_footprints
from xpnet.ops.registry import load_accelerations, op, registry

load_accelerations("numpy")
ACCELERATED = [name for name, operation in registry.items() if "numpy" in operation.accelerated]
CASES = [c for c in op_cases.CASES if c.name in ACCELERATED]


def fake(value):
    """A fake array for every array in a structure."""
    if type(value) in (tuple, list):
        return tuple(map(fake, value))
    return FakeNumpyArray.new(value.shape, value.dtype) if isinstance(value, np.ndarray) else value


def outline(value):
    """Shape and dtype of the outputs or gradients."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return [None if part is None else (np.shape(part), part.dtype) for part in parts]


@pytest.mark.parametrize("name", ACCELERATED)
def test_every_acceleration_for_numpy_declares_its_footprint(name):
    for implementation in registry[name].implementations("numpy"):
        footprint = implementation.declared_footprint
        assert footprint is not None, f"declare what {implementation.forward.__module__} allocates: @forward.footprint"
        reference = registry[name].reference.backward_function
        own = [i.backward_function is not reference for i in (implementation, footprint)]
        assert own[0] == own[1], "both have a backward function, or neither"


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES])
def test_a_footprint_makes_the_arrays_of_its_implementation(case: Case, dtype: str, save: bool):
    operation = registry[case.name]
    inputs, settings = operation.bind(tuple(case.arrays(dtype=dtype)), case.options(dtype=dtype))
    for implementation in operation.implementations("numpy"):
        with counting(AllocationLog()) as log:
            assert implementation.declared_footprint is not None
            xp, footprint = FakeNumpyArray.xp, implementation.declared_footprint
            fakes, fake_settings = fake(inputs), {name: fake(value) for name, value in settings.items()}
            made = footprint.compute(xp, fakes, fake_settings, save)
            result = implementation.compute(np, inputs, settings, save)
            assert (made is NotImplemented) == (result is NotImplemented), "a footprint returns it where its version does"
            if result is NotImplemented:
                continue
            assert outline(made[0]) == outline(result[0])
            if save and operation.differentiable:
                needs = tuple(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in inputs)
                dy = tuple(map(np.ones_like, result[0])) if isinstance(result[0], tuple) else np.ones_like(result[0])
                expected = operation.gradients(implementation, np, dy, result[1], settings, needs)
                found = operation.gradients(footprint, xp, fake(dy), made[1], fake_settings, needs)
                for need, one, other in zip(needs, outline(found), outline(expected), strict=True):
                    assert not need or one == other
            assert log.peak > 0


def test_footprints_stand_in_the_order_of_their_implementations():
    """One without a footprint is left out, and one may declare that it allocates what the reference does."""

    def doubled(xp, x):
        return x * 2, None

    doubled.__annotations__["x"] = "Array"
    double = op(doubled)
    with contextlib.ExitStack() as stack:
        stack.callback(registry.pop, "doubled")
        first, second, third = (double.accelerate("numpy")(lambda xp, x: NotImplemented) for _ in range(3))
        mine = first.footprint(lambda xp, x: NotImplemented)
        others = third.footprint(double.reference.forward)
        use_footprints("numpy")
        assert second.declared_footprint is None
        assert double.implementations("fake_numpy") == [mine, others]
        with counting(AllocationLog()) as log:
            x = FakeNumpyArray.new((8,), np.float32)
            assert double(x).shape == (8,)
            assert log.peak == 64
