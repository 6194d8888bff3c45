"""Planned predictions: what the model itself computes, for as long as it is what was planned."""

import copy
import threading
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from xpnet.compiled.numpy_predict import Plan
from xpnet.layers.execution import executor_of
from xpnet.layers.hooks import wrapped
from xpnet.ops.registry import reference_only

rng = np.random.default_rng(0)


def image(*shape, dtype="float32"):
    return rng.standard_normal(shape).astype(dtype)


def planned(model, x):
    """The plan for x, or None."""
    plan = cast(Any, executor_of(model)).plans.get((x.shape, x.dtype))
    return plan if type(plan) is Plan else None


def direct(model, x):
    """The model's own output."""
    with xn.no_grad(), xn.layers.modes.eval_mode(model):
        y = model(x)
    return y.array if isinstance(y, xn.Tensor) else y


def agree(model, x):
    first, second = model.predict(x), model.predict(x)
    np.testing.assert_array_equal(first, second)
    want = direct(model, x)
    assert first.shape == want.shape
    assert first.dtype == want.dtype
    # Sums of a few hundred products of order 1, in another order.
    np.testing.assert_allclose(first, want, rtol=2e-5, atol=2e-5)


CONVNETS = {
    "convnet": [
        xn.Conv2D(8, 3, activation="relu"),
        xn.MaxPool2D(2),
        xn.Conv2D(6, 3),
        xn.ReLU(),
        xn.MaxPool2D(2),
        xn.Flatten(),
        xn.Dense(4),
    ],
    "same": [
        xn.Conv2D(5, 5, padding="same", activation="tanh"),
        xn.MaxPool2D(3, 2, padding=1),
        xn.Flatten(),
        xn.Dense(3, "sigmoid"),
    ],
    "strided": [
        xn.Conv2D(9, (3, 2), stride=(2, 1), padding=1),
        xn.BatchNorm(),
        xn.ReLU(),
        xn.GlobalAveragePool2D(),
        xn.Dense(3),
    ],
    "dilated": [
        xn.Conv2D(12, 3, dilation=2),
        xn.Conv2D(7, 3, dilation=(1, 2)),
        xn.MaxPool2D((3, 1), (1, 2)),
        xn.Flatten(),
        xn.Dense(2),
    ],
    "grouped": [xn.Conv2D(8, 1), xn.Conv2D(8, 3, groups=4, padding=((0, 1), (2, 0))), xn.LeakyReLU(), xn.AveragePool2D(2)],
    "residual": [
        xn.Conv2D(6, 3, padding="same"),
        xn.Residual([xn.BatchNorm(), xn.ReLU(), xn.Conv2D(6, 3, padding="same")]),
        xn.MaxPool2D(1, 2),
    ],
    "one to one": [xn.Conv2D(6, 1, use_bias=False), xn.Conv2D(40, 1), xn.Dropout(0.5), xn.LayerNorm(), xn.Softmax()],
}


@pytest.mark.parametrize("name", CONVNETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("N", [1, 3])
def test_images(name, dtype, channels, N):
    model = xn.Sequential(copy.deepcopy(CONVNETS[name]), input_shape=(14, 13, channels), dtype=dtype, seed=1)
    for parameter in model.parameters().values():
        parameter.array[...] += 0.1  # biases begin as 0
    x = image(N, 14, 13, channels, dtype=dtype)
    agree(model, x)
    assert planned(model, x) is not None


def test_vectors_and_sequences():
    mlp = xn.Sequential([xn.Dense(30, "relu"), xn.Dense(10, "softplus"), xn.Reshape((2, 5))], input_shape=(20,))
    for N in (1, 2, 7):
        agree(mlp, image(N, 20))
    assert len(cast(Any, executor_of(mlp)).plans) == 3
    agree(xn.Sequential([xn.Conv1D(4, 3, padding="causal"), xn.Flatten(), xn.Dense(2)], input_shape=(9, 5)), image(2, 9, 5))


def test_it_follows_training_and_everything_else_that_changes():
    model = xn.Sequential([xn.Conv2D(4, 3), xn.BatchNorm(), xn.ReLU(), xn.Flatten(), xn.Dense(3)], input_shape=(6, 6, 2))
    x = image(1, 6, 6, 2)
    agree(model, x)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.1))
    before = model.predict(x)
    trainer.step(image(8, 6, 6, 2), np.arange(8) % 3)  # other weights, and other running statistics
    assert np.abs(model.predict(x) - before).max() > 1e-3
    agree(model, x)
    model.load_state({name: a * 2 for name, a in model.state().items()})
    agree(model, x)
    model.layers[0].padding = "same"
    model.layers[4].kernel = xn.Parameter(image(6 * 6 * 4, 3))
    agree(model, x)
    model.layers[2].__dict__  # a layer of another kind in its place
    model.layers = (*model.layers[:2], xn.Tanh(), *model.layers[3:])
    agree(model, x)
    agree(copy.deepcopy(model), x)
    model.train()
    agree(model, x)
    assert model.training


def test_a_watched_layer_is_run():
    model = xn.Sequential([xn.Dense(4, "relu"), xn.Dense(2)], input_shape=(3,))
    x = image(1, 3)
    agree(model, x)
    seen: Any = []
    with wrapped(model, lambda layer, forward, inputs, keywords: seen.append(layer) or forward(*inputs, **keywords)):
        model.predict(x)
    assert seen == list(model.layers)
    agree(model, x)
    assert planned(model, x)


def native(x):
    return x.array if isinstance(x, xn.Tensor) else x


class Doubled(xn.Module):
    """A layer of a user's own, which computes with arrays."""

    def forward(self, x):
        return xn.Tensor(native(x) * 2)


@pytest.mark.parametrize(
    "layers",
    [
        [Doubled()],
        [xn.Dense(3), Doubled()],
        [xn.Dense(3), lambda x: x * native(x)],
        [xn.Dense(3, activation=lambda x: x * np.sign(native(x)))],
        [xn.Activation(lambda x: x + native(x))],
    ],
)
def test_what_operations_do_not_see_is_not_planned(layers):
    model = xn.Sequential(layers, input_shape=(3,))
    for x in (image(1, 3), image(1, 3)):
        agree(model, x)
        assert planned(model, x) is None


def test_what_carries_a_state_or_is_large_or_forced_is_not_planned():
    stateful = xn.Sequential([xn.LSTM(4, stateful=True)], input_shape=(5, 3))
    x = image(2, 5, 3)
    assert np.abs(stateful.predict(x) - stateful.predict(x)).max() > 0
    model = xn.Sequential([xn.Dense(3)], input_shape=(1000,))
    x = image(300, 1000)
    model.predict(x)
    assert planned(model, x) is None
    x = image(2, 1000)
    with reference_only():
        model.predict(x)
        assert planned(model, x) is None
    agree(model, x)
    assert planned(model, x) is not None
    assert model.predict(np.zeros((0, 1000), np.float32)).shape == (0, 3)
    assert model.predict(x.astype(np.float64)).dtype == np.float32


def test_the_result_is_the_callers():
    model = xn.Sequential([xn.Flatten()], input_shape=(2, 2))
    x = image(1, 2, 2)
    model.predict(x)
    y = model.predict(x)
    z = y.copy()
    model.predict(image(1, 2, 2))
    np.testing.assert_array_equal(y, z)
    y += 1
    np.testing.assert_array_equal(model.predict(x), z)


def test_errors_are_the_models():
    model = xn.Sequential([xn.Dense(3)], input_shape=(4,))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"layer '0' \(Dense\).*4"):
            model.predict(image(1, 5))


def test_threads_that_predict_at_once():
    model = xn.Sequential([xn.Dense(64, "relu"), xn.Dense(64, "tanh"), xn.Dense(3)], input_shape=(32,))
    inputs = [image(1, 32) for _ in range(4)]
    wanted = [direct(model, x) for x in inputs]
    wrong = []

    def run(x, want):
        for _ in range(300):
            if not np.allclose(model.predict(x), want, rtol=1e-5, atol=1e-6):
                wrong.append(x)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(inputs, wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
