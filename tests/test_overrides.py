"""What is replaced of the package's methods is seen, whoever replaces it and however."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import Batches, ByteImages, augment
from xpnet.data.arrays import Arrays, reads_plainly
from xpnet.runtime import peers
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
    (xn.Trainer, "on_epoch_end", _trainer, "write a subclass of xn.Callback"),
    (xn.optim.Adam, "update_step", lambda kind: kind(0.1), "it is called update here"),
]


@pytest.mark.parametrize(("base", "name", "make", "hint"), UNCALLED)
def test_a_method_that_nothing_would_call_is_refused(base, name, make, hint):
    with pytest.raises(TypeError, match=rf"^Mine\.{name} would never be called; .*{hint}"):
        make(type("Mine", (base,), {name: lambda self, *arguments: None}))


@pytest.mark.parametrize("name", ["train_step", "compute_loss", "configure_optimizers", "validation_step"])
def test_a_method_of_a_trainer_that_nothing_calls_is_named(name):
    with pytest.warns(RuntimeWarning, match=rf"^Trainer does not call Mine\.{name}; unless code of yours does: give|write"):
        _trainer(type("Mine", (xn.Trainer,), {name: lambda self, *arguments: None}))


@pytest.mark.parametrize(("base", "name", "make", "hint"), UNCALLED)
def test_a_method_that_the_class_calls_itself_is_not_refused(base, name, make, hint):
    def caller(self, x):
        return (lambda: self.call(x)), self.train_step, self.compute_loss

    def other(self, x):
        return self.on_epoch_end, self.update_step

    make(type("Mine", (base,), {name: lambda self, *arguments: None, "step_of_mine": caller, "more": other}))


# -- methods of models that the training loops of other libraries call --


def network(name, more=None):
    def init(self):
        self.inner = xn.Dense(2)

    def forward(self, x):
        return self.inner(x)

    def method(self, *arguments):
        return xn.losses.mean_squared_error(*arguments)

    method.__name__ = name
    return type("Net", (xn.Module,), {"__init__": init, "forward": forward, name: method, **(more or {})})()


def trained(model, **more):
    return xn.Trainer(model, **{"loss": "mean_squared_error", "optimizer": xn.optim.SGD(0.1), **more})


@pytest.mark.parametrize("name", sorted(peers.OF_MODELS))
@pytest.mark.parametrize("within", [lambda net: net, lambda net: xn.Sequential([net, xn.ReLU()])])
def test_a_method_of_the_model_that_a_trainer_does_not_call_is_named(name, within):
    with pytest.warns(RuntimeWarning, match=rf"^a Trainer does not call Net\.{name}; unless code of yours does: ") as caught:
        trained(within(network(name)))
    assert peers.OF_MODELS[name] in str(caught[0].message)


@pytest.mark.parametrize("name", sorted(peers.OF_MODELS))
def test_a_method_of_the_model_that_something_mentions_is_called_by_it(name):
    class Calling(xn.Callback):
        def on_epoch_end(self, trainer, values):
            return getattr_of(trainer.model)

    def getattr_of(model):
        return getattr(model, name)

    hook = eval(f"lambda self, trainer, values: trainer.model.{name}")
    trained(network(name), callbacks=[type("Own", (xn.Callback,), {"on_epoch_end": hook})()])
    trained(network(name, {"step": eval(f"lambda self: self.{name}")}))
    model = network(name)
    trained(model, loss=getattr(model, name))
    trained(model, loss=eval(f"lambda p, t: model.{name}(p, t)", {"model": model}))
    trained(model, loss=partial(eval(f"lambda k, p, t: model.{name}(p, t)", {"model": model}), 1))
    trained(model, metrics={"own": getattr(model, name)})
    trained(model, loss=partial(getattr(type(model), name), 1))
    loop = type("Loop", (xn.Trainer,), {"more": eval(f"lambda self: self.model.{name}()")})
    loop(model, loss="mean_squared_error", optimizer=xn.optim.SGD(0.1))
    with pytest.warns(RuntimeWarning, match="does not call"):
        trained(model, callbacks=[Calling()])  # its name is not in the code of the callback


class Switched(xn.Module):
    def __init__(self):
        self.inner = xn.Dense(2)

    def forward(self, x, training=False):
        return self.inner(x) * (2.0 if training else 1.0)


def test_a_trainer_refuses_a_forward_that_waits_to_be_told_whether_it_trains():
    class Telling(xn.Module):
        def __init__(self):
            self.inner = Switched()

        def forward(self, x):
            return self.inner(x, training=self.training)

    class Falling(xn.Module):
        def __init__(self):
            self.inner = xn.Dense(2)

        def forward(self, x, training=None):
            return self.inner(x) * (2.0 if (self.training if training is None else training) else 1.0)

    trained(Falling())
    for model in (Switched(), xn.Sequential([Switched()]), xn.Sequential([xn.ReLU(), xn.Residual(Switched())])):
        with pytest.raises(TypeError, match=r"^Switched\.forward is called with its input alone.*read self\.training"):
            trained(model)
    for told in (Telling(), xn.Sequential([Telling()])):
        assert trained(told).fit((np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)), verbose=False)


# -- functions of other libraries --


def _foreign(module):
    return type("MSELoss", (), {"__module__": f"{module}.nn", "__call__": lambda self, *arguments: 0.0})()


@pytest.mark.parametrize("module", ["torch", "keras", "jax"])
@pytest.mark.parametrize("make", [lambda f: trained(xn.Dense(2), loss=f), lambda f: trained(xn.Dense(2), metrics=[f]),
                                  lambda f: trained(xn.Dense(2), metrics={"f": f}), lambda f: xn.Sequential([f])])  # fmt: skip
def test_functions_of_other_libraries_are_refused(module, make):
    own = type("Own", (type(_foreign(module)),), {})
    for function in (_foreign(module), own()):
        with pytest.raises(TypeError, match=rf"^a (loss|metric|layer) of {module} \((MSELoss|Own)\) computes on that library"):
            make(function)


@pytest.mark.parametrize(
    "names",
    [
        "y_true, y_pred", "target, prediction", "labels, logits, *, scale=1", "y, y_hat", "y_test, y_pred", "gt, pred",
        "ground_truth, prediction", "actual, predicted", "observed, predicted", "t, y_pred", "target, input", "y, p",
    ],
)  # fmt: skip
def test_functions_that_take_the_target_first_are_refused(names):
    for function in (eval(f"lambda {names}: 0.0"), partial(eval(f"lambda k, {names}: 0.0"), 1)):
        for make in (lambda f: trained(xn.Dense(2), loss=f), lambda f: trained(xn.Dense(2), metrics=[f]),
                     lambda f: trained(xn.Dense(2), metrics={"f": f})):  # fmt: skip
            with pytest.raises(TypeError, match=r"is called with \(prediction, target\), and .*; swap its parameters"):
                make(function)


@pytest.mark.parametrize("names", ["y_pred, y_true", "prediction, target", "y, t", "a, b", "output, label", "*both", "target",
                                   "expected, actual", "input, target"])  # fmt: skip
def test_functions_with_other_names_are_taken(names):
    function = eval(f"lambda {names}: 0.0")
    assert trained(xn.Dense(2), loss=function, metrics={"f": function}).metrics == {"f": function}


def test_metrics_by_name_are_looked_up_and_checked_too():
    assert trained(xn.Dense(2), metrics={"top": "accuracy"}).metrics["top"] is xn.metrics.get("accuracy")[1]
    for name in ("loss", "val_x"):
        with pytest.raises(ValueError, match="a metric is called"):
            trained(xn.Dense(2), metrics={name: "accuracy"})


def test_functions_of_which_a_call_runs_nothing_are_refused():
    def generator(p, t):
        yield p

    async def coroutine(p, t):
        return p

    class Instance:
        def __call__(self, p, t):
            yield p

    for function, kind in ((generator, "generator"), (coroutine, "coroutine"), (Instance(), "generator")):
        for more in ({"loss": function}, {"metrics": [function]}, {"metrics": {"f": partial(function)}}):
            with pytest.raises(TypeError, match=rf"is a {kind} function, of which a call runs nothing"):
                trained(xn.Dense(2), **more)

    class Yielding(xn.Callback):
        def on_epoch_end(self, trainer, values):
            yield

    with pytest.raises(TypeError, match="Yielding: the hook on_epoch_end is a generator function"):
        trained(xn.Dense(2), callbacks=[Yielding()])


# -- hooks --


@pytest.mark.parametrize("first", ["epoch", "batch", "step", "logs"])
def test_a_hook_that_waits_for_a_number_is_refused(first):
    hook = eval(f"lambda self, {first}, logs_of_mine=None: None")
    with pytest.raises(TypeError, match=rf"the hook on_epoch_end .* first parameter is called '{first}'; it gets the Trainer"):
        trained(xn.Dense(2), callbacks=[type("Mine", (xn.Callback,), {"on_epoch_end": hook})()])


def test_hooks_of_other_names_that_a_callback_calls_itself_are_taken():
    class Calling(xn.Callback):
        def on_fit_begin(self, trainer):
            self.on_train_begin()
            getattr(self, "on_test_end")()  # noqa: B009

        def on_train_begin(self):
            self.began = True

        def on_test_end(self):
            self.ended = True

    trained(xn.Dense(2), callbacks=[Calling()])
    late = xn.Callback()
    late.on_batch_end = lambda trainer: None  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="on_batch_end would never be called: did you mean on_step_end"):
        trained(xn.Dense(2), callbacks=[late])
