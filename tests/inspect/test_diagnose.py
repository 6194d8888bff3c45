"""Each finding of the doctor appears where its cause was planted, and a sound network has none."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet.inspect import diagnose

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 12)).astype(np.float32)
Y = RNG.integers(0, 4, 200)


def model(*layers):
    return xn.Sequential(list(layers) or [xn.Dense(16, "relu"), xn.Dense(4)], input_shape=(12,))


def kinds(findings):
    return [finding.kind for finding in findings]


def test_a_sound_network_has_no_finding_and_is_not_changed():
    net = model(xn.Dense(16, "relu"), xn.Dropout(0.5), xn.Dense(4))
    before = net.flat_parameters.values.copy()
    assert diagnose(net, X, Y) == []
    np.testing.assert_array_equal(net.flat_parameters.values, before)
    assert net.rng_counters() == {}
    assert all(p.grad is None for p in net.parameters().values())


def test_unscaled_pixels():
    pixels = RNG.integers(0, 256, (200, 12)).astype(np.float32)
    found = diagnose(model(), pixels, Y)
    assert found[0].kind == "inputs"
    assert "divide by 255" in str(found[0])
    assert "subtract the mean" in str(diagnose(model(), X * 0.1 + 5, Y)[0])
    assert "nothing to learn" in str(diagnose(model(), np.ones_like(X), Y)[0])


def test_labels_that_do_not_match_the_outputs():
    found = diagnose(model(), X, Y + 1)
    assert kinds(found) == ["labels"]
    assert "0..3" in str(found[0])
    assert "shuffle" in str(diagnose(model(), X, np.zeros(200, int))[0])
    assert "[2, 3]" in str(diagnose(model(), X, Y % 2)[0])


def test_a_first_loss_far_above_guessing():
    found = diagnose(model(xn.Dense(4, kernel_initializer=xn.initializers.Normal(5.0))), X, Y)
    assert kinds(found) == ["start"]
    assert "ln 4 = 1.39" in str(found[0])


def test_dead_units_and_what_they_cut_off():
    found = diagnose(model(xn.Dense(16, "relu", bias_initializer=-100.0), xn.Dense(4)), X, Y)
    assert kinds(found)[0] == "dead"
    assert found[0].path == "0"
    assert {f.path for f in found if f.kind == "untrained"} == {"0.kernel", "0.bias", "1.kernel"}


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_saturated_units(name):
    net = model(xn.Dense(16, name, kernel_initializer=xn.initializers.Normal(20.0)), xn.Dense(4))
    assert "saturated" in kinds(diagnose(net, X, Y))


def test_vanishing_and_exploding_gradients():
    deep = [xn.Dense(12, "sigmoid", kernel_initializer=xn.initializers.Normal(0.1)) for _ in range(6)]
    assert "vanishing" in kinds(diagnose(model(*deep, xn.Dense(4)), X, Y))
    # The last weights see tiny activations and are huge: their own gradient is small, what they pass back is not.
    sizes = (1.0, 1e-7, 1e5)
    grown = [xn.Dense(4 if std == 1e5 else 12, kernel_initializer=xn.initializers.Normal(std)) for std in sizes]
    assert "exploding" in kinds(diagnose(model(*grown), X, Y))


def test_gradients_that_are_large_everywhere():
    """What grows forwards and backwards alike: from layer to layer the gradients do not differ."""
    wide = [xn.Dense(32, kernel_initializer=xn.initializers.Normal(1.0)) for _ in range(7)]
    found = [f for f in diagnose(model(*wide, xn.Dense(4)), X, Y) if f.kind == "exploding"]
    assert len(found) == 1
    assert "every gradient is more than 1000 times" in str(found[0])


@pytest.mark.parametrize(
    ("last", "loss", "says"),
    [
        (lambda: xn.Dense(4, "softmax"), "softmax_cross_entropy", "applies softmax itself"),
        (lambda: xn.Sequential([xn.Dense(4), xn.Softmax()]), "softmax_cross_entropy", "applies softmax itself"),
        (lambda: xn.Dense(4, "sigmoid"), "sigmoid_cross_entropy", "applies sigmoid itself"),
    ],
)
def test_probabilities_where_the_loss_wants_logits(last, loss, says):
    y = Y if loss == "softmax_cross_entropy" else np.eye(4, dtype=np.float32)[Y]
    found = diagnose(model(xn.Dense(16, "relu"), last()), X, y, loss)
    assert kinds(found) == ["outputs"]
    assert says in str(found[0])
    assert diagnose(model(xn.Dense(16, "relu"), xn.Dense(4)), X, y, loss) == []


def test_values_that_are_not_finite_are_traced_to_their_layer():
    net = model()
    net.layers[1].bias.array[2] = np.nan
    found = diagnose(net, X, Y)
    assert kinds(found) == ["not finite"]
    assert "'1.bias'" in str(found[0])


def test_targets_that_are_not_finite():
    y = RNG.normal(size=(200, 4)).astype(np.float32)
    y[3, 1] = np.nan
    found = {finding.kind: finding.text for finding in diagnose(model(), X, y, loss="mse")}
    assert "the targets hold values that are not finite: 1 of 800" in found["not finite"]
