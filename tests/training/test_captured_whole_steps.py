"""Steps that are recorded as CUDA graphs happen wholly or not at all, as those that run launch by launch do."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.training.test_whole_steps import Hooks, Layer, Trouble

X = np.random.default_rng(0).normal(size=(38, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 1)


class OwnUpdate(xn.optim.SGD):
    """A user's optimizer that runs outside of the recording."""

    capturable = False
    trouble = Trouble()

    def update(self, w, g, learning_rate):
        super().update(w, g, learning_rate)
        self.trouble("optimizer")


def trainer(trouble: Trouble, hooks: bool, accumulate: int = 1) -> xn.Trainer:
    layers = [xn.Dense(8, "relu"), xn.BatchNorm(), xn.Dropout(0.5), Layer(trouble), xn.Dense(3)]
    model = xn.Sequential(layers, input_shape=(6,), seed=2, device="cuda")

    def rate(step):
        trouble("schedule")
        return 0.1 * 0.9**step

    def metric(prediction, target):
        trouble("metric")
        return xn.metrics.accuracy(prediction, target)

    optimizer: Any = xn.optim.Adam(rate)
    if trouble.place == "optimizer" or accumulate == 7:
        OwnUpdate.trouble = trouble
        optimizer, accumulate = OwnUpdate(rate, momentum=0.9), 1
    return xn.Trainer(
        model,
        loss="softmax_cross_entropy",
        optimizer=optimizer,
        metrics=[metric],
        callbacks=[Hooks(trouble)] if hooks else [],
        accumulate=accumulate,
    )


def bits(run: xn.Trainer) -> dict[str, Any]:
    found: dict[str, Any] = {name: xn.to_numpy(a).tobytes() for name, a in run.model.state().items()}
    found |= {f"slot {name}": xn.to_numpy(a).tobytes() for name, a in run.optimizer.slots.items()}
    found["history"] = dict(run.history)
    found["gradients"] = [name for name, p in run.model.parameters().items() if p.grad is not None]
    found["counters"] = run.model.rng_counters(), run.epoch, run.batch, run.iteration, run.optimizer.iterations
    return found


# Five batches an epoch, the last one smaller: the first step of a shape runs, the second is recorded, later ones are replayed.
# The layer, the loss and the metric of a user run in the first two only.
@pytest.mark.cuda
@pytest.mark.parametrize(
    ("place", "number", "hooks"),
    [
        ("forward", 1, False), ("forward", 3, False), ("metric", 1, False), ("metric", 3, True), ("backward", 1, False),
        ("backward", 1, True), ("schedule", 1, False), ("schedule", 4, False), ("schedule", 4, True),
        ("on_before_optimizer_step", 1, True), ("on_before_optimizer_step", 2, True), ("on_before_optimizer_step", 4, True),
        ("on_step_end", 4, True), ("optimizer", 1, False), ("optimizer", 4, False),
    ],
)  # fmt: skip
def test_a_recorded_run_goes_on_as_if_undisturbed(place, number, hooks):
    def fit(trouble, alike=""):
        run = trainer(trouble, hooks, accumulate=7 if alike == "optimizer" else 1)
        data = xn.to_device(X, "cuda"), xn.to_device(Y, "cuda")
        if trouble.place:
            with pytest.raises(RuntimeError, match="trouble"):
                run.fit(data, epochs=3, batch_size=8, verbose=False)
        run.fit(data, epochs=3 - run.epoch, batch_size=8, verbose=False)
        return bits(run)

    assert fit(Trouble(place, number)) == fit(Trouble(), place)


@pytest.mark.cuda
@pytest.mark.parametrize("hooks", [False, True])
def test_what_cannot_be_recorded_leaves_no_gradients_behind(hooks):
    """A metric that reads from the device is refused while the step is recorded, after the backward pass."""

    def fit(reads: bool) -> dict[str, Any]:
        def metric(prediction: Any, target: Any) -> Any:
            hits = xn.metrics.accuracy(prediction, target)
            return float(hits) if reads else hits

        run = trainer(Trouble(), hooks)
        run.metrics = {"metric": metric}
        run.fit((xn.to_device(X, "cuda"), xn.to_device(Y, "cuda")), epochs=2, batch_size=8, verbose=False)
        return bits(run)

    with pytest.warns(RuntimeWarning, match="cannot be recorded"):
        found = fit(True)
    assert found == fit(False)


@pytest.mark.cuda
def test_a_dropped_model_is_freed_at_once():
    """Without the garbage collector, after recorded training and recorded predictions."""
    gc.collect()
    gc.disable()
    try:
        run = trainer(Trouble(), False)
        x, y = xn.to_device(X, "cuda"), xn.to_device(Y, "cuda")
        run.fit((x, y), epochs=2, batch_size=8, verbose=False)
        for _ in range(3):
            run.model.predict(x[:8])
        model = run.model
        held: list[Any] = [*model.modules(), *model.parameters().values(), model.flat_parameters]
        parts = [weakref.ref(part) for part in held]
        del model, held
        del run
        assert [part() for part in parts if part() is not None] == []
    finally:
        gc.enable()
