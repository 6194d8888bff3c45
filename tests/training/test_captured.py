"""Steps that are recorded as CUDA graphs and replayed do what steps that run launch by launch do, bit for bit."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import xpnet as xn
from tests.graphs import SCHEDULES, captured_steps, count_graphs, counted_graphs, scheduled
from xpnet.compiled.graph import CapturedModel
from xpnet.training.callbacks import ClipGradients

X = np.random.default_rng(0).normal(size=(22, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 1)


def trainer(optimizer, *callbacks, layers=None, loss="softmax_cross_entropy", device="cuda", **settings):
    layers = layers or [xn.Dense(8, "relu"), xn.BatchNorm(), xn.Dropout(0.5), xn.Dense(3)]
    model = xn.Sequential(layers, input_shape=(6,), seed=2, device=device)
    return xn.Trainer(model, loss=loss, optimizer=optimizer, metrics=["accuracy"], callbacks=callbacks, **settings)


def on_device_of(run, *arrays):
    return tuple(xn.to_device(array, run.model.context.device) for array in arrays)


def epochs(run, step, count=3):
    """Three epochs of batches of 8, 8 and 6; returns everything that was measured."""
    x, y = on_device_of(run, X, Y)
    measured = []
    for _ in range(count):
        run.sums.clear()
        for start in (0, 8, 16):
            step(x[start : start + 8], y[start : start + 8])
        measured.append(run.sums.means())
    return measured


def same_arrays(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(xn.to_numpy(found[name]), xn.to_numpy(array), err_msg=name)


def both(make):
    """Train launch by launch and by captured steps, with the same outcome; return the graphs and both trainers."""
    plain, run = make(), make()
    first = epochs(plain, plain._train)
    steps, graphs = captured_steps(run)
    with steps:
        second = epochs(run, steps.step)
        run.model.rng_counters()  # readable while they are on the device
    assert plain.iteration == run.iteration == 9
    assert plain.optimizer.iterations == run.optimizer.iterations
    assert plain.model.rng_counters() == run.model.rng_counters()
    assert first == second
    same_arrays(run.model.state(), plain.model.state())
    same_arrays(run.optimizer.slots, plain.optimizer.slots)
    return graphs, plain, run


def halving(step):
    return 0.1 * 0.5**step


@pytest.mark.cuda
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: xn.optim.SGD(0.1),
        lambda: xn.optim.SGD(halving, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda: xn.optim.Adam(halving),
        lambda: xn.optim.AdamW(0.01, weight_decay=0.1),
    ],
)
def test_replayed_steps_equal_plain_ones(optimizer):
    graphs, _, run = both(lambda: trainer(optimizer()))
    # Two shapes of batches: each runs once, is recorded at its second time and replayed from then on (the batch of 8 at
    # steps 2, 4, 5, 7, 8 of 9, the batch of 6 in the second and third epoch).
    assert graphs.recorded == 2
    assert graphs.replayed == 5 + 2
    on_cpu = trainer(optimizer(), device="cpu")
    epochs(on_cpu, on_cpu._train)
    for name, array in on_cpu.model.state().items():
        np.testing.assert_allclose(xn.to_numpy(run.model.state()[name]), array, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.cuda
def test_recomputed_segments_are_recorded_with_the_random_numbers_of_their_first_run():
    """And the recorded steps equal those of a model that keeps everything, which run launch by launch."""

    def make(**settings):
        layers = [xn.Dense(8, "relu"), xn.BatchNorm(), xn.Dropout(0.5), xn.Dense(8), xn.Dropout(0.3), xn.Dense(3)]
        return trainer(xn.optim.Adam(halving), layers=layers, **settings)

    graphs, recomputed, run = both(lambda: make(recompute=True))
    assert graphs.recorded == 2
    assert graphs.replayed == 5 + 2
    plain = make()
    epochs(plain, plain._train)
    assert plain.segments != recomputed.segments
    same_arrays(run.model.state(), plain.model.state())


@pytest.mark.cuda
def test_a_callback_that_changes_gradients_runs_between_backward_and_update():
    graphs, _, run = both(lambda: trainer(xn.optim.SGD(0.5), ClipGradients(norm=0.1)))
    assert (graphs.recorded, graphs.replayed) == (2, 5 + 2)
    unclipped = trainer(xn.optim.SGD(0.5))
    epochs(unclipped, unclipped._train)
    name = "0.kernel"
    assert not np.array_equal(xn.to_numpy(unclipped.model.state()[name]), xn.to_numpy(run.model.state()[name]))


@pytest.mark.cuda
def test_an_optimizer_that_keeps_its_step_on_the_host_runs_outside():
    class Counting(xn.optim.SGD):
        capturable = False

        def update(self, w, g, learning_rate):
            w -= learning_rate / self.iterations * g

    graphs, _, _ = both(lambda: trainer(Counting(0.5)))
    assert (graphs.recorded, graphs.replayed) == (2, 5 + 2)


class TwoInputs(xn.Module):
    """A model of two inputs."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.left, self.right, self.last = xn.Dense(4, "relu"), xn.Dense(4, "tanh"), xn.Dense(3)

    def build(self, input_shape):
        self.left.build((4,))
        self.right.build((2,))
        self.last.build((4,))

    def forward(self, x, z):
        return self.last(self.left(x) * self.right(z))


@pytest.mark.cuda
def test_models_of_several_inputs_are_recorded():
    def run(captured):
        model = TwoInputs(seed=1, device="cuda")
        x, y = (xn.to_device(a, "cuda") for a in (X, Y))
        model(x[:1, :4], x[:1, 4:])
        made = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), metrics=["accuracy"])
        steps, graphs = captured_steps(made) if captured else (None, None)
        with steps or contextlib.nullcontext():
            step = steps.step if steps else made._train
            for _ in range(2):
                for start in (0, 8, 16):
                    part = slice(start, start + 8)
                    step((x[part, :4], x[part, 4:]), y[part])
            means = made.sums.means()
        return model.state(), means, made.sums.count, graphs

    state, means, count, graphs = run(True)
    wanted, wanted_means, wanted_count, _ = run(False)
    assert (graphs.recorded, graphs.replayed) == (2, 3 + 1)
    assert (means, count) == (wanted_means, wanted_count)
    same_arrays(state, wanted)


class Reads(xn.Module):
    """A user's layer that looks at its input's values."""

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, x):
        return x * (2.0 if float(x.sum(keepdims=True).reshape(())) > 0 else 1.0)


@pytest.mark.cuda
def test_a_layer_that_reads_the_device_runs_launch_by_launch_and_is_named():
    def make():
        return trainer(xn.optim.Adam(0.01), layers=[Reads(), xn.Dense(8, "relu"), xn.Dense(3)])

    with pytest.warns(RuntimeWarning, match=r"layer '0' \(Reads\).*RuntimeError.*capturing") as caught:
        graphs, _, run = both(make)
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert (graphs.recorded, graphs.replayed) == (0, 0)
    # The refused recording leaves the stream usable: other steps are recorded on the same device.
    assert both(lambda: trainer(xn.optim.SGD(0.1)))[0].recorded == 2
    assert run.model.training


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    """Every order of the work on the device that its streams allow."""
    with scheduled(request.param):
        yield


@pytest.mark.cuda
@pytest.mark.usefixtures("schedule")
def test_results_of_a_captured_function_are_overwritten_and_shapes_kept_apart():
    import cupy

    captured = xn.cuda.capture(lambda x: 2 * x)
    graphs = count_graphs(captured)
    for size in (3, 4, 3, 4, 3, 3):
        x = cupy.arange(size, dtype=cupy.float32)
        np.testing.assert_array_equal(xn.to_numpy(captured(x)), 2 * xn.to_numpy(x))
    assert (graphs.recorded, graphs.replayed) == (2, 3 + 1)
    ones = captured(cupy.ones(3, cupy.float32))
    assert ones is captured(cupy.zeros(3, cupy.float32))
    np.testing.assert_array_equal(xn.to_numpy(ones), np.zeros(3))


@pytest.mark.cuda
@pytest.mark.usefixtures("schedule")
def test_a_captured_model_sees_new_weights_and_its_results_are_kept():
    model = xn.Sequential([xn.Dense(4), xn.Dropout(0.5), xn.Dense(2)], input_shape=(6,), device="cuda").eval()
    graphs, x = counted_graphs(), xn.to_device(X, "cuda")

    def plain(x):
        return xn.to_numpy(model(x).array)

    with xn.no_grad():
        captured = CapturedModel(model, graphs)
        outputs = [captured(x[i : i + 5]) for i in range(4)]
        np.testing.assert_array_equal([xn.to_numpy(y) for y in outputs], [plain(x[i : i + 5]) for i in range(4)])
        model.load_state({name: 2 * array for name, array in model.state().items()})  # in place
        np.testing.assert_array_equal(xn.to_numpy(captured(x[:5])), plain(x[:5]))
        assert graphs.recorded == 1
        model.flat_parameters
        for _ in range(2):
            np.testing.assert_array_equal(xn.to_numpy(captured(x[:5])), plain(x[:5]))
        assert graphs.recorded == 2


def test_capture_needs_a_gpu():
    with pytest.raises(ValueError, match="needs a GPU"):
        xn.cuda.capture(lambda x: x, "cpu")
