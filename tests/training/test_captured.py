"""Steps that are recorded and replayed do what steps that run launch by launch do, bit for bit.

No GPU is needed. The CuPy implementations run on NumPy arrays in the emulator, and a stand-in for CUDA graphs does what a
graph does: recording changes nothing on the "device"; a replay repeats what was recorded with the host's numbers of that
time; and reading a value from the device while recording is refused.
"""

from __future__ import annotations

import contextlib
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from tests.cuda_emulator.emulator import emulated_ops
from xpnet.accel.cupy.optimizers import DeviceSchedule
from xpnet.compiled.captured_steps import CapturedSteps
from xpnet.compiled.graph import Captured, CapturedModel
from xpnet.training.callbacks import ClipGradients

pytestmark = pytest.mark.emulator


class RefusedError(RuntimeError):
    """What CuPy says of a host read while a stream is captured."""


class Remote(np.ndarray):
    """An array that cannot be read from the host while a graph is recorded."""

    recording = False

    def _read(self):
        if Remote.recording:
            raise RefusedError("cudaErrorStreamCaptureUnsupported")

    def __float__(self):
        self._read()
        return float(np.asarray(self))

    def __int__(self):
        self._read()
        return int(np.asarray(self))

    def __bool__(self):
        self._read()
        return bool(np.asarray(self))

    def item(self, *args):
        self._read()
        return np.asarray(self).item(*args)


class KeepsKind:
    """NumPy, but for copies: those of a Remote are Remotes."""

    uint64 = np.uint64

    @staticmethod
    def asarray(values, dtype=None, copy=None):
        return np.array(values, dtype=dtype, subok=True)


class FakeGraphs:
    """Records a function by running it and undoing its effect; replays it by running it with the host state of then."""

    xp = KeepsKind

    def __init__(self, trainer):
        self.trainer = trainer
        self.recorded = self.replayed = 0

    def stream(self):
        return contextlib.nullcontext()

    def _device(self):
        trainer = self.trainer
        flat = trainer.model.flat_parameters
        ticks = [m.device_counter.array for m in trainer.model.modules() if m.device_counter is not None]
        clock = list(trainer.optimizer.clock or ())
        arrays = [flat.values, flat.gradients, *trainer.optimizer.slots.values(), *ticks, *clock]
        return [*arrays, *trainer.model.buffers().values(), *trainer.sums.totals.values()]

    def _host(self):
        trainer = self.trainer
        grads = [(p, p.grad) for p in trainer.model.flat_parameters.parameters]
        return trainer.iteration, trainer.optimizer.iterations, trainer.sums.count, grads, trainer.model.rng_counters()

    def _set_host(self, state):
        trainer = self.trainer
        trainer.iteration, trainer.optimizer.iterations, trainer.sums.count = state[:3]
        for parameter, grad in state[3]:
            parameter.grad = grad

    def record(self, function):
        before = self._host()
        arrays = self._device()
        kept = [a.copy() for a in arrays]
        Remote.recording = True
        try:
            result = function()
        finally:
            Remote.recording = False
            for array, values in zip(arrays, kept):
                array[...] = values
        self.recorded += 1

        def replay():
            self.replayed += 1
            now = self._host()
            self._set_host(before)
            again = function()
            result[0][...] = again[0]
            self._set_host(now)

        return replay, result


X = np.random.default_rng(0).normal(size=(22, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 1)


def trainer(optimizer, *callbacks, layers=None, loss="softmax_cross_entropy", **settings):
    layers = layers or [xn.Dense(8, "relu"), xn.BatchNorm(), xn.Dropout(0.5), xn.Dense(3)]
    model = xn.Sequential(layers, input_shape=(6,), seed=2)
    return xn.Trainer(model, loss=loss, optimizer=optimizer, metrics=["accuracy"], callbacks=callbacks, **settings)


def epochs(run, step, count=3):
    """Three epochs of batches of 8, 8 and 6; returns everything that training changed."""
    measured = []
    for _ in range(count):
        run.sums.clear()
        for start in (0, 8, 16):
            step(X[start : start + 8].view(Remote), Y[start : start + 8])
        measured.append(run.sums.means())
    return measured


def both(make):
    """(state after steps launch by launch, state after captured steps, the fake graphs)."""
    with emulated_ops():
        plain = make()
        first = epochs(plain, plain._train)
        run = make()
        graphs = FakeGraphs(run)
        with CapturedSteps(run, graphs, lambda values: DeviceSchedule.new(np, values)) as steps:
            second = epochs(run, steps.step)
            run.model.rng_counters()  # readable while they are on the device
    assert plain.iteration == run.iteration == 9
    assert plain.optimizer.iterations == run.optimizer.iterations
    assert plain.model.rng_counters() == run.model.rng_counters()
    assert first == second
    for name, array in plain.model.state().items():
        np.testing.assert_array_equal(array, run.model.state()[name], err_msg=name)
    for name, slot in plain.optimizer.slots.items():
        np.testing.assert_array_equal(slot, run.optimizer.slots[name], err_msg=name)
    return graphs


def halving(step):
    return 0.1 * 0.5**step


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
    graphs = both(lambda: trainer(optimizer()))
    # Two shapes of batches: each runs once, is recorded at its second time and replayed from then on (the batch of 8 at
    # steps 2, 4, 5, 7, 8 of 9, the batch of 6 in the second and third epoch).
    assert graphs.recorded == 2
    assert graphs.replayed == 5 + 2


def test_recomputed_segments_are_recorded_with_the_random_numbers_of_their_first_run():
    """And the recorded steps equal those of a model that keeps everything, which run launch by launch."""
    made = []

    def make(**settings):
        layers = [xn.Dense(8, "relu"), xn.BatchNorm(), xn.Dropout(0.5), xn.Dense(8), xn.Dropout(0.3), xn.Dense(3)]
        made.append(trainer(xn.optim.Adam(halving), layers=layers, **settings))
        return made[-1]

    graphs = both(lambda: make(recompute=True))
    assert graphs.recorded == 2
    assert graphs.replayed == 5 + 2
    with emulated_ops():
        plain = make()
        epochs(plain, plain._train)
    assert plain.segments != made[0].segments
    for name, array in plain.model.state().items():
        np.testing.assert_array_equal(array, made[1].model.state()[name], err_msg=name)


def test_a_callback_that_changes_gradients_runs_between_backward_and_update():
    graphs = both(lambda: trainer(xn.optim.SGD(0.5), ClipGradients(norm=0.1)))
    assert graphs.recorded == 2


def test_an_optimizer_that_keeps_its_step_on_the_host_runs_outside():
    class Counting(xn.optim.SGD):
        capturable = False

        def update(self, w, g, learning_rate):
            w -= learning_rate / self.iterations * g

    assert both(lambda: trainer(Counting(0.5))).recorded == 2


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


def test_models_of_several_inputs_are_recorded():
    def run(captured):
        with emulated_ops():
            model = TwoInputs(seed=1)
            model(X[:1, :4], X[:1, 4:])
            made = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), metrics=["accuracy"])
            graphs = FakeGraphs(made)
            steps = CapturedSteps(cast(Any, made), graphs, lambda values: DeviceSchedule.new(np, values)) if captured else None
            with steps or contextlib.nullcontext():
                step = steps.step if steps else made._train
                for _ in range(2):
                    for start in (0, 8, 16):
                        part = slice(start, start + 8)
                        step((X[part, :4].view(Remote), X[part, 4:].view(Remote)), Y[part])
                means = made.sums.means()
            return model.state(), means, made.sums.count, graphs

    state, means, count, graphs = run(True)
    wanted, wanted_means, wanted_count, _ = run(False)
    assert (graphs.recorded, graphs.replayed) == (2, 3 + 1)
    assert (means, count) == (wanted_means, wanted_count)
    for name, array in wanted.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)


class Reads(xn.Module):
    """A user's layer that looks at its input's values."""

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, x):
        return x * (2.0 if float(x.sum(keepdims=True).reshape(())) > 0 else 1.0)


def test_a_layer_that_reads_the_device_runs_launch_by_launch_and_is_named():
    layers = [Reads(), xn.Dense(8, "relu"), xn.Dense(3)]
    with pytest.warns(RuntimeWarning, match=r"layer '0' \(Reads\).*RefusedError") as caught:
        graphs = both(lambda: trainer(xn.optim.Adam(0.01), layers=[type(l)(*l._arguments[0]) for l in layers]))
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert graphs.replayed == 0


class Repeats(FakeGraphs):
    """For functions without a state."""

    def __init__(self):
        self.recorded = 0

    def record(self, function):
        result = function()
        self.recorded += 1

        def replay():
            result[...] = function()

        return replay, result


def test_results_of_a_captured_function_are_overwritten_and_shapes_kept_apart():
    captured = Captured(lambda x: 2 * x, Repeats())
    for size in (3, 4, 3, 4, 3, 3):
        x = np.arange(size, dtype=np.float32)
        np.testing.assert_array_equal(captured(x), 2 * x)
    assert captured(np.ones(3, np.float32)) is captured(np.zeros(3, np.float32))


def test_a_captured_model_sees_new_weights_and_its_results_are_kept():
    model = xn.Sequential([xn.Dense(4), xn.Dropout(0.5), xn.Dense(2)], input_shape=(6,)).eval()
    graphs = Repeats()
    with xn.no_grad():
        captured = CapturedModel(model, graphs)
        outputs = [captured(X[i : i + 5]) for i in range(4)]
        np.testing.assert_array_equal(outputs, [model(X[i : i + 5]).array for i in range(4)])
        model.load_state({name: 2 * array for name, array in model.state().items()})  # in place
        np.testing.assert_array_equal(captured(X[:5]), model(X[:5]).array)
        assert graphs.recorded == 1
        model.flat_parameters
        for _ in range(2):
            np.testing.assert_array_equal(captured(X[:5]), model(X[:5]).array)
        assert graphs.recorded == 2


def test_capture_needs_a_gpu():
    with pytest.raises(ValueError, match="needs a GPU"):
        xn.cuda.capture(lambda x: x, "cpu")
