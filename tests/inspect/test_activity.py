"""What the layers do: outputs, gradients, dead units, histograms."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet import inspect


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((30, 4))


@pytest.fixture
def y():
    return np.random.default_rng(1).integers(0, 3, 30)


def net(**keywords):
    layers = [xn.Dense(5, "relu"), xn.Dropout(0.5), xn.Dense(6), xn.ReLU(), xn.Dense(3)]
    return xn.Sequential(layers, input_shape=(4,), dtype="float64", **keywords)


def by_hand(model, x):
    p = {name: parameter.array for name, parameter in model.parameters().items()}
    a = np.maximum(x @ p["0.kernel"] + p["0.bias"], 0)
    b = a @ p["2.kernel"] + p["2.bias"]
    return {"0": a, "1": a, "2": b, "3": np.maximum(b, 0), "4": np.maximum(b, 0) @ p["4.kernel"] + p["4.bias"]}


def test_activations_are_the_layers_outputs(x):
    model = net()
    found = inspect.activations(model, x)
    expected = by_hand(model, x)
    assert list(found) == list(expected)
    for name in found:
        assert np.allclose(xn.to_numpy(found[name]), expected[name])


def test_looking_changes_nothing(x, y):
    images = x.reshape(30, 2, 2, 1)

    def trained(look):
        layers = [xn.Flatten(), xn.Dense(5, "relu"), xn.Dropout(0.5), xn.Dense(3)]
        model = xn.Sequential(layers, input_shape=(2, 2, 1), dtype="float64", seed=3)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
        for _ in range(3):
            if look:
                inspect.activations(model, images)
                inspect.dead_relus(model, images)
                inspect.layer_gradients(model, "softmax_cross_entropy", images, y)
                inspect.saliency(model, images)
            trainer.step(images, y)
        return model

    model = trained(True)
    assert model.training
    assert all("forward" not in layer.__dict__ for layer in model.modules())
    other = trained(False).parameters()
    for name, parameter in model.parameters().items():
        assert np.array_equal(parameter.array, other[name].array)


def test_a_layer_called_twice_is_told_apart(x):
    class Twice(xn.Module):
        def __init__(self):
            self.layer = xn.Dense(4, "tanh")

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice()
    model(x.astype(np.float32))
    found = inspect.activations(model, x.astype(np.float32))
    assert list(found) == ["layer", "layer#2"]
    assert np.allclose(xn.to_numpy(found["layer#2"]), model.predict(x.astype(np.float32)))


def test_dead_units_are_found_and_only_they(x):
    model = net()
    bias = model.parameters()["0.bias"].array
    bias[[1, 3]] = -1e3  # these can never fire
    found = inspect.dead_relus(model, x, batch_size=7)
    assert list(found) == ["0", "3"]
    assert {1, 3} <= set(found["0"].dead)
    outputs = by_hand(model, x)
    for name, result in found.items():
        expected = np.flatnonzero(~(outputs[name] > 0).any(axis=0))
        assert result.dead == tuple(expected)
        assert result.fraction == len(expected) / result.units
        assert result.active == pytest.approx(np.mean(outputs[name] > 0))


def test_a_unit_that_fires_once_is_alive():
    model = xn.Sequential([xn.Dense(1, "relu")], input_shape=(1,), dtype="float64")
    model.load_state({"0.kernel": np.ones((1, 1)), "0.bias": np.zeros(1)})
    x = np.full((100, 1), -1.0)
    assert inspect.dead_relus(model, x, batch_size=10)["0"].fraction == 1
    x[57] = 0.5
    assert inspect.dead_relus(model, x, batch_size=10)["0"].fraction == 0


def test_dead_channels_of_a_convolution():
    images = np.random.default_rng(0).random((6, 5, 5, 2), dtype=np.float32)
    model = xn.Sequential([xn.Conv2D(4, 3, activation="relu")], input_shape=(5, 5, 2))
    model.parameters()["0.bias"].array[2] = -1e3
    found = inspect.dead_relus(model, images)["0"]
    assert found.units == 4
    assert 2 in found.dead


def test_no_relu_is_an_error(x):
    model = xn.Sequential([xn.Dense(3, "sigmoid"), xn.LeakyReLU()], input_shape=(4,), dtype="float64")
    with pytest.raises(ValueError, match="the model has no ReLU layer"):
        inspect.dead_relus(model, x)


def test_gradients_match_the_tape_and_the_difference_quotient(x, y):
    model = net().eval()
    found = inspect.layer_gradients(model, "softmax_cross_entropy", x, y)
    xn.losses.softmax_cross_entropy(model(x), y).backward()
    for name, parameter in model.parameters().items():
        assert np.allclose(xn.to_numpy(found.parameters[name]), xn.to_numpy(parameter.grad))
    # At the output the gradient is (p - onehot) / N; at the layer before, that times the kernel.
    p = xn.ops.softmax(model.predict(x))
    at_output = (p - np.eye(3)[y]) / len(x)
    assert np.allclose(xn.to_numpy(found.outputs["4"]), at_output)
    assert np.allclose(xn.to_numpy(found.outputs["3"]), at_output @ model.parameters()["4.kernel"].array.T)
    assert list(found.outputs) == ["0", "1", "2", "3", "4"]


def test_held_gradients_stay(x, y):
    model = net().eval()
    xn.losses.softmax_cross_entropy(model(x), y).backward()
    held = {name: parameter.grad.copy() for name, parameter in model.parameters().items()}
    inspect.layer_gradients(model, "softmax_cross_entropy", 2 * x, y)
    for name, parameter in model.parameters().items():
        assert np.array_equal(parameter.grad, held[name])


def test_histograms_count_everything(x, y):
    model = net()
    for found in (
        inspect.activation_histograms(model, x, bins=12),
        inspect.gradient_histograms(model, "softmax_cross_entropy", x, y, bins=12),
        inspect.gradient_histograms(model, "softmax_cross_entropy", x, y, of="outputs", bins=12),
    ):
        assert found
        assert all(len(h.counts) == 12 and len(h.edges) == 13 for h in found.values())
    values = xn.to_numpy(inspect.activations(model, x)["3"])
    h = inspect.activation_histograms(model, x)["3"]
    assert h.counts.sum() == values.size
    assert h.mean == pytest.approx(values.mean())
    assert h.std == pytest.approx(values.std())
    assert h.zeros == pytest.approx(np.mean(values == 0))
    with pytest.raises(ValueError, match='of must be "parameters" or "outputs"'):
        inspect.gradient_histograms(model, "softmax_cross_entropy", x, y, of="weights")


@pytest.mark.parametrize(("values", "message"), [(np.zeros(0), "no values"), (np.array([1.0, np.nan]), "not finite")])
def test_histogram_of_nothing_or_nan(values, message):
    with pytest.raises(ValueError, match=message):
        inspect.histogram(values)


def test_histograms_are_drawn(x, tmp_path):
    pytest.importorskip("matplotlib")
    model = net()
    figure = inspect.draw_histograms(inspect.activation_histograms(model, x), title="activations", columns=3)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title().split("\n")[0] for axes in drawn] == ["0", "1", "2", "3", "4"]
    assert len({axes.get_xlim() for axes in drawn}) == 1
    figure.savefig(tmp_path / "a.png")
    with pytest.raises(ValueError, match="nothing to draw"):
        inspect.draw_histograms({})
