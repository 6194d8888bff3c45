"""Steps with 16-bit floats that are recorded and replayed do what steps that run launch by launch do, bit for bit.

Above all the updates that are left out: whether the gradients overflowed is never looked at by the host.
"""

from __future__ import annotations

from typing import Any

import pytest

import xpnet as xn
from tests.graphs import captured_steps, logged
from tests.training.test_captured import X, Y, epochs, halving, on_device_of, same_arrays
from xpnet.ops.registry import Op
from xpnet.training.callbacks import ClipGradients

pytestmark = pytest.mark.cuda
HALVES = [pytest.param("float16"), pytest.param("bfloat16", marks=pytest.mark.bfloat16)]


def trainer(name, optimizer, *callbacks, constraint=None):
    layers = [xn.Dense(8, "relu", kernel_constraint=constraint), xn.BatchNorm(), xn.Dropout(0.5), xn.Dense(3)]
    model = xn.Sequential(layers, input_shape=(6,), seed=2, dtype=name, device="cuda")
    # So large that the first updates overflow and are left out, whatever the batch.
    scale = xn.optim.LossScale(2.0**17, growth_interval=2) if name == "float16" else None
    return xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=optimizer, metrics=["accuracy"], callbacks=callbacks, loss_scale=scale
    )


def both(make, looked=True):
    """The graphs and the captured run; `looked`: whether the optimizer's state is asked for before the run ends."""
    plain, run = make(), make()
    first = epochs(plain, plain._train)
    steps, graphs = captured_steps(run)
    with steps:
        second = epochs(run, steps.step)
        saved = run.optimizer.state() if looked else None
    saved = saved or run.optimizer.state()
    assert plain.iteration == run.iteration == 9
    assert first == second
    assert (plain.optimizer.iterations, plain.optimizer.skipped) == (run.optimizer.iterations, run.optimizer.skipped)
    assert saved["iterations"] == plain.optimizer.iterations
    same_arrays(run.model.state(), plain.model.state())
    same_arrays(run.optimizer.slots, plain.optimizer.slots)
    if plain.optimizer.loss_scale is not None:
        assert plain.optimizer.loss_scale.state() == run.optimizer.loss_scale.state() == saved["loss_scale"]
    return graphs, run


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: xn.optim.SGD(0.1),
        lambda: xn.optim.SGD(halving, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda: xn.optim.Adam(halving),
        lambda: xn.optim.AdamW(0.01, weight_decay=0.1),
    ],
)
def test_replayed_steps_equal_plain_ones(optimizer, name):
    graphs, run = both(lambda: trainer(name, optimizer()))
    assert (graphs.recorded, graphs.replayed) == (2, 5 + 2)
    if name == "float16":
        assert 0 < run.optimizer.skipped < 9  # some were left out, some were not
        assert run.optimizer.iterations + run.optimizer.skipped == 9


def test_a_constraint_leaves_the_weights_of_a_skipped_step_alone():
    def made():
        return trainer("float16", xn.optim.SGD(0.5), constraint=xn.regularizers.MaxNorm(0.5))

    graphs, run = both(made, looked=False)
    assert graphs.recorded == 2
    assert 0 < run.optimizer.skipped < 9


def test_gradients_are_clipped_between_backward_and_update():
    graphs, run = both(lambda: trainer("float16", xn.optim.SGD(0.5), ClipGradients(norm=0.1)))
    assert graphs.recorded == 2
    assert run.optimizer.skipped > 0


def test_an_optimizer_that_keeps_its_step_on_the_host_runs_outside():
    graphs, run = both(lambda: trainer("float16", xn.optim.Nadam(0.01)))
    assert graphs.recorded == 2
    assert run.optimizer.skipped > 0


@pytest.mark.parametrize("name", HALVES)
def test_a_step_is_launches_of_kernels_alone(name, monkeypatch):
    """No operation of a usual step falls back to array code, and the parameters are rounded in one launch."""

    def seen(self, implementation, xp, inputs):
        for found in fallbacks(self, implementation, xp, inputs):
            if not implementation.takes_half and found is not self.reference:
                fallen.append((self.__name__, implementation))
            yield found

    fallen: list[Any] = []
    fallbacks = Op._fallbacks
    monkeypatch.setattr(Op, "_fallbacks", seen)
    run = trainer(name, xn.optim.Adam(0.01))
    x, y = on_device_of(run, X, Y)
    run.step(x, y)  # makes the copies
    with logged() as runtime:
        run.step(x, y)
    launches = [launch.partition("<")[0] for launch in runtime.launches]
    assert fallen == []
    # The parameters, the input, the logits and their gradient.
    assert launches.count("convert") == 4
    assert [launches.count(rule) for rule in ("unscale", "adam", "adjust_scale")] == (
        [1, 1, 1] if name == "float16" else [0, 1, 0]
    )
    kinds = [(p.dtype, p.c_dtype) for p in runtime.products]
    # Forward twice, the gradients of two kernels straight into float32, and one of an activation.
    assert sorted(kinds) == sorted([(name, name)] * 3 + [(name, "float32")] * 2)
