"""Every operation, layer, loss and metric on integers, mixed widths, other byte orders, and NumPy's scalars."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests import op_cases, op_contract
from tests.cases import Case, Input
from tests.layer_cases import LAYERS, LayerCase
from tests.op_contract import as_tensors, differentiable, evaluate, matrix, outputs_of, running, start_backward, weights_for
from xpnet import losses, metrics, ops
from xpnet.ops.registry import registry

RANGES = {"uint8": (0, 60), "int16": (-60, 60), "int64": (-60, 60), "bool": (0, 2)}
KEPT = {
    "step", "relu", "max", "min", "maximum", "minimum", "where", "select", "sum", "max_pool2d", "max_pool2d_with_switches",
    "im2col",
    "reshape", "transpose", "concat", "stack", "broadcast_to", "pad", "getitem", "flip", "embedding",
}  # fmt: skip
"""What moves or compares elements, and sums: integers stay integers."""
REFUSED = {"gelu"}


def is_data(one: Any) -> bool:
    return isinstance(one, Input) and one.kind not in ("integers", "booleans")


def integers(case: Case, kind: str) -> list[Any]:
    """Return the inputs of a case, with integers in the place of its floats."""
    random, (low, high) = np.random.default_rng(0), RANGES[kind]
    made = []
    for array, given in zip(case.arrays(), case.inputs):
        if is_data(given):
            first = max(low, 1) if given.kind == "positive" else low
            last = 2 if given.kind in ("fractions", "probabilities") else high
            array = random.integers(min(first, last - 1), last, array.shape).astype(kind)
        made.append(array)
    return made


def wide(case: Case, arrays: list[Any]) -> list[Any]:
    return [a.astype(np.float64) if is_data(given) else a for a, given in zip(arrays, case.inputs)]


def assert_same_numbers(found: np.ndarray, expected: np.ndarray) -> None:
    """Assert equal values up to the rounding of float32, also where that overflows."""
    with np.errstate(over="ignore"):
        rounded = expected.astype(np.float32).astype(np.float64)
    largest = np.max(np.abs(rounded[np.isfinite(rounded)]), initial=1.0)
    np.testing.assert_allclose(found.astype(np.float64), rounded, rtol=2e-5, atol=2e-6 * largest)


INTEGER_CASES = [c for c in op_cases.CASES if c.name != "cast" and any(map(is_data, c.inputs))]
# One-hot rows of integers are refused: class indices are what integers mean there.
INTEGER_CASES = [c for c in INTEGER_CASES if c.name != "softmax_cross_entropy" or not is_data(c.inputs[1])]
INTEGER_MATRIX = matrix(INTEGER_CASES)
INTEGER_MATRIX += [
    pytest.param(c, "cupy", id=f"{c.id}-cupy", marks=pytest.mark.cuda)
    for c in INTEGER_CASES
    if "cupy" not in op_contract.implementations(c)
]


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize(("case", "implementation"), INTEGER_MATRIX)
def test_integers_give_the_numbers_of_floats(case: Case, implementation: str, kind: str):
    """In float32, or in integers where elements are only moved, compared or added up: nothing wraps around."""
    arrays = integers(case, kind)
    with np.errstate(all="ignore"):
        with running("reference"):
            expected = outputs_of(case.call(wide(case, arrays), case.options()))
        with running(implementation) as place:
            if case.name == "pad" and case.settings.get("value", 0) % 1:
                with pytest.raises(TypeError, match=f"pad: the value 2.5 does not fit x of dtype {kind}; convert x to float32"):
                    op_contract.computed(case, arrays, case.options(), place)
                return
            if case.name in REFUSED:
                with pytest.raises(TypeError, match=rf"{case.name}: x has dtype {kind}, .*; convert it to float32"):
                    op_contract.computed(case, arrays, case.options(), place)
                return
            found = op_contract.computed(case, arrays, case.options(), place)
    for one, other in zip(found, expected, strict=True):
        if one.dtype.kind in "iub":
            assert case.name in KEPT, one.dtype
        else:
            assert one.dtype == np.float32
        assert_same_numbers(one, other)


def test_every_operation_that_keeps_integers_is_listed():
    declared = {name for name, operation in registry.items() if operation.integers == "keep" and name != "cast"}
    assert {name for name in declared if registry[name].reference.ours} <= KEPT


@pytest.mark.parametrize("name", ["dense", "conv2d", "matmul"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_bytes_of_an_image_meet_weights(name: str, dtype: str):
    """The result has the dtype of the weights: uint8 images of 200 do not wrap around at 256."""
    x = np.full((2, 3, 3, 3), 200, np.uint8)
    if name == "conv2d":
        y = ops.conv2d(x, np.ones((3, 3, 3, 2), dtype))
    else:
        y = getattr(ops, name)(x.reshape(2, 27), np.ones((27, 2), dtype))
    assert y.dtype == ("float32" if dtype == "uint8" else dtype)
    np.testing.assert_array_equal(y, 5400)


def test_limits_and_fillings_that_integers_cannot_hold():
    x = np.array([0, 5, 200], np.uint8)
    np.testing.assert_array_equal(ops.clip(x, 0.5, 10.5), np.array([0.5, 5, 10.5], np.float32))
    np.testing.assert_array_equal(ops.maximum(x, 5.5), np.array([5.5, 5.5, 200], np.float32))
    np.testing.assert_array_equal(ops.minimum(x, -1), [-1, -1, -1])
    np.testing.assert_array_equal(ops.where(x > 3, x, -1), [-1, 5, 200])
    np.testing.assert_array_equal(ops.where(x > 3, x, 7), [7, 5, 200])
    assert ops.where(x > 3, x, 7).dtype == np.uint8
    np.testing.assert_array_equal(ops.concat([x, np.array([0.5], np.float32)]), np.array([0, 5, 200, 0.5], np.float32))
    np.testing.assert_array_equal(ops.concat([x, np.array([-300], np.int16)]), [0, 5, 200, -300])
    np.testing.assert_array_equal(ops.maximum(np.array([3], np.uint64), np.array([-3], np.int64)), [3])
    np.testing.assert_array_equal(ops.pad(x, [(1, 0)], value=255), [255, 0, 5, 200])
    for value in (-1, 256, np.nan, 0.5):
        with pytest.raises(TypeError, match="does not fit x of dtype uint8"):
            ops.pad(x, [(1, 0)], value=value)


@pytest.mark.parametrize("bad", [np.array(["a"]), np.array([object()]), np.array(["2020-01-01"], "datetime64[D]")])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(TypeError, match=r"exp: x has dtype .*, expected numbers"):
        ops.exp(bad)


# -- layers --


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in LAYERS if c.integers is None])
def test_layers_take_integers(case: LayerCase, training: bool, dtype: str, kind: str):
    """With the values of floats, in the model's dtype, or in integers where a layer only moves them; planned ones as well."""
    low, high = RANGES[kind]
    x = np.random.default_rng(0).integers(low, high, (3, *case.shape)).astype(kind)

    def run(x: Any) -> Any:
        model = case.model(dtype).train(training)
        return [outputs_of(y)[0] for y in (model(x), model.predict(x), model.predict(x), model.predict(x))]

    with np.errstate(over="ignore", under="ignore"):
        expected, found = run(x.astype(dtype)), run(x)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype in (np.dtype(dtype), np.dtype(kind))
        if one.dtype == np.dtype(kind):
            assert case.name in (
                "MaxPool2D", "Flatten", "Reshape", "Activation", "ZeroPad2D", "Upsample2D", "Sequential", "RandomFlip",
            ), case.name  # fmt: skip
        np.testing.assert_allclose(one.astype(np.float64), other.astype(np.float64), rtol=1e-5, atol=1e-4)


# -- losses and metrics --

ROWS = np.array([[200, 3, 0], [1, 250, 90], [255, 0, 255]], np.uint8)
CLASSES = np.array([0, 2, 1], np.uint8)
OF_CLASSES = ("softmax_cross_entropy", "negative_log_likelihood", "hinge", "squared_hinge")


@pytest.mark.parametrize("name", sorted({f.__name__ for f in losses.NAMES.values()}))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["uint8", "int16", "int64"])
def test_losses_of_integers(name: str, reduction: str, kind: str):
    function = losses.NAMES[name]
    rows: Any = ROWS
    if name in ("contrastive", "triplet"):
        rows = np.stack([ROWS, ROWS[::-1], ROWS[[1, 2, 0]]][: 2 if name == "contrastive" else 3], axis=1)
        target: Any = np.array([1, 0, 1], kind)
    elif name in OF_CLASSES:
        target = CLASSES.astype(kind)
    elif name in ("sigmoid_cross_entropy", "attribute_logistic", "attribute_hinge"):
        target = (ROWS > 100).astype(kind)
    else:
        target = np.array([[0, 255, 1], [2, 2, 2], [250, 250, 250]], np.uint8).astype(kind)
    floats = target if name in OF_CLASSES else target.astype(float)
    expected = function(rows.astype(float), floats, reduction=reduction)
    for prediction in (rows, rows.astype(np.int16), rows.astype(np.float32)):
        found = function(prediction, target, reduction=reduction)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-30)


def test_a_float_target_of_an_integer_prediction_is_not_cut_off():
    prediction, target = np.array([1, 2], np.uint8), np.array([1.75, -0.5])
    np.testing.assert_allclose(losses.mean_absolute_error(prediction, target, reduction="none"), [0.75, 2.5])
    np.testing.assert_allclose(losses.mean_squared_error(prediction, target.astype(np.float32)), (0.75**2 + 2.5**2) / 2)
    signs = losses.attribute_hinge(np.array([[3, 3]], np.uint8), np.array([[1, 0]], np.uint8), reduction="none")
    np.testing.assert_array_equal(signs, [4])


def test_small_class_indices_of_many_classes():
    """300 classes do not fit the dtype of uint8 labels or indices: class 3 is not class 259 as well."""
    scores, labels = np.random.default_rng(0).standard_normal((2, 300)), np.array([3, 43], np.uint8)
    for name in OF_CLASSES:
        np.testing.assert_allclose(losses.NAMES[name](scores, labels), losses.NAMES[name](scores, labels.astype(np.int64)))
    table = xn.Tensor(np.zeros((300, 2), np.float32), requires_grad=True)
    ops.embedding(labels, table).sum().backward()
    assert table.grad is not None
    assert np.flatnonzero(xn.to_numpy(table.grad).any(axis=1)).tolist() == [3, 43]


def test_metrics_of_integers():
    prediction, target = np.array([200, 10], np.uint8), np.array([210, 5], np.uint8)
    assert float(metrics.mean_absolute_error(prediction, target)) == 7.5
    assert float(metrics.mean_absolute_error(prediction.astype(np.float32), target)) == 7.5
    assert float(metrics.binary_accuracy(prediction, np.array([1, 0], bool))) == 0.5


# -- mixed widths --

PAIRS = [c for c in op_cases.CASES if differentiable(c) and sum(map(is_data, c.inputs)) + len(c.settings) > 1]


@pytest.mark.parametrize("first", ["float32", "float64"])
@pytest.mark.parametrize(("case", "implementation"), matrix([c for c in PAIRS if sum(map(is_data, c.inputs)) > 1]))
def test_a_gradient_has_the_dtype_of_its_tensor(case: Case, implementation: str, first: str):
    """Whatever else takes part; the result has the wider dtype."""
    other = {"float32": "float64", "float64": "float32"}[first]
    arrays = case.arrays()
    places = [n for n, given in enumerate(case.inputs) if is_data(given)]
    arrays = [a.astype(first if n == places[0] else other) if n in places else a for n, a in enumerate(arrays)]
    with running("reference"):
        expected, expected_gradients = evaluate(case, wide(case, arrays), case.options())
    labels = case.name in ("softmax_cross_entropy", "sigmoid_cross_entropy") and first == "float32"
    with running(implementation) as place:
        tensors = as_tensors(case, place.to(arrays))
        result = case.call(tensors, place.to(case.options()))
        start_backward(result, place.to(weights_for(expected)))
        found = place.back(outputs_of(result))
        gradients: list[Any] = [place.back(t.grad) if isinstance(t, xn.Tensor) else None for t in tensors]
    assert found[0].dtype == (first if labels else "float64")
    op_contract.close(found[0], expected[0], 3e-5)
    for array, gradient, reference in zip(arrays, gradients, expected_gradients):
        if reference is not None:
            assert gradient.dtype == array.dtype
            op_contract.close(gradient, reference, 3e-4)


def test_backward_rounds_the_gradient_that_it_is_given():
    t = xn.Tensor(np.ones(3, np.float32), requires_grad=True)
    ops.relu(t).backward(np.ones(3))
    assert t.grad is not None
    assert t.grad.dtype == np.float32
    t.backward(np.ones(3))
    assert t.grad.dtype == np.float32


def scalar(value: Any) -> Any:
    """Return a number as NumPy's."""
    return np.float64(value) if type(value) is float else np.int64(value) if type(value) is int else value


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in op_cases.CASES])
def test_numpy_scalars_do_not_widen(case: Case):
    """As an input or a setting a NumPy scalar is a number, like Python's own."""
    arrays, options = case.arrays(dtype="float32"), case.options(dtype="float32")
    scalars = {name: scalar(value) for name, value in options.items()}
    without_axes = {name: np.array(value) if type(value) is float else value for name, value in options.items()}
    for implementation in op_contract.implementations(case):
        if not implementation.startswith("cupy"):
            with running(implementation):
                expected = outputs_of(case.call(arrays, options))
                for numbers in scalars, without_axes:
                    found = outputs_of(case.call([scalar(a) for a in arrays], numbers))
                    for one, other in zip(found, expected, strict=True):
                        assert one.dtype == other.dtype
                        op_contract.close(one, other, 1e-6)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in op_cases.CASES])
def test_settings_that_are_no_real_numbers_are_refused(case: Case):
    """An array in the place of a number is named, and a complex number, which widened the result."""
    operation = registry.get(case.name)
    arrays, options = case.arrays(dtype="float32"), case.options(dtype="float32")
    for name in operation.declared_numbers if operation else ():
        if type(options.get(name)) is float:
            for wrong in (np.array([0.5]), np.array([0.5, 0.5]), 1j, np.complex64(1j)):
                with pytest.raises(TypeError, match=f"{case.name}: .*(a number|a real number|does not fit)"):
                    case.call(arrays, {**options, name: wrong})


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("integers", ["uint8", "int64", "bool"])
def test_integers_do_not_widen_16_bit_floats(half: str, integers: str):
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x = ops.cast(np.array([[1.5, -2.0]], np.float32), half)
    n = np.array([[1], [0]]).astype(integers)
    for function in (ops.add, ops.multiply, ops.subtract, ops.maximum, lambda a, b: ops.where(np.array([True, False]), a, b)):
        t = xn.Tensor(x, requires_grad=True)
        for y in (function(t, n), function(n, t)):
            assert y.array.dtype.name == half
            y.backward(ops.cast(np.ones((2, 2), np.float32), half))
            assert t.grad is not None
            assert t.grad.dtype.name == half
        np.testing.assert_allclose(
            np.asarray(function(x, n), np.float32), np.asarray(function(np.asarray(x, np.float32), n), np.float32)
        )


WITH_NUMBERS = [
    c
    for c in op_cases.CASES
    if differentiable(c) and any(type(v) in (int, float) for v in (*c.inputs, *c.settings.values())) and c.name in registry
]


@pytest.mark.parametrize(("case", "implementation"), matrix(WITH_NUMBERS))
def test_numpy_scalars_do_not_widen_the_way_back(case: Case, implementation: str):
    """The bits of outputs and gradients are those of Python's numbers, in every implementation."""
    arrays, options = case.arrays(dtype="float32"), case.options(dtype="float32")
    found = []
    with running(implementation) as place:
        for number in (lambda value: value, scalar):
            numbers = {name: number(value) for name, value in place.to(options).items()}
            tensors = [number(t) for t in as_tensors(case, place.to(arrays))]
            result = case.call(tensors, numbers)
            start_backward(result, place.to(weights_for(place.back(outputs_of(result)))))
            gradients = [place.back(t.grad) for t in tensors if isinstance(t, xn.Tensor) and t.grad is not None]
            found.append([(a.dtype, a.tobytes()) for a in (*place.back(outputs_of(result)), *gradients)])
    assert found[0] == found[1]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: [xn.LeakyReLU(n(0.1))],
        lambda n: [xn.ELU(n(0.5))],
        lambda n: [xn.Dropout(n(0.5)), xn.LayerNorm(epsilon=n(0.001))],
        lambda n: [xn.BatchNorm(momentum=n(0.9), epsilon=n(0.001))],
        lambda n: [xn.Reshape((2, 2, 2)), xn.LocalResponseNorm(alpha=n(0.01))],
        lambda n: [xn.Reshape((2, 2, 2)), xn.LpPool2D(2, p=n(2.0))],
        lambda n: [xn.Dense(4, kernel_regularizer=xn.regularizers.L2(n(0.01)))],
        lambda n: [
            xn.Dense(4, kernel_regularizer=xn.regularizers.L1(n(0.01)), kernel_constraint=xn.regularizers.MaxNorm(n(1.0)))
        ],
    ],
)
def test_numpy_scalars_as_settings_train_as_numbers_do(make: Any, device: str):
    def trained(number: Any) -> list[Any]:
        layers = [xn.Dense(8), *make(number), xn.Flatten(), xn.Dense(3)]
        model = xn.Sequential(layers, input_shape=(6,), seed=1, device=device)
        loss = functools.partial(losses.softmax_cross_entropy, label_smoothing=number(0.1))
        run = xn.Trainer(model, loss=loss, optimizer=xn.optim.SGD(number(0.1)))
        x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
        run.fit((x, np.arange(16) % 3), epochs=3, batch_size=8, verbose=False)
        arrays = [*model.state().values(), model.predict(x)]
        return [(a.dtype.name, a.tobytes()) for a in map(xn.to_numpy, arrays)]

    assert trained(np.float64) == trained(float)
    assert trained(np.array) == trained(float)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("wide", [np.float32, np.float64, np.int64])
def test_numpy_scalars_beside_a_tensor(wide: Any, device: str):
    x = xn.to_device(np.array([[0.5, -1.5, 2.0]], np.float32), device)
    two: Any = wide(2)
    for function in (
        lambda t, n: t * n, lambda t, n: n * t, lambda t, n: n / t, lambda t, n: n - t, lambda t, n: t**n,
        ops.maximum, ops.minimum, ops.power, lambda t, n: ops.maximum(n, t), lambda t, n: ops.clip(t, -n, n),
    ):  # fmt: skip
        found: list[Any] = []
        expected: list[Any] = []
        for number, kept in ((two, found), (2.0, expected)):
            t = xn.Tensor(x, requires_grad=True)
            y = function(t, number)
            y.sum().backward()
            assert t.grad is not None
            kept += [(xn.to_numpy(a).dtype, xn.to_numpy(a).tolist()) for a in (y.array, t.grad)]
        assert found == expected
        assert found[0][0] == found[1][0] == np.float32


def test_numpy_scalars_in_a_model():
    class Attention(xn.Module):
        def __init__(self) -> None:
            self.q, self.k = xn.Dense(4), xn.Dense(4)

        def forward(self, x: Any) -> Any:
            return ops.softmax(self.q(x) @ self.k(x).T / np.sqrt(4)) * np.float64(2)

    model = Attention()
    x = np.ones((3, 5), np.float32)
    assert model(x).dtype == np.float32
    assert model.predict(x).dtype == model.predict(x).dtype == np.float32
    loss = losses.softmax_cross_entropy(np.zeros((2, 3), np.float32), np.array([0, 1]), label_smoothing=np.float64(0.1))
    assert loss.dtype == np.float32
    assert xn.Tensor(np.float64(2.0)).array.shape == ()
    assert isinstance(xn.Tensor(np.float64(2.0)).array, np.ndarray)
    assert ops.exp(np.float64(1.0)).dtype == np.float64


# -- bytes in the other order --


@pytest.mark.parametrize(
    ("case", "implementation"), [p for p in matrix([c for c in op_cases.CASES if c.name != "cast"]) if not p.marks]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_big_endian_arrays(case: Case, implementation: str, dtype: str):
    """Arrays of FITS files and the like; gradients have the dtype of their array, in this machine's order."""
    if dtype == "int16" and (case not in INTEGER_CASES or case.name in REFUSED):
        return
    arrays = integers(case, dtype) if dtype == "int16" else case.arrays(dtype=dtype)
    swapped = [a.astype(a.dtype.newbyteorder(">")) if isinstance(a, np.ndarray) and a.dtype.itemsize > 1 else a for a in arrays]
    with np.errstate(over="ignore"), running(implementation):
        if case.name == "pad" and case.settings.get("value", 0) % 1 and dtype == "int16":
            return
        options = case.options(dtype="float32")
        expected, found = (outputs_of(case.call(given, options)) for given in (arrays, swapped))
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        if dtype != "int16" and differentiable(case):
            weights = weights_for(expected)
            for one, other, array in zip(*(evaluate(case, a, options, weights)[1] for a in (swapped, arrays)), swapped):
                if other is not None:
                    assert one.dtype == array.dtype.newbyteorder("=")
                    np.testing.assert_array_equal(one, other)


def test_bfloat16_is_known_before_any_model_has_it():
    """In a process of its own: nobody asked for the dtype by its name before."""
    import subprocess
    import sys

    pytest.importorskip("ml_dtypes")
    program = (
        "import numpy as np, ml_dtypes, xpnet as xn; x = np.linspace(-3, 3, 7).astype(ml_dtypes.bfloat16); "
        "y = xn.ops.gelu(x); z = xn.ops.sigmoid(xn.Tensor(x, requires_grad=True)); z.sum().backward(); "
        "e = np.asarray(xn.ops.gelu(x.astype(np.float32)).astype(ml_dtypes.bfloat16)); "
        "assert y.dtype == z.array.dtype == x.dtype and (y == e).all(), (y, e)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


# -- kinds of arrays --


def test_masked_arrays_are_refused_wherever_they_come_in():
    x, y = np.ones((8, 3), np.float32), np.arange(8) % 2
    masked, labels = np.ma.masked_array(x, x > 2), np.ma.masked_array(y, y > 0)
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    vector = masked[0]
    for take in (
        lambda: ops.relu(masked),
        lambda: ops.dense(x, np.ma.masked_array(np.ones((3, 2), np.float32))),
        lambda: xn.Tensor(masked),
        lambda: model(masked),
        lambda: model.predict(masked),
        lambda: trainer.fit((masked, y), epochs=1, verbose=False),
        lambda: trainer.fit((x, labels), epochs=1, verbose=False),
        lambda: trainer.evaluate((masked, y)),
        lambda: trainer.step(masked, y),
        lambda: losses.mean_squared_error(x, masked),
        lambda: metrics.accuracy(x, labels),
        lambda: metrics.mean_absolute_error(x, masked),
        lambda: ops.where(masked > 0, x, x),
        lambda: xn.to_device(masked, "cpu"),
        lambda: ops.batch_norm(x, mean=vector, variance=x[0]),
        lambda: ops.batch_norm(x, mean=x[0], variance=vector),
        lambda: (xn.Tensor(x, requires_grad=True) * 2).backward(masked),
        lambda: trainer.fit(Sequence(masked, y), epochs=1, batch_size=4, verbose=False),
        lambda: trainer.fit(Sequence(x, labels), epochs=1, batch_size=4, verbose=False),
        lambda: trainer.fit((x, y), validation=Sequence(masked, y), epochs=1, verbose=False),
        lambda: list(xn.data.Batches([(masked[i], int(y[i])) for i in range(8)], 4)),
        lambda: list(xn.data.Batches(Sequence(masked, y), 4, workers=1)),
        lambda: list(xn.data.Batches(lambda: ((masked[i], int(y[i])) for i in range(8)), 4)),
    ):
        with pytest.raises(TypeError, match=r"got a masked array .*, whose mask would be lost: fill it first"):
            take()


class Sequence:
    """A data set of a user's own."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


class Lazy:
    """An array of a library that follows the standard in part: without a device."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return np

    def __getattr__(self, name: str) -> Any:
        if name == "device":
            raise AttributeError("'Lazy' object has no attribute 'device'")
        return getattr(self.array, name)


def test_a_library_that_lacks_part_of_the_standard_is_explained():
    x = Lazy(np.ones((1, 4, 4, 2)))
    with pytest.raises(
        TypeError, match=r"average_pool2d: .*no attribute 'device'.*convert them first, with numpy.asarray\(x\)"
    ):
        ops.average_pool2d(x, 2)


@pytest.mark.parametrize("shape", [(2, 0, 4, 3), (2, 4, 0, 3), (2, 0, 0, 3)])
def test_images_without_pixels_are_explained(shape):
    x, kernel = np.zeros(shape, np.float32), np.ones((1, 1, 3, 2), np.float32)
    for call in (
        lambda: ops.conv2d(x, kernel),
        lambda: ops.conv_transpose2d(x, kernel),
        lambda: ops.max_pool2d(x, 1),
        lambda: ops.average_pool2d(x, 1),
        lambda: ops.im2col(x, 1),
        lambda: ops.conv2d(x, np.ones((3, 3, 3, 2), np.float32), padding=1),
        lambda: xn.Sequential([xn.Conv2D(2, 1)], input_shape=(4, 4, 3))(x),
        lambda: ops.global_average_pool2d(x),
    ):
        with pytest.raises(xn.ops.ShapeError, match="no pixels"):
            call()
    assert ops.conv2d(x, np.ones((3, 3, 3, 2), np.float32), padding=2).size  # windows of padding alone
