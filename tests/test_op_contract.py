"""The contract of every operation and every layer.

The examples are in tests/op_cases.py and tests/layer_cases.py; a test here fails when an operation or a layer has none.
"""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

import xpnet as xn
from tests import op_cases, op_contract
from tests.cases import Case, Wrong
from tests.layer_cases import LAYERS, LayerCase
from tests.libraries import LIBRARIES, Library, readonly
from tests.op_contract import (
    as_tensors,
    close,
    differentiable,
    evaluate,
    matrix,
    outputs_of,
    running,
    start_backward,
    weights_for,
)
from xpnet import layers, ops
from xpnet.ops.registry import registry

CASES = op_cases.CASES
TOLERANCE = {"float64": 1e-9, "float32": 3e-5}

every = pytest.mark.parametrize(("case", "implementation"), matrix(CASES))
every_differentiable = pytest.mark.parametrize(("case", "implementation"), matrix(CASES, differentiable))
every_batched = pytest.mark.parametrize(("case", "implementation"), matrix(CASES, lambda c: c.batched))


# -- completeness --


def public_operations() -> set[str]:
    """Return all registered operations of xpnet, and all public functions that are composed of them."""
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


@pytest.mark.parametrize(
    ("name", "library"),
    [
        pytest.param(name, library, marks=[pytest.mark.cuda] if library == "cupy" else [])
        for name, found in op_contract.accelerations().items()
        for library in ("numpy", "cupy")
        if library in found and name != "cast"  # its case converts to the dtype that is there; others: tests/test_mixed.py
    ],
)
def test_every_accelerated_implementation_runs(name, library):
    """Each computes at least one case, in either dtype: falling back everywhere would pass all other tests."""
    ran = set()
    for case in CASES:
        if case.name == name:
            for dtype in ("float32", "float64"):
                inputs, settings = registry[name].bind(tuple(case.arrays(dtype=dtype)), case.options(dtype=dtype))
                for implementation in op_contract.implementations(case):
                    if implementation.startswith(library):
                        with running(implementation) as place:
                            ran.add(registry[name].run(place.xp, place.to(inputs), place.to(settings), True)[2])
    if library == "numpy":
        assert set(registry[name].implementations("numpy")) <= ran
    else:
        assert ran - {registry[name].reference}, f"the version of {name} for CuPy always answers NotImplemented"


# -- values --


@every
def test_matches_the_oracle(case: Case, implementation: str):
    arrays, options = case.arrays(), case.options()
    with running(implementation) as place:
        outputs = op_contract.computed(case, arrays, options, place)
    for actual, expected in zip(outputs, case.expected(arrays, options), strict=True):
        assert isinstance(actual, np.ndarray)
        close(actual, expected, TOLERANCE["float64"], "output")


@every_differentiable
def test_gradient(case: Case, implementation: str):
    """Backward against centred differences of the same implementation, in float64."""
    places = [n for n, i in enumerate(case.inputs) if getattr(i, "grad", False)]

    def function(*tensors):
        inputs = list(arrays)
        for number, tensor in zip(places, tensors):
            inputs[number] = tensor
        return case.call(inputs, options)

    with running(implementation) as place:
        arrays, options = place.to(case.arrays()), place.to(case.options())
        # A device under watch takes a millisecond per operation.
        samples = 8 if implementation == "cupy" else 40
        xn.inspect.check_gradients(function, [arrays[p] for p in places], tolerance=1e-6, samples=samples)


@every
def test_float32_stays_float32(case: Case, implementation: str):
    """Outputs and gradients have the dtype of the inputs, and match float64 up to rounding."""
    with running("reference"):
        wide_outputs, wide_gradients = evaluate(case, case.arrays(), case.options())
    with running(implementation) as place:
        outputs, gradients = evaluate(case, case.arrays(dtype="float32"), case.options(dtype="float32"), place=place)
    for actual, expected in zip(outputs, wide_outputs, strict=True):
        assert actual.dtype == (np.float32 if op_contract.is_float(expected) else expected.dtype)
        close(actual, expected, TOLERANCE["float32"], "output")
    for actual, expected in zip(gradients, wide_gradients, strict=True):
        if expected is not None:
            assert actual.dtype == np.float32
            close(actual, expected, 10 * TOLERANCE["float32"], "gradient")


# -- inputs --


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_are_not_mutated(case: Case, implementation: str, dtype: str):
    """Nothing is written into the inputs, arrays among the settings, or the gradient; they may be read-only."""
    with running(implementation) as place:
        arrays, options = place.to(case.arrays(dtype=dtype)), place.to(case.options(dtype=dtype))
        weights = place.to(weights_for(op_contract.computed(case, arrays, options, place)))
        given = list(op_contract.arrays_in([arrays, options, weights]))
        before = place.back([a.copy() for a in given])
        outputs, gradients = evaluate(case, arrays, options, weights, place)
        for old, new in zip(before, place.back(given), strict=True):
            np.testing.assert_array_equal(old, new)
        arrays, weights = case.arrays(dtype=dtype), weights_for(outputs)  # CuPy has no read-only arrays
        locked, locked_gradients = evaluate(
            case,
            [readonly(a) if isinstance(a, np.ndarray) else a for a in arrays],
            case.options(dtype=dtype, asarray=readonly),
            [readonly(w) for w in weights],
            place,
        )
    for one, two in zip([*outputs, *gradients], [*locked, *locked_gradients], strict=True):
        np.testing.assert_array_equal(one, two)


def in_layout(array: np.ndarray, how: str) -> np.ndarray:
    """Return an equal array in another memory layout: with gaps, backwards, or in Fortran order."""
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        return array
    if how == "gaps":
        padded = np.full([2 * n for n in array.shape], np.nan if array.dtype.kind == "f" else 1, array.dtype)
        view = padded[tuple(slice(None, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if how == "backwards":
        return np.flip(np.flip(array).copy())
    return np.asfortranarray(array)


@every
@pytest.mark.parametrize("how", ["gaps", "backwards", "fortran"])
def test_non_contiguous_inputs(case: Case, implementation: str, how: str):
    arrays = case.arrays(dtype="float32")
    with running(implementation) as place:
        outputs, gradients = evaluate(case, arrays, case.options(dtype="float32"), place=place)
        weights = [in_layout(w, how) for w in weights_for(outputs)]
        options = case.options(dtype="float32", asarray=lambda a: in_layout(a, how))
        others, other_gradients = evaluate(case, [in_layout(a, how) for a in arrays], options, weights, place)
    for one, two in zip([*outputs, *gradients], [*others, *other_gradients], strict=True):
        if one is not None:
            assert one.dtype == two.dtype
            close(two, one, TOLERANCE["float32"], how)


@every_batched
def test_one_example(case: Case, implementation: str):
    arrays, options = case.arrays(examples=1), case.options(examples=1)
    with running(implementation) as place:
        outputs, gradients = evaluate(case, arrays, options, place=place)
    for actual, expected in zip(outputs, case.expected(arrays, options), strict=True):
        close(actual, expected, TOLERANCE["float64"], "output")
    for array, gradient in zip(arrays, gradients):
        assert gradient is None or gradient.shape == array.shape


@every_batched
def test_no_example(case: Case, implementation: str):
    """An empty batch has an output of the right shape, and parameters a gradient of 0."""
    shapes = []
    for examples in (1, 2):
        expected = case.expected(case.arrays(examples=examples), case.options(examples=examples))
        shapes.append([e.shape for e in expected])
    empty = [tuple(2 * one - two for one, two in zip(*pair)) for pair in zip(*shapes)]
    arrays = case.arrays(examples=0, dtype="float32")
    with running(implementation) as place:
        outputs, gradients = evaluate(case, arrays, case.options(examples=0, dtype="float32"), place=place)
    assert [o.shape for o in outputs] == empty
    assert all(o.dtype == np.float32 for o in outputs if op_contract.is_float(o))
    for array, gradient in zip(arrays, gradients):
        if gradient is not None:
            assert gradient.shape == array.shape
            assert gradient.dtype == np.float32
            np.testing.assert_array_equal(gradient, 0)


@every_differentiable
def test_two_calls_before_backward(case: Case, implementation: str):
    """A second forward pass changes neither the first one's output nor its gradients."""
    with running(implementation) as place:
        first, second = (place.to(case.arrays(dtype="float32", seed=seed)) for seed in (1, 2))
        options = place.to(case.options(dtype="float32"))
        alone = [evaluate(case, arrays, options, place=place) for arrays in (first, second)]
        inputs = [as_tensors(case, arrays) for arrays in (first, second)]
        results = [case.call(i, options) for i in inputs]
        for (outputs, _), result in zip(alone, results):
            for one, two in zip(outputs, place.back(outputs_of(result)), strict=True):
                np.testing.assert_array_equal(one, two)
        for result in results:
            start_backward(result, place.to(weights_for(place.back(outputs_of(result)))))
        for (_, gradients), tensors in zip(alone, inputs):
            for gradient, tensor in zip(gradients, tensors):
                if gradient is not None:
                    np.testing.assert_array_equal(gradient, place.back(tensor.grad))


# -- libraries --


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES])
def test_native_arrays_of_all_libraries(case: Case, library: Library):
    """Arrays of a library give arrays of that library, with the values and dtype of NumPy, on the same device."""
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


# -- layers --


def layer_names() -> set[str]:
    """Return all layers that xpnet exports; Module has no forward pass."""
    return {n for n in layers.__all__ if inspect.isclass(getattr(layers, n)) and issubclass(getattr(layers, n), xn.Module)} - {
        "Module"
    }


def test_every_layer_has_a_case():
    missing = layer_names() - {c.name for c in LAYERS}
    assert sorted(missing) == [], "add a line for these to LAYERS in tests/layer_cases.py"


def test_cases_have_the_names_of_their_layers():
    assert all(type(c.make()).__name__ == c.name for c in LAYERS)


every_layer = pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in LAYERS])
every_mode = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
every_differentiable_layer = pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in LAYERS if c.differentiable])


class Repeatable:
    """A model whose calls are repeatable: random counters and running statistics are restored before each."""

    def __init__(self, case: LayerCase, training: bool, dtype: str = "float64") -> None:
        self.model = case.model(dtype).train(training)
        random = np.random.default_rng(1)
        for parameter in self.model.parameters().values():  # initial biases of 0 and scales of 1 would hide mistakes
            parameter.array[...] = random.standard_normal(parameter.shape)
        for name, array in self.model.buffers().items():
            array[...] = np.abs(random.standard_normal(array.shape)) + (0.5 if "variance" in name else 0)
        self.buffers = {name: np.copy(array) for name, array in self.model.buffers().items()}
        self.inputs_are_floats = case.integers is None

    def __call__(self, x):
        for module in self.model.modules():
            module.counter = 0
        for name, array in self.model.buffers().items():
            array[...] = self.buffers[name]
        return self.model(x)

    def gradients(self, x, weights):
        """Return the output, and the gradients of the input (if floating) and of all parameters by path."""
        self.model.zero_grad()
        tensor = xn.Tensor(x, requires_grad=self.inputs_are_floats)
        y = self(tensor)
        if y.requires_grad:
            y.backward(weights)
        found = {name: p.grad if p.grad is None else np.copy(p.grad) for name, p in self.model.parameters().items()}
        return y.array, {"x": tensor.grad, **found} if self.inputs_are_floats else found


with_parameters = [pytest.param(c, id=c.id) for c in LAYERS if c.integers is None and c.model().parameters()]


@pytest.mark.parametrize("case", with_parameters)
def test_every_layer_with_parameters_takes_integers(case: LayerCase):
    """Bytes of an image and the like are computed with in the model's dtype."""
    model = Repeatable(case, training=False, dtype="float32")
    x = np.random.default_rng(0).integers(0, 9, case.batch().shape)
    found = model(x).array
    assert found.dtype == np.float32, f"{case.name}: call self.as_float(x) in forward"
    np.testing.assert_array_equal(found, model(x.astype(np.float32)).array)


@every_layer
@every_mode
def test_layer_matches_the_oracle(case: LayerCase, training: bool):
    """In both modes; and its declared output shape is the real one."""
    model = Repeatable(case, training)
    x = case.batch()
    state = {name: np.copy(a) for name, a in model.model.state().items()}
    y = op_contract.outputs_of(model(x))[0]
    close(y, case.expected(x, state, training), TOLERANCE["float64"])
    assert model.model.output_shape(case.shape) == y.shape[1:]
    assert model.model.layers[0].output_shape(case.shape) == y.shape[1:]


@every_layer
def test_layer_declares_its_shape_before_it_is_built(case: LayerCase):
    built, fresh = case.model(), case.make()
    expected = op_contract.outputs_of(built.eval()(case.batch()))[0].shape[1:]
    assert fresh.output_shape(case.shape) == expected
    assert xn.Sequential([case.make()]).materialize(case.shape) == expected


@every_differentiable_layer
@every_mode
def test_layer_gradient(case: LayerCase, training: bool):
    """Compare gradients of the input and of every parameter with centred differences in float64."""
    model, x = Repeatable(case, training), case.batch()
    y = model(x)
    weights = np.random.default_rng(5).standard_normal(y.shape)
    _, gradients = model.gradients(x, weights)
    places = {name: p.array for name, p in model.model.parameters().items()}
    if model.inputs_are_floats:
        places["x"] = x
    assert set(gradients) == set(places)
    random = np.random.default_rng(6)
    for name, array in places.items():
        assert gradients[name] is not None, f"{name} has no gradient"
        for place in random.permutation(array.size)[:20]:
            index = np.unravel_index(place, array.shape)
            ends = []
            before = array[index]
            for sign in (1, -1):
                array[index] = before + sign * 1e-5
                ends.append(float(np.sum(op_contract.outputs_of(model(x))[0] * weights)))
            array[index] = before
            numeric, exact = (ends[0] - ends[1]) / 2e-5, float(gradients[name][index])
            assert abs(numeric - exact) <= 1e-6 * max(1, abs(numeric) + abs(exact)), f"{name}{tuple(map(int, index))}"


@every_layer
@every_mode
def test_layer_keeps_float32_and_its_input(case: LayerCase, training: bool):
    model, wide = Repeatable(case, training, "float32"), Repeatable(case, training)
    x = case.batch(dtype="float32")
    before = np.copy(x)
    y = model(x)
    weights = np.random.default_rng(5).standard_normal(y.shape)
    expected, wide_gradients = wide.gradients(case.batch(), weights)
    output, gradients = model.gradients(x, readonly(weights.astype(np.float32)))
    assert output.dtype == np.float32
    close(output, expected, TOLERANCE["float32"])
    for name, gradient in gradients.items():
        if gradient is not None:
            assert gradient.dtype == np.float32
            close(gradient, wide_gradients[name], 10 * TOLERANCE["float32"], name)
    np.testing.assert_array_equal(x, before)


@every_layer
@every_mode
@pytest.mark.parametrize("how", ["readonly", "gaps", "backwards", "fortran"])
def test_layer_takes_any_memory(case: LayerCase, training: bool, how: str):
    model, x = Repeatable(case, training), case.batch()
    other = readonly(x) if how == "readonly" else in_layout(x, how)
    close(op_contract.outputs_of(model(other))[0], op_contract.outputs_of(model(x))[0], TOLERANCE["float64"])


@every_layer
@every_mode
def test_layer_takes_one_example_and_none(case: LayerCase, training: bool):
    model = Repeatable(case, training)
    one = case.batch(examples=1)
    state = {name: np.copy(a) for name, a in model.model.state().items()}
    close(op_contract.outputs_of(model(one))[0], case.expected(one, state, training), TOLERANCE["float64"])
    y, gradients = model.gradients(case.batch(examples=0), np.zeros((0, *model.model.output_shape(case.shape))))
    assert y.shape == (0, *model.model.output_shape(case.shape))
    for name, gradient in gradients.items():
        if gradient is not None and name != "x":
            np.testing.assert_array_equal(gradient, 0)
    assert all(np.isfinite(array).all() for array in model.model.buffers().values())


@every_differentiable_layer
@every_mode
def test_layer_called_twice_before_backward(case: LayerCase, training: bool):
    """The gradients of two calls are the sum of those of each alone."""
    model = Repeatable(case, training)
    batches = [case.batch(seed=1), case.batch(seed=2)]
    weights = np.random.default_rng(5).standard_normal((3, *model.model.output_shape(case.shape)))
    alone = [model.gradients(x, weights) for x in batches]
    model.model.zero_grad()
    tensors = [xn.Tensor(x, requires_grad=model.inputs_are_floats) for x in batches]
    results = [model(t) for t in tensors]
    for result, (y, _) in zip(results, alone):
        np.testing.assert_array_equal(result.array, y)
        result.backward(weights)
    for number, tensor in enumerate(tensors):
        if model.inputs_are_floats:
            np.testing.assert_array_equal(tensor.grad, alone[number][1]["x"])
    for name, parameter in model.model.parameters().items():
        close(parameter.grad, alone[0][1][name] + alone[1][1][name], TOLERANCE["float64"], name)


@every_layer
@every_mode
def test_layer_runs_on_arrays_of_the_standard(case: LayerCase, training: bool):
    """Parameters and buffers may be array-api-strict arrays on their own device: no NumPy inside."""
    strict = next(library for library in LIBRARIES if library.name == "array_api_strict-device1")
    model = Repeatable(case, training)
    x = case.batch()
    y = model(x)
    weights = np.random.default_rng(5).standard_normal(y.shape)
    expected, expected_gradients = model.gradients(x, weights)
    for module in model.model.modules():
        module.counter = 0
        for parameter in module._parameters.values():
            parameter.array, parameter.grad, parameter.buffer = strict.asarray(parameter.array), None, None
        for name in module._buffers:
            local = f"{module.path}.{name}" if module.path else name
            setattr(module, name, strict.asarray(model.buffers[local]))
    tensor = xn.Tensor(strict.asarray(x), requires_grad=case.integers is None)
    result = model.model(tensor)
    close(strict.to_numpy(result.array), expected, TOLERANCE["float64"])
    if result.requires_grad:
        result.backward(strict.asarray(weights))
        for name, parameter in model.model.parameters().items():
            close(strict.to_numpy(parameter.grad), expected_gradients[name], TOLERANCE["float64"], name)
        if case.integers is None:
            close(strict.to_numpy(tensor.grad), expected_gradients["x"], TOLERANCE["float64"], "x")


@every_layer
def test_layer_in_evaluation_is_a_function(case: LayerCase):
    """Calls change nothing, and predict returns native arrays, the same for any batch size."""
    model = case.model().eval()
    x = case.batch(examples=5)
    state = {name: np.copy(a) for name, a in model.state().items()}
    first, second = op_contract.outputs_of(model(x))[0], op_contract.outputs_of(model(x))[0]
    np.testing.assert_array_equal(first, second)
    for name, array in model.state().items():
        np.testing.assert_array_equal(array, state[name])
    whole, parts = model.train().predict(x), model.predict(x, batch_size=2)
    assert model.training
    assert type(whole) is type(parts) is np.ndarray
    np.testing.assert_array_equal(whole, model.predict(x))
    # A prediction of a few examples is planned on the CPU and may sum in another order than the layers.
    close(whole, first, TOLERANCE["float64"])
    close(parts, whole, TOLERANCE["float64"])


@pytest.mark.parametrize(
    ("case", "shape", "says"),
    [pytest.param(c, shape, says, id=f"{c.id}-{shape}") for c in LAYERS for shape, says in c.wrong],
)
def test_layer_explains_a_wrong_shape(case: LayerCase, shape: tuple[int, ...], says: tuple[str, ...]):
    """When the model is built and when it is called, with the path and kind of the layer."""
    calls = (
        lambda: xn.Sequential([xn.Activation("linear"), case.make()], input_shape=shape),
        lambda: xn.Sequential([xn.Activation("linear"), case.make()])(np.zeros((2, *shape), np.float32)),
    )
    for call in calls:
        with pytest.raises(ValueError) as raised:
            call()
        message = str(raised.value)
        assert re.search(r"layer '1[.\w]*' \(\w+\)", message), message
        for text in says:
            assert any(t in message for t in text.split("|")), f"{text!r} not in: {message}"


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.id) for c in LAYERS if c.model().count_parameters() and c.integers is None]
)
def test_layer_explains_a_size_it_was_not_built_for(case: LayerCase):
    """With twice as many channels, the message has the path, the shape it got and what the layer takes."""
    model = xn.Sequential([xn.Activation("linear"), case.make()], input_shape=case.shape)
    shape = (*case.shape[:-1], 2 * case.shape[-1])
    with pytest.raises(ValueError) as raised:
        model(np.zeros((2, *shape), np.float32))
    message = str(raised.value)
    assert re.search(r"layer '1[.\w]*' \(\w+\)", message), message
    assert str(case.shape[-1]) in message, message
    assert str(shape[-1]) in message, message
