"""Attributes that are set on a layer or a Parameter after it was made: they count, or are refused."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.layers.attributes import REFUSED
from xpnet.regularizers import L1, L2, MaxNorm

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 40)


def dense(*, built=True):
    return xn.Sequential([xn.Dense(5, "relu"), xn.Dense(3)], input_shape=(6,) if built else None)


def fitted(model, epochs=1, trainer=None, loss="softmax_cross_entropy", optimizer=None):
    trainer = trainer or xn.Trainer(model, loss=loss, optimizer=optimizer or xn.optim.SGD(0.1))
    trainer.fit((X, Y), epochs=trainer.epoch + epochs, batch_size=10, verbose=False)
    return trainer


def arrays(model):
    return {name: np.array(array) for name, array in model.state().items()}


def frozen(model):
    return [path for path, parameter in model.parameters().items() if not parameter.requires_grad]


def changed(before, model):
    return {name for name, array in model.state().items() if not np.array_equal(before[name], array)}


# -- trainable --


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("how", ["layer", "freeze", "pattern"])
def test_a_frozen_layer_does_not_move(built, how):
    model = dense(built=built)
    if how == "layer":
        model[0].trainable = False
    elif how == "freeze":
        model[0].freeze()
    else:
        model.freeze("0")
    model(X[:1])
    before = arrays(model)
    fitted(model)
    assert changed(before, model) == {"1.kernel", "1.bias"}
    assert not model[0].trainable
    assert model[1].trainable
    assert model.trainable


def test_freezing_in_the_middle_of_training_and_back():
    model = dense()
    trainer = fitted(model, optimizer=xn.optim.Adam(0.01))
    model[0].trainable = False
    before = arrays(model)
    fitted(model, trainer=trainer)
    assert changed(before, model) == {"1.kernel", "1.bias"}
    model.trainable = True
    before = arrays(model)
    fitted(model, trainer=trainer)
    assert changed(before, model) == set(before)


def test_patterns():
    model = xn.Sequential([dense(), xn.Dense(2)], input_shape=(6,))
    model.freeze("*.bias")
    assert frozen(model) == ["0.0.bias", "0.1.bias", "1.bias"]
    model.unfreeze("0.*")
    assert frozen(model) == ["1.bias"]
    assert not model.freeze().trainable
    assert model.unfreeze().trainable
    with pytest.raises(ValueError, match=r"unfreeze: nothing has a path like 'head.\*'; there are 0, 0.0"):
        model.unfreeze("head.*")


def test_a_layer_put_together_later_stays_frozen():
    layer = xn.Dense(4)
    layer.trainable = False
    model = xn.Sequential([layer, xn.Dense(3)], input_shape=(6,))
    assert [p.requires_grad for p in model.parameters().values()] == [False, False, True, True]
    both = xn.Bidirectional(xn.LSTM(2))
    both.trainable = False
    model = xn.Sequential([both, xn.Dense(3)], input_shape=(4, 2))
    assert sum(p.requires_grad for p in model.parameters().values()) == 2


def test_it_survives_a_file_and_a_copy(tmp_path):
    model = xn.Sequential([xn.Dense(5), xn.BatchNorm(), xn.Dense(3)], input_shape=(6,))
    model[0].trainable = model[1].trainable = False
    model.save(tmp_path / "m.xpnet")
    others: list[Any] = [xn.load(tmp_path / "m.xpnet"), copy.deepcopy(model)]
    for other in others:
        assert [layer.trainable for layer in other.layers] == [False, False, True]
        before = arrays(other)
        fitted(other)
        assert changed(before, other) == {"2.kernel", "2.bias"}


def test_a_frozen_batch_norm_keeps_its_statistics():
    model = xn.Sequential([xn.BatchNorm(), xn.Dense(3)], input_shape=(6,))
    fitted(model)
    model[0].trainable = False
    before = arrays(model)
    model.train()
    np.testing.assert_allclose(model[0](X).array, model[0].eval()(X).array)
    fitted(model)
    assert changed(before, model) == {"1.kernel", "1.bias"}
    # A Parameter that is frozen alone says nothing about the statistics.
    model.train()
    model[0].trainable = True
    for p in model[0].parameters().values():
        p.requires_grad = False
    fitted(model)
    assert {"0.running_mean", "0.running_variance"} <= changed(before, model)


def test_the_summary_shows_what_is_frozen():
    model = dense()
    assert "frozen" not in str(model.summary(show=False))
    model[0].trainable = False
    table = str(model.summary(show=False))
    assert "frozen" in next(line for line in table.splitlines() if line.startswith("0 "))
    assert "18 trained, 35 frozen" in table
    unbuilt = dense(built=False)
    unbuilt[0].trainable = False
    summary = unbuilt.summary((6,), show=False)
    assert "18 trained, 35 frozen" in str(summary)
    assert summary.optimizer_bytes == 2 * 4 * 18


@pytest.mark.parametrize("value", [0, "no", None, 1.0])
def test_trainable_is_a_boolean(value):
    with pytest.raises(TypeError, match="trainable must be True or False"):
        dense()[0].trainable = value
    dense()[0].trainable = np.bool_(False)


# -- names of other libraries --


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("make", [lambda: dense(), lambda: dense()[0], lambda: xn.LSTM(2), lambda: xn.ReLU()])
def test_names_that_would_do_nothing_are_refused(name, make):
    with pytest.raises(AttributeError, match=f"setting '{name}' would do nothing; ") as caught:
        setattr(make(), name, False)
    assert REFUSED[name] in str(caught.value)


def test_a_class_of_ones_own_may_use_them():
    class Named(xn.Module):
        def __init__(self, name):
            self.name, self.dtype = name, "whatever"
            self.inner = xn.Dense(3)

        def forward(self, x):
            return self.inner(x)

    net = Named("encoder")
    assert net.name == "encoder"
    net.name = "decoder"
    for name in ("requires_grad", "device"):
        with pytest.raises(AttributeError, match=f"Named: setting '{name}' would do nothing"):
            setattr(net, name, "cuda")

    class Plain(xn.Dense):
        pass

    plain = Plain(3)
    with pytest.raises(AttributeError, match="Plain: setting 'dtype'"):
        plain.dtype = "float64"


@pytest.mark.parametrize("name", ["gamma", "moving_mean", "running_var", "beta"])
@pytest.mark.parametrize("built", [False, True])
def test_arrays_under_the_names_of_others_are_refused(name, built):
    layer = xn.Sequential([xn.BatchNorm()], input_shape=(4,) if built else None)[0]
    with pytest.raises(AttributeError, match=rf"BatchNorm.*: setting '{name}' would do nothing; it is called \w+ here"):
        setattr(layer, name, np.zeros(4, np.float32))


@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (lambda: xn.Dense(3), "kernel", (4,)),
        (lambda: xn.Conv2D(3, 1), "kernel", (2, 3, 4)),
        (lambda: xn.LSTM(3), "recurrent_kernel", (3, 4)),
        (lambda: xn.LayerNorm(), "offset", (4,)),
        (lambda: xn.BatchNorm(), "running_mean", (4,)),
        (lambda: xn.BatchNorm(), "running_variance", (4,)),
        (lambda: xn.Embedding(5, 3), "table", (4,)),
    ],
)
@pytest.mark.parametrize("wrap", [np.asarray, xn.Parameter])
def test_arrays_that_are_assigned_before_they_are_made_are_not_lost(make, name, shape, wrap):
    layer = make()
    setattr(layer, name, wrap(np.zeros(4, np.float32)))
    with pytest.raises(ValueError, match=f"{name} was assigned before the layer was built, and would be replaced"):
        layer.materialize(shape)


def test_settings_for_arrays_are_refused_before_these_are_made():
    with pytest.raises(AttributeError, match="it is called use_bias here"):
        xn.Dense(3).bias = None  # type: ignore[assignment]


@pytest.mark.parametrize("value", [5.0, None, [1.0, 2.0], "a"])
def test_what_is_no_array_does_not_replace_one_of_the_layer(value):
    layer = xn.Sequential([xn.BatchNorm()], input_shape=(2,))[0]
    with pytest.raises(TypeError, match=r"layer '0' \(BatchNorm\): running_mean is an array that belongs to the layer"):
        layer.running_mean = value
    layer.running_mean = np.ones(2, np.float32)
    assert layer._buffers["running_mean"] is layer.running_mean


# -- penalties and constraints --


def penalty_of(trainer):
    prediction = trainer.model(X)
    return float(trainer.loss(prediction, Y).array), trainer._penalty()


@pytest.mark.parametrize("through", ["layer", "parameter"])
@pytest.mark.parametrize("trained", [False, True])
def test_a_penalty_that_is_set_late_counts(through, trained):
    model, other = dense(), xn.Sequential([xn.Dense(5, "relu", kernel_regularizer=L2(0.5)), xn.Dense(3)], input_shape=(6,))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    if trained:
        fitted(model, epochs=2, trainer=trainer)
        other.load_state(model.state())
    if through == "layer":
        model[0].kernel_regularizer = L2(0.5)
    else:
        model[0].kernel.regularizer = L2(0.5)
    reference = xn.Trainer(other, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    for start in (0, 10, 20, 30, 0, 10):
        batch = slice(start, start + 10)
        np.testing.assert_array_equal(trainer.step(X[batch], Y[batch]), reference.step(X[batch], Y[batch]))
    assert not changed(arrays(other), model)
    # and off again
    if through == "layer":
        model[0].kernel_regularizer = None
    else:
        model[0].kernel.regularizer = None
    assert model.flat_parameters.penalty() is None
    plain = dense()
    plain.load_state(model.state())
    reference = xn.Trainer(plain, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    for start in (0, 10, 20):
        batch = slice(start, start + 10)
        np.testing.assert_array_equal(trainer.step(X[batch], Y[batch]), reference.step(X[batch], Y[batch]))


@pytest.mark.parametrize("through", ["layer", "parameter"])
def test_a_constraint_that_is_set_late_counts(through):
    model = dense()
    trainer = fitted(model)
    if through == "layer":
        model[0].kernel_constraint = MaxNorm(0.1)
    else:
        model[0].kernel.constraint = MaxNorm(0.1)
    fitted(model, trainer=trainer)
    assert np.linalg.norm(model[0].kernel.array, axis=0).max() <= 0.1001
    model[0].kernel.constraint = None
    fitted(model, epochs=3, trainer=trainer)
    assert np.linalg.norm(model[0].kernel.array, axis=0).max() > 0.11


@pytest.mark.parametrize("make", [lambda: xn.optim.SGD(0.1, momentum=0.9, weight_decay=0.1), lambda: xn.optim.AdamW(0.01)])
@pytest.mark.parametrize("path", ["0.kernel", "0.bias", "1.kernel", "1.bias"])
def test_weight_decay_that_is_set_late_counts(make, path):
    model, other = dense(), dense()
    parameter = other.parameters()[path]
    parameter.decay = not parameter.decay
    trainers = [xn.Trainer(m, loss="softmax_cross_entropy", optimizer=make()) for m in (model, other)]
    trainers[0].step(X[:10], Y[:10])
    trainers[1].model.parameters()[path].decay = not parameter.decay  # as it was
    trainers[1].step(X[:10], Y[:10])
    assert not changed(arrays(other), model)
    for m in (model, other):
        mine = m.parameters()[path]
        mine.decay = not mine.decay
    # The state of every parameter moves with it: the same as a run that is given the same state in the new order.
    fresh = dense()
    fresh.parameters()[path].decay = not fresh.parameters()[path].decay
    fresh.load_state(model.state())
    reference = make()
    reference.bind(fresh)
    flats: list[Any] = [trainers[0].optimizer._flat, reference._flat]
    for p, q in zip(model.parameters().values(), fresh.parameters().values()):
        where, to = (flat.slices[[id(k) for k in flat.parameters].index(id(own))] for flat, own in zip(flats, (p, q)))
        for name, slot in trainers[0].optimizer.slots.items():
            reference.slots[name][to] = slot[where]
    reference.iterations = 1
    resumed = xn.Trainer(fresh, loss="softmax_cross_entropy", optimizer=reference)
    for trainer in (*trainers, resumed):
        trainer.step(X[10:20], Y[10:20])
    assert not changed(arrays(other), model)
    assert not changed(arrays(fresh), model)


@pytest.mark.parametrize("value", [3, "l2", 0.1])
def test_what_a_penalty_and_a_constraint_are(value):
    kernel = dense()[0].kernel
    with pytest.raises(TypeError, match="regularizer must be None or a function"):
        kernel.regularizer = value
    with pytest.raises(TypeError, match="constraint must be None or have a method project"):
        kernel.constraint = value


def test_copies_of_a_trained_model_are_on_their_own():
    model = dense()
    fitted(model)
    copied = pickle.loads(pickle.dumps(model.parameters()["0.kernel"]))
    np.testing.assert_array_equal(copied.array, model[0].kernel.array)
    for kernel in (copy.deepcopy(model)[0].kernel, copied):
        kernel.regularizer = L1(0.1)
        assert not model.flat_parameters.regularized


def run_with_changes(device):
    """The states of a model after each of several changes in the middle of training."""
    model = xn.Sequential([xn.Dense(5, "relu"), xn.Dense(3)], input_shape=(6,), device=device)
    trainer = xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1, momentum=0.9, weight_decay=0.01), metrics=["accuracy"]
    )
    kernel, bias = model[0].kernel, model[0].bias
    changes = [
        lambda: None,
        lambda: setattr(model[0], "kernel_regularizer", L2(0.01)),
        lambda: setattr(kernel, "regularizer", None),
        lambda: setattr(kernel, "constraint", MaxNorm(0.5)),
        lambda: setattr(model[0], "trainable", False),
        lambda: setattr(model, "trainable", True),
        lambda: setattr(bias, "decay", True),
        lambda: setattr(model[0], "activation", "tanh"),
    ]
    found = []
    for change in changes:
        change()
        trainer.fit((X, Y), epochs=trainer.epoch + 2, batch_size=10, verbose=False)
        found.append({name: np.array(xn.to_numpy(array)) for name, array in model.state().items()})
    return found


@pytest.mark.cuda
def test_recorded_steps_follow_every_change(gpu):
    for here, there in zip(run_with_changes("cpu"), run_with_changes("cuda"), strict=True):
        for name in here:
            np.testing.assert_allclose(here[name], there[name], rtol=1e-4, atol=1e-5)


# -- what the parameters were made from --


@pytest.mark.parametrize(
    ("make", "shape", "name", "value"),
    [
        (lambda: xn.Dense(4), (6,), "units", 5),
        (lambda: xn.Dense(4), (6,), "kernel_initializer", xn.initializers.Zeros()),
        (lambda: xn.Conv2D(4, 3), (8, 8, 2), "filters", 5),
        (lambda: xn.Conv2D(4, 3), (8, 8, 2), "window", (5, 5)),
        (lambda: xn.LSTM(4), (8, 2), "units", 5),
        (lambda: xn.LSTM(4), (8, 2), "forget_bias", 0.0),
        (lambda: xn.Embedding(10, 4), (8,), "symbols", 12),
    ],
)
def test_what_the_parameters_were_made_from_stays(make, shape, name, value):
    layer = make()
    old = getattr(layer, name)
    setattr(layer, name, value)  # before they exist it counts
    setattr(layer, name, old)
    xn.Sequential([layer], input_shape=shape)
    with pytest.raises(AttributeError, match=f"layer '0' .*{name} cannot become .*make a new layer"):
        setattr(layer, name, value)
    assert getattr(layer, name) == old
    setattr(layer, name, old)  # the same again is no change


# -- what was set after the constructor ran --

LATE = [
    (lambda: xn.Dropout(0.1), (3,), "rate", 0.5),
    (lambda: xn.BatchNorm(), (3,), "momentum", 0.5),
    (lambda: xn.LeakyReLU(), (3,), "slope", 0.3),
    (lambda: xn.Dense(3), (3,), "kernel_regularizer", L2(0.1)),
    (lambda: xn.Dense(3), (3,), "activation", "tanh"),
    (lambda: xn.Dense(3, "relu"), (3,), "activation", None),
    (lambda: xn.Conv2D(2, 3), (8, 8, 3), "activation", "relu"),
    (lambda: xn.Conv2D(2, 3), (8, 8, 3), "activation", xn.ops.softplus),
    (lambda: xn.Conv2D(2, 3), (8, 8, 3), "padding", "same"),
    (lambda: xn.MaxPool2D(2), (8, 8, 3), "stride", (1, 1)),
    (lambda: xn.LSTM(3), (5, 3), "mask_value", 0.0),
    (lambda: xn.LSTM(3), (5, 3), "return_sequences", True),
    (lambda: xn.LSTM(3), (5, 3), "bias_regularizer", L1(0.1)),
    (lambda: xn.Bidirectional(xn.GRU(3)), (5, 3), "merge", "sum"),
    (lambda: xn.Softmax(), (3, 4), "axis", 1),
]


@pytest.mark.parametrize(("make", "shape", "name", "value"), LATE)
def test_what_is_set_late_counts_and_is_in_the_file(make, shape, name, value, tmp_path):
    layer = make()
    model = xn.Sequential([layer], input_shape=shape)
    x = RNG.standard_normal((4, *shape)).astype(np.float32)
    before = model.predict(x)
    setattr(layer, name, value)
    after = model.predict(x)
    if name not in ("rate", "momentum", "mask_value", "kernel_regularizer", "bias_regularizer"):
        assert before.shape != after.shape or not np.array_equal(before, after)
    model.save(tmp_path / "m.xpnet")
    other: Any = xn.load(tmp_path / "m.xpnet")
    assert getattr(other[0], name) == value
    np.testing.assert_array_equal(other.predict(x), after)
