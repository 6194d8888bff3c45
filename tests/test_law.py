"""The law: what has to be true of every operation and every layer, asserted for all of them.

The examples are in tests/op_cases.py and tests/layer_cases.py; a test here fails when an operation or a layer has none.
"""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

import xpnet as xn
from tests import law, op_cases
from tests.cases import Case, Wrong
from tests.law import close, differentiable, evaluate, lifted, matrix, outputs_of, running, start_backward, weights_for
from tests.libraries import Library, readonly
from xpnet import ops
from xpnet.ops.registry import registry

CASES = op_cases.CASES
TOLERANCE = {"float64": 1e-9, "float32": 3e-5}

every = pytest.mark.parametrize(("case", "implementation"), matrix(CASES))
every_differentiable = pytest.mark.parametrize(("case", "implementation"), matrix(CASES, differentiable))
every_batched = pytest.mark.parametrize(("case", "implementation"), matrix(CASES, lambda c: c.batched))


# -- nobody is exempt --


def public_operations() -> set[str]:
    """All registered operations of xpnet, and all public functions that are made of them."""
    not_operations = {"conv_output_size", "op", "reference_only"}
    functions = {n for n in ops.__all__ if callable(getattr(ops, n)) and not inspect.isclass(getattr(ops, n))}
    registered = {n for n, o in registry.items() if o.__module__.startswith("xpnet.")}
    return (functions - not_operations) | registered


def test_every_operation_has_a_case():
    assert sorted(public_operations() - {c.name for c in CASES}) == [], "add a line for these to CASES in tests/op_cases.py"


def test_every_operation_has_a_wrong_call():
    missing = public_operations() - {w.name for w in op_cases.WRONG} - op_cases.ANY_SHAPE
    assert sorted(missing) == [], "add a line for these to WRONG in tests/op_cases.py"


def test_case_names_are_unique():
    names = [c.id for c in CASES]
    assert sorted({n for n in names if names.count(n) > 1}) == []


@pytest.mark.parametrize("name", [n for n, found in law.accelerations().items() if "numpy" in found])
def test_an_accelerated_implementation_does_run(name):
    """At least one case is really computed by it, in either dtype: falling back everywhere would pass all other tests."""
    ran = set()
    for case in CASES:
        if case.name == name:
            for dtype in ("float32", "float64"):
                inputs, settings = registry[name].bind(tuple(case.arrays(dtype=dtype)), case.options(dtype=dtype))
                with running("numpy"):
                    ran.add(registry[name].run(np, inputs, settings, True)[2])
    assert registry[name].accelerated["numpy"] in ran


# -- values --


@every
def test_matches_the_oracle(case: Case, implementation: str):
    arrays, options = case.arrays(), case.options()
    with running(implementation):
        outputs = outputs_of(case.call(arrays, options))
    for actual, expected in zip(outputs, case.expected(arrays, options), strict=True):
        assert isinstance(actual, np.ndarray)
        close(actual, expected, TOLERANCE["float64"], "output")


@every_differentiable
def test_gradient(case: Case, implementation: str):
    """Backward against centred differences of the same implementation, in float64."""
    arrays, options = case.arrays(), case.options()
    places = [n for n, i in enumerate(case.inputs) if getattr(i, "grad", False)]

    def function(*tensors):
        inputs = list(arrays)
        for place, tensor in zip(places, tensors):
            inputs[place] = tensor
        return case.call(inputs, options)

    with running(implementation):
        # The emulator takes a millisecond or more a launch.
        samples = 8 if implementation == "emulated" else 40
        xn.inspect.check_gradients(function, [arrays[p] for p in places], tolerance=1e-6, samples=samples)


@every
def test_float32_stays_float32(case: Case, implementation: str):
    """Outputs and gradients have the inputs' dtype, and are those of float64 to rounding."""
    with running("reference"):
        wide_outputs, wide_gradients = evaluate(case, case.arrays(), case.options())
    with running(implementation):
        outputs, gradients = evaluate(case, case.arrays(dtype="float32"), case.options(dtype="float32"))
    for actual, expected in zip(outputs, wide_outputs, strict=True):
        assert actual.dtype == (np.float32 if law.is_float(expected) else expected.dtype)
        close(actual, expected, TOLERANCE["float32"], "output")
    for actual, expected in zip(gradients, wide_gradients, strict=True):
        if expected is not None:
            assert actual.dtype == np.float32
            close(actual, expected, 10 * TOLERANCE["float32"], "gradient")


# -- inputs --


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_are_left_alone(case: Case, implementation: str, dtype: str):
    """Nothing is written into the inputs, arrays among the settings, or the gradient; read-only ones will do."""
    arrays, options = case.arrays(dtype=dtype), case.options(dtype=dtype)
    with running(implementation):
        weights = weights_for(outputs_of(case.call(arrays, options)))
        before = [np.copy(a) for a in [*arrays, *weights]]
        outputs, gradients = evaluate(case, arrays, options, weights)
        for old, new in zip(before, [*arrays, *weights], strict=True):
            np.testing.assert_array_equal(old, new)
        locked, locked_gradients = evaluate(
            case,
            [readonly(a) if isinstance(a, np.ndarray) else a for a in arrays],
            case.options(dtype=dtype, asarray=readonly),
            [readonly(w) for w in weights],
        )
    for one, two in zip([*outputs, *gradients], [*locked, *locked_gradients], strict=True):
        np.testing.assert_array_equal(one, two)


def apart(array: np.ndarray, how: str) -> np.ndarray:
    """An equal array whose elements lie elsewhere: with gaps, backwards, or in Fortran's order."""
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        return array
    if how == "gaps":
        room = np.full([2 * n for n in array.shape], np.nan if array.dtype.kind == "f" else 1, array.dtype)
        view = room[tuple(slice(None, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if how == "backwards":
        return np.flip(np.flip(array).copy())
    return np.asfortranarray(array)


@every
@pytest.mark.parametrize("how", ["gaps", "backwards", "fortran"])
def test_non_contiguous_inputs(case: Case, implementation: str, how: str):
    arrays = case.arrays(dtype="float32")
    with running(implementation):
        outputs, gradients = evaluate(case, arrays, case.options(dtype="float32"))
        weights = [apart(w, how) for w in weights_for(outputs)]
        options = case.options(dtype="float32", asarray=lambda a: apart(a, how))
        others, other_gradients = evaluate(case, [apart(a, how) for a in arrays], options, weights)
    for one, two in zip([*outputs, *gradients], [*others, *other_gradients], strict=True):
        if one is not None:
            assert one.dtype == two.dtype
            close(two, one, TOLERANCE["float32"], how)


@every_batched
def test_one_example(case: Case, implementation: str):
    arrays, options = case.arrays(examples=1), case.options(examples=1)
    with running(implementation):
        outputs, gradients = evaluate(case, arrays, options)
    for actual, expected in zip(outputs, case.expected(arrays, options), strict=True):
        close(actual, expected, TOLERANCE["float64"], "output")
    for array, gradient in zip(arrays, gradients):
        assert gradient is None or gradient.shape == array.shape


@every_batched
def test_no_example(case: Case, implementation: str):
    """An empty batch gives an output of the right shape, and parameters a gradient of 0."""
    shapes = []
    for examples in (1, 2):
        expected = case.expected(case.arrays(examples=examples), case.options(examples=examples))
        shapes.append([e.shape for e in expected])
    empty = [tuple(2 * one - two for one, two in zip(*pair)) for pair in zip(*shapes)]
    arrays = case.arrays(examples=0, dtype="float32")
    with running(implementation):
        outputs, gradients = evaluate(case, arrays, case.options(examples=0, dtype="float32"))
    assert [o.shape for o in outputs] == empty
    assert all(o.dtype == np.float32 for o in outputs if law.is_float(o))
    for array, gradient in zip(arrays, gradients):
        if gradient is not None:
            assert gradient.shape == array.shape
            assert gradient.dtype == np.float32
            np.testing.assert_array_equal(gradient, 0)


@every_differentiable
def test_two_calls_before_backward(case: Case, implementation: str):
    """A second forward pass changes neither the first one's output nor its gradients."""
    first, second = case.arrays(dtype="float32", seed=1), case.arrays(dtype="float32", seed=2)
    options = case.options(dtype="float32")
    with running(implementation):
        alone = [evaluate(case, arrays, options) for arrays in (first, second)]
        inputs = [lifted(case, arrays) for arrays in (first, second)]
        results = [case.call(i, options) for i in inputs]
        for (outputs, _), result in zip(alone, results):
            for one, two in zip(outputs, outputs_of(result), strict=True):
                np.testing.assert_array_equal(one, two)
        for result in results:
            start_backward(result, weights_for(outputs_of(result)))
    for (_, gradients), tensors in zip(alone, inputs):
        for gradient, tensor in zip(gradients, tensors):
            if gradient is not None:
                np.testing.assert_array_equal(gradient, tensor.grad)


# -- libraries --


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES])
def test_native_arrays_of_every_library(case: Case, library: Library):
    """Arrays of a library come in, arrays of that library go out: the same values, dtype and device as NumPy's."""
    with running("reference"):
        outputs, gradients = evaluate(case, case.arrays(), case.options())
    weights = [library.asarray(w) for w in weights_for(outputs)]
    arrays = [library.asarray(a) if isinstance(a, np.ndarray) else a for a in case.arrays()]
    options = case.options(asarray=library.asarray)
    found, found_gradients = evaluate(case, arrays, options, weights)
    plain = outputs_of(case.call(arrays, options))
    device = library.asarray(np.zeros(1)).device
    for expected, tensor, native in zip(outputs, found, plain, strict=True):
        for actual in (tensor, native):
            assert str(actual.dtype).endswith(expected.dtype.name)
            assert actual.device == device
            close(library.to_numpy(actual), expected, TOLERANCE["float64"], "output")
    for expected, actual in zip(gradients, found_gradients, strict=True):
        if expected is not None:
            assert actual.device == device
            close(library.to_numpy(actual), expected, TOLERANCE["float64"], "gradient")


# -- mistakes --


@pytest.mark.parametrize("bad", [pytest.param(w, id=w.id) for w in op_cases.WRONG])
def test_a_wrong_shape_is_explained(bad: Wrong):
    case = Case(bad.name, bad.inputs, bad.settings)
    with pytest.raises(ValueError) as raised:
        case.call(case.arrays(), case.options())
    for text in bad.says:
        assert any(re.search(re.escape(t), str(raised.value)) for t in text.split("|")), f"{text!r} not in: {raised.value}"
