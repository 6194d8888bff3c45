"""What recordings compare before a replay: values, identities, trees. Needs no GPU."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.compiled.dependencies import Attributes, Surroundings, not_counting, owner_of
from xpnet.compiled.derived import ModelChangedError
from xpnet.compiled.plain import is_plain, same
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


class Owner:
    """With attributes in a __dict__."""

    def __init__(self) -> None:
        self.number, self.free, self.function = np.float64(1.5), 0, len

    def method(self, x: Any) -> Any:
        return x


class Slotted(Owner):
    """And in slots, of a base class as well."""

    __slots__ = ("a", "b")


def test_attributes_are_watched_but_for_the_exempt_ones():
    owner: Any = Slotted()
    owner.a = 1
    attributes = Attributes(owner, frozenset({"free"}))
    assert attributes.hold()
    owner.free = 3
    owner.number = np.float64(1.5)
    assert attributes.hold()
    for name, value in [("number", 1.5), ("function", abs), ("a", 2), ("b", 1), ("new", 1)]:
        changed = copy.copy(owner)
        attributes = Attributes(changed, frozenset({"free"}))
        setattr(changed, name, value)
        assert not attributes.hold(), name
    deleted = copy.copy(owner)
    attributes = Attributes(deleted)
    del deleted.number
    assert not attributes.hold()


def test_the_owner_of_a_function():
    owner = Owner()
    assert owner_of(owner) is owner
    assert owner_of(owner.method) is owner
    assert owner_of(functools.partial(functools.partial(owner.method, 1))) is owner
    assert owner_of(len) is len  # of the module builtins, whose attributes are none of its
    loss = xn.losses.softmax_cross_entropy
    assert owner_of(functools.partial(loss, label_smoothing=0.1)) is loss


def test_a_plain_attribute_that_is_assigned_is_named_and_gets_its_value_back():
    owner: Any = Owner()

    def work(error: type[Exception] | None = None) -> None:
        with not_counting([(owner, frozenset())]):
            owner.number += 1
            owner.function = abs
            if error:
                raise error

    with pytest.raises(ModelChangedError, match=r"self\.number was assigned") as raised:
        work()
    assert raised.value.layer is owner
    assert (owner.number, owner.function) == (1.5, abs)
    with pytest.raises(KeyError):
        work(KeyError)
    assert owner.number == 1.5
    with not_counting([(owner, frozenset({"number"}))]):
        owner.number += 1
    assert owner.number == 2.5


def test_a_class_of_the_users_that_changes():
    kind: Any = type("Kind", (Owner,), {"setting": 1})
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    around = Surroundings([(kind(), frozenset())], model)
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
