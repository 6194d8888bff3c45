"""Segments that are computed again in the backward pass: the same bits, less memory."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import ops
from xpnet.autograd.tape import once

R = np.random.default_rng(0)
X = R.normal(size=(20, 8, 8, 3)).astype(np.float32)
Y = R.integers(0, 4, 20)


def convolutional():
    return xn.Sequential(
        [
            xn.Conv2D(6, 3, padding=1, use_bias=False),
            xn.BatchNorm(),
            xn.ReLU(),
            xn.Residual([xn.Conv2D(6, 3, padding=1, activation="relu"), xn.Dropout(0.3), xn.Conv2D(6, 3, padding=1)]),
            xn.Conv2D(8, 3),
            xn.MaxPool2D(2),
            xn.Residual([xn.BatchNorm(), xn.Conv2D(8, 1, activation="gelu")], shortcut=xn.Conv2D(8, 1)),
            xn.Dropout(0.5, spatial=True),
            xn.Flatten(),
            xn.Dense(12, "relu"),
            xn.Dropout(0.5),
            xn.Dense(4),
        ],
        input_shape=(8, 8, 3),
        seed=3,
    )


def trained(model, x=X, y=Y, steps=3, **keywords):
    """Everything that some steps change."""
    keywords.setdefault("loss", "softmax_cross_entropy")
    trainer = xn.Trainer(model, optimizer=xn.optim.Adam(0.01), **keywords)
    losses = [float(trainer.step(x, y)) for _ in range(steps)]
    return losses, {k: v.copy() for k, v in model.state().items()}, model.rng_counters()


def same(a, b):
    assert a[0] == b[0]
    assert a[2] == b[2]
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        np.testing.assert_array_equal(a[1][name], b[1][name], err_msg=name)


@pytest.mark.parametrize(
    "recompute",
    [True, [3, 6], ["3.body", "6.shortcut", "0", "10"], ["4"], lambda path, layer: isinstance(layer, xn.Residual)],
    ids=["True", "indices", "paths", "before pooling", "function"],
)
def test_training_gives_the_same_bits(recompute):
    plain = trained(convolutional())
    same(plain, trained(convolutional(), recompute=recompute))


def test_with_accumulated_gradients_and_penalties():
    def model():
        return xn.Sequential(
            [xn.Flatten(), xn.Dense(9, "tanh", kernel_regularizer=xn.regularizers.L2(0.1)), xn.Dropout(0.2), xn.Dense(4)],
            input_shape=(8, 8, 3),
        )

    same(trained(model(), accumulate=2, steps=4), trained(model(), accumulate=2, steps=4, recompute=[1, 2]))


class Twice(xn.Module):
    """One layer used three times, twice in a segment of several inputs and outputs; `a` flows into the segment twice."""

    def __init__(self, recompute):
        self.shared = xn.Dense(5, "tanh")
        self.head = xn.Dense(4)
        self.drop = xn.Dropout(0.4)
        self.recompute = recompute

    def mix(self, a, *, pair):
        b, scale = pair
        c = self.shared(a) * scale + self.drop(b)
        return {"c": c + a, "d": [self.shared(c) * a, np.arange(3)]}

    def forward(self, x, z):
        mix = xn.recompute(self.mix) if self.recompute else self.mix
        a = self.shared(x)
        found = mix(a, pair=(self.shared(z), 0.5))
        np.testing.assert_array_equal(found["d"][1], np.arange(3))
        # a also flows around the segment, so that its gradient is a sum of parts from inside and outside.
        return self.head(found["c"] * found["d"][0] + ops.exp(a) + a)


def test_shared_layers_several_inputs_and_outputs():
    x, z = R.normal(size=(2, 20, 5)).astype(np.float32)
    same(trained(Twice(False), (x, z)), trained(Twice(True), (x, z)))


def test_recurrent_layers_carry_their_state_once():
    def model():
        return xn.Sequential(
            [xn.LSTM(5, return_sequences=True, stateful=True), xn.Dropout(0.2), xn.GRU(4, stateful=True), xn.Dense(4)],
            input_shape=(6, 3),
        )

    x = R.normal(size=(20, 6, 3)).astype(np.float32)
    plain, again = model(), model()
    same(trained(plain, x), trained(again, x, recompute=[0, 1, 2]))
    for layer, other in ((plain.layers[0], again.layers[0]), (plain.layers[2], again.layers[2])):
        for a, b in zip(layer.carried, other.carried):
            np.testing.assert_array_equal(a, b)


def test_a_segment_in_a_segment_and_a_gradient_of_the_input():
    def run(wrap):
        drop = xn.Dropout(0.5)
        x = xn.Tensor(np.linspace(-1, 1, 30).reshape(5, 6), requires_grad=True)

        def inner(v):
            return ops.tanh(drop(v)) * v

        def outer(v):
            return drop(wrap(inner)(ops.exp(v)) + v)

        (wrap(outer)(x) * x).sum().backward()
        return x.grad, drop.counter

    plain, again = run(lambda f: f), run(xn.recompute)
    np.testing.assert_array_equal(plain[0], again[0])
    assert plain[1] == again[1] == 2


def test_only_some_outputs_are_used_or_none():
    w = xn.Parameter(np.ones(3))
    a, b = xn.recompute(lambda v: (v * 2.0, v * 3.0))(w)
    b.sum().backward()
    np.testing.assert_array_equal(w.grad, 3 * np.ones(3))
    w.grad = None
    xn.recompute(lambda v: v)(w).sum().backward()  # the output is the input
    np.testing.assert_array_equal(w.grad, np.ones(3))
    assert a.requires_grad


def test_what_needs_no_gradient_is_not_kept():
    x = np.ones((2, 3))
    dense = xn.Dense(2)
    dense(x)
    for parameter in dense.parameters().values():
        parameter.requires_grad = False
    assert not xn.recompute(dense)(x).requires_grad
    dense.kernel.requires_grad = True
    assert xn.recompute(dense)(x).requires_grad
    with xn.no_grad():
        assert not xn.recompute(dense)(x).requires_grad
    assert isinstance(xn.recompute(lambda v: v + 1)(x), np.ndarray)


def test_the_same_graph_twice_is_an_error():
    x = xn.Tensor(np.ones(3), requires_grad=True)
    y = xn.recompute(ops.exp)(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="ran through this recomputed segment before"):
        (y * 2.0).sum().backward()


def test_what_cannot_be_recomputed_is_said():
    x = xn.Tensor(np.ones(3), requires_grad=True)
    outside = ops.exp(x)
    y = xn.recompute(lambda v: v * outside)(x)
    with pytest.raises(RuntimeError, match="output of exp from outside"):
        y.sum().backward()

    runs = []

    def differs(v):
        runs.append(1)
        return (v, v * 2.0) if len(runs) == 1 else (v * 2.0,)

    a, b = xn.recompute(differs)(x)
    with pytest.raises(RuntimeError, match="was not as the first: it gave 1 Tensors after 2"):
        (a + b).sum().backward()

    def draws(v):
        runs.append(1)
        for _ in runs:
            once(lambda: 1)
        return v * 2.0

    with pytest.raises(RuntimeError, match="drew more random numbers"):
        xn.recompute(draws)(x).sum().backward()


@pytest.mark.parametrize(
    ("recompute", "says"),
    [
        (["7.nothing"], "recompute names the layer '7.nothing'; there are 0, 1, 2"),
        ("0", "a list of layers or a function, got '0'"),
        ([99], "'99'"),
        (2, "a list of layers or a function, got 2"),
    ],
)
def test_a_trainer_explains(recompute, says):
    with pytest.raises(ValueError, match=says):
        xn.Trainer(convolutional(), loss="hinge", optimizer=xn.optim.SGD(0.1), recompute=recompute)


def test_a_trainer_explains_that_there_is_nothing_to_cut():
    with pytest.raises(ValueError, match="there are shared, head, drop"):
        xn.Trainer(Twice(False), loss="hinge", optimizer=xn.optim.SGD(0.1), recompute=True)


def test_true_cuts_into_about_the_root_of_the_layers_and_no_fused_pair():
    trainer = xn.Trainer(convolutional(), loss="hinge", optimizer=xn.optim.SGD(0.1), recompute=True)
    ((model, ranges),) = trainer.segments.items()
    assert model is trainer.model
    assert ranges == (range(4), range(4, 8))  # twelve layers in three; the last four are not computed twice
    pairs = xn.Sequential([xn.Conv2D(2, 3), xn.MaxPool2D(2)] * 2 + [xn.Flatten(), xn.Dense(2)])
    trainer = xn.Trainer(pairs, loss="hinge", optimizer=xn.optim.SGD(0.1), recompute=True)
    assert trainer.segments[pairs] == (range(4),)


class Wrapped(xn.Module):
    def __init__(self):
        self.stem = xn.Dense(6)
        self.blocks = xn.Sequential([xn.Dense(6, "relu") for _ in range(9)])
        self.side = xn.Residual([xn.Dense(6)])
        self.head = xn.Dense(4)

    def forward(self, x):
        return self.head(self.side(self.blocks(self.stem(x))))


def test_a_class_of_ones_own():
    x = X[:, 0, 0]
    trainer = xn.Trainer(Wrapped(), loss="hinge", optimizer=xn.optim.SGD(0.1), recompute=True)
    model: Any = trainer.model
    assert trainer.segments == {model.blocks: (range(3), range(3, 6)), model.side: ()}
    same(trained(Wrapped(), x), trained(Wrapped(), x, recompute=True))


def peak(model, recompute, x):
    """The peak of the third step's memory beyond what lived before it."""
    trainer = xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.SGD(0.01), recompute=recompute)
    tracemalloc.start()
    try:
        for _ in range(2):
            trainer.step(x, x)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        trainer.step(x, x)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_memory_falls_to_the_segments_inputs_and_one_segment():
    """Sixteen equal layers keep sixteen activations; cut in four they keep the inputs of three segments and one segment."""
    x = np.ones((1000, 64), np.float32)
    one = x.nbytes

    def model():
        return xn.Sequential([xn.Dense(64, "relu") for _ in range(16)], input_shape=(64,))

    plain, again = peak(model(), False, x), peak(model(), True, x)
    # Beside what is kept: in backward a few of the gradients of one activation.
    assert 16 * one < plain < 21 * one
    assert 7 * one <= again < 12 * one
    assert again < 0.6 * plain
