"""What is changed between predictions, or between the steps of a fit, is seen by recordings as it is launch by launch."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from tests.graphs import counted_graphs
from xpnet.compiled.graph import CapturedModel

X = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


class Scaled(xn.Module):
    """A user's layer with a number as an attribute."""

    def __init__(self):
        super().__init__()
        self.scale = 2.0

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, x):
        return x * self.scale


class Assigning(Scaled):
    """A user's layer that replaces its buffer in every step."""

    def build(self, input_shape):
        self.add_buffer("mean", [0.0] * input_shape[-1])

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * xn.ops.mean(x, axis=0).array
        return x * self.scale


class Counting(Scaled):
    """A user's layer that counts its calls."""

    count = 0

    def forward(self, x):
        self.count += 1
        return x * float(self.count)


def layers():
    return [xn.Dense(5), xn.LeakyReLU(0.1), xn.BatchNorm(), Scaled(), xn.Dropout(0.5), xn.Dense(2)]


def set_attribute(index, name, value):
    return lambda model: setattr(model.layers[index], name, value)


def new_weights(model):
    model.layers[0].kernel.array = 3 * model.layers[0].kernel.array


def new_buffer(model):
    model.layers[2].running_mean = model.layers[2].running_mean + 1


def patch_class(model):
    model.layers[3].__class__ = type("Other", (Scaled,), {"forward": lambda self, x: x + 1})


CHANGES = {
    "slope": set_attribute(1, "slope", 0.9),
    "epsilon": set_attribute(2, "epsilon", 1.0),
    "a user's attribute": set_attribute(3, "scale", 7.0),
    "weights": new_weights,
    "buffer": new_buffer,
    "class": patch_class,
}


@pytest.mark.cuda
@pytest.mark.parametrize("change", CHANGES)
def test_a_captured_prediction_sees_a_change(change):
    model = xn.Sequential(layers(), input_shape=(6,), seed=1, device="cuda").eval()
    graphs, x = counted_graphs(), xn.to_device(X, "cuda")
    with xn.no_grad():
        captured = CapturedModel(model, graphs)
        before = [xn.to_numpy(captured(x)) for _ in range(3)][-1]
        assert (graphs.recorded, graphs.replayed) == (1, 2)
        CHANGES[change](model)
        wanted = xn.to_numpy(model(x).array)
        assert not np.array_equal(before, wanted)
        for _ in range(3):
            np.testing.assert_array_equal(xn.to_numpy(captured(x)), wanted)
    assert (graphs.recorded, graphs.replayed) == (2, 4)


@pytest.mark.cuda
def test_a_prediction_that_assigns_attributes_runs_launch_by_launch_and_is_named():
    model = xn.Sequential([xn.Dense(5), Counting()], input_shape=(6,), seed=1, device="cuda").eval()
    model.layers[1].count = 0
    graphs, x = counted_graphs(), xn.to_device(X, "cuda")
    with xn.no_grad():
        captured = CapturedModel(model, graphs)
        first = xn.to_numpy(captured(x))
        with pytest.warns(RuntimeWarning, match=r"layer '1' \(Counting\) assigns self.count in its forward pass"):
            second = xn.to_numpy(captured(x))
        third = xn.to_numpy(captured(x))
    np.testing.assert_allclose([second, third], [2 * first, 3 * first], rtol=1e-6)
    assert (graphs.recorded, model.layers[1].count) == (0, 3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_loading_a_state_writes_buffers_in_place_and_takes_no_array_of_the_callers(device):
    model = xn.Sequential([xn.Dense(5), xn.BatchNorm(), xn.Dense(2)], input_shape=(6,), seed=1, device=device)
    x = xn.to_device(X, device)
    model(x)
    buffers = model.buffers()
    kept = {name: xn.to_device(xn.to_numpy(array) + 1, device) for name, array in model.state().items()}
    wanted = {name: xn.to_numpy(array).copy() for name, array in kept.items()}
    model.load_state(kept)
    assert all(model.buffers()[name] is array for name, array in buffers.items())
    for name, array in model.state().items():
        np.testing.assert_array_equal(xn.to_numpy(array), wanted[name])
    model(x)  # a step in training mode updates the statistics
    for name, array in kept.items():
        np.testing.assert_array_equal(xn.to_numpy(array), wanted[name])


def test_a_read_only_buffer_is_replaced_by_a_copy():
    model = xn.Sequential([xn.Dense(5), xn.BatchNorm()], input_shape=(6,), seed=1)
    shared = np.zeros(5, np.float32)
    shared.flags.writeable = False
    model.layers[1].running_mean = shared
    values = np.ones(5, np.float32)
    model.load_state({"1.running_mean": values}, strict=False)
    assert not np.shares_memory(model.layers[1].running_mean, values)
    np.testing.assert_array_equal(model.layers[1].running_mean, values)
    np.testing.assert_array_equal(shared, 0)
