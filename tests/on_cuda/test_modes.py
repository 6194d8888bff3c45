"""Modes of training on a device: recorded steps have the bits of those that are launched, and both agree with the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.networks import BYTES, IMAGES, LABELS, agree, bits, network
from xpnet.data import Batches, ByteImages
from xpnet.data.augment import Compose, Crop, Cutout, Elastic, Flip, Mixup, Rotation, Shift

pytestmark = pytest.mark.cuda


def arrays(device, **settings):
    return Batches((IMAGES, LABELS), 16, seed=4, device=device, **settings)


def byte_images(device, where="cpu", **settings):
    x = ByteImages(BYTES, mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25), device=device if where == "there" else "cpu")
    return Batches((x, LABELS), 16, seed=4, device=device, **settings)


ONE_HOT = np.eye(4, dtype=np.float32)[LABELS]
ON_THE_DEVICE = Compose(Crop(2), Flip(), Cutout(3))
ON_THE_HOST = Compose(Rotation(10), Elastic(4.0, 2.0), Shift(1))

DATA = {
    "arrays": arrays,
    "workers": lambda device: arrays(device, workers=2),
    "workers and transform": lambda device: arrays(device, workers=2, transform=lambda batch: (batch[0] * 2, batch[1])),
    "augmented in the step": lambda device: arrays(device, augment=ON_THE_DEVICE),
    "augmented before the step": lambda device: arrays(device, augment=ON_THE_HOST),
    "mixed up": lambda device: Batches((IMAGES, ONE_HOT), 16, seed=4, device=device, augment=Mixup(0.4)),
    "bytes": byte_images,
    "bytes there": lambda device: byte_images(device, "there"),
    "augmented bytes": lambda device: byte_images(device, augment=ON_THE_DEVICE),
    "augmented bytes there": lambda device: byte_images(device, "there", augment=ON_THE_DEVICE),
}  # fmt: skip


def trained(device, data=arrays, dtype="float32", epochs=4, model=None, callbacks=(), **settings):
    model = network(device, dtype) if model is None else model(device)
    run = xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.02, 0.9), callbacks=list(callbacks), seed=4, **settings
    )
    run.fit(data(device), epochs=epochs, verbose=False)
    return run


def compared(rtol=2e-4, **settings):
    recorded, launched = trained("cuda", **settings), trained("cuda", **settings, capture=False)
    assert bits(recorded.model) == bits(launched.model)
    assert recorded.history == launched.history
    agree(recorded, trained("cpu", **settings), rtol)
    return recorded


@pytest.mark.parametrize("kind", DATA)
def test_data_of_every_kind(kind):
    compared(data=DATA[kind])


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.bfloat16)])
def test_mixed_precision(dtype):
    rtol = 0.02 if dtype == "float16" else 0.1
    recorded, launched = (trained("cuda", dtype=dtype, capture=capture) for capture in (True, False))
    assert bits(recorded.model) == bits(launched.model)
    np.testing.assert_allclose(recorded.history["loss"], trained("cpu", dtype=dtype).history["loss"], rtol=rtol)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_accumulated_gradients(dtype):
    recorded = trained("cuda", dtype=dtype, accumulate=2)
    agree(recorded, trained("cpu", dtype=dtype, accumulate=2), 2e-4 if dtype == "float32" else 0.1)


def test_recomputed_activations_have_the_same_bits():
    plain = compared()
    assert bits(compared(recompute=True).model) == bits(plain.model)


def test_averaged_weights():
    def averaged(**settings):
        return trained(callbacks=[xn.training.ExponentialMovingAverage(0.9)], **settings)

    recorded, launched = averaged(device="cuda"), averaged(device="cuda", capture=False)
    assert bits(recorded.model) == bits(launched.model)
    agree(recorded, averaged(device="cpu"), 2e-4)


def test_deterministic_mode():
    with xn.deterministic():
        first = compared()
        second = trained("cuda")
    assert bits(first.model) == bits(second.model)
    assert first.history == second.history


RECURRENT = {
    "LSTM": lambda: xn.LSTM(6),
    "GRU": lambda: xn.GRU(6),
    "RNN": lambda: xn.RNN(6),
    "Bidirectional": lambda: xn.Bidirectional(xn.GRU(4)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_networks(name):
    def model(device):
        layers = [xn.Reshape((24, 8)), RECURRENT[name](), xn.Dense(4)]
        return xn.Sequential(layers, input_shape=(8, 8, 3), device=device, seed=2)

    run = trained("cuda", model=model, capture=False)
    agree(run, trained("cpu", model=model), 2e-4)


@pytest.mark.parametrize("kind", ["plain", "augmented"])
def test_curves_of_200_steps_agree_with_the_cpu(kind):
    class Losses(xn.Callback):
        def __init__(self):
            self.values = []

        def on_step_end(self, trainer):
            self.values.append(float(trainer.last_loss))

    data = arrays if kind == "plain" else (lambda device: arrays(device, augment=ON_THE_DEVICE))
    curves = []
    for device in ("cpu", "cuda"):
        losses = Losses()
        with xn.deterministic():
            trained(device, data, epochs=67, callbacks=[losses])
        curves.append(losses.values[:200])
    np.testing.assert_allclose(curves[1][:20], curves[0][:20], rtol=1e-4)
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.05, atol=0.01)
    assert np.mean(curves[1][-20:]) < np.mean(curves[1][:20])


@pytest.mark.parametrize("epoch", [0, 3])
def test_batches_and_masks_have_the_bits_of_the_cpu(epoch):
    for kind in ("arrays", "augmented in the step", "augmented bytes there"):
        pairs = zip(DATA[kind]("cpu").epoch(epoch), DATA[kind]("cuda").epoch(epoch), strict=True)
        for (x, y), (device_x, device_y) in pairs:
            np.testing.assert_array_equal(xn.to_numpy(device_x), x)
            np.testing.assert_array_equal(xn.to_numpy(device_y), y)
    masks = []
    for device in ("cpu", "cuda"):
        layer = xn.Sequential([xn.Dropout(0.5)], device=device, seed=7)
        layer.train()
        masks.append(np.stack([xn.to_numpy(layer(xn.to_device(np.ones((8, 33), np.float32), device))) for _ in range(3)]))
    np.testing.assert_array_equal(masks[0], masks[1])
    assert bits(network("cpu")) == bits(network("cuda"))


def test_moving_a_model_in_the_middle_of_training():
    expected = trained("cpu", epochs=6)
    run = trained("cuda", epochs=2)
    for where in ("cpu", "cuda"):
        run.model.to(where)
        run.fit(arrays(where), epochs=2, verbose=False)
    agree(run, expected, 5e-4)


@pytest.mark.parametrize("batch_size", [256, 16, 7])
def test_predictions_of_several_outputs_and_inputs(batch_size):
    class Two(xn.Module):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.first, self.second = xn.Dense(3), xn.Dense(2)

        def forward(self, x, z):
            return self.first(x), self.second(z) + self.first(x)[:, :2]

    x, z = IMAGES.reshape(40, -1), IMAGES[:, 0].reshape(40, -1)
    expected = Two(seed=1).predict((x, z), batch_size)
    model = Two(seed=1, device="cuda")
    for where in ("cpu", "cuda"):
        for _ in range(3):
            found = model.predict((xn.to_device(x, where), xn.to_device(z, where)), batch_size)
            assert len(found) == 2
            for part, right in zip(found, expected):
                assert str(xn.backend.device_of(part)) == where
                np.testing.assert_allclose(xn.to_numpy(part), right, rtol=1e-4, atol=1e-5)


def test_copies_and_files_keep_every_bit(tmp_path):
    model = trained("cuda").model
    expected = bits(model)
    assert bits(copy.deepcopy(model)) == expected
    model.save(tmp_path / "model.xpnet")
    model.save_weights(tmp_path / "weights.safetensors")
    for where in ("cpu", "cuda"):
        assert bits(xn.load(tmp_path / "model.xpnet", where)) == expected
        other = network(where, seed=8)
        other.load_weights(tmp_path / "weights.safetensors")
        assert bits(other) == expected
        assert bits(copy.deepcopy(other).to("cuda").to("cpu").to("cuda")) == expected
    trained_copy = copy.deepcopy(model)
    run = xn.Trainer(trained_copy, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.02))
    run.fit(arrays("cuda"), epochs=1, verbose=False)
    assert bits(model) == expected != bits(trained_copy)


def test_what_inspection_says(tmp_path):
    run, x, y = trained("cuda"), xn.to_device(IMAGES, "cuda"), xn.to_device(LABELS, "cuda")
    before = bits(run.model)
    profile = xn.inspect.profile(run.model, x, y, steps=2, warmup=1)
    assert [layer.kind for layer in profile.layers][:2] == ["Conv2D", "BatchNorm"]
    assert all(layer.forward >= 0 and layer.backward >= 0 for layer in profile.layers)
    assert "on cuda:" in str(profile)
    profile.save_trace(tmp_path / "step.json")
    assert "at the peak of a step on cuda" in str(run.model.summary(batch_size=16, show=False))
    assert not xn.inspect.diagnose(network(), x, y)
    assert bits(run.model) == before
    with xn.inspect.Timeline() as line:
        run.fit(arrays("cuda"), epochs=2, verbose=False)
    assert len(line.lane("computation")) == 6
    assert len(line.lane("copies")) == 6
    assert all(span.end >= span.start for span in line.spans)
    line.save(tmp_path / "timeline.json")


@pytest.mark.parametrize("optimizer", [lambda: xn.optim.SGD(0.1), lambda: xn.optim.Adam(0.01), xn.optim.Rprop])
def test_a_model_that_learns_the_shape_of_its_input_from_the_first_batch(optimizer):
    def run(device, **settings):
        model = xn.Sequential([xn.Flatten(), xn.Dense(8, "tanh"), xn.Dropout(0.3), xn.Dense(4)], device=device, seed=1)
        found = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer(), **settings)
        found.fit(arrays(device), epochs=3, verbose=False)
        return found

    recorded, launched = run("cuda"), run("cuda", capture=False)
    assert bits(recorded.model) == bits(launched.model)
    np.testing.assert_allclose(recorded.history["loss"], run("cpu").history["loss"], rtol=1e-3)
