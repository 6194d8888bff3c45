"""A loss that is not finite ends a run on a GPU, too, if later; a run goes on from what was saved before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.three_ways import WAYS, X, Y, alike, fit
from xpnet.data import Batches
from xpnet.training import Checkpoint, LambdaCallback, save_checkpoint

pytestmark = pytest.mark.cuda
BAD = X.copy()
BAD[13] = np.nan


def data(x, y=Y):
    return lambda device: Batches((x, y), 8, shuffle=False, device=device)


SAVING: dict[str, Any] = {
    "steps": {"every_steps": 1},
    "minutes": {"every_minutes": 1e-9},
    "best": {"every_steps": 2, "best": "loss"},
    "epochs": {},
}


@pytest.mark.filterwarnings("ignore:the run was saved within epoch 2, on other data")
@pytest.mark.parametrize("saving", SAVING)
def test_a_run_goes_on_from_the_last_good_checkpoint(saving, tmp_path):
    def program(way):
        folder, x, device = tmp_path / way, X.copy(), WAYS[way][0]

        def spoil(*_):
            x[13] = np.nan  # of the second batch

        def saves():
            return Checkpoint(folder, keep=3, **SAVING[saving])

        with pytest.raises(xn.NotFiniteError, match="the loss became nan in epoch 2"):
            fit(way, data(x), LambdaCallback(epoch_end=spoil), saves())
        files = sorted(path.name for path in folder.glob("*.ckpt"))
        model = xn.Sequential([xn.Flatten(), xn.Dense(8, "tanh"), xn.Dense(3)], input_shape=(6,), device=device, seed=3)
        run = xn.Trainer(
            model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), capture=WAYS[way][1],
            callbacks=[LambdaCallback(), saves()],
        )  # fmt: skip
        history = run.fit(data(X)(device), epochs=3, batch_size=8, verbose=False, resume="auto")
        return files, [round(loss, 3) for loss in history["loss"]]

    files, losses = alike(program)
    assert len(losses) == 3
    assert files[-1] == ("step-0000000006.ckpt" if saving in ("steps", "minutes", "best") else "step-0000000005.ckpt")


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_that_ends_within_its_epoch(stop):
    def program(way):
        cut = LambdaCallback(step_end=lambda trainer: setattr(trainer, "stop", trainer.iteration == stop))
        with pytest.raises(xn.NotFiniteError):
            fit(way, data(BAD), cut)
        return True

    alike(program)


def test_an_interrupted_run_writes_no_checkpoint(tmp_path):
    def program(way):
        def interrupt(trainer):
            if trainer.iteration == 4:
                trainer.stop = trainer.history.interrupted = True

        folder = tmp_path / way
        with pytest.raises(xn.NotFiniteError):
            fit(way, data(BAD), LambdaCallback(step_end=interrupt), Checkpoint(folder))
        return [path.name for path in folder.glob("*.ckpt")]

    assert alike(program) == []


@pytest.mark.parametrize("way", ["captured", "launches"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_the_message_names_the_example(way, where):
    def place(device):
        return Batches((xn.to_device(BAD, device if where == "device" else "cpu"), Y), 8, shuffle=False, device=device)

    with pytest.raises(xn.NotFiniteError, match=r"in epoch 1, within its first 5 batches; .*the first in example 13; take"):
        fit(way, place)
    targets = X[:, :3].copy()
    targets[21, 1] = np.inf
    with pytest.raises(xn.NotFiniteError, match="the first in example 21"):
        fit(way, data(X, targets), loss="mean_squared_error")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """Their loss was still finite: the next one will not be."""

    class Breaks(xn.Callback):
        def on_step_end(self, trainer):
            if trainer.iteration == 7:
                trainer.model.layers[1].bias.array[...] = np.nan

    def program(way):
        folder = tmp_path / way
        with pytest.raises(xn.NotFiniteError, match=r"after epoch 2, batch 2 the parameter '1.bias' is not finite"):
            fit(way, data(X), Breaks(), Checkpoint(folder, every_steps=1))
        return sorted(path.name for path in folder.glob("*.ckpt"))

    assert alike(program)[-1] == "step-0000000006.ckpt"


def test_what_is_frozen_may_be_anything(tmp_path):
    def program(way):
        model = xn.Sequential([xn.Dense(3), xn.Dense(3)], input_shape=(6,), device=WAYS[way][0], seed=3)
        model.layers[0].bias.array[...] = -np.inf  # a mask
        model.layers[0].trainable = False
        run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
        save_checkpoint(run, tmp_path / f"{way}.ckpt")
        return (tmp_path / f"{way}.ckpt").exists()

    assert alike(program)
