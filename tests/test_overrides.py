"""What is replaced of the package's methods is seen, whoever replaces it and however."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import Batches, ByteImages, augment
from xpnet.data.arrays import Arrays, reads_plainly
from xpnet.runtime.overrides import is_own

X, Y = np.zeros((4, 2, 2, 1), np.float32), np.zeros(4, np.int64)
THINGS: dict[str, Any] = {
    "Batches": lambda kind=Batches: kind((X, Y), 2),
    "ByteImages": lambda kind=ByteImages: kind(X.astype(np.uint8)),
    "Arrays": lambda kind=Arrays: kind((X, Y)),
    "Compose": lambda kind=augment.Compose: kind(augment.Flip()),
    "Flip": lambda kind=augment.Flip: kind(),
    "Normalise": lambda kind=augment.Normalise: kind((0.0,), (1.0,)),
}


def methods(name):
    return [n for n, v in vars(type(THINGS[name]())).items() if (callable(v) or isinstance(v, property)) and n != "__init__"]


CASES = [(name, method) for name in THINGS for method in methods(name) if method != "__repr__"]


@pytest.mark.parametrize("name", THINGS)
def test_own(name):
    thing = THINGS[name]()
    assert is_own(thing)

    class Named(type(thing)):  # type: ignore[misc]
        def __init__(self, *arguments):
            super().__init__(*arguments)

        def more(self):
            """Add a method under a new name."""

    assert is_own(THINGS[name](Named))


@pytest.mark.parametrize(("name", "method"), CASES)
def test_every_method_that_is_replaced(name, method, monkeypatch):
    thing = THINGS[name]()
    kind = type(thing)

    class Between:
        """A class beside the package's."""

    setattr(Between, method, lambda self, *arguments: None)
    thing_of_subclass = thing
    try:
        thing_of_subclass = object.__new__(type("Sub", (Between, kind), {}))
    except TypeError:  # what the constructor needs was replaced
        pytest.skip("cannot be made")
    thing_of_subclass.__dict__.update(vars(thing))
    assert not is_own(thing_of_subclass)
    if isinstance(vars(kind)[method], property):
        return
    vars(thing)[method] = lambda *arguments: None
    assert not is_own(thing)
    assert not is_own(thing, method)
    del vars(thing)[method]
    assert is_own(thing)
    if not method.startswith("__"):
        monkeypatch.setattr(kind, method, lambda self, *arguments: None)
        assert not is_own(thing)


def test_the_methods_that_matter():
    class Darker(ByteImages):
        def __getitem__(self, index):
            return 0.5 * super().__getitem__(index)

    images = Darker(X.astype(np.uint8))
    assert is_own(images, "numbers", "table")
    assert not is_own(images, "numbers", "__getitem__")


def test_arrays_that_are_read_without_code_of_a_user():
    class Doubled(np.ndarray):
        pass

    class Rows:
        shape, dtype = (4, 2), np.dtype("float32")

        def __getitem__(self, index):
            return X[index]

    assert reads_plainly(X)
    assert reads_plainly(np.ma.masked_array(X))
    assert reads_plainly(ByteImages(X.astype(np.uint8)))
    assert not reads_plainly(X.view(Doubled))
    assert not reads_plainly(Rows())


def test_the_settings_of_byte_images_are_fixed():
    mean = np.full(1, 0.5, np.float32)
    images: Any = ByteImages(X.astype(np.uint8), mean=mean, std=(0.5,))  # type: ignore[arg-type]
    mean[...] = 7
    assert images.mean == 0.5
    for name in ("scale", "mean", "std", "dtype"):
        with pytest.raises(AttributeError):
            setattr(images, name, 1)
    with pytest.raises(ValueError, match="read-only"):
        images.mean[...] = 1


def test_a_loop_with_a_step_of_its_own_is_not_recorded():
    class Own(xn.Trainer):
        def _update(self, batches):
            super()._update(batches)

    assert not is_own(object.__new__(Own), "_train", "_step", "_update")


def _trainer(kind):
    return kind(xn.Sequential([xn.Dense(2)]), loss="mean_squared_error", optimizer=xn.optim.SGD(0.1))


UNCALLED: list[tuple[type, str, Any, str]] = [
    (xn.Dense, "call", lambda kind: kind(2), "it is called forward here"),
    (xn.Module, "call", lambda kind: kind(), "it is called forward here"),
    (xn.Sequential, "call", lambda kind: kind([]), "it is called forward here"),
    (xn.Trainer, "train_step", _trainer, "give loss= a function"),
    (xn.Trainer, "compute_loss", _trainer, "give loss= a function"),
    (xn.Trainer, "on_epoch_end", _trainer, "write a subclass of xn.Callback"),
    (xn.optim.Adam, "update_step", lambda kind: kind(0.1), "it is called update here"),
]


@pytest.mark.parametrize(("base", "name", "make", "hint"), UNCALLED)
def test_a_method_that_nothing_would_call_is_refused(base, name, make, hint):
    with pytest.raises(TypeError, match=rf"^Mine\.{name} would never be called; .*{hint}"):
        make(type("Mine", (base,), {name: lambda self, *arguments: None}))


@pytest.mark.parametrize(("base", "name", "make", "hint"), UNCALLED)
def test_a_method_that_the_class_calls_itself_is_not_refused(base, name, make, hint):
    def caller(self, x):
        return (lambda: self.call(x)), self.train_step, self.compute_loss

    def other(self, x):
        return self.on_epoch_end, self.update_step

    make(type("Mine", (base,), {name: lambda self, *arguments: None, "step_of_mine": caller, "more": other}))
