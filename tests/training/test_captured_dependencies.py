"""What recordings compare before a replay: values, identities, trees. Needs no GPU."""

from __future__ import annotations

import copy
import functools
import math
import types
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.compiled.dependencies import Attributes, Surroundings
from xpnet.compiled.derived import ModelChangedError
from xpnet.compiled.graph import counting_nothing
from xpnet.compiled.owners import Before, Owner, StaleValueError, hidden
from xpnet.compiled.plain import is_plain, same
from xpnet.compiled.reach import reached
from xpnet.compiled.trees import flatten, is_numeric, unflatten

EQUAL = [
    (1, 1),
    (1.5, 1.5),
    (math.nan, float("nan")),
    (1j, 1j),
    ("a name", "".join(["a ", "name"])),
    (b"bytes", bytes(bytearray(b"bytes"))),
    (np.float32(0.1), np.float32(0.1)),
    (np.float64("nan"), np.float64("nan")),
    (np.bool_(True), np.bool_(True)),
    (np.dtype("f4"), np.dtype("float32")),
    ((1, np.float16(2), ("x", None)), (1, np.float16(2), ("x", None))),
]
DIFFERENT = [
    (1, 2),
    (1, 1.0),
    (1, True),
    (0.0, -0.0),
    (0.1, np.float64(0.1)),
    (np.float32(2), np.float64(2)),
    (np.float32(0.0), np.float32(-0.0)),
    (np.dtype("f4"), np.dtype("f8")),
    (np.float32, np.float64),
    ((1, 2), (1, 2, 3)),
    ((1, np.float32(1)), (1, np.float64(1))),
    (None, 0),
    ([1], [1]),
    ({"a": 1}, {"a": 1}),
    (np.zeros(2), np.zeros(2)),
    ((np.zeros(2),), (np.zeros(2),)),
]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_values_that_are_the_same(a, b):
    assert same(a, b)
    assert is_plain(a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_values_that_are_not(a, b):
    assert not same(a, b)
    assert same(a, a)


class Holder:
    """With attributes in a __dict__."""

    def __init__(self) -> None:
        self.number, self.free, self.function = np.float64(1.5), 0, len

    def method(self, x: Any) -> Any:
        return x, self.number, self.free, self.function

    def __call__(self, x: Any) -> Any:
        return self.method(x), self.a  # type: ignore[attr-defined]


class Slotted(Holder):
    """And in slots, of a base class as well."""

    __slots__ = ("a", "b")


def test_attributes_are_watched_but_for_the_exempt_ones():
    owner: Any = Slotted()
    owner.a = 1
    attributes = Attributes(Owner(owner, frozenset({"free"})))
    assert attributes.hold()
    owner.free = 3
    owner.number = np.float64(1.5)
    assert attributes.hold()
    for name, value in [("number", 1.5), ("function", abs), ("a", 2), ("b", 1), ("new", 1)]:
        changed = copy.copy(owner)
        attributes = Attributes(Owner(changed, frozenset({"free"})))
        setattr(changed, name, value)
        assert not attributes.hold(), name
    deleted = copy.copy(owner)
    attributes = Attributes(Owner(deleted))
    del deleted.number
    assert not attributes.hold()


def test_what_code_of_a_users_reaches():
    owner: Any = Holder()
    inner, kept = Holder(), Holder()
    owner.free = {"inner": inner}
    owner.unmentioned = Holder()

    def loss(prediction: Any) -> Any:
        return kept

    def things(*roots: Any) -> set[Any]:
        return {
            found.thing
            for found in reached(roots).owners
            if not isinstance(found.thing, (type, dict, list, types.FunctionType))
        }

    assert things(owner) == things(owner.method) == {owner, inner}
    assert things(functools.partial(functools.partial(owner.method, 1), kept)) == {owner, inner, kept}
    assert things(loss) == {kept}
    package = xn.losses.softmax_cross_entropy
    assert not things(functools.partial(package, label_smoothing=0.1))
    slotted: Any = Slotted()
    slotted.a = inner
    assert things(slotted) == {slotted, inner}
    assert {Holder, Slotted} <= {o.thing for o in reached([slotted]).owners if isinstance(o.thing, type)}
    model = xn.Sequential([xn.Dense(2), xn.ReLU()])
    model.owner = owner
    assert things(model) == {*model.modules(), owner, inner}
    found = [found.thing for found in reached((), inside=model.modules()).owners]
    found = [thing for thing in found if not isinstance(thing, types.FunctionType)]
    assert sorted(map(id, found)) == sorted(map(id, [owner, inner, Holder, owner.free]))


USES: Any = [
    lambda v: v + 1, lambda v: 1 + v, lambda v: np.float32(1) * v, lambda v: np.zeros(2) * v, lambda v: v[0], lambda v: v.shape,
    lambda v: -v, bool, float, len, iter, str, repr, hash, lambda v: v == 1, lambda v: v > 1, lambda v: v(), lambda v: f"{v}",
    lambda v: setattr(v, "a", 1), lambda v: isinstance(v, int), lambda v: hasattr(v, "shape"),
    lambda v: xn.Tensor(np.zeros(2)) * v,
    lambda v: v.__setitem__(0, 1), copy.copy, lambda v: v @ v, lambda v: v | {}, next, xn.Tensor, xn.ops.exp, np.asarray,
]  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_stale_value_is_refused(use):
    owner: Any = Holder()
    place = Owner(owner), "number"

    def uses() -> None:
        with hidden([place], "of yesterday"):
            assert owner.number is not None
            use(owner.number)

    def catches() -> None:
        with hidden([place], ""):
            try:
                use(owner.number)
            except Exception:
                owner.number = 3.0

    with pytest.raises(StaleValueError) as raised:
        uses()
    assert (raised.value.owner, raised.value.name, raised.value.why) == (owner, "number", "of yesterday")
    with pytest.raises(StaleValueError):
        catches()
    assert owner.number == 3.0


def test_a_stale_value_that_is_put_elsewhere_is_refused_and_one_that_is_replaced_is_not():
    owner: Any = Holder()
    place = Owner(owner), "number"
    with pytest.raises(StaleValueError), hidden([place], ""):
        owner.free, owner.number = owner.number, 2
    assert owner.number == 2
    with hidden([place], ""):
        owner.number = 4
    assert owner.number == 4
    with hidden([place], ""):
        pass
    assert owner.number == 4


def test_a_plain_attribute_that_is_assigned_is_named_and_gets_its_value_back():
    owner: Any = Holder()

    def work(error: type[Exception] | None = None) -> None:
        with counting_nothing(Before([Owner(owner)])):
            owner.number += 1
            owner.function = abs
            if error:
                raise error

    with pytest.raises(ModelChangedError, match=r"self\.number was assigned") as raised:
        work()
    assert raised.value.layer is owner
    assert (owner.number, owner.function) == (1.5, len)
    with pytest.raises(KeyError):
        work(KeyError)
    assert owner.number == 1.5
    with counting_nothing(Before([Owner(owner, frozenset({"number"}))])):
        owner.number += 1
    assert owner.number == 2.5


def test_a_class_of_the_users_that_changes():
    kind: Any = type("Kind", (Holder,), {"setting": 1})
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    around = Surroundings(reached([kind()]).owners, model)
    assert around.hold()
    kind.setting = 1
    assert around.hold()
    kind.setting = 2
    assert not around.hold()


def test_settings_of_the_package():
    around = Surroundings([], xn.Sequential([xn.Dense(2)], input_shape=(3,)))
    assert around.hold()
    try:
        xn.set_matmul_precision("tf32")
        assert not around.hold()
    finally:
        xn.set_matmul_precision("float32")
    assert around.hold()


class Pair(tuple[Any, Any]):
    """A tuple of a user's, which is a leaf."""


TREES = [
    1,
    (1, 2),
    (1, [2, (3,)], {"a": 4, "b": {"c": 5}}),
    [],
    {"x": ()},
]


@pytest.mark.parametrize("tree", TREES)
def test_trees_are_put_together_again(tree):
    leaves: list[Any] = []
    form = flatten(tree, leaves)
    assert unflatten(form, iter(leaves)) == tree
    assert type(unflatten(form, iter(leaves))) is type(tree)
    hash(form)
    other: list[Any] = []
    assert (flatten((tree,), other) == form) is False


def test_only_tuples_lists_and_dicts_are_trees():
    leaves: list[Any] = []
    pair = Pair((1, 2))
    flatten((pair, None), leaves)
    assert leaves == [pair, None]


@pytest.mark.parametrize(("leaf", "numeric"), [(np.zeros(2), True), (np.zeros(2, bool), True), ("a", False), (None, False)])
def test_what_can_be_on_a_device(leaf, numeric):
    assert is_numeric(leaf) is numeric


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([object()]), np.array(["2020-01-01"], "M8[D]")])
def test_arrays_that_cannot(array):
    assert not is_numeric(array)


def test_a_copy_of_a_model_and_of_its_optimizer_is_independent():
    model = xn.Sequential([xn.Dense(4), xn.Dropout(0.5), xn.Dense(3)], input_shape=(6,))
    run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.1))
    x, y = np.ones((4, 6), np.float32), np.arange(4) % 3
    run.step(x, y)
    copied, optimizer = copy.deepcopy(model), copy.deepcopy(run.optimizer)
    assert copied.rng_counters() == model.rng_counters() == {"1": 1}
    assert (optimizer.iterations, optimizer.clock) == (1, None)
    run.step(x, y)
    assert copied.rng_counters() == {"1": 1}
    assert optimizer.iterations == 1
