"""Tensor and the tape: operators, indexing, graphs of every shape, what is recorded and what is freed."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections import namedtuple
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import ops
from xpnet.backend import DeviceError


def tensor(*shape, seed=0, positive=False):
    values = np.random.default_rng(seed).standard_normal(shape)
    return xn.Tensor(np.abs(values) + 0.5 if positive else values, requires_grad=True)


# -- operators --

BINARY = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "power": lambda a, b: a**b,
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    "other", ["tensor", "array", "number", "array-left", "number-left", "numpy-scalar", "numpy-scalar-left"]
)
def test_operators(name, other):
    """Tensor op Tensor, array or number, from both sides: a Tensor with the values and gradients of the operation."""
    operator = BINARY[name]
    a = tensor(2, 3, positive=True)
    b = {
        "tensor": tensor(2, 3, seed=1, positive=True),
        "array": np.full((2, 3), 1.7),
        "number": 1.7,
        "numpy-scalar": np.float64(1.7),
    }[other.removesuffix("-left")]
    result = operator(b, a) if other.endswith("left") else operator(a, b)
    plain = b.array if isinstance(b, xn.Tensor) else b
    assert isinstance(result, xn.Tensor)
    np.testing.assert_allclose(
        xn.to_numpy(result.array), operator(plain, a.array) if other.endswith("left") else operator(a.array, plain)
    )

    def again(x):
        return operator(b, x) if other.endswith("left") else operator(x, b)

    xn.inspect.check_gradients(again, [a.array], tolerance=1e-7)


def test_matmul_negative_abs_and_comparisons():
    a, b = tensor(2, 3), tensor(3, 2, seed=1)
    np.testing.assert_allclose((a @ b).array, a.array @ b.array)
    np.testing.assert_allclose((a.array @ b).array, a.array @ b.array)
    np.testing.assert_array_equal((-a).array, -a.array)
    np.testing.assert_array_equal(abs(a).array, np.abs(a.array))
    for compare in (lambda x, y: x < y, lambda x, y: x <= y, lambda x, y: x > y, lambda x, y: x >= y):
        result = compare(a, 0.0)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, compare(a.array, 0.0))
        np.testing.assert_array_equal(compare(a, a), compare(a.array, a.array))


def test_broadcasting_sums_the_gradient():
    a, b = tensor(4, 1, 3), tensor(2, 1, seed=1)
    (a * b).sum().backward()
    assert a.grad.shape == (4, 1, 3)
    assert b.grad.shape == (2, 1)
    np.testing.assert_allclose(a.grad, np.full((4, 1, 3), b.array.sum()))
    np.testing.assert_allclose(b.grad, np.full((2, 1), a.array.sum()))


def test_numbers_do_not_change_float32():
    a = xn.Tensor(np.ones((2, 2), np.float32), requires_grad=True)
    for result in (a + 1, 1 - a, a * 0.5, 2 / a, a**2, 2**a, -a, a.mean(), a.sum(), a.max(), a[0], a.T):
        assert result.dtype == np.float32
    (a * 0.5 + 1 / a - a**2).sum().backward()
    assert xn.to_numpy(a.grad).dtype == np.float32


@pytest.mark.parametrize(
    "index",
    [
        0, -1, slice(1, 3), slice(None, None, -2), (slice(None), 1), (..., 0), (None, 2), (0, slice(None), 1), (1, 2, 3),
        np.array([0, 2, 2]), (slice(None), np.array([1, 1, 0])), np.array([True, False, True]),
        (np.array([0, 0, 2]), np.array([1, 1, 0])), np.array([[0, 1], [2, 0]]),
    ],
    ids=str,
)  # fmt: skip
def test_indexing(index):
    """Values as NumPy's, and the gradient of an element that is read twice is counted twice."""
    x = tensor(3, 3, 4)
    y = x[index]
    np.testing.assert_array_equal(y.array, x.array[index])
    weights = np.random.default_rng(1).standard_normal(y.shape)
    y.backward(weights)
    expected = np.zeros(x.shape)
    np.add.at(expected, index, weights)
    np.testing.assert_allclose(x.grad, expected)


def test_indexing_with_a_tensor():
    x, index = tensor(4, 2), xn.Tensor(np.array([3, 0]))
    np.testing.assert_array_equal(x[index].array, x.array[[3, 0]])
    np.testing.assert_array_equal(x[index, 1].array, x.array[[3, 0], 1])


def test_methods():
    x = tensor(2, 3, 4)
    np.testing.assert_allclose(x.sum(axis=1).array, x.array.sum(axis=1))
    np.testing.assert_allclose(x.mean(axis=(0, 2), keepdims=True).array, x.array.mean(axis=(0, 2), keepdims=True))
    np.testing.assert_allclose(x.max(axis=-1).array, x.array.max(axis=-1))
    assert x.reshape(6, 4).shape == x.reshape((6, -1)).shape == x.reshape([6, 4]).shape == (6, 4)
    assert x.reshape(-1).shape == (24,)
    assert x.transpose().shape == x.T.shape == (4, 3, 2)
    assert x.transpose(1, 0, 2).shape == (3, 2, 4)
    assert (x.ndim, x.size, len(x), x.dtype) == (3, 24, 2, np.float64)
    assert x.sum().item() == pytest.approx(x.array.sum())
    assert isinstance(x.sum().item(), float)
    assert float(xn.Tensor(np.array(2.5))) == 2.5
    assert int(xn.Tensor(np.array(2))) == 2
    assert bool(xn.Tensor(np.array(1.0)))
    np.testing.assert_array_equal(np.asarray(x), x.array)
    assert "requires_grad" in repr(x)
    assert x.detach().requires_grad is False
    assert x.detach().array is x.array


def test_a_tensor_of_a_list_and_of_a_tensor():
    assert xn.to_numpy(xn.Tensor([1.0, 2.0]).array).tolist() == [1.0, 2.0]
    x = tensor(2)
    assert xn.Tensor(x).array is x.array


# -- graphs --


def test_a_diamond():
    """y = a*b + a*c where b and c come from a: every path counts once."""
    a = xn.Tensor(np.array(3.0), requires_grad=True)
    b, c = a * a, a + 2
    (a * b + a * c).backward()
    assert float(xn.to_numpy(a.grad)) == 3 * 9 + 2 * 3 + 2  # a**3 + a**2 + 2a


def test_a_tower_of_diamonds_is_walked_once():
    """40 times x + x: 2**40 paths, 40 nodes."""
    x = xn.Tensor(np.array(1.0), requires_grad=True)
    y = x
    for _ in range(40):
        y = y + y
    y.backward()
    assert float(xn.to_numpy(x.grad)) == 2.0**40


def test_a_deep_chain():
    """No recursion: ten thousand operations one after another."""
    x = xn.Tensor(np.array(1.0), requires_grad=True)
    y = x
    for _ in range(10_000):
        y = y + 1.0
    y.backward()
    assert float(xn.to_numpy(x.grad)) == 1


def test_shared_weights():
    w, x = tensor(3, 3), np.random.default_rng(1).standard_normal((2, 3))

    def twice(w):
        return ops.tanh(ops.tanh(x @ w) @ w).sum()

    twice(w).backward()
    xn.inspect.check_gradients(twice, [w.array], tolerance=1e-7)
    one, two = xn.Tensor(w.array, requires_grad=True), xn.Tensor(w.array, requires_grad=True)
    ops.tanh(ops.tanh(x @ one) @ two).sum().backward()
    np.testing.assert_allclose(xn.to_numpy(w.grad), xn.to_numpy(one.grad) + xn.to_numpy(two.grad))


def test_the_same_input_twice():
    x = tensor(3)
    (x * x).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * x.array)
    y = tensor(3)
    ops.concat([y, y, y]).sum().backward()
    np.testing.assert_array_equal(y.grad, [3, 3, 3])


def test_gradients_accumulate_until_they_are_zeroed():
    x = tensor(3)
    (2.0 * x).sum().backward()
    (3.0 * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [5, 5, 5])
    x.zero_grad()
    assert x.grad is None
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 1, 1])


def test_gradients_are_arrays_of_their_own():
    """Writable, not views of one another or of what the user passed: changing one changes no other."""
    a, b = tensor(3), tensor(3, seed=1)
    start = np.ones(3)
    (a + b).backward(start)
    a.grad *= 10
    np.testing.assert_array_equal(b.grad, [1, 1, 1])
    np.testing.assert_array_equal(start, [1, 1, 1])
    c = tensor(2, 3)
    c.sum().backward()
    c.grad += 1  # not a read-only broadcast of one number
    np.testing.assert_array_equal(c.grad, np.full((2, 3), 2.0))
    d = tensor()
    d.backward()
    d.grad += 1
    e = tensor()
    e.backward()
    assert float(e.grad) == 1


def test_backward_twice_is_an_error():
    x = tensor(3)
    y = ops.exp(x)
    loss = y.sum()
    loss.backward()
    with pytest.raises(RuntimeError, match=r"backward\(\) ran through this sum before"):
        loss.backward()
    with pytest.raises(RuntimeError, match="run the forward pass again"):
        (y * 2.0).sum().backward()


def test_backward_frees_what_forward_saved():
    x = tensor(1000)
    y = ops.exp(x)
    saved = weakref.ref(y.node.saved)
    loss = y.sum()
    del y
    loss.backward()
    gc.collect()
    assert saved() is None


def test_what_no_backward_pass_needs_is_not_kept():
    """Between the passes: neither the inputs nor the outputs of operations that save something else, or nothing."""
    x = tensor(4, 3)
    a = x + 1.0  # saves shapes
    b, _, _ = ops.batch_norm_with_statistics(ops.relu(a), np.full(3, 2.0))  # relu saves its output
    c = b - 1.0
    loss = (c[:2] - 2.0).sum()
    watched = {name: weakref.ref(t) for name, t in {"a": a.array, "b": b.array, "c": c.array}.items()}
    del a, b, c
    assert {name for name, array in watched.items() if array() is not None} == set()
    loss.backward()
    assert x.grad.shape == (4, 3)


def test_activations_are_freed_while_backward_passes_them():
    """After the last of ten layers was passed, nothing is left of the nine that have been; measured by the allocator."""
    x = xn.Tensor(np.ones((250, 1000)), requires_grad=True)
    one = xn.to_numpy(x.array).nbytes
    tracemalloc.start()
    try:
        y = x
        for _ in range(10):
            y = ops.tanh(y)
        kept = tracemalloc.get_traced_memory()[0]
        loss = y.sum()
        del y
        tracemalloc.reset_peak()
        loss.backward()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 10 * one <= kept < 10.1 * one
    assert now < 1.1 * one  # x.grad
    # tanh's backward pass has 1 - y * y, the product and the gradient that comes in beside all that is kept.
    assert peak < 13.1 * one


def test_a_graph_is_freed_without_the_garbage_collector():
    """No reference cycles: memory comes back at once."""
    gc.collect()
    gc.disable()
    try:
        x = tensor(10)
        loss = ops.tanh(x * 2.0).sum()
        watched = weakref.ref(loss.array.base if loss.array.base is not None else loss.array)
        inner = weakref.ref(loss.node.inputs[0].saved)  # what tanh keeps: its output
        loss.backward()
        del loss
        assert watched() is None
        assert inner() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: (x * 1.0).backward(), ValueError, "gradient of shape (2, 3)"),
        (lambda x: x.sum().backward(np.ones(2)), ValueError, "(2,)"),
        (lambda x: xn.Tensor(np.ones(1)).backward(), RuntimeError, "nothing was recorded"),
        (lambda x: x.detach().sum().backward(), RuntimeError, "nothing was recorded"),
    ],
)
def test_backward_explains(call, error, says):
    with pytest.raises(error) as raised:
        call(tensor(2, 3))
    assert says in str(raised.value)


def test_a_gradient_of_ones_is_implied_for_one_element():
    for shape in ((), (1,), (1, 1)):
        x = xn.Tensor(np.full(shape, 2.0), requires_grad=True)
        (x * x).backward()
        np.testing.assert_array_equal(x.grad, np.full(shape, 4.0))


def test_several_outputs_of_which_some_are_used():
    x = tensor(5, 3)
    _, mean, variance = ops.batch_norm_with_statistics(x)
    (mean.sum() + 2.0 * variance.sum()).backward()
    centred = x.array - x.array.mean(axis=0)
    np.testing.assert_allclose(x.grad, 1 / 5 + 2 * 2 * centred / 5, atol=1e-12)
    y, switches = ops.max_pool2d_with_switches(tensor(1, 2, 2, 1), 2)
    assert y.requires_grad
    assert not switches.requires_grad


def test_an_output_that_nothing_used_has_no_gradient(monkeypatch):
    """Operations of this package are told so, those of users get zeros."""
    seen = []
    implementation = ops.batch_norm_with_statistics.reference
    backward: Any = implementation.backward_function

    def noting(xp: Any, dys: Any, *args: Any, **keywords: Any) -> Any:
        seen.append(dys)
        return backward(xp, dys, *args, **keywords)

    monkeypatch.setattr(implementation, "backward_function", noting)
    with ops.reference_only():
        ops.batch_norm_with_statistics(tensor(5, 3))[1].sum().backward()
    assert [dy is None for dy in seen[0]] == [True, False, True]

    def halves(xp: Any, x: ops.Array) -> Any:
        return (x / 2, x / 2), None

    operation = ops.Op(halves, absent=True)

    @operation.backward
    def _(xp: Any, dys: Any, saved: Any) -> Any:
        seen.append(dys)
        return (dys[0] + dys[1]) / 2

    x = tensor(2, 3)
    operation(x)[1].sum().backward()
    np.testing.assert_array_equal(seen[1][0], np.zeros((2, 3)))
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 0.5))


def test_inputs_without_a_gradient_get_none():
    x, w = xn.Tensor(np.ones((2, 3))), tensor(3, 2)
    ops.dense(x, w).sum().backward()
    assert x.grad is None
    assert w.grad is not None


# -- what is recorded --


def test_no_grad():
    x = tensor(3)
    with xn.no_grad():
        y = x * 2.0
        with xn.no_grad():
            pass
        assert not (y + x).requires_grad  # the inner block has not turned recording on again
    assert not y.requires_grad
    assert y.node is None
    assert (x * 2.0).requires_grad
    with pytest.raises(ValueError, match="inside"), xn.no_grad():
        raise ValueError("inside")
    assert (x * 2.0).requires_grad


def test_nothing_is_recorded_without_need():
    y = xn.Tensor(np.ones(3)) * xn.Tensor(np.ones(3))
    assert isinstance(y, xn.Tensor)
    assert y.node is None
    assert type(ops.multiply(np.ones(3), 2.0)) is np.ndarray


def test_no_grad_is_of_one_thread():
    """Another thread records while this one does not; each has graphs of its own."""
    x = tensor(100)
    failures = []

    def work(seed):
        try:
            for i in range(50):
                t = tensor(20, seed=seed)
                loss = (ops.tanh(t * float(i)) * t).sum()
                loss.backward()
                expected = np.tanh(t.array * i) + t.array * i * (1 - np.tanh(t.array * i) ** 2)
                np.testing.assert_allclose(t.grad, expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    with xn.no_grad():
        for thread in threads:
            thread.start()
        assert not (x * 2.0).requires_grad
        for thread in threads:
            thread.join()
    assert not failures


# -- value_and_grad --

Layer = namedtuple("Layer", ["w", "b"])


def test_value_and_grad_keeps_the_structure():
    random = np.random.default_rng(0)
    params: dict[str, Any] = {
        "first": Layer(random.standard_normal((3, 4)), np.zeros(4)),
        "rest": [random.standard_normal((4, 2)), (np.zeros(2),)],
        "unused": np.ones(5),
    }
    x, y = random.standard_normal((6, 3)), random.standard_normal((6, 2))

    def loss(p, x, y, *, scale):
        h = ops.tanh(ops.dense(x, p["first"].w, p["first"].b))
        return scale * xn.losses.mean_squared_error(ops.dense(h, p["rest"][0], p["rest"][1][0]), y)

    value, gradients = xn.value_and_grad(loss)(params, x, y, scale=2.0)
    assert type(value) is np.ndarray
    assert value.shape == ()
    assert isinstance(gradients["first"], Layer)
    assert isinstance(gradients["rest"], list)
    assert isinstance(gradients["rest"][1], tuple)
    assert gradients["rest"][1][0].shape == (2,)
    np.testing.assert_array_equal(gradients["unused"], np.zeros(5))
    h = 1e-6
    moved = {**params, "rest": [params["rest"][0].copy(), params["rest"][1]]}
    moved["rest"][0][1, 0] += h
    higher, _ = xn.value_and_grad(loss)(moved, x, y, scale=2.0)
    assert (higher - value) / h == pytest.approx(gradients["rest"][0][1, 0], rel=1e-4)


def test_value_and_grad_with_more_results():
    (value, aux), gradient = xn.value_and_grad(lambda w: ((w * w).sum(), "more"), has_aux=True)(np.arange(3.0))
    assert float(value) == 5
    assert aux == "more"
    np.testing.assert_array_equal(gradient, [0, 2, 4])


def test_value_and_grad_of_a_constant_and_of_no_tensor():
    value, gradient = xn.value_and_grad(lambda w: xn.Tensor(np.array(3.0)))(np.ones(2))
    assert float(value) == 3
    np.testing.assert_array_equal(gradient, [0, 0])
    with pytest.raises(TypeError, match="must return a Tensor"):
        xn.value_and_grad(lambda w: 3.0)(np.ones(2))


def test_value_and_grad_runs_its_own_tape():
    """Called twice, and inside no_grad of another use, the gradients are the same and nothing is left behind."""
    f = xn.value_and_grad(lambda w: (w**2).sum())
    w = np.arange(3.0)
    np.testing.assert_array_equal(f(w)[1], f(w)[1])
    assert type(w) is np.ndarray


# -- gradient check --


def test_check_gradients_finds_a_wrong_backward():
    """The checker itself: it must fail where a gradient is wrong, and name the worst element."""
    from xpnet.ops.registry import Op

    def forward(xp, x: xn.backend.Array):
        return x * x, x

    forward.__annotations__ = {"x": "Array"}
    wrong = Op(forward)
    wrong.backward(lambda xp, dy, x: dy * x)  # half of the truth
    with pytest.raises(AssertionError, match=r"input 0, element \(\d+,\)"):
        xn.inspect.check_gradients(wrong, [np.array([1.0, 2.0])])
    assert xn.inspect.check_gradients(ops.square, [np.array([1.0, 2.0])]) < 1e-8


def test_check_gradients_takes_a_dict_as_value_and_grad_does():
    def loss(p):
        return ops.dense(p["x"], p["kernel"]).sum()

    rng = np.random.default_rng(0)
    inputs = {"kernel": rng.normal(size=(3, 2)), "x": rng.normal(size=(4, 3))}
    assert xn.inspect.check_gradients(loss, inputs) < 1e-8
    assert set(xn.value_and_grad(loss)(inputs)[1]) == set(inputs)

    def half(p):
        return (p["a"] ** 2).sum() + xn.Tensor(p["b"].array ** 2).sum()  # nothing is recorded of b

    with pytest.raises(AssertionError, match=r"input 'b', element \(1,\): backward gives 0, "):
        xn.inspect.check_gradients(half, {"a": np.ones(2), "b": np.array([0.0, 3.0])})


def test_variance_and_deviation():
    x = xn.Tensor(np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]), requires_grad=True)
    np.testing.assert_allclose(xn.to_numpy(x.var(axis=1).array), [8 / 3, 0])
    np.testing.assert_allclose(xn.to_numpy(x.std(axis=1, correction=1, keepdims=True).array), [[2], [0]])
    x.std(axis=1).sum().backward()
    np.testing.assert_array_equal(xn.to_numpy(x.grad)[1], 0)  # there it has a kink
    assert np.isfinite(xn.to_numpy(x.grad)).all()
    assert np.isnan(ops.var(np.ones((3, 1)), axis=1, correction=1)).all()
    far = np.float32(1e4) + np.arange(4, dtype=np.float32)
    assert ops.var(far) == 1.25  # not from a difference of squares
    assert ops.std(far).dtype == np.float32


def test_check_gradients_leaves_its_inputs_alone():
    x = np.arange(3, dtype=np.float32)
    before = x.copy()
    xn.inspect.check_gradients(ops.tanh, x)
    np.testing.assert_array_equal(x, before)


def test_comparisons_are_arrays_of_booleans_and_tensors_are_keys():
    t = xn.Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    np.testing.assert_array_equal(t == 2, [False, True, False])
    np.testing.assert_array_equal(t != xn.Tensor(np.array([1.0, 0.0, 3.0])), [False, True, False])
    np.testing.assert_array_equal(t >= 2, [False, True, True])
    assert {t: "key"}[t] == "key"


def test_a_leaf_keeps_a_new_gradient_and_copies_any_other():
    """What an accelerated operation has just made is taken as it is; what others hold is not."""
    x = xn.Tensor(np.ones((2, 4, 4, 3), np.float32), requires_grad=True)
    dy: Any = np.ones((2, 2, 2, 3), np.float32)
    y = xn.ops.max_pool2d(x, 2)
    y.backward(dy)
    first = xn.to_numpy(x.grad)
    xn.ops.max_pool2d(x, 2).backward(dy)
    np.testing.assert_array_equal(first * 2, x.grad)
    a, b = (xn.Tensor(np.ones(3, np.float32), requires_grad=True) for _ in "ab")
    dy = np.ones(3, np.float32)
    (a + b).backward(dy)
    assert not any(np.shares_memory(one, other) for one, other in [(a.grad, b.grad), (a.grad, dy), (b.grad, dy)])


def test_a_backward_pass_adds_to_a_gradient_that_was_assigned():
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    x = np.ones((4, 3), np.float32)
    kernel = model.parameters()["0.kernel"]
    flat = model.flat_parameters
    model(x).sum().backward()
    once = np.array(kernel.grad)
    kernel.grad = np.full((3, 2), 7, np.float32)
    model(x).sum().backward()
    flat.collect()
    np.testing.assert_array_equal(kernel.grad, once + 7)
    np.testing.assert_array_equal(flat.gradients[flat.slices[0]].reshape(3, 2), once + 7)


@pytest.mark.parametrize("gradient", [[1.0, 2.0], (1, 2), xn.Tensor(np.array([1.0, 2.0])), np.array([1.0, 2.0], ">f8")])
def test_backward_takes_what_can_be_an_array(gradient: Any):
    x: Any = xn.Tensor(np.ones(2, np.float32), requires_grad=True)
    (x * 3).backward(gradient)
    assert x.grad.dtype == np.float32
    assert x.grad.tolist() == [3.0, 6.0]
    x.zero_grad()
    x.sum().backward(2.0)
    assert x.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("gradient", "error", "says"), [
    (np.ma.masked_array([1.0, 2.0], [False, True]), TypeError, "masked array"),
    ([np.ma.masked_array([1.0, 2.0], [False, True])], TypeError, "masked array"),
    ("text", TypeError, r"backward: got a str, expected a gradient of shape \(2,\)"),
    ([[1.0], [1.0, 2.0]], TypeError, "backward: got a list, expected"), (1.0, ValueError, r"shape \(\) is not the Tensor's"),
    (np.array(["a", "b"]), TypeError, "dtype <U1, expected numbers"),
])  # fmt: skip
def test_backward_refuses_what_cannot(gradient: Any, error: Any, says: str):
    x = xn.Tensor(np.ones(2, np.float32), requires_grad=True)
    y: Any
    for y in (x, x * 3, ops.relu(x)):
        with pytest.raises(error, match=says):
            y.backward(gradient)
    with pytest.raises(TypeError, match="masked array"):  # now as before
        xn.Tensor(np.ma.masked_array([1.0], [True]))


def test_backward_names_both_libraries():
    torch = pytest.importorskip("torch")
    x = xn.Tensor(np.ones(2, np.float32), requires_grad=True)
    with pytest.raises(DeviceError, match=r"two libraries in one call: numpy array .* and torch array"):
        (x * 2).backward(torch.ones(2))


def test_lists_of_masked_arrays_are_refused():
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    for make in (xn.Tensor, xn.to_numpy, lambda a: xn.to_device(a, "cpu")):
        for value in ([masked, masked], [[np.zeros(2)], [masked]], (1.0, np.ma.masked)):
            with pytest.raises(TypeError, match="masked array"):
                make(value)
    with pytest.raises(TypeError, match="masked array"):
        xn.Tensor(np.ones(3))[np.ma.masked_array([0, 1], [False, True])]


def test_functions_of_numpy_do_not_leave_the_tape_unseen():
    t = xn.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    for function in (
        lambda: np.clip(t, 0, 1),
        lambda: np.linalg.norm(t),
        lambda: np.concatenate([t, t]),
        lambda: np.stack([t, t]),
        lambda: np.einsum("ij->i", t),
    ):
        with pytest.raises(TypeError, match=r"got a Tensor with a gradient.*xn\.to_numpy"):
            function()
    assert np.argmax(t) == 5
    assert np.allclose(t, t)
    assert np.shape(t) == (2, 3)
    with xn.no_grad():
        assert np.concatenate([t, t]).shape == (4, 3)
    assert np.clip(t.detach(), 0, 1).max() == 1
