"""Operations as objects: arguments, accelerations and when they run, what is saved."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.skipping import skipping
from xpnet.backend import Array
from xpnet.ops.registry import Implementation, Op, as_is, in_float32, op, reference_only, registry, statistics_in_float32


@contextlib.contextmanager
def operation(function, backward=None, **declared):
    """An operation that leaves the registry again."""
    made = op(**declared)(function) if declared else op(function)
    if backward is not None:
        made.backward(backward)
    try:
        yield made
    finally:
        del registry[made.__name__]


def scaled(xp, x: Array, *, by: float = 2.0):
    """x * by."""
    return x * by, x


scaled.__annotations__.update(x="Array", by="float")


def scaled_backward(xp, dy, saved, *, by):
    return dy * by


def test_an_operation_of_ones_own():
    with operation(scaled, scaled_backward) as double:
        x = xn.Tensor(np.array([1.0, 2.0]), requires_grad=True)
        double(x, by=3.0).sum().backward()
        np.testing.assert_array_equal(x.grad, [3, 3])
        np.testing.assert_array_equal(double(np.array([1.0])), [2.0])
        assert registry["scaled"] is double
        assert double.__doc__ == "x * by."
        assert "scaled(x" in repr(double)
        with pytest.raises(TypeError, match="exists already"):
            op(scaled)
    assert "scaled" not in registry


def test_what_an_operation_must_look_like():
    def no_arrays(xp, x):
        return x, None

    def arrays_last(xp, factor: float, x):
        return x, None

    arrays_last.__annotations__.update(factor="float", x="Array")
    for wrong in (no_arrays, arrays_last):
        with pytest.raises(
            TypeError, match=r"array inputs must come first, after xp, and be annotated xpnet.ops.Array .*; got \("
        ):
            Op(wrong)


OWN = """
import typing
from typing import Optional
import xpnet
from xpnet import ops
from xpnet.ops import Array

def one(xp, x: {annotation}, *, factor: float = 2.0):
    return factor * x, None

def two(xp, x: {annotation}, y: {annotation} = None, factor: float = 2.0):
    return factor * x, None

def any_number(xp, *arrays: {annotation}, axis: int = 0):
    return arrays[0], None
"""


@pytest.mark.parametrize(
    "annotation",
    [
        "Array", "Array | None", "None | Array", "Optional[Array]", "typing.Optional[Array]", "typing.Union[Array, None]",
        "ops.Array", "xpnet.ops.Array | None", "'Array'", "'Array | None'", "xpnet.backend.Array",
    ],
)  # fmt: skip
@pytest.mark.parametrize("future", [True, False])
def test_annotations_of_an_operation_of_ones_own(annotation, future):
    """With and without ``from __future__ import annotations``, under any name and as text."""
    source = ("from __future__ import annotations\n" if future else "") + OWN.format(annotation=annotation)
    names: dict[str, Any] = {"__name__": "somebodys"}
    exec(compile(source, "somebodys.py", "exec", dont_inherit=True), names)
    assert Op(names["one"]).input_names == ("x",)
    assert Op(names["two"]).input_names == ("x", "y")
    assert Op(names["any_number"]).variadic
    np.testing.assert_array_equal(Op(names["one"])(np.ones(2)), [2, 2])


def test_an_acceleration_runs_where_it_can_and_the_reference_elsewhere():
    with operation(scaled, scaled_backward) as double:
        ran = []

        @double.accelerate("numpy")
        def fast(xp, x, *, by):
            if x.dtype != np.float32:
                return NotImplemented
            ran.append("forward")
            return x * by, "saved"

        @fast.backward
        def _(xp, dy, saved, *, by):
            assert saved == "saved"
            ran.append("backward")
            return dy * by

        x = xn.Tensor(np.ones(2, np.float32), requires_grad=True)
        double(x).sum().backward()
        np.testing.assert_array_equal(x.grad, [2, 2])
        assert ran == ["forward", "backward"]

        wide = xn.Tensor(np.ones(2), requires_grad=True)
        double(wide).sum().backward()
        np.testing.assert_array_equal(wide.grad, [2, 2])
        assert len(ran) == 2

        with reference_only():
            double(np.ones(2, np.float32))
            with reference_only(False):
                double(np.ones(2, np.float32))
                assert ran.pop() == "forward"
            double(np.ones(2, np.float32))
        assert len(ran) == 2
        double(np.ones(2, np.float32))
        assert ran == ["forward", "backward", "forward"]


def test_backward_is_that_of_the_forward_that_ran():
    """Also where the accelerations are turned off between the two."""
    with operation(scaled, scaled_backward) as double:

        @double.accelerate("numpy")
        def fast(xp, x, *, by):
            return x * by, "fast"

        @fast.backward
        def _(xp, dy, saved, *, by):
            assert saved == "fast"
            return dy * by

        x = xn.Tensor(np.ones(2), requires_grad=True)
        y = double(x)
        with reference_only():
            y.sum().backward()
        np.testing.assert_array_equal(x.grad, [2, 2])


def chain(double, ran):
    """Two implementations for NumPy in order: the first computes vectors, the second float32 arrays."""

    def implementation(name, covers, **keywords):
        @double.accelerate("numpy", **keywords)
        def fast(xp, x, *, by):
            ran.append(name)
            return (x * by, name) if covers(x) else NotImplemented

        @fast.backward
        def _(xp, dy, saved, *, by):
            assert saved == name
            ran.append(f"{name} backward")
            return dy * by

        return fast

    second = implementation("second", lambda x: x.dtype == np.float32)
    return implementation("first", lambda x: x.ndim == 1, first=True), second, implementation("third", lambda x: x.ndim == 3)


def test_a_users_acceleration_is_tried_before_those_of_the_package():
    from xpnet.ops.operation import customized

    relu, ran = xn.ops.relu, []
    x = np.array([-1.0, 2.0], np.float32)
    relu(x)
    kept, chosen, known = dict(relu.accelerated), dict(relu._chosen), list(customized)
    assert kept["numpy"].ours
    try:
        for number in range(2):

            @relu.accelerate("numpy")
            def mine(xp, x, number=number):
                ran.append(number)
                return (np.maximum(x, 0), x > 0) if number else NotImplemented

        model = xn.Sequential([xn.Dense(3), xn.ReLU()], input_shape=(2,))
        model(x[None])
        model.predict(x[None])
        assert len(ran) >= 4
        assert ran == [0, 1] * (len(ran) // 2)
        assert relu.implementations("numpy")[2] is kept["numpy"]
    finally:
        relu.accelerated.clear()
        relu.accelerated.update(kept)
        relu._chosen.clear()
        relu._chosen.update(chosen)
        customized[:] = known


@pytest.mark.parametrize(
    ("shape", "dtype", "tried"),
    [
        ((2,), "float32", ["first", "first backward"]),
        ((2, 2), "float32", ["first", "second", "second backward"]),
        ((2, 1, 2), "float64", ["first", "second", "third", "third backward"]),
        ((2, 2), "float64", ["first", "second", "third"]),
    ],
)
def test_several_accelerations_are_tried_in_order_and_the_reference_last(shape, dtype, tried):
    ran: list[Any] = []
    with operation(scaled, scaled_backward) as double:
        expected = chain(double, ran)
        assert double.implementations("numpy") == list(expected)
        assert double.implementation(np) is expected[0]
        x = xn.Tensor(np.ones(shape, dtype), requires_grad=True)
        double(x, by=3.0).sum().backward()
        np.testing.assert_array_equal(x.grad, np.full(shape, 3.0))
        assert ran == tried
        ran.clear()
        with skipping(np, "numpy", 1):  # as the contract's tests reach the second one
            double(np.ones(2, np.float32))
        assert ran == ["second"]
        ran.clear()
        with reference_only():
            np.testing.assert_array_equal(double(np.ones(shape, dtype)), np.full(shape, 2.0))
        assert ran == []


def test_accelerations_of_two_libraries_do_not_mix():
    ran: list[Any] = []
    with operation(scaled, scaled_backward) as double:
        numpy_ones = chain(double, ran)

        @double.accelerate("cupy")
        def other(xp, x, *, by):
            raise AssertionError("not for NumPy")

        assert double.implementations("numpy") == list(numpy_ones)
        assert double.implementations("cupy") == [other]
        assert double.implementations("torch") == []
        double(np.ones((2, 2)))
        assert ran == ["first", "second", "third"]


@pytest.mark.parametrize("takes", [[], [1], [0, 2]])
def test_sixteen_bit_floats_go_to_those_that_take_them(takes):
    ran: list[Any] = []
    with operation(scaled, scaled_backward) as double:
        implementations = chain(double, ran)
        for number in takes:
            implementations[number].takes_half = True
        y = double(np.ones((2, 2), np.float16))
        assert y.dtype == np.float16
        names = ["first", "second", "third"]
        # Where none computes it, the inputs are widened and the first that takes float32 runs.
        assert ran == [names[number] for number in takes] + names[:2]


@pytest.mark.parametrize(
    ("half", "computed", "returned"),
    [
        (in_float32, "float32", ["float16", "float16"]),
        (statistics_in_float32, "float32", ["float16", "float32"]),
        (as_is, "float16", ["float16", "float16"]),
    ],
)
def test_an_operation_declares_how_it_takes_sixteen_bit_floats(half, computed, returned):
    seen = []

    def doubled(xp, x):
        seen.append(x.dtype.name)
        return (x * 2, x + 1), None

    doubled.__annotations__["x"] = "Array"
    with operation(doubled, half=half) as f:
        outputs = f(np.ones(2, np.float16))
    assert seen == [computed]
    assert [y.dtype.name for y in outputs] == returned


@pytest.mark.parametrize("broadcasts", [False, True])
def test_an_operation_declares_that_its_inputs_broadcast(broadcasts):
    def plus(xp, x, y):
        return x + y, None

    plus.__annotations__.update(x="Array", y="Array")
    says = r"plus: shapes \(2,\) and \(3,\) do not fit" if broadcasts else "operands"
    with operation(plus, broadcasts=broadcasts) as f, pytest.raises(ValueError, match=says):
        f(np.ones(2), np.ones(3))


def test_an_acceleration_without_a_backward_saves_for_the_references():
    with operation(scaled, scaled_backward) as double:

        @double.accelerate("numpy")
        def fast(xp, x, *, by):
            return x * by, x

        x = xn.Tensor(np.ones(2), requires_grad=True)
        double(x).sum().backward()
        np.testing.assert_array_equal(x.grad, [2, 2])
        assert isinstance(fast, Implementation)


def test_backward_is_registered_before_accelerations():
    with operation(scaled) as double:
        double.accelerate("numpy")(lambda xp, x, *, by: (x * by, x))
        with pytest.raises(TypeError, match="register backward before accelerating"):
            double.backward(scaled_backward)


def test_other_libraries_run_the_reference(library):
    if library.name.startswith(("numpy", "cupy")):
        pytest.skip("this library has accelerations")
    x, kernel = library.asarray(np.ones((1, 4, 4, 1))), library.asarray(np.ones((3, 3, 1, 1)))
    assert registry["conv2d"].implementation(library.xp) is registry["conv2d"].reference
    assert type(xn.ops.conv2d(x, kernel)) is type(x)


def test_save_tells_forward_whether_backward_may_come():
    seen = []

    def told(xp, x, *, save=True):
        seen.append(save)
        return x * 1.0, None

    told.__annotations__["x"] = "Array"
    with operation(told, lambda xp, dy, saved: dy) as f:
        f(np.ones(1))
        f(xn.Tensor(np.ones(1)))
        t = xn.Tensor(np.ones(1), requires_grad=True)
        with xn.no_grad():
            f(t)
        f(t)
        assert seen == [False, False, False, True]
        assert "save" not in str(f.__signature__)


def test_needs_tells_backward_which_gradients_count():
    seen = []

    def product(xp, x, y):
        return x * y, (x, y)

    product.__annotations__.update(x="Array", y="Array")

    def backward(xp, dz, saved, *, needs):
        seen.append(needs)
        x, y = saved
        return dz * y if needs[0] else None, dz * x if needs[1] else None

    with operation(product, backward) as f:
        a, b = xn.Tensor(np.ones(2), requires_grad=True), np.full(2, 3.0)
        f(a, b).sum().backward()
        f(b, a).sum().backward()
        f(a, a).sum().backward()
        assert seen == [(True, False), (False, True), (True, True)]
        np.testing.assert_array_equal(a.grad, 3 + 3 + 2)


def test_an_operation_without_backward_has_no_gradient_that_could_be_forgotten():
    with operation(scaled) as double:
        x = xn.Tensor(np.ones(2), requires_grad=True)
        with pytest.raises(TypeError, match=r"scaled has no gradient: .* @scaled.backward.* x.detach"):
            (double(x) + x).sum().backward()
        assert not double(x.detach()).requires_grad
        with xn.no_grad():
            assert not double(x).requires_grad


@pytest.mark.parametrize(("gives", "says"), [
    (None, "gave None for x"), ((1, 2), "gave 2 gradients, expected 1, one for each array input"),
    (np.ones(3), r"a gradient of shape \(3,\) for x, which has shape \(2,\)"), ("text", "gave 'text' for x"),
])  # fmt: skip
def test_a_backward_from_outside_that_gives_no_gradient_is_named(gives: Any, says: str):
    with operation(scaled, lambda xp, dy, saved, *, by: gives) as double:
        y = double(xn.Tensor(np.ones(2), requires_grad=True)).sum()
        with pytest.raises((TypeError, ValueError), match=f"^scaled: the backward function .*{says}"):
            y.backward()


@pytest.mark.parametrize("returns", [
    lambda x: x, lambda x: [x, None], lambda x: (x, x, x), lambda x: None, lambda x: (None, x), lambda x: ([x], x),
    lambda x: ((x, None), x),
])  # fmt: skip
def test_a_forward_from_outside_that_forgets_what_backward_needs_is_named(returns: Any):
    def forgetful(xp: Any, x: Array) -> Any:
        return returns(x)

    with (
        operation(forgetful) as forgets,
        pytest.raises(TypeError, match=r"^forgetful: the forward function returned .* return y, x"),
    ):
        forgets(np.ones((2, 2)))


def test_wrong_declarations_are_refused():
    def odd(xp: Any, x: Array, *, by: float = 1.0) -> Any:
        return x, None

    with pytest.raises(ValueError, match="odd: integers='sometimes', expected one of 'promote', 'keep', 'refuse'"):
        op(integers="sometimes")(odd)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="odd: indices names 'labels', which is no array input; those are x"):
        op(indices=("labels",))(odd)
    for thing in (int, print, 3):
        with pytest.raises(TypeError, match=r"op: got .*, expected a function"):
            op(thing)  # type: ignore[arg-type]
    with operation(odd) as declared, pytest.raises(TypeError, match=r"odd: its backward .* does not take the setting 'by'"):
        declared.backward(lambda xp, dy, saved: dy)


def test_the_environment_turns_accelerations_off():
    code = (
        "import numpy as np, xpnet as xn\n"
        "from xpnet.ops.registry import registry, reference_is_forced\n"
        "conv = registry['conv2d']\n"
        "print(reference_is_forced(), conv.implementation(np) is conv.reference)"
    )
    for value, expected in (("1", "True True"), ("0", "False False"), ("", "False False")):
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"XPNET_REFERENCE": value}
        )
        assert result.stdout.strip() == expected
