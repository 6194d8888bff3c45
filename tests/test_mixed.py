"""Mixed precision: models that compute with 16-bit floats and learn float32 numbers."""

from __future__ import annotations

import builtins
import copy
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import ops
from xpnet.autograd.tape import mode
from xpnet.backend import dtype_named

HALVES = [pytest.param("float16"), pytest.param("bfloat16", marks=pytest.mark.bfloat16)]
RANDOM = np.random.default_rng(3)
X = RANDOM.standard_normal((40, 6, 6, 2)).astype("float32")
Y = RANDOM.integers(0, 3, 40)


def network(dtype="float16", **settings):
    layers = [
        xn.Conv2D(4, 3, padding="same", use_bias=False),
        xn.BatchNorm(),
        xn.ReLU(),
        xn.MaxPool2D(2),
        xn.Residual([xn.Conv2D(4, 3, padding=1, activation="tanh")]),
        xn.Flatten(),
        xn.Dropout(0.25),
        xn.Dense(8, "relu", kernel_regularizer=xn.regularizers.L2(1e-3)),
        xn.Dense(3),
    ]
    return xn.Sequential(layers, **{"input_shape": (6, 6, 2), "dtype": dtype, "seed": 5, **settings})


# -- casts --


@pytest.mark.parametrize("name", HALVES)
def test_cast_there_and_back(name):
    x = xn.Tensor(np.array([[1.0, 1e-3], [70000.0, -2.5]], np.float32), requires_grad=True)
    y = ops.cast(x, name)
    assert y.dtype == dtype_named(np, name)
    assert np.isinf(y.array[1, 0]) == (name == "float16")  # and no warning
    y.backward(np.full((2, 2), 0.25, y.dtype))
    assert xn.to_numpy(x.grad).dtype == np.float32
    np.testing.assert_array_equal(x.grad, 0.25)


def test_a_dtype_that_is_none():
    with pytest.raises(ValueError, match="numpy has no dtype 'float17'"):
        ops.cast(X, "float17")
    with pytest.raises(ValueError, match="expected a name such as"):
        ops.cast(X, np.float32)
    with pytest.raises(ValueError, match=r"Sequential: dtype must be one of float16, bfloat16, float32, float64, got 'int8'"):
        network("int8")


def test_bfloat16_without_its_package(monkeypatch):
    def without(name, *args, **keywords):
        if name == "ml_dtypes":
            raise ImportError(name)
        return imported(name, *args, **keywords)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'dtype "bfloat16" needs the package ml_dtypes.*xpnet\[bfloat16\]'):
        network("bfloat16")


@pytest.mark.parametrize("name", HALVES)
def test_sums_do_not_stop_where_the_digits_end(name):
    ones = np.ones((5000, 2), dtype_named(np, name))
    assert float(ops.sum(ones)) == pytest.approx(10000, rel=4e-3)
    t = xn.Tensor(np.ones((1, 2), ones.dtype), requires_grad=True)
    (t + ones).sum().backward()  # the gradient of a repeated axis
    np.testing.assert_allclose(xn.to_numpy(t.grad).astype(float), 5000, rtol=4e-3)


# -- the parts of a model --


@pytest.mark.parametrize("name", HALVES)
def test_who_has_which_dtype(name):
    model = network(name)
    seen: Any = []
    first = model[4].body[0]
    forward = first.forward
    first.forward = lambda x: seen.append(x.dtype) or forward(x)
    output = model(xn.Tensor(X))
    loss = xn.losses.softmax_cross_entropy(output, Y)
    loss.backward()
    assert seen == [dtype_named(np, name)]
    assert output.dtype == loss.dtype == np.float32
    assert {p.array.dtype.name for p in model.parameters().values()} == {"float32"}
    assert {p.grad.dtype.name for p in model.parameters().values()} == {"float32"}
    assert {b.dtype.name for b in model.buffers().values()} == {"float32"}
    assert model.flat_parameters.values.dtype == model.flat_parameters.gradients.dtype == np.float32
    assert model.predict(X, batch_size=7).dtype == np.float32
    assert mode.operands is None


@pytest.mark.parametrize("name", HALVES)
def test_outputs_and_gradients_are_those_of_float32_to_rounding(name):
    digits = {"float16": 2e-3, "bfloat16": 2e-2}[name]
    results = []
    for dtype in ("float32", name):
        model = network(dtype).eval()
        loss = xn.losses.softmax_cross_entropy(model(X), Y)
        loss.backward()
        results.append((model.predict(X), {n: p.grad.copy() for n, p in model.parameters().items()}))
    (y, gradients), (y_half, gradients_half) = results
    np.testing.assert_allclose(y_half, y, rtol=4 * digits, atol=4 * digits)
    for path, g in gradients.items():
        error = np.linalg.norm(gradients_half[path] - g) / np.linalg.norm(g)
        assert error < 10 * digits, (path, error)


def test_a_gradient_goes_to_the_float32_parameter_unrounded():
    model = xn.Sequential([xn.Dense(4)], input_shape=(30,), dtype="float16")
    x = RANDOM.standard_normal((50, 30)).astype(np.float16)
    model(x).sum().backward()
    kernel = model.parameters()["0.kernel"]
    np.testing.assert_allclose(
        xn.to_numpy(kernel.grad), x.astype(np.float64).sum(axis=0)[:, None] * np.ones(4), rtol=1e-5, atol=1e-5
    )
    assert np.any(xn.to_numpy(kernel.grad) != xn.to_numpy(kernel.grad).astype(np.float16))


def test_new_weights_are_seen_at_once():
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,), dtype="float16")
    x = np.ones((1, 3), np.float32)
    model.predict(x)
    model.parameters()["0.kernel"].array[...] = 2.0
    np.testing.assert_array_equal(model.predict(x), 6.0)
    model.load_state({"0.kernel": np.full((3, 2), 3.0), "0.bias": np.ones(2)})
    np.testing.assert_array_equal(model.predict(x), 10.0)
    other = copy.deepcopy(model)
    other.parameters()["0.bias"].array[...] = 0.0
    np.testing.assert_array_equal(other.predict(x), 9.0)
    np.testing.assert_array_equal(model.predict(x), 10.0)


def test_frozen_parameters_take_part_rounded():
    model = xn.Sequential([xn.Dense(2), xn.Dense(2)], input_shape=(3,), dtype="float16")
    model[0].kernel.requires_grad = False
    model[0].kernel.array[...] = 1 / 3
    seen: Any = []
    forward = model[1].forward
    model[1].forward = lambda x: seen.append(x.array.copy()) or forward(x)
    model(xn.Tensor(np.ones((1, 3), np.float32)))
    np.testing.assert_array_equal(seen[0], np.float16(3 * np.float32(np.float16(1 / 3))))


def test_a_part_that_is_called_on_its_own():
    model = network().eval()
    flat = model.flat_parameters
    seen: Any = []
    first = model[0]
    forward = first.forward
    first.forward = lambda x: seen.append(forward(x)) or seen[-1]
    y = first(X)
    assert y.dtype == np.float32
    assert seen[0].dtype == np.float16
    model(X)
    np.testing.assert_array_equal(seen[0].array, seen[1].array)
    assert model.flat_parameters is flat


def test_a_model_that_learns_its_shapes_from_the_first_batch():
    made, known = network(input_shape=None), network()
    np.testing.assert_array_equal(made.eval().predict(X), known.eval().predict(X))
    trainer = xn.Trainer(network(input_shape=None), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    trainer.step(X, Y)
    assert {p.array.dtype.name for p in trainer.model.parameters().values()} == {"float32"}


def test_a_model_within_a_model_keeps_its_own_dtype():
    class Outer(xn.Module):
        def __init__(self):
            super().__init__(dtype="float16")
            self.own = xn.Dense(3)

        def forward(self, x):
            seen.append((mode.operands, stranger[0](ops.cast(x, "float32")).dtype))  # a root of its own: no layer of this one
            return self.own(x)

    seen: list[Any] = []
    stranger = [xn.Sequential([xn.Dense(2)], input_shape=(4,), dtype="float32")]
    expected = stranger[0](np.full((1, 4), 0.1, np.float32))
    outer = Outer()
    outer(np.full((1, 4), 0.1, np.float32))
    assert seen[0][1] == np.float32
    with xn.no_grad():
        outer(np.full((1, 4), 0.1, np.float32))
        np.testing.assert_array_equal(stranger[0](np.full((1, 4), 0.1, np.float32)).array, expected.array)
    assert mode.operands is None


def test_a_penalty_sees_the_float32_parameters():
    def penalty(w):
        seen.append(w.array if mode.operands is None else None)
        return ops.sum(ops.multiply(w, w))

    seen: list[Any] = []
    model = xn.Sequential([xn.Dense(2, kernel_regularizer=penalty)], input_shape=(3,), dtype="float16")
    trainer = xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.SGD(0.0))
    w = xn.to_numpy(model.parameters()["0.kernel"].array)
    loss = trainer.step(np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float32))
    assert seen[0].dtype == np.float32
    assert float(loss) == pytest.approx(float(np.sum(w.astype(np.float64) ** 2)), rel=1e-6)


@pytest.mark.parametrize("name", HALVES)
def test_other_layers(name):
    tokens, labels = RANDOM.integers(0, 9, (5, 7)), np.array([0, 1, 0, 1, 1])
    models, losses = [], []
    for dtype in ("float32", name):
        layers = [xn.Embedding(9, 4), xn.Bidirectional(xn.LSTM(3)), xn.LayerNorm(), xn.Dense(2)]
        models.append(xn.Sequential(layers, input_shape=(7,), dtype=dtype, seed=1))
        loss = xn.losses.softmax_cross_entropy(models[-1](tokens), labels)
        loss.backward()
        losses.append(float(loss))
    assert losses[1] == pytest.approx(losses[0], rel=3e-2)
    for path, wide in models[0].parameters().items():
        g, h = xn.to_numpy(models[1].parameters()[path].grad), xn.to_numpy(wide.grad)
        assert g.dtype == np.float32
        assert np.linalg.norm(g - h) < 0.1 * np.linalg.norm(h) + 1e-6, path


@pytest.mark.parametrize("name", HALVES)
def test_bytes_and_several_inputs(name):
    class Two(xn.Module):
        def __init__(self):
            super().__init__(dtype=name)
            self.dense = xn.Dense(2)

        def forward(self, x, z):
            y = self.dense(ops.concat([self.as_float(x), z], -1))
            return y, y + 1

    model = Two()
    y, z = model(np.ones((3, 2), np.uint8), np.ones((3, 2), np.float64))
    assert y.dtype == z.dtype == np.float32


# -- training --


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("kind", ["dense", "convolutions"])
def test_digits_are_learnt_as_well_as_in_float32(kind, name):
    data = xn.data.load("digits")
    reached = {}
    for dtype in ("float32", name):
        if kind == "dense":
            layers = [xn.Flatten(), xn.Dense(64, "relu"), xn.Dense(10)]
        else:
            layers = [xn.Conv2D(8, 3, padding=1, use_bias=False), xn.BatchNorm(), xn.ReLU(), xn.MaxPool2D(2)]
            layers += [xn.Flatten(), xn.Dropout(0.2), xn.Dense(10)]
        model = xn.Sequential(layers, input_shape=(8, 8, 1), dtype=dtype, seed=0)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.003), metrics=["accuracy"])
        history = trainer.fit(data.train, epochs=5, batch_size=32, verbose=False)
        reached[dtype] = trainer.evaluate(data.test)["accuracy"], history["loss"][-1]
    assert reached["float32"][0] > 0.94
    assert reached[name][0] > reached["float32"][0] - 0.01
    assert reached[name][1] == pytest.approx(reached["float32"][1], rel=0.15)


def test_small_updates_are_not_lost():
    """1 + 2**-14 is 1 in float16: without float32 weights nothing would be learnt."""
    model = xn.Sequential([xn.Dense(1, use_bias=False, kernel_initializer="ones")], input_shape=(1,), dtype="float16")
    trainer = xn.Trainer(model, loss=lambda p, y: p.mean(), optimizer=xn.optim.SGD(2.0**-14))
    for _ in range(64):
        trainer.step(np.ones((4, 1), np.float32), None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(model.parameters()["0.kernel"].array, 1 - 64 * 2.0**-14)


def test_the_account_of_memory_knows_that_parameters_are_float32():
    wide, half = (network(dtype).summary(batch_size=8, show=False) for dtype in ("float32", "float16"))
    assert half.parameter_bytes == wide.parameter_bytes
    assert half.forward_bytes == wide.forward_bytes // 2


# -- files --


@pytest.mark.parametrize("name", HALVES)
def test_a_model_file_keeps_dtype_and_float32_weights(name, tmp_path):
    model = network(name)
    xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1)).step(X, Y)
    model.save(tmp_path / "m.xpnet")
    loaded = xn.load(tmp_path / "m.xpnet")
    assert loaded.context.dtype == name
    for path, array in model.state().items():
        assert loaded.state()[path].dtype == array.dtype == np.float32
        np.testing.assert_array_equal(loaded.state()[path], array)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    model.save_weights(tmp_path / "w.safetensors")
    other = network("float32")
    other.load_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(other.parameters()["0.kernel"].array, model.parameters()["0.kernel"].array)
