"""The scale of a float16 model's loss, and the updates that it makes a run leave out."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from tests.test_mixed import HALVES, X, Y, network
from xpnet.training.callbacks import ClipGradients


class Overflows:
    """A loss that is too large at some steps."""

    def __init__(self, *bad, factor=1e30):
        self.bad, self.factor, self.calls = bad, factor, 0

    def __call__(self, prediction, target):
        self.calls += 1
        loss = xn.losses.softmax_cross_entropy(prediction, target)
        return loss * self.factor if self.calls - 1 in self.bad else loss


OPTIMIZERS = {
    "sgd": lambda: xn.optim.SGD(0.1, 0.9, weight_decay=1e-2),
    "adam": lambda: xn.optim.Adam(0.01),
    "adamw": lambda: xn.optim.AdamW(0.01),
    "amsgrad": lambda: xn.optim.Adam(0.01, amsgrad=True),
    "nadam": lambda: xn.optim.Nadam(0.01),
    "rmsprop": lambda: xn.optim.RMSprop(0.01, momentum=0.5),
}


def state_of(trainer):
    slots = {name: a.copy() for name, a in trainer.optimizer.slots.items()}
    return trainer.model.flat_parameters.values.copy(), slots, trainer.optimizer.iterations


def same(one, other):
    return (
        np.array_equal(one[0], other[0])
        and all(np.array_equal(a, other[1][name]) for name, a in one[1].items())
        and one[2] == other[2]
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("factor", [1e30, np.inf, np.nan])
def test_an_overflow_skips_the_update_and_halves_the_scale(optimizer, factor):
    trainer = xn.Trainer(
        network(),
        loss=Overflows(2, 3, 6, factor=factor),
        optimizer=OPTIMIZERS[optimizer](),
        loss_scale=xn.optim.LossScale(2.0**10, growth_interval=2),
    )
    trainer.step(X, Y)
    scales, skipped = [], []
    for _ in range(1, 8):
        before = state_of(trainer)
        trainer.step(X, Y)
        skipped.append(same(before, state_of(trainer)))
        assert trainer.optimizer.loss_scale is not None
        scales.append(np.log2(trainer.optimizer.loss_scale.value))
    assert skipped == [False, True, True, False, False, True, False]
    assert scales == [11, 10, 9, 9, 10, 9, 9]
    assert (trainer.optimizer.iterations, trainer.optimizer.skipped) == (5, 3)
    assert np.isfinite(trainer.model.flat_parameters.values).all()


def test_skipped_updates_leave_no_trace():
    """A run with two batches that overflow ends with the weights of a run without them."""
    ends = []
    for bad in ((), (1, 4)):
        loss = Overflows(*bad)
        model = xn.Sequential([xn.Flatten(), xn.Dense(8, "relu"), xn.Dense(3)], input_shape=(6, 6, 2), dtype="float16")
        trainer = xn.Trainer(model, loss=loss, optimizer=xn.optim.Adam(0.01), loss_scale=xn.optim.LossScale(2.0**8))
        for step in range(8):
            if bad or step not in (1, 4):
                trainer.step(X[5 * step : 5 * step + 5], Y[5 * step : 5 * step + 5])
        ends.append(model.flat_parameters.values)
    np.testing.assert_array_equal(*ends)


def test_the_scale_is_no_part_of_the_result():
    """Powers of two change no digit, as long as nothing is too small or too large."""
    ends = []
    for scale in (2.0**4, 2.0**7):
        trainer = xn.Trainer(
            network(), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), loss_scale=xn.optim.LossScale(scale)
        )
        trainer.fit((X, Y), epochs=2, batch_size=10, verbose=False)
        ends.append(trainer.model.flat_parameters.values)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-4, atol=1e-6)


def test_small_gradients_survive():
    """A gradient of 2**-26 is 0 in float16; with the scale it is not."""
    grown = {}
    for scale in (1.0, 2.0**12):
        model = xn.Sequential([xn.Dense(1), xn.Dense(1)], input_shape=(1,), dtype="float16", seed=1)
        trainer = xn.Trainer(
            model, loss=lambda p, y: p.mean() * 2.0**-26, optimizer=xn.optim.SGD(1.0), loss_scale=xn.optim.LossScale(scale)
        )
        before = model.flat_parameters.values.copy()
        trainer.step(np.ones((1, 1), np.float32), None)  # type: ignore[arg-type]
        grown[scale] = bool(np.any(model.parameters()["0.bias"].array != before[-32:][0]))
    assert grown == {1.0: False, 2.0**12: True}


def test_the_scale_has_a_smallest_value():
    scale = xn.optim.LossScale(4.0, smallest=2.0)
    trainer = xn.Trainer(network(), loss=Overflows(*range(9)), optimizer=xn.optim.SGD(0.1), loss_scale=scale)
    values = []
    for _ in range(3):
        trainer.step(X, Y)
        values.append(scale.value)
    assert values == [2.0, 2.0, 2.0]
    assert repr(scale) == "LossScale(4.0, growth_interval=2000, growth=2.0)"


def test_who_gets_a_scale():
    def scale_of(dtype, **settings):
        optimizer = xn.optim.SGD(0.1)
        xn.Trainer(network(dtype), loss="softmax_cross_entropy", optimizer=optimizer, **settings)
        return optimizer.loss_scale

    assert scale_of("float32") is None
    assert scale_of("float16").value == 2.0**16
    mine = xn.optim.LossScale(8.0)
    assert scale_of("float16", loss_scale=mine) is mine
    for wrong in ({"initial": 0.0}, {"growth_interval": 0}, {"growth": 1.0}, {"smallest": np.inf}):
        with pytest.raises(ValueError, match="LossScale:"):
            xn.optim.LossScale(**wrong)


@pytest.mark.bfloat16
def test_bfloat16_needs_no_scale():
    trainer = xn.Trainer(network("bfloat16"), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    assert trainer.optimizer.loss_scale is None


def test_callbacks_see_the_true_gradients_and_batches_are_added_up():
    seen = []

    class Looks(xn.training.Callback):
        def on_before_optimizer_step(self, trainer):
            seen.append(trainer.model.parameters()["0.kernel"].grad.copy())

    for dtype in ("float32", "float16"):
        trainer = xn.Trainer(
            network(dtype),
            loss="softmax_cross_entropy",
            optimizer=xn.optim.SGD(0.1),
            callbacks=[ClipGradients(norm=0.05), Looks()],
            accumulate=2,
        )
        trainer.optimizer.loss_scale = xn.optim.LossScale(2.0**8) if dtype == "float16" else None
        trainer.fit((X, Y), epochs=1, batch_size=20, verbose=False)
    assert len(seen) == 2
    assert np.linalg.norm(seen[1] - seen[0]) < 0.05 * np.linalg.norm(seen[0])


def test_a_loop_of_ones_own():
    model = network()
    optimizer = xn.optim.SGD(0.1)
    optimizer.loss_scale = scale = xn.optim.LossScale(2.0**8)
    other = xn.Trainer(
        network(), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), loss_scale=xn.optim.LossScale(2.0**8)
    )
    for _ in range(3):
        loss = xn.losses.softmax_cross_entropy(model(X), Y)
        penalty = model[7].kernel_regularizer(model[7].kernel)
        scale.backward(loss + penalty)
        optimizer.step(model)
        other.step(X, Y)
    np.testing.assert_array_equal(model.flat_parameters.values, other.model.flat_parameters.values)


def test_a_schedule_goes_on_over_skipped_updates():
    rates = []

    def schedule(step):
        rates.append(step)
        return 0.1

    trainer = xn.Trainer(network(), loss=Overflows(1), optimizer=xn.optim.SGD(schedule))
    for _ in range(4):
        trainer.step(X, Y)
    assert rates == [0, 1, 2, 3]
    assert trainer.optimizer.iterations == 3


def test_a_loss_that_is_never_finite_ends_the_epoch_with_an_error():
    trainer = xn.Trainer(network(), loss=Overflows(*range(99), factor=np.nan), optimizer=xn.optim.SGD(0.1))
    with pytest.raises(xn.training.NotFiniteError, match="the loss became nan in epoch 1"):
        trainer.fit((X, Y), epochs=1, batch_size=10, verbose=False)


@pytest.mark.parametrize("name", HALVES)
def test_a_resumed_run_ends_with_the_same_bits(name, tmp_path):
    def run(folder, epochs, resume=None, bad=(1, 7), done=0):
        loss = Overflows(*(b - done for b in bad))
        scale = xn.optim.LossScale(2.0**9, growth_interval=3) if name == "float16" else None
        callbacks = [xn.training.Checkpoint(tmp_path / folder)]
        trainer = xn.Trainer(network(name), loss=loss, optimizer=xn.optim.Adam(0.01), callbacks=callbacks, loss_scale=scale)
        if name != "float16":
            loss.bad = ()
        trainer.fit((X, Y), epochs=epochs, batch_size=10, verbose=False, resume=resume)
        return trainer

    whole = run("a", 4)
    run("b", 2)
    resumed = run("b", 4, resume="auto", done=8)
    np.testing.assert_array_equal(whole.model.flat_parameters.values, resumed.model.flat_parameters.values)
    assert whole.history == resumed.history
    assert whole.optimizer.iterations == resumed.optimizer.iterations
    if name == "float16":
        assert whole.optimizer.skipped == resumed.optimizer.skipped == 2
        assert whole.optimizer.loss_scale.state() == resumed.optimizer.loss_scale.state()


def test_a_loss_scale_begins_afresh_with_another_optimizer():
    x, y = np.ones((8, 3), np.float32), np.zeros(8, np.int64)
    scale = xn.optim.LossScale(2.0**10, growth_interval=1)

    def trainer(optimizer):
        model = xn.Sequential([xn.Dense(2)], input_shape=(3,), dtype="float16")
        return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, loss_scale=scale)

    optimizer = xn.optim.SGD(0.1)
    first = trainer(optimizer)
    first.step(x, y)
    first.step(x, y)
    assert scale.value == 2.0**12
    trainer(xn.optim.SGD(0.1))
    assert scale.value == 2.0**10
