"""Steps and predictions whose recording as a CUDA graph goes wrong, or that are interrupted: the model stays usable."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.alike import on_call
from tests.on_cuda.networks import IMAGES, LABELS, bits, bytes_in_use, fitted, network, trainer

pytestmark = pytest.mark.cuda
MIB = 1 << 20


@pytest.fixture
def small_graphs(monkeypatch):
    """The memory of CUDA graphs is limited to 64 KiB; returns their pools."""
    import cupy

    pools, new = [], cupy.cuda.MemoryPool

    def limited():
        pools.append(new())
        pools[-1].set_limit(size=65536)
        return pools[-1]

    monkeypatch.setattr(cupy.cuda, "MemoryPool", limited)
    return pools


def test_a_step_without_memory_for_a_graph_runs_launch_by_launch(small_graphs):
    expected = fitted(capture=False)
    with pytest.warns(RuntimeWarning, match=r"the training step runs launch by launch: the device has too little memory for a"):
        run = fitted()
    assert bits(run.model) == bits(expected.model)
    assert len(small_graphs) == 1
    assert not small_graphs[0].total_bytes()  # what the failed recording took is free again


def test_a_prediction_without_memory_for_a_graph_runs_launch_by_launch(small_graphs):
    model, x = network(), xn.to_device(IMAGES, "cuda")
    expected = xn.to_numpy(network().predict(x))
    assert np.array_equal(xn.to_numpy(model.predict(x)), expected)
    with pytest.warns(RuntimeWarning, match="prediction runs launch by launch: the device has too little memory"):
        second = model.predict(x)
    for found in (second, model.predict(x)):
        np.testing.assert_array_equal(xn.to_numpy(found), expected)
    assert not small_graphs[-1].total_bytes()


def test_graphs_give_their_memory_back():
    run, x = trainer(network()), xn.to_device(IMAGES, "cuda")
    used = []
    for _ in range(4):
        run.fit((IMAGES, LABELS), epochs=1, batch_size=8, verbose=False)
        model = network()
        for _ in range(3):
            model.predict(x)
        del model
        used.append(bytes_in_use())
    assert used[1] == used[2] == used[3]


@pytest.mark.parametrize("step", [1, 2, 3, 5])  # as usual, recorded, replayed, in the second epoch
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_a_callback_leaves_a_usable_model(step, error):
    import cupy

    class Fail(xn.Callback):
        def on_step_end(self, trainer):
            if trainer.iteration == step:
                raise error("from a callback")

    expected = fitted(capture=False)
    run = trainer(network(), callbacks=[Fail()])
    before = cupy.cuda.get_current_stream()
    with pytest.raises(error, match="from a callback"):
        run.fit((IMAGES, LABELS), epochs=3, batch_size=16, verbose=False)
    assert cupy.cuda.get_current_stream() == before
    assert all(module.device_counter is None for module in run.model.modules())
    assert run.optimizer.clock is None
    assert run.optimizer.iterations == step
    # It goes on where it was left, with the bits of a run that was not interrupted.
    run.callbacks.clear()
    run.batch = step % 3
    run.epoch = step // 3
    run.fit((IMAGES, LABELS), epochs=3 - run.epoch, batch_size=16, verbose=False)
    assert bits(run.model) == bits(expected.model)


@pytest.mark.parametrize("when", ["first", "recorded"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_within_a_step_leaves_a_usable_model(when, error):
    """Also where the stream is being recorded: the recording has to be ended."""
    import cupy

    def fail(number):
        if number == (1 if when == "first" else 2):
            raise error("from a layer")

    call = on_call(fail)

    class Fail(xn.Module):
        def forward(self, x):
            if self.training:
                call("forward")
            return x

    model = xn.Sequential([xn.Dense(8, "tanh"), Fail(), xn.Dense(4)], input_shape=(192,), device="cuda", seed=1)
    run, x = trainer(model), IMAGES.reshape(40, -1)

    def fit():
        run.fit((x[:32], LABELS[:32]), epochs=1, batch_size=8, verbose=False)

    if when == "recorded" and error is ValueError:
        with pytest.warns(RuntimeWarning, match=r"layer '1' \(Fail\) did what is not possible while recording"):
            fit()
    else:
        with pytest.raises(error, match="from a layer"):
            fit()
    assert not cupy.cuda.get_current_stream().is_capturing()
    run.batch = 0
    fit()
    assert np.isfinite(run.history["loss"]).all()
    np.testing.assert_allclose(model.predict(x), xn.to_numpy(model.predict(xn.to_device(x, "cuda"))), rtol=1e-6)


CTRL_C = """
import os, signal, sys
import numpy as np
import xpnet as xn
from tests.on_cuda.networks import IMAGES, LABELS, bits, network, trainer

class Press(xn.Callback):
    def on_step_end(self, trainer):
        if trainer.iteration == 5:
            os.kill(os.getpid(), signal.SIGINT)

run = trainer(network(), callbacks=[Press()])
history = run.fit((IMAGES, LABELS), epochs=4, batch_size=16, verbose=False)
assert history.interrupted and run.iteration == 5, run.iteration
run.fit((IMAGES, LABELS), epochs=3, batch_size=16, verbose=False)
whole = trainer(network())
whole.fit((IMAGES, LABELS), epochs=4, batch_size=16, verbose=False)
assert bits(run.model) == bits(whole.model)
assert run.history["loss"] == whole.history["loss"], (run.history, whole.history)
print("the same bits")
"""


def test_ctrl_c_in_a_captured_fit():
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, "-c", CTRL_C], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same bits\n"
