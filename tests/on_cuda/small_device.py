"""A GPU that is out of memory: the error says what helps, and nothing is lost but the step. Run by test_other_devices.py."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.networks import bytes_in_use
from xpnet.backend import DeviceMemoryError
from xpnet.data import ByteImages

pytestmark = pytest.mark.cuda
MIB = 1 << 20
RANDOM = np.random.default_rng(2)
X = RANDOM.standard_normal((1536, 16, 16, 3)).astype(np.float32)
Y = RANDOM.integers(0, 4, 1536)
SAID = r"cuda:0 is out of memory\. Asked for: [\d.]+ [KM]iB.*Free: .* of (64|96) MiB; .*What helps: a smaller batch_size"


@pytest.fixture(autouse=True)
def a_small_device(monkeypatch):
    monkeypatch.setenv("XPNET_CONVOLUTION", "im2col")  # measuring takes memory and time
    import cupy

    if cupy.cuda.runtime.memGetInfo()[1] > 96 * MIB:
        pytest.skip("needs a GPU of 96 MiB or less")


def network(units=16):
    layers = [xn.Conv2D(16, 3, padding="same", activation="relu"), xn.BatchNorm(), xn.Flatten(), xn.Dense(units), xn.Dense(4)]
    return xn.Sequential(layers, input_shape=(16, 16, 3), device="cuda", seed=1)


def new_trainer(model, **settings):
    return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), **settings)


def fit(run, count=64, batch_size=16, data=X):
    run.fit((data[:count], Y[:count]), epochs=1, batch_size=batch_size, verbose=False)


@pytest.mark.parametrize("data", ["arrays", "bytes"])
@pytest.mark.parametrize("capture", [True, False])
def test_training_goes_on_with_a_smaller_batch(capture, data):
    values = X if data == "arrays" else ByteImages(RANDOM.integers(0, 256, X.shape, dtype=np.uint8))
    run = new_trainer(network(), capture=capture)
    for _ in range(2):
        fit(run)
    before = bytes_in_use()
    with pytest.raises(DeviceMemoryError, match=SAID):
        run.fit((values, Y), epochs=1, batch_size=1536, verbose=False)
    # The step that failed may have kept a few gradients, no activation of the large batch.
    assert bytes_in_use() <= before + MIB
    for _ in range(3):
        fit(run)
    assert bytes_in_use() <= before + MIB
    assert np.isfinite(run.history["loss"]).all()


def test_no_fit_keeps_memory():
    run = new_trainer(network())
    used = []
    for _ in range(4):
        fit(run)
        used.append(bytes_in_use())
    assert used[1] == used[2] == used[3]


def test_batches_that_do_not_fit():
    x = np.zeros((8, 2 * MIB), np.float32)
    model = xn.Sequential([xn.Dense(2)], input_shape=x.shape[1:], device="cuda")
    run = xn.Trainer(model, loss="mse", optimizer=xn.optim.SGD(0.01))
    before = bytes_in_use()
    with pytest.raises(DeviceMemoryError, match=SAID):
        run.fit((x, np.zeros((8, 2), np.float32)), epochs=1, batch_size=8, verbose=False)
    assert bytes_in_use() <= before + 32 * MIB  # the flat parameters and gradients of 2 x 16 MiB may stay


def test_data_weights_and_state_that_do_not_fit():
    before = bytes_in_use()
    with pytest.raises(DeviceMemoryError, match="to_device: " + SAID):
        xn.to_device(np.zeros(128 * MIB, np.uint8), "cuda")
    with pytest.raises(DeviceMemoryError, match="to_device: " + SAID):
        ByteImages(np.zeros((128, MIB), np.uint8), device="cuda")
    with pytest.raises(DeviceMemoryError, match="to_device: " + SAID):
        xn.Sequential([xn.Dense(16 * 1024)], input_shape=(2048,), device="cuda")(xn.to_device(X[:1, :1, 0, 0], "cuda"))
    model = xn.Sequential([xn.Dense(2048)], input_shape=(2560,), device="cuda", seed=1)  # 20 MiB, and as much for gradients
    with pytest.raises(DeviceMemoryError, match=SAID):
        new_trainer(model).fit((np.zeros((4, 2560), np.float32), Y[:4]), epochs=1, batch_size=4, verbose=False)
    del model
    assert bytes_in_use() <= before + MIB


def test_prediction_goes_on_with_a_smaller_batch():
    model = network()
    others = xn.to_device(np.zeros(24 * MIB, np.uint8), "cuda")
    expected = xn.to_numpy(model.predict(X[:64], 16))
    before = bytes_in_use()
    for where in ("cpu", "cuda"):
        x = xn.to_device(X, where)
        with pytest.raises(DeviceMemoryError, match=SAID):
            model.predict(x, batch_size=1536)
        del x
        assert bytes_in_use() <= before + 4 * MIB
        np.testing.assert_array_equal(xn.to_numpy(model.predict(X[:64], 16)), expected)
    assert others.shape == (24 * MIB,)
