"""Runs that are killed, and resumed on the same or on another device."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.networks import IMAGES, LABELS, agree, bits, network
from xpnet.data import Batches
from xpnet.data.augment import Compose, Crop, Flip
from xpnet.training import Checkpoint, ExponentialMovingAverage

pytestmark = pytest.mark.cuda
STEPS = 12

CHILD = """
import sys
from tests.on_cuda.test_resume import run
run(sys.argv[1], sys.argv[2], aloud=True, resume="auto")
"""


class Announce(xn.Callback):
    """Print the number of every step."""

    def __init__(self, aloud):
        self.aloud = aloud

    def on_step_end(self, trainer):
        if self.aloud:
            print(trainer.iteration, flush=True)


def run(folder, dtype="float32", device="cuda", epochs=4, aloud=False, resume=None):
    callbacks = [ExponentialMovingAverage(0.9), Announce(aloud)]
    if folder is not None:
        callbacks.append(Checkpoint(folder, every_steps=1))
    optimizer = xn.optim.SGD(xn.optim.schedules.Cosine(0.02, STEPS), 0.9)
    trainer = xn.Trainer(network(device, dtype), loss="softmax_cross_entropy", optimizer=optimizer, callbacks=callbacks, seed=2)
    batches = Batches((IMAGES, LABELS), 16, seed=2, augment=Compose(Crop(2), Flip()), device=device)
    trainer.fit(batches, validation=(IMAGES, LABELS), epochs=epochs, verbose=False, resume=resume)
    return trainer


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path, dtype):
    whole = run(None, dtype)
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    for last in ("4", "8"):
        command, environment = [sys.executable, "-c", CHILD, str(tmp_path), dtype], {**os.environ, "PYTHONPATH": path}
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == last:
                child.kill()
                break
        _, said = child.communicate()
        assert child.returncode == -9, said
    resumed = run(tmp_path, dtype, resume="auto")
    assert resumed.iteration == STEPS
    assert bits(resumed.model) == bits(whole.model)
    assert resumed.history == whole.history


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_checkpoints_are_read_on_another_device(tmp_path, devices):
    """Two epochs on one device, one on the other, and back."""
    expected = run(None, device="cpu")
    first, second = devices
    for number, device in enumerate((first, second, first)):
        epochs = (2, 3, 4)[number]
        trainer = run(tmp_path, device=device, epochs=epochs, resume="auto")
        assert str(trainer.model.context.device) == device
        assert trainer.history.epochs == epochs
    agree(trainer, expected, 5e-4)
    np.testing.assert_allclose(trainer.history["loss"], expected.history["loss"], rtol=5e-4)
