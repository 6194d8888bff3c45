"""Module: the tree and its paths, parameters and their flat storage, freezing, moving, states."""

from __future__ import annotations

import copy
import inspect
import typing
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from xpnet import ops
from xpnet.layers.context import Spec


class Block(xn.Module):
    """A user's Module: no super().__init__(), a Parameter of its own, layers in attributes and in a list."""

    def __init__(self, units):
        self.first = xn.Dense(units, "relu")
        self.scale = xn.Parameter(np.ones(units, np.float32), decay=False)
        self.rest = [xn.Dense(units), xn.Dense(units)]

    def forward(self, x):
        x = self.first(x) * self.scale
        for layer in self.rest:
            x = layer(x)
        return x


def mlp(**keywords):
    return xn.Sequential([xn.Dense(4, "relu"), xn.Dropout(0.5), xn.Dense(3)], input_shape=(5,), **keywords)


X = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


def train(model, steps=3, optimizer=None):
    optimizer = optimizer or xn.optim.SGD(0.001)
    for _ in range(steps):
        (model(X) ** 2).sum().backward()
        optimizer.step(model)


# -- the tree --


def test_paths():
    model = xn.Sequential([xn.Dense(4), xn.Residual([xn.Dense(4, "relu"), Block(4)])], input_shape=(5,))
    assert list(model.parameters()) == [
        "0.kernel", "0.bias",
        "1.body.0.kernel", "1.body.0.bias",
        "1.body.1.scale",
        "1.body.1.first.kernel", "1.body.1.first.bias",
        "1.body.1.rest.0.kernel", "1.body.1.rest.0.bias", "1.body.1.rest.1.kernel", "1.body.1.rest.1.bias",
    ]  # fmt: skip
    for path, parameter in model.parameters().items():
        assert parameter.path == path
    assert [path for path, _ in model.named_modules()][:4] == ["", "0", "1", "1.body"]
    assert model.layers[1].path == "1"


def test_a_users_module_without_super_init():
    block = Block(4)
    with pytest.raises(ValueError, match=r"first, rest\.0, rest\.1"):
        block.count_parameters()
    y = block(X)
    assert y.shape == (6, 4)
    assert block.count_parameters() == 24 + 4 + 20 + 20
    assert set(block.parameters()) == {
        "scale", "first.kernel", "first.bias", "rest.0.kernel", "rest.0.bias", "rest.1.kernel", "rest.1.bias"
    }  # fmt: skip
    y.sum().backward()
    assert all(p.grad is not None for p in block.parameters().values())
    assert "Block" in repr(block)


def test_a_users_module_with_super_init_has_device_dtype_and_seed():
    class Model(xn.Module):
        def __init__(self):
            super().__init__(dtype="float64", seed=3)
            self.layer = xn.Dense(2)

        def forward(self, x):
            return self.layer(x)

    model = Model()
    assert model(X.astype(np.float64)).dtype == np.float64
    assert model.layer.kernel.dtype == np.float64
    other = xn.Sequential([xn.Dense(2)], input_shape=(5,), dtype="float64", seed=3)
    assert other.layers[0].kernel.shape == model.layer.kernel.shape


def test_layers_in_a_list_cannot_be_appended_unseen():
    block = Block(4)
    assert isinstance(block.rest, tuple)
    block(X)
    block.rest = [*block.rest, xn.Dense(4)]
    block(X)
    assert "rest.2.kernel" in block.parameters()
    block.rest = [xn.Dense(4)]
    block(X)
    assert "rest.1.kernel" not in block.parameters()


def test_an_attribute_that_is_replaced_is_forgotten():
    block = Block(4)
    block(X)
    block.first = xn.Dense(4)
    block(X)
    assert len(block.parameters()) == 7
    with pytest.raises(TypeError, match="scale is a Parameter"):
        block.scale = 2.0  # type: ignore[assignment]
    assert len(block.parameters()) == 7
    del block.scale
    block.scale = 2.0  # type: ignore[assignment]
    assert "scale" not in block.parameters()
    assert (block(X).array != 0).any()


class Own(xn.Module):
    def __init__(self, values, **settings):
        super().__init__(**settings)
        self.w = xn.Parameter(values)

    def forward(self, x):
        return x @ self.w


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("nested", [False, True])
def test_a_parameter_of_ones_own_gets_the_dtype_and_device_of_the_model(dtype, device, given, nested):
    values = np.random.default_rng(0).standard_normal((5, 4)).astype(given)
    own = Own(values) if nested else Own(values, dtype=dtype, device=device)
    model = xn.Sequential([own], dtype=dtype, device=device) if nested else own
    for _ in range(2):
        outputs = model.predict(X)
        assert outputs.dtype == own.w.dtype == dtype
        np.testing.assert_allclose(outputs, X.astype(dtype) @ values.astype(dtype), rtol=1e-5, atol=1e-6)
        values = values * 2
        own.w = xn.Parameter(values)  # of a model that has run
    run = xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.SGD(0.1))
    run.fit((X, np.zeros((len(X), 4), dtype)), verbose=False)
    assert own.w.dtype == dtype


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
def test_a_parameter_of_whole_numbers_is_refused(dtype):
    with pytest.raises(TypeError, match=rf"Parameter: expected floating-point values, got .*{dtype}; use values.astype"):
        xn.Parameter(np.ones(3, dtype))


def test_a_shared_parameter_counts_once():
    shared = xn.Dense(5)
    model = xn.Sequential([shared, xn.ReLU(), shared], input_shape=(5,))
    assert list(model.parameters()) == ["0.kernel", "0.bias"]
    assert model.count_parameters() == 30
    assert len(model.flat_parameters.parameters) == 2
    model(X).sum().backward()
    w, b = xn.to_numpy(shared.kernel.array).astype(float), xn.to_numpy(shared.bias.array).astype(float)

    def loss(w, b):
        return ops.dense(ops.relu(ops.dense(X.astype(float), w, b)), w, b).sum()

    _, (dw, db) = xn.value_and_grad(lambda p: loss(*p))((w, b))
    np.testing.assert_allclose(xn.to_numpy(shared.kernel.grad), dw, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(xn.to_numpy(shared.bias.grad), db, rtol=1e-4, atol=1e-4)


def test_tied_weights_between_layers():
    """One Parameter under two names: stored once, moved together."""

    class Tied(xn.Module):
        def __init__(self):
            self.w = xn.Parameter(np.eye(5, dtype=np.float32))
            self.same = self.w

        def forward(self, x):
            return ops.tanh(x @ self.w) @ ops.transpose(self.same)

    model = Tied()
    train(model)
    assert list(model.parameters()) == ["w"]
    assert model.w is model.same
    assert (xn.to_numpy(model.w.array) != np.eye(5)).any()


def test_functions_and_modules_in_a_sequence():
    model = xn.Sequential([xn.Dense(4), ops.tanh, lambda x: x * 2.0, xn.Dense(2)], input_shape=(5,))
    assert list(model.parameters()) == ["0.kernel", "0.bias", "3.kernel", "3.bias"]
    assert model(X).shape == (6, 2)
    assert model.output_shape((5,)) == (2,)
    with pytest.raises(TypeError, match="list of layers"):
        xn.Sequential([xn.Dense(2), "relu"])
    with pytest.raises(TypeError, match="list of layers"):
        xn.Sequential(xn.Dense(2))  # type: ignore[arg-type]


def test_parameters_are_made_when_the_first_batch_comes():
    late = xn.Sequential([xn.Conv2D(2, 3), xn.Flatten(), xn.Dense(3)], seed=5)
    assert late.parameters() == {}
    late(np.zeros((1, 5, 5, 1), np.float32))
    early = xn.Sequential([xn.Conv2D(2, 3), xn.Flatten(), xn.Dense(3)], input_shape=(5, 5, 1), seed=5)
    assert list(late.parameters()) == list(early.parameters())
    for path, parameter in late.parameters().items():
        np.testing.assert_array_equal(parameter.array, early.parameters()[path].array)


def test_a_shape_that_does_not_fit_names_the_layer_in_a_deep_tree():
    with pytest.raises(xn.ShapeError, match=r"layer '1\.body\.0' \(Conv2D\)"):
        xn.Sequential([xn.Dense(3), xn.Residual([xn.Conv2D(3, 3)])], input_shape=(4,))
    model = xn.Sequential([xn.Dense(3), xn.Residual([xn.Dense(3)])])
    model(np.zeros((2, 4), np.float32))
    with pytest.raises(xn.ShapeError) as raised:
        model(np.zeros((2, 6), np.float32))
    assert str(raised.value).count("layer '") == 1
    assert "layer '0' (Dense)" in str(raised.value)


def test_a_module_without_forward_and_with_a_wrong_initializer():
    class Nothing(xn.Module):
        pass

    with pytest.raises(TypeError, match="Nothing has no forward"):
        Nothing()(X)

    class Bad(xn.Module):
        def parameter_specs(self, input_shape):
            return {"w": Spec((2, 2), lambda shape, key: np.zeros((3, 3)))}

        def forward(self, x):
            return x

    with pytest.raises(xn.ShapeError, match=r"w made shape \(3, 3\), expected \(2, 2\)"):
        Bad()(X)


# -- flat parameters --


def inside(array, flat):
    return np.shares_memory(array, flat) and array.base is not None


def test_parameters_are_views_of_one_array_and_stay_so():
    model = mlp()
    for optimizer in (xn.optim.SGD(0.1, 0.9), xn.optim.Adam(), xn.optim.AdamW()):
        train(model, optimizer=optimizer)
        flat = model.flat_parameters
        for parameter in model.parameters().values():
            assert inside(parameter.array, flat.values)
            assert inside(parameter.buffer, flat.gradients)
            assert parameter.array.flags.c_contiguous
        assert model.flat_parameters is flat
    (model(X) ** 2).sum().backward()
    for parameter in model.parameters().values():
        assert inside(parameter.grad, model.flat_parameters.gradients)


def test_weights_lie_before_biases_and_gaps_stay_zero():
    model = mlp()
    train(model, optimizer=xn.optim.Adam(weight_decay=0.1))
    flat = model.flat_parameters
    taken = np.zeros(flat.values.size, bool)
    for parameter, where in zip(flat.parameters, flat.slices):
        taken[where] = True
        assert (where.stop <= flat.decayed) == parameter.decay
    np.testing.assert_array_equal(flat.values[~taken], 0)


def test_weight_decay_leaves_biases_alone():
    model = mlp(dtype="float64")
    for parameter in model.parameters().values():
        parameter.array[...] = 1.0
    optimizer = xn.optim.SGD(0.5, weight_decay=0.1)
    (model(X) * 0.0).sum().backward()
    optimizer.step(model)
    for path, parameter in model.parameters().items():
        np.testing.assert_allclose(parameter.array, 1.0 if path.endswith("bias") else 0.95)


def test_assigning_an_array_makes_new_flat_parameters():
    model = mlp()
    before = model.flat_parameters
    model.layers[0].kernel.array = np.ones((5, 4), np.float32)
    assert model.flat_parameters is not before
    assert inside(model.layers[0].kernel.array, model.flat_parameters.values)
    np.testing.assert_array_equal(model.layers[0].kernel.array, 1)
    train(model)
    assert (model.layers[0].kernel.array != 1).any()


def test_freezing_and_setting_free():
    model = mlp(dtype="float64")
    kernel = model.layers[0].kernel
    train(model)
    kernel.requires_grad = False
    frozen, other = kernel.array.copy(), model.layers[2].kernel.array.copy()
    train(model)
    np.testing.assert_array_equal(kernel.array, frozen)
    assert kernel.grad is None
    assert (model.layers[2].kernel.array != other).any()
    assert all(p is not kernel for p in model.flat_parameters.parameters)
    kernel.requires_grad = True
    train(model)
    assert (kernel.array != frozen).any()
    assert inside(kernel.array, model.flat_parameters.values)


def gradients_and_step(model, optimizer):
    (model(X) ** 2).sum().backward()
    optimizer.step(model)


@pytest.mark.parametrize("make", [lambda: xn.optim.SGD(0.01, 0.9), lambda: xn.optim.Adam(0.01), lambda: xn.optim.Adagrad(0.01)])
def test_an_optimizer_keeps_the_state_of_what_stays_trainable(make):
    """Freezing a layer between two fits: the others go on with the momentum they have."""
    model, optimizer = mlp(dtype="float64"), make()
    for _ in range(3):
        gradients_and_step(model, optimizer)
    first, last = model.layers[0].kernel, model.layers[2].kernel
    before = {n: s.copy() for n, s in optimizer.slots.items()}
    places = {id(p): w for p, w in zip(model.flat_parameters.parameters, model.flat_parameters.slices)}
    first.requires_grad = False
    frozen = first.array.copy()
    optimizer.bind(model)
    after = {id(p): w for p, w in zip(model.flat_parameters.parameters, model.flat_parameters.slices)}
    for name, slot in optimizer.slots.items():
        assert slot.shape == model.flat_parameters.values.shape
        np.testing.assert_array_equal(slot[after[id(last)]], before[name][places[id(last)]])
    gradients_and_step(model, optimizer)
    np.testing.assert_array_equal(first.array, frozen)
    moved = {n: s[after[id(last)]].copy() for n, s in optimizer.slots.items()}
    first.requires_grad = True
    flat = optimizer.bind(model)
    for p, where in zip(flat.parameters, flat.slices):
        for name, slot in optimizer.slots.items():
            if p is last:
                np.testing.assert_array_equal(slot[where], moved[name])
            if p is first:  # begins anew
                np.testing.assert_array_equal(slot[where], make().initial_slot(name, np, flat)[where])
    gradients_and_step(model, optimizer)
    assert (first.array != frozen).any()
    for other in mlp(dtype="float64"), xn.Sequential([xn.Dense(50)], dtype="float64"):  # the first has the same shapes
        with pytest.raises(ValueError, match="make a new optimizer for a new model"):
            gradients_and_step(other, optimizer)


def test_swapping_which_of_two_equal_layers_is_trained():
    """Of the same size, so that nobody would notice if one had the other's momentum."""
    model = xn.Sequential([xn.Dense(4), xn.Dense(4)], input_shape=(4,), dtype="float64")
    optimizer = xn.optim.SGD(0.01, 0.9)
    x = np.ones((2, 4))
    for p in model.layers[1].parameters().values():
        p.requires_grad = False
    (model(x) ** 2).sum().backward()
    optimizer.step(model)
    assert any(xn.to_numpy(s).any() for s in optimizer.slots.values())
    for layer, trained in ((0, False), (1, True)):
        for p in model.layers[layer].parameters().values():
            p.requires_grad = trained
    optimizer.bind(model)
    assert not any(xn.to_numpy(s).any() for s in optimizer.slots.values())


def test_a_moving_average_of_fewer_weights_begins_anew():
    from xpnet.training import ExponentialMovingAverage

    model = xn.Sequential([xn.Dense(4), xn.Dense(3)], input_shape=(5,))
    average = ExponentialMovingAverage(0.5)
    run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), callbacks=[average])
    data = np.ones((8, 5), np.float32), np.arange(8) % 3
    run.fit(data, epochs=1, verbose=False)
    model.layers[0].kernel.requires_grad = False
    frozen = model.layers[0].kernel.array.copy()
    run.fit(data, epochs=1, verbose=False)
    assert average.average is not None
    assert average.average.shape == model.flat_parameters.values.shape
    np.testing.assert_array_equal(model.layers[0].kernel.array, frozen)


def test_a_part_of_a_model_shares_its_parameters():
    """The flat parameters of a part do not take the parameters away from the whole."""
    model = mlp()
    part = xn.Sequential([model.layers[0]])
    part(X)
    optimizer = xn.optim.SGD(0.1)
    before = model.layers[0].kernel.array.copy()
    (part(X) ** 2).sum().backward()
    optimizer.step(part)
    assert (model.layers[0].kernel.array != before).any()
    before = model.layers[0].kernel.array.copy()
    train(model)
    assert (model.layers[0].kernel.array != before).any()


def test_parameters_that_backward_does_not_reach_get_a_zero_gradient():
    model = mlp()
    optimizer = xn.optim.SGD(0.1)
    train(model, optimizer=optimizer)
    before = model.layers[2].kernel.array.copy()
    first = model.layers[0].kernel.array.copy()
    (model.layers[0](X) ** 2).sum().backward()
    optimizer.step(model)
    np.testing.assert_array_equal(model.layers[2].kernel.array, before)
    assert (model.layers[0].kernel.array != first).any()


def test_zero_grad():
    model = mlp()
    model(X).sum().backward()
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters().values())


def test_mixed_dtypes_are_explained():
    model = mlp()
    model.layers[0].kernel.array = np.ones((5, 4))
    with pytest.raises(ValueError, match=r"0\.kernel.*float64"):
        model.flat_parameters


# -- modes, running --


def test_train_and_eval_reach_every_module():
    model = xn.Sequential([xn.Residual([xn.Dropout(0.5)])], input_shape=(5,))
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    np.testing.assert_array_equal(model(X), 2 * X)
    assert model.train() is model
    assert all(m.training for m in model.modules())
    assert (model(X) != 2 * X).any()


@pytest.mark.parametrize("begin", ["new", "evaluated", "loaded", "stepped"])
@pytest.mark.parametrize("how", ["eval()", "training = False", "part"])
def test_fit_leaves_a_layer_in_the_mode_that_was_chosen_for_it(begin, how, tmp_path):
    model: Any = xn.Sequential([xn.Dense(4), xn.Sequential([xn.BatchNorm()]), xn.Dropout(0.5), xn.Dense(2)], input_shape=(5,))
    if begin == "loaded":
        model.save(tmp_path / "m")
        model = xn.load(tmp_path / "m")
    elif begin == "evaluated":
        model.eval()
    layer = model.layers[1].layers[0]
    if how == "training = False":
        layer.training = False
    else:
        (layer if how == "eval()" else model.layers[1]).eval()
    mean, run = layer.running_mean.copy(), xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.SGD(0.1))
    data = X, np.zeros((len(X), 2), np.float32)
    if begin == "stepped":
        run.step(*data)
    else:
        run.fit(data, epochs=2, validation=data, verbose=False)
    np.testing.assert_array_equal(layer.running_mean, mean)
    assert not layer.training
    assert model.layers[2].training
    model.eval()  # of the whole model: the choice is taken back
    run.fit(data, verbose=False)
    assert layer.training
    assert (layer.running_mean != mean).any()


def test_predict_puts_the_mode_of_every_part_back():
    model = mlp().train()
    model.layers[1].eval()
    y = model.predict(X, batch_size=4)
    assert type(y) is np.ndarray
    assert y.shape == (6, 3)
    assert model.training
    assert not model.layers[1].training
    with pytest.raises(ValueError, match="batch_size"):
        model.predict(X, batch_size=0)


def test_predict_records_nothing_and_takes_an_empty_batch():
    model = mlp()
    model.predict(X)
    assert all(p.grad is None for p in model.parameters().values())
    assert model.predict(X[:0]).shape == (0, 3)
    assert model.predict(xn.Tensor(X)).shape == (6, 3)


def test_inputs_of_other_types():
    """Integers of an image and float64 from a file come in as the model's dtype."""
    model = mlp().eval()
    assert model(X.astype(np.float64)).dtype == np.float32
    assert model((X * 10).astype(np.int64)).dtype == np.float32
    assert model(X > 0).dtype == np.float32
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 1), np.uint8)
    conv = xn.Sequential([xn.MaxPool2D(2), xn.Conv2D(2, 2)], input_shape=(6, 6, 1))
    assert conv(images).dtype == np.float32


def test_to_cpu_and_a_missing_device():
    model = mlp()
    before = {k: v.copy() for k, v in model.state().items()}
    assert model.to("cpu") is model
    for name, array in model.state().items():
        np.testing.assert_array_equal(array, before[name])
    train(model)
    with pytest.raises(ValueError, match="unknown device"):
        model.to("tpu")
    if not xn.backend.imported("cupy"):
        try:
            xn.backend.device("cuda")
        except xn.DeviceError:
            with pytest.raises(xn.DeviceError, match='"cuda"'):
                mlp(device="cuda")


# -- states --


def test_state_and_load_state():
    one, two = mlp(seed=1), mlp(seed=2)
    flat = two.flat_parameters
    two.load_state(one.state())
    for name, array in two.state().items():
        np.testing.assert_array_equal(array, one.state()[name])
        assert not np.shares_memory(array, one.state()[name])
    assert two.flat_parameters is flat  # written into the views
    np.testing.assert_array_equal(one.predict(X), two.predict(X))


def test_load_state_converts_dtypes():
    one, two = mlp(dtype="float64"), mlp(seed=2)
    two.load_state(one.state())
    assert two.layers[0].kernel.dtype == np.float32
    np.testing.assert_array_equal(two.layers[0].kernel.array, one.layers[0].kernel.array.astype(np.float32))


def test_load_state_names_everything_that_is_wrong_and_changes_nothing():
    model = mlp()
    before = {k: v.copy() for k, v in model.state().items()}
    state = {k: v + 1 for k, v in model.state().items()}
    del state["0.bias"]
    state["9.kernel"] = np.zeros(2)
    state["2.kernel"] = np.zeros((4, 7))
    with pytest.raises(ValueError) as raised:
        model.load_state(state)
    message = str(raised.value)
    assert "missing 0.bias" in message
    assert "left over 9.kernel" in message
    assert "2.kernel: (4, 7), expected (4, 3)" in message
    with pytest.raises(ValueError, match=r"2\.kernel"):
        model.load_state(state, strict=False)
    for name, array in model.state().items():
        np.testing.assert_array_equal(array, before[name])
    del state["2.kernel"]
    model.load_state(state, strict=False)
    np.testing.assert_array_equal(model.state()["0.kernel"], before["0.kernel"] + 1)
    np.testing.assert_array_equal(model.state()["0.bias"], before["0.bias"])


def test_buffers_are_saved_and_restored():
    def make():
        return xn.Sequential([xn.BatchNorm(), xn.Dense(2)], input_shape=(5,))

    one, two = make(), make()
    one.train()(X)
    assert "0.running_mean" in one.state()
    assert "0.running_mean" not in one.parameters()
    two.load_state(one.state())
    np.testing.assert_array_equal(two.eval()(X).array, one.eval()(X).array)


def test_repr_shows_the_layers():
    text = repr(xn.Sequential([xn.Dense(4, "relu"), xn.Residual([xn.Dropout(0.5)])]))
    assert text == "Sequential(Dense(4, 'relu'), Residual(body=Sequential(Dropout(0.5))))"


def test_a_deep_copy_learns_on_its_own():
    """Its parameters must not be views of the original's flat arrays, nor of arrays that nothing updates."""
    model = xn.Sequential([xn.Dense(3, "relu"), xn.Dense(2)], input_shape=(4,))
    x, y = np.ones((5, 4), np.float32), np.zeros(5, np.int64)
    xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1)).step(x, y)
    before = model.flat_parameters.values.copy()
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(twin.predict(x), model.predict(x))
    xn.Trainer(twin, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1)).step(x, y)
    np.testing.assert_array_equal(model.flat_parameters.values, before)
    assert not np.array_equal(twin.layers[0].kernel.array, model.layers[0].kernel.array)


class Headed(xn.Module):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.body = xn.Dense(5, "relu")
        self.head = xn.Dense(4)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["Sequential", "Module", "nested"])
def test_a_layer_that_is_replaced_belongs_to_the_model(kind, dtype, tmp_path):
    x, y = np.linspace(-1, 1, 36).reshape(6, 6).astype(dtype), np.arange(6) % 3
    model: Any
    if kind == "Module":
        model = Headed(dtype=dtype, seed=3)
        model(x)
        model.head, name = xn.Dense(3), "head"
    else:
        inner = xn.Sequential([xn.Dense(5, "relu"), xn.Dense(4)])
        model = inner if kind == "Sequential" else xn.Sequential([inner])
        model = xn.Sequential(model.layers, dtype=dtype, seed=3)
        model(x)
        changed = model if kind == "Sequential" else model.layers[0]
        changed.layers = [changed.layers[0], xn.Dense(3)]
        assert type(changed.layers) is tuple
        name = "1" if kind == "Sequential" else "0.1"
    assert model.predict(x).shape == (6, 3)
    assert model.state()[f"{name}.kernel"].shape == (5, 3)
    assert model.state()[f"{name}.kernel"].dtype == dtype
    before = {path: xn.to_numpy(array).copy() for path, array in model.state().items()}
    xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1)).step(x, y)
    for path, array in model.state().items():
        assert not np.array_equal(xn.to_numpy(array), before[path]), path
    if kind != "Module":
        model.save(tmp_path / "model.xpnet")
        np.testing.assert_array_equal(xn.load(tmp_path / "model.xpnet").predict(x), model.predict(x))


# -- old names --


def test_old_names_of_methods_work_with_a_warning():
    model = mlp()
    with pytest.warns(DeprecationWarning, match=r"Module\.counters .* use Module\.rng_counters"):
        assert model.counters() == {}
    with pytest.warns(DeprecationWarning, match="load_rng_counters"):
        model.load_counters({"1": 5})
    with pytest.warns(DeprecationWarning, match="next_random_step"):
        assert model.layers[1].draw() == 5
    assert model.rng_counters() == {"1": 6}
    with pytest.warns(DeprecationWarning, match="parameter_specs"):
        assert list(model.layers[0].specs((5,))) == ["kernel", "bias"]


def test_a_class_with_specs_works_and_is_warned_of_once():
    with pytest.warns(DeprecationWarning, match=r"Scaled\.specs .* use Scaled\.parameter_specs") as caught:

        class Scaled(xn.Dense):
            def specs(self, input_shape):
                return {**super().specs(input_shape), "factor": Spec((1,), "ones")}

            def forward(self, x):
                return super().forward(x) * cast(Any, self).factor

    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match=r"Dense\.specs"):  # what super() finds
        model = xn.Sequential([Scaled(3)], input_shape=(5,))
    assert list(model.parameters()) == ["0.kernel", "0.bias", "0.factor"]
    assert model(X).shape == (6, 3)


def test_predict_without_an_input_says_so():
    with pytest.raises(TypeError, match="at least one array"):
        xn.Sequential([xn.Dense(2)], input_shape=(3,)).predict(())


def test_a_property_of_a_layer_takes_its_own_values() -> None:
    class Scaled(xn.Module):
        _rate = 1.0

        @property
        def rate(self) -> float:
            return self._rate

        @rate.setter
        def rate(self, value: float) -> None:
            if value < 0:
                raise ValueError("rate must not be negative")
            self._rate = 2 * value

        def forward(self, x: xn.Tensor) -> xn.Tensor:
            return x * self.rate

    model = xn.Sequential([Scaled()], input_shape=(2,))
    assert (model.predict(np.ones((1, 2), "float32")) == 1).all()
    model.layers[0].rate = 3.0
    assert (model.predict(np.ones((1, 2), "float32")) == 6).all()
    with pytest.raises(ValueError, match="must not be negative"):
        model.layers[0].rate = -1.0


def test_a_read_only_property_replaces_a_setting() -> None:
    class NoBias(xn.Dense):
        @property
        def use_bias(self) -> bool:  # type: ignore[override]
            return False

    assert list(xn.Sequential([NoBias(3)], input_shape=(4,)).parameters()) == ["0.kernel"]


@pytest.mark.parametrize("cls", [xn.Module, xn.Sequential, xn.Dense, xn.Conv2D, xn.LSTM])
def test_the_annotations_of_a_users_subclass_can_be_resolved(cls: type[xn.Module]) -> None:
    class Net(cls):  # type: ignore[misc, valid-type]
        width: int = 3

    assert typing.get_type_hints(Net)["width"] is int


@pytest.mark.parametrize(
    ("x", "named"), [((1.0, 2.0), "float, float"), (3.0, "got float"), (np.array(3.0), "numpy array ()"), (None, "NoneType")]
)
def test_predict_names_what_is_no_array_of_examples(x: Any, named: str) -> None:
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    with pytest.raises(TypeError, match="predict: expected an array of examples") as raised:
        model.predict(x)
    assert named in str(raised.value)


@pytest.mark.parametrize("state", ["weights.safetensors", [1.0], np.ones(3), None])
def test_load_state_names_what_is_no_state(state: Any) -> None:
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    with pytest.raises(TypeError, match=f"load_state: expected a mapping .* got {type(state).__name__}; .*load_weights"):
        model.load_state(state)


@pytest.mark.parametrize("function", [xn.inspect.diagnose, xn.inspect.activations])
def test_inspect_names_what_is_no_model(function: Any) -> None:
    with pytest.raises(TypeError, match="expected a model, got ndarray"):
        function(np.ones(3), np.ones(3))


def test_what_is_put_after_a_convolution_later_is_applied_before_the_pooling() -> None:
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 1)).astype(np.float32)
    model = xn.Sequential([xn.Conv2D(4, 3, padding="same"), xn.MaxPool2D(2)], input_shape=(6, 6, 1))
    model.predict(x)
    convolution, pooling = model.layers
    convolution.after = xn.ops.gelu
    expected = pooling(xn.ops.gelu(xn.ops.conv2d(x, *(p.array for p in convolution.parameters().values()), padding="same")))
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model(x).array, expected, rtol=1e-6, atol=1e-6)
    convolution.after = None
    assert np.max(np.abs(model.predict(x) - expected)) > 0.01


@pytest.mark.parametrize(
    ("method", "function", "own"),
    [
        ("save", "save", set()),
        ("save_weights", "save_weights", set()),
        ("load_weights", "load_weights", set()),
        ("summary", "summarize", {"show"}),
    ],
)
def test_every_method_that_another_module_does_shows_its_real_arguments(method, function, own):
    from xpnet.runtime.late import late

    shown = inspect.signature(getattr(xn.Module, method)).parameters
    real = inspect.signature(late(function)).parameters
    assert {name: p.default for name, p in shown.items() if name not in {"self", *own}} == {
        name: p.default for name, p in real.items() if name != "model"
    }
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())
