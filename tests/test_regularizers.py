import numpy as np
import pytest

import xpnet as xn
from xpnet import regularizers
from xpnet.inspect import check_gradients

W = np.array([[0.5, -2.0, 0.0], [1.5, 3.0, -1.0]])


def gradient(penalty):
    w = xn.Tensor(W, requires_grad=True)
    penalty(w).backward()
    return w.grad


def test_penalties_and_their_gradients():
    np.testing.assert_allclose(regularizers.L2(0.3)(W), 0.15 * (W**2).sum())
    np.testing.assert_allclose(gradient(regularizers.L2(0.3)), 0.3 * W)
    np.testing.assert_allclose(regularizers.L1(0.3)(W), 0.3 * np.abs(W).sum())
    np.testing.assert_allclose(gradient(regularizers.L1(0.3)), 0.3 * np.sign(W))
    np.testing.assert_allclose(gradient(regularizers.ElasticNet(0.1, 0.2)), 0.1 * np.sign(W) + 0.2 * W)
    for penalty in (regularizers.L2(0.3), regularizers.L1(0.3), regularizers.ElasticNet(0.1, 0.2)):
        check_gradients(penalty, [W + 0.1])
        assert penalty(W.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_max_norm_shortens_the_weights_of_single_units(dtype):
    w = W.astype(dtype)
    regularizers.MaxNorm(2.0).project(w)
    lengths = np.sqrt((W**2).sum(axis=0))
    np.testing.assert_allclose(np.sqrt((w**2).sum(axis=0)), np.minimum(lengths, 2.0), rtol=1e-6)
    np.testing.assert_allclose(w / np.sqrt((w**2).sum(axis=0)), W / lengths, rtol=1e-6)
    assert w.dtype == dtype
    kernel = np.random.default_rng(0).standard_normal((3, 3, 2, 4))
    regularizers.MaxNorm(1.0).project(kernel)
    np.testing.assert_allclose((kernel**2).sum(axis=(0, 1, 2)), 1.0)
    zero = np.zeros((3, 2))
    regularizers.MaxNorm(1.0).project(zero)
    assert not zero.any()


LAYERS = [
    (lambda **k: xn.Dense(3, **k), (4,)),
    (lambda **k: xn.Conv1D(3, 2, **k), (5, 2)),
    (lambda **k: xn.Conv2D(3, 2, **k), (5, 5, 2)),
    (lambda **k: xn.Conv2DTranspose(3, 2, **k), (5, 5, 2)),
    (lambda **k: xn.RNN(3, **k), (5, 2)),
    (lambda **k: xn.LSTM(3, **k), (5, 2)),
    (lambda **k: xn.GRU(3, **k), (5, 2)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_biases_are_penalised_only_when_asked(make, shape):
    def penalised(**keywords):
        """The layer, and what a training step adds to the loss."""
        model = xn.Sequential([make(bias_initializer=0.5, **keywords)], input_shape=shape, dtype="float64")
        trainer = xn.Trainer(model, loss="mse", optimizer=xn.optim.SGD(0.0))
        x = np.random.default_rng(0).standard_normal((3, *shape))
        y = np.zeros((3, *model.output_shape(shape)))
        return model[0], float(trainer.step(x, y)) - trainer.evaluate((x, y))["loss"]

    layer, added = penalised()
    assert added == 0
    layer, added = penalised(kernel_regularizer=regularizers.L2(0.2))
    np.testing.assert_allclose(added, 0.1 * (layer.kernel.array**2).sum())
    layer, added = penalised(bias_regularizer=regularizers.L2(0.2))
    biases = [p.array for name, p in layer.parameters().items() if "bias" in name]
    np.testing.assert_allclose(added, 0.1 * sum((b**2).sum() for b in biases))


@pytest.mark.parametrize("optimizer", [xn.optim.SGD, xn.optim.AdamW])
def test_weight_decay_leaves_biases_scales_and_offsets_alone(optimizer):
    layers = [
        xn.Conv2D(3, 2, bias_initializer=0.5),
        xn.BatchNorm(),
        xn.Flatten(),
        xn.LayerNorm(),
        xn.Dense(2, bias_initializer=1.0),
    ]
    model = xn.Sequential(layers, input_shape=(3, 3, 1))
    before = {name: xn.to_numpy(p.array).copy() for name, p in model.parameters().items()}
    model.zero_grad()
    optimizer(0.1, weight_decay=0.5).step(model)  # no gradients at all: only decay
    for name, p in model.parameters().items():
        if name.endswith("kernel"):
            np.testing.assert_allclose(xn.to_numpy(p.array), before[name] * 0.95, rtol=1e-6)
        else:
            np.testing.assert_array_equal(p.array, before[name])


def test_an_l2_penalty_trains_like_weight_decay():
    x = np.random.default_rng(0).standard_normal((20, 4))
    y = x[:, :2] * 2

    def trained(regularizer, decay):
        model = xn.Sequential([xn.Dense(2, kernel_regularizer=regularizer)], input_shape=(4,), dtype="float64")
        trainer = xn.Trainer(model, loss="mse", optimizer=xn.optim.SGD(0.1, 0.9, weight_decay=decay))
        for _ in range(5):
            trainer.step(x, y)
        return model[0].kernel.array

    np.testing.assert_allclose(trained(regularizers.L2(0.3), 0.0), trained(None, 0.3), rtol=1e-12)


def test_an_assigned_gradient_is_the_one_that_counts():
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    optimizer = xn.optim.SGD(1.0)
    x = np.ones((4, 3), np.float32)
    for _ in range(2):  # in the second round the gradients have a place in the flat array already
        xn.losses.mean_squared_error(model(x), np.zeros((4, 2), np.float32)).backward()
        before = model[0].kernel.array.copy()
        for p in model.parameters().values():
            p.grad = np.full(p.shape, 0.25, np.float32)
        optimizer.step(model)
        np.testing.assert_allclose(model[0].kernel.array, before - 0.25, rtol=1e-6)
