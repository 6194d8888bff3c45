"""Model files, weights and checkpoints that version 0.1.0 wrote before its modules moved are read unchanged.

`fixtures/` was written by that tree on a CPU: NAME.xpnet and NAME.safetensors after training, NAME.npz with inputs x and the
outputs y of that model; run.ckpt from the middle of an epoch, with run.npz: the data, and the history and weights at its end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from xpnet.training import EarlyStopping, ReduceOnPlateau

FIXTURES = Path(__file__).parent / "fixtures"
MODELS = ("convnet", "half", "recurrent", "shared")


def test_all_fixtures_are_looked_at():
    assert sorted(p.stem for p in FIXTURES.glob("*.xpnet")) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_file_predicts_as_it_did(name):
    with np.load(FIXTURES / f"{name}.npz") as kept:
        x, y = kept["x"], kept["y"]
    # Other processors sum in another order: float32 to its rounding, float16 to one of its last places.
    tolerance = 2e-3 if name == "half" else 1e-5
    model = xn.load(FIXTURES / f"{name}.xpnet")
    np.testing.assert_allclose(model.predict(x).astype("float64"), y.astype("float64"), rtol=tolerance, atol=tolerance)
    before = model.state()
    model.load_weights(FIXTURES / f"{name}.safetensors")
    for path, array in model.state().items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)


def test_a_checkpoint_goes_on_as_it_did():
    with np.load(FIXTURES / "run.npz") as kept:
        data = dict(kept)
    layers = [xn.Conv2D(3, 3, activation="relu"), xn.BatchNorm(), xn.Dropout(0.3), xn.Flatten(), xn.Dense(3)]
    trainer = xn.Trainer(
        xn.Sequential(layers, input_shape=(8, 8, 2), seed=9),
        loss="softmax_cross_entropy",
        optimizer=xn.optim.Adam(xn.optim.schedules.Cosine(0.01, 20)),
        metrics=["accuracy"],
        callbacks=[ReduceOnPlateau("loss"), EarlyStopping("val_loss")],
        seed=6,
        accumulate=2,
    )
    history = trainer.fit(
        (data["x"], data["y"]), validation=(data["xv"], data["yv"]), epochs=4, batch_size=6, verbose=False,
        resume=FIXTURES / "run.ckpt",
    )  # fmt: skip
    assert trainer.iteration == 16
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"):
        np.testing.assert_allclose(history[name], data[f"history.{name}"], rtol=1e-4, err_msg=name)
    for path, array in trainer.model.state().items():
        np.testing.assert_allclose(xn.to_numpy(array), data[f"state.{path}"], rtol=1e-3, atol=1e-5, err_msg=path)
