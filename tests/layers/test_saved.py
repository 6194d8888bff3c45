"""Models of these layers come back from a file as they were."""

import numpy as np
import pytest

import xpnet as xn

IMAGE = np.random.default_rng(0).standard_normal((2, 6, 6, 4)).astype(np.float32)
SYMBOLS = np.array([[1, 2, 3, 0], [4, 5, 0, 0]])


@pytest.mark.parametrize(
    ("layers", "x"),
    [
        (
            lambda: [
                xn.Embedding(9, 5, padding=0),
                xn.Conv1D(6, 2, padding="causal", activation="relu"),
                xn.Bidirectional(xn.LSTM(3, return_sequences=True, forget_bias=0.5), "sum"),
                xn.GRU(4, kernel_initializer=xn.initializers.He()),
            ],
            SYMBOLS,
        ),
        (
            lambda: [
                xn.Conv2DTranspose(6, 3, stride=2, output_padding=(1, 0), bias_regularizer=xn.regularizers.L2(0.1)),
                xn.BatchNorm(0.8),
                xn.GroupNorm(3),
                xn.InstanceNorm(use_offset=False),
                xn.LocalResponseNorm(3),
                xn.LayerNorm(2),
                xn.Flatten(),
                xn.Dense(2),
            ],
            IMAGE,
        ),
    ],
)
def test_saved_and_loaded(layers, x, tmp_path):
    model = xn.Sequential(layers(), input_shape=x.shape[1:], seed=3)
    (model(x) * 1.0).sum().backward()  # the running statistics move
    xn.optim.SGD(0.01).step(model)
    model.save(tmp_path / "model.xpnet")
    again = xn.load(tmp_path / "model.xpnet")
    assert repr(again) == repr(model)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert all(np.array_equal(xn.to_numpy(a), xn.to_numpy(again.state()[name])) for name, a in model.state().items())
