"""Planned training steps of small dense networks: the bits of the steps that are not planned."""

import copy
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from xpnet.compiled.numpy_executor import NumpyExecutor
from xpnet.compiled.numpy_step import Step
from xpnet.layers.execution import executor_of
from xpnet.layers.hooks import wrapped

rng = np.random.default_rng(0)

LAST = xn.Dense(4)
NETS = {
    "relu": [xn.Dense(12, "relu"), xn.Dense(4)],
    "deep": [
        xn.Dense(9, "relu"),
        xn.Dense(8, "tanh"),
        xn.Dense(7, "sigmoid"),
        xn.Dense(5, use_bias=False),
        xn.ReLU(),
        xn.Dense(4),
    ],
    "linear": [xn.Dense(4)],
    "nested": [xn.Sequential([xn.Flatten()]), xn.Sequential([xn.Dense(6), xn.Activation("relu")]), xn.Dense(4)],
}
OTHERS = {
    "dropout": [xn.Dense(8, "relu"), xn.Dropout(0.5), xn.Dense(4)],
    "other activation": [xn.Dense(8, "gelu"), xn.Dense(4)],
    "own function": [xn.Dense(8, activation=lambda x: x * x), xn.Dense(4)],
    "regularized": [xn.Dense(8, kernel_regularizer=xn.regularizers.L2(0.1)), xn.Dense(4)],
    "convolution": [xn.Reshape((2, 3, 1)), xn.Conv2D(3, 2), xn.Flatten(), xn.Dense(4)],
}


def batches(count=4, shape=(6,), batch=5, dtype="float32", labels="int64"):
    return [
        (rng.standard_normal((batch, *shape)).astype(dtype), rng.integers(0, 4, batch).astype(labels)) for _ in range(count)
    ]


def trainer(layers, shape=(6,), dtype="float32", optimizer=None, **settings):
    model = xn.Sequential(copy.deepcopy(layers), input_shape=shape, dtype=dtype, seed=3)
    optimizer = optimizer or xn.optim.SGD(0.1, momentum=0.9)
    return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, **settings)


def planned(made):
    """The plans of a trainer's model."""
    return [s for s in cast(Any, executor_of(made.model)).steps.values() if type(s) is Step]


def weights(made):
    return {name: p.array.copy() for name, p in made.model.parameters().items()}


def both(make, data, monkeypatch, between=lambda made, number: None):
    """The same steps with plans and without: equal losses, predictions and weights. Returns the trainer with plans."""
    results = []
    for plans in (True, False):
        made = make()
        with monkeypatch.context() as patch:
            if not plans:
                patch.setattr(NumpyExecutor, "step", lambda *a: None)
            seen = []
            for number, (x, y) in enumerate(data):
                between(made, number)
                loss, prediction = made._step(x, y)
                assert loss.shape == ()
                seen += [loss.copy(), prediction.copy()]
        results.append((made, seen, weights(made)))
    (made, seen, after), (_, wanted, wanted_after) = results
    for one, other in zip(seen, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    for name, array in after.items():
        np.testing.assert_array_equal(array, wanted_after[name])
    return made


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("labels", ["int64", "int32", "uint8", "uint64"])
def test_the_same_bits(name, dtype, labels, monkeypatch):
    shape = (2, 3) if name == "nested" else (6,)
    data = batches(6, shape, dtype=dtype, labels=labels)
    assert planned(both(lambda: trainer(NETS[name], shape, dtype), data, monkeypatch))


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_run_as_ever(name, monkeypatch):
    assert not planned(both(lambda: trainer(OTHERS[name]), batches(), monkeypatch))


@pytest.mark.parametrize(
    "optimizer",
    [lambda: xn.optim.Adam(0.01), lambda: xn.optim.SGD(0.1, weight_decay=0.1), lambda: xn.optim.RMSprop(0.01)],
)
def test_optimizers(optimizer, monkeypatch):
    assert planned(both(lambda: trainer(NETS["relu"], optimizer=optimizer()), batches(), monkeypatch))


def test_batches_of_several_sizes_and_layouts(monkeypatch):
    data = [*batches(3), *batches(3, batch=2), *batches(2), *batches(3, batch=1)]
    x, y = data[1]
    data[1] = np.asfortranarray(x), y
    x.flags.writeable = False
    made = both(lambda: trainer(NETS["deep"]), data, monkeypatch)
    assert len(planned(made)) == 3


def test_what_changes_between_steps(monkeypatch):
    def between(made, number):
        model = made.model
        if number == 3:
            model.layers[0].kernel.requires_grad = False
        if number == 6:
            model.layers[0].kernel.requires_grad = True
        if number == 8:
            model.load_state({name: a / 2 for name, a in model.state().items()})
        if number == 9:  # a gradient that is waiting is added to
            xn.losses.softmax_cross_entropy(model(data[0][0]), data[0][1]).backward()
        if number == 11:
            model.layers[1].use_bias = False

    data = batches(14)
    both(lambda: trainer(NETS["relu"]), data, monkeypatch, between)


def test_callbacks_see_the_gradients_and_constraints_hold(monkeypatch):
    layers = [xn.Dense(8, "relu", kernel_constraint=xn.regularizers.MaxNorm(0.5)), xn.Dense(4)]
    clip = lambda: [xn.training.ClipGradients(norm=0.01)]  # noqa: E731
    assert planned(both(lambda: trainer(layers, callbacks=clip()), batches(), monkeypatch))


def test_a_copy_learns_on_its_own(monkeypatch):
    data = batches(12)

    def run():
        made = trainer(NETS["deep"], optimizer=xn.optim.SGD(0.1))
        for x, y in data[:4]:
            made.step(x, y)
        before = weights(made)
        other = xn.Trainer(copy.deepcopy(made.model), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
        losses = [float(other.step(x, y)) for x, y in data[4:]]
        for name, array in weights(made).items():
            np.testing.assert_array_equal(array, before[name])
        return losses, weights(other), other

    losses, after, other = run()
    assert planned(other)
    monkeypatch.setattr(NumpyExecutor, "step", lambda *a: None)
    wanted, wanted_after, _ = run()
    assert losses == wanted
    for name, array in after.items():
        np.testing.assert_array_equal(array, wanted_after[name])


@pytest.mark.parametrize(
    ("layers", "shape"),
    [([xn.Dense(4)], (2, 3)), ([xn.Dense(4)], (1, 6)), ([xn.Reshape((1, 6)), xn.Dense(4)], (6,))],
)
def test_a_batch_of_the_wrong_shape_is_refused_every_time(layers, shape):
    made = trainer(layers)
    for x, y in batches(shape=shape):
        with pytest.raises(xn.ShapeError):
            made.step(x, y)


def test_accumulated_gradients_are_not_planned(monkeypatch):
    assert not planned(both(lambda: trainer(NETS["relu"], accumulate=2), batches(6), monkeypatch))


def test_errors_are_as_ever():
    made = trainer(NETS["relu"])
    for x, y in batches():
        made.step(x, y)
    before = weights(made)
    with pytest.raises(ValueError, match="labels run from"):
        made.step(x, y + 4)
    with pytest.raises(ValueError, match="labels run from"):
        made.step(x, y - 4)
    with pytest.raises(xn.training.NotFiniteError, match="the inputs hold NaN"):
        made.step(x * np.float32(np.nan), y)
    for name, array in weights(made).items():
        np.testing.assert_array_equal(array, before[name])
    made.step(x, y)


def test_a_watched_layer_is_run():
    made = trainer(NETS["relu"])
    for x, y in batches():
        made.step(x, y)
    seen: Any = []
    with wrapped(made.model, lambda layer, forward, inputs, keywords: seen.append(layer) or forward(*inputs, **keywords)):
        made.step(x, y)
    assert seen == list(made.model.layers)


def test_the_batch_is_let_go_of():
    made = trainer(NETS["relu"])
    for x, y in batches():
        made.step(x, y)
    (plan,) = planned(made)
    assert plan.x is not x


def test_the_results_are_the_callers():
    made = trainer(NETS["relu"])
    results = [made._step(x, y) for x, y in batches()]
    copies = [(loss.copy(), prediction.copy()) for loss, prediction in results]
    for x, y in batches():
        made.step(x, y)
    for (loss, prediction), (a, b) in zip(results, copies, strict=True):
        np.testing.assert_array_equal(loss, a)
        np.testing.assert_array_equal(prediction, b)


def test_deterministic_mode(monkeypatch):
    with xn.deterministic():
        assert planned(both(lambda: trainer(NETS["deep"]), batches(), monkeypatch))
        large = [xn.Dense(600, "relu"), xn.Dense(4)]  # products that are cut up there
        both(lambda: trainer(large, (500,)), batches(4, (500,)), monkeypatch)


def test_labels_of_the_other_byte_order(monkeypatch):
    data = [(x, y.astype(y.dtype.newbyteorder())) for x, y in batches()]
    both(lambda: trainer(NETS["relu"]), data, monkeypatch)
    with pytest.raises(ValueError, match="labels run from"):
        trainer(NETS["relu"]).step(data[0][0], data[0][1] + np.int64(1 << 56))
