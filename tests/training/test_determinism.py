"""Same seed, machine and number of threads: the same bits, without deterministic mode."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import Batches, augment
from xpnet.runtime import threads

ROOT = Path(__file__).parents[2]

CONV = [
    lambda: xn.Conv2D(16, 3, activation="relu", padding="same"),
    lambda: xn.Conv2D(64, 3, padding="same"),
    lambda: xn.BatchNorm(),
    lambda: xn.ReLU(),
    lambda: xn.MaxPool2D(2),
    lambda: xn.Conv2D(64, 5, stride=2, padding="same", activation="relu"),
    lambda: xn.AveragePool2D(2),
    lambda: xn.Conv2D(64, 3, groups=64, padding="same"),
    lambda: xn.GroupNorm(8),
    lambda: xn.GlobalAveragePool2D(),
    lambda: xn.Dropout(0.5),
    lambda: xn.Dense(10),
]
NETS: dict[str, tuple[list[Any], tuple[int, ...]]] = {
    "convolutions": (CONV, (16, 16, 3)),
    "recurrent": ([lambda: xn.LSTM(16), lambda: xn.LayerNorm(), lambda: xn.Dense(10)], (12, 8)),
    "dense": ([lambda: xn.Dense(64, "relu"), lambda: xn.Dense(64, "tanh"), lambda: xn.Dense(10)], (32,)),
}

pytestmark = pytest.mark.usefixtures("force_threads")


def train(name: str, workers: int = 0) -> str:
    """Return a fingerprint of the weights and losses after some steps."""
    layers, shape = NETS[name]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64, *shape)).astype(np.float32)
    y = rng.integers(0, 10, 64)
    model = xn.Sequential([make() for make in layers], input_shape=shape, seed=3)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), metrics=["accuracy"])
    change = augment.Compose(augment.Flip(), augment.Shift(2)) if len(shape) == 3 else None
    batches = Batches((x, y), 32, seed=4, augment=change, workers=workers)
    history = trainer.fit(batches, epochs=2, verbose=False)
    content = model.flat_parameters.values.tobytes() + np.array(history["loss"]).tobytes()
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("count", [1, 2])
def test_two_runs_are_the_same(name, count):
    before = threads.get_num_threads()
    threads.set_num_threads(count)
    try:
        found = {train(name) for _ in range(3)}
    finally:
        threads.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("name", NETS)
def test_which_thread_is_first_does_not_matter(name, monkeypatch):
    """The chunks run in a different order each time: no sum may depend on it."""
    train(name)  # imports the modules patched below
    rng = random.Random(0)
    calls = []

    def shuffled(body, count, *_):
        calls.append(count)
        order = list(range(count))
        rng.shuffle(order)
        for i in order:
            body(i)

    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("xpnet.accel.numpy.") and hasattr(module, "parallel"):
            monkeypatch.setattr(module, "parallel", shuffled)
    # The bits of a product depend on the threads of BLAS, so these runs are compared among themselves.
    with threads.one_blas_thread():
        found = {train(name) for _ in range(3)}
    assert len(found) == 1
    if name == "convolutions":
        assert max(calls) > 1, "no work was split: the test shows nothing"


def test_worker_threads_change_nothing():
    assert train("convolutions") == train("convolutions", workers=3)


def test_two_processes_are_the_same():
    """Also with another hash seed, and so another order of sets."""
    paths = [str(ROOT), str(Path(__file__).parent)]
    code = f"import sys; sys.path[:0] = {paths!r}; import test_determinism as t; print(t.train('convolutions'))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert len(found.pop()) == 64


@pytest.mark.cuda
@pytest.mark.parametrize("name", NETS)
def test_two_runs_on_a_gpu_are_the_same(name):
    def run() -> bytes:
        layers, shape = NETS[name]
        rng = np.random.default_rng(1)
        x = xn.to_device(rng.normal(size=(64, *shape)).astype(np.float32), "cuda")
        y = xn.to_device(rng.integers(0, 10, 64), "cuda")
        model = xn.Sequential([make() for make in layers], input_shape=shape, seed=3, device="cuda")
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01))
        trainer.fit((x, y), epochs=3, batch_size=16, verbose=False)
        return xn.to_numpy(model.flat_parameters.values).tobytes()

    assert run() == run() == run()
