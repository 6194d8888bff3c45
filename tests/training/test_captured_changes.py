"""What is changed between predictions, or between the steps of a fit, is seen by recordings as it is launch by launch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.graphs import captured_steps, counted_graphs
from xpnet.compiled.graph import CapturedModel
from xpnet.training.callbacks import ClipGradients

X = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


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

    mean: Any

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


def trainer(parts=None, optimizer=None, capture=True):
    model = xn.Sequential(parts or layers(), input_shape=(6,), seed=1, device="cuda")
    model.layers[0].kernel.regularizer = xn.regularizers.L2(0.01)
    optimizer = optimizer or xn.optim.SGD(0.1, momentum=0.5, weight_decay=0.01)
    return xn.Trainer(model, loss=Loss(), optimizer=optimizer, metrics=["accuracy"], capture=capture)


class Loss:
    """A user's loss with a setting."""

    def __init__(self):
        self.factor = 1.0

    def __call__(self, prediction, target):
        return xn.losses.softmax_cross_entropy(prediction, target) * self.factor


def replaced_loss(run):
    run.loss = xn.losses.get(lambda prediction, target: xn.losses.softmax_cross_entropy(prediction, target) * 2.0)


def frozen(run):
    run.model.layers[0].kernel.requires_grad = False


def saved_state(run):
    run.optimizer.load_state(run.optimizer.state() | {"slots": {"velocity": run.optimizer.state()["slots"]["velocity"] * 3}})


def on_layer(index, name, value):
    return lambda run: setattr(run.model.layers[index], name, value)


STEP_CHANGES = {
    "slope": on_layer(1, "slope", 0.9),
    "epsilon": on_layer(2, "epsilon", 1.0),
    "momentum of statistics": on_layer(2, "momentum", 0.5),
    "a user's attribute": on_layer(3, "scale", 7.0),
    "dropout": on_layer(4, "rate", 0.1),
    "mode of a part": lambda run: run.model.layers[2].eval(),
    "weights": lambda run: new_weights(run.model),
    "buffer": lambda run: new_buffer(run.model),
    "loaded": lambda run: run.model.load_state({name: 2 * a for name, a in run.model.state().items()}),
    "frozen": frozen,
    "momentum": lambda run: setattr(run.optimizer, "momentum", 0.9),
    "weight decay": lambda run: setattr(run.optimizer, "weight_decay", 0.5),
    "state of the optimizer": saved_state,
    "loss": replaced_loss,
    "attribute of the loss": lambda run: setattr(run.loss, "factor", 3.0),
    "penalty": lambda run: setattr(run.model.layers[0].kernel, "regularizer", xn.regularizers.L2(1.0)),
    "optimizer": lambda run: setattr(run, "optimizer", xn.optim.Adam(0.05)),
    "optimizer of the host": lambda run: setattr(run, "optimizer", xn.optim.Nadam(0.05)),
    "callback": lambda run: run.callbacks.append(ClipGradients(norm=0.01)),
    "accumulate": lambda run: setattr(run, "accumulate", 2),
}


def trained(change, step, run):
    """Return the losses of five steps, a change, and six more."""
    x, y = xn.to_device(X, "cuda"), xn.to_device(Y, "cuda")
    losses = [float(step(x, y)) for _ in range(5)]
    change(run)
    return losses + [float(step(x, y)) for _ in range(6)]


@pytest.mark.cuda
@pytest.mark.parametrize("change", STEP_CHANGES)
def test_a_captured_step_sees_a_change(change):
    plain, run = trainer(capture=False), trainer()
    wanted = trained(STEP_CHANGES[change], plain._train, plain)
    steps, graphs = captured_steps(run)
    with steps:
        assert trained(STEP_CHANGES[change], steps.step, run) == wanted
        if change == "accumulate":
            assert (graphs.recorded, graphs.replayed) == (1, 4)
        else:
            assert (graphs.recorded, graphs.replayed) == ((1, 10) if change == "loaded" else (2, 4 + 5))
    assert run.optimizer.iterations == plain.optimizer.iterations
    assert run.optimizer.clock is None
    for name, array in plain.model.state().items():
        np.testing.assert_array_equal(xn.to_numpy(run.model.state()[name]), xn.to_numpy(array), err_msg=name)
    unchanged = trainer(capture=False)
    losses = trained(lambda run: None, unchanged._train, unchanged)
    found, expected = (xn.to_numpy(model.layers[2].running_mean) for model in (plain.model, unchanged.model))
    assert losses != wanted or not np.array_equal(found, expected)


@pytest.mark.cuda
def test_a_layer_that_replaces_its_buffer_runs_launch_by_launch_and_is_named():
    def make():
        return trainer([xn.Dense(5), Assigning(), xn.Dense(2)])

    plain, run = make(), make()
    wanted = trained(lambda run: None, plain._train, plain)
    steps, graphs = captured_steps(run)
    with steps, pytest.warns(RuntimeWarning, match=r"layer '1' \(Assigning\) assigns self.mean in its forward pass") as caught:
        assert trained(lambda run: None, steps.step, run) == wanted
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert graphs.recorded == 0
    np.testing.assert_array_equal(xn.to_numpy(run.model.layers[1].mean), xn.to_numpy(plain.model.layers[1].mean))


@pytest.mark.cuda
def test_a_fit_goes_on_after_its_buffers_were_saved_and_restored():
    """As `xn.inspect.profile` and `diagnose` do between epochs: recordings go on reading the model's own buffers."""

    class Looks(xn.training.Callback):
        def on_epoch_end(self, trainer, values):
            xn.inspect.diagnose(trainer.model, xn.to_device(X, "cuda"), xn.to_device(Y, "cuda"))

    def fitted(capture):
        run = trainer(capture=capture)
        run.callbacks.append(Looks())
        run.fit((X, Y), epochs=5, batch_size=4, verbose=False)
        return {name: xn.to_numpy(array) for name, array in run.model.state().items()}

    found, wanted = fitted(True), fitted(False)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
