"""What a mask hides does not reach anything; lengths are checked; a prediction does not depend on its batches."""

import math

import numpy as np
import pytest

import xpnet as xn

KINDS = [xn.RNN, xn.LSTM, xn.GRU]
MAKERS = [
    *KINDS,
    lambda units, **k: xn.Bidirectional(xn.LSTM(units, **k)),
    lambda units, **k: xn.Bidirectional(xn.RNN(units, **k)),
]
N, T, C = 4, 5, 3
LENGTHS = np.array([5, 2, 0, 3])
INSIDE = np.arange(T) < LENGTHS[:, None]
RNG = np.random.default_rng(3)


def sequences(padding=0.0, dtype=np.float32):
    x = np.random.default_rng(0).standard_normal((N, T, C)).astype(dtype)
    x[~INSIDE] = padding
    return x


def values_and_gradients(model, x, *inputs, **keywords):
    """The output, the gradient of the input and those of all parameters."""
    for p in model.parameters().values():
        p.grad = None
    t = xn.Tensor(x, requires_grad=True)
    y = model(t, *inputs, **keywords)
    (y * y).sum().backward()
    return [y.array, t.grad, *(p.grad for p in model.parameters().values())]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("padding", [math.nan, math.inf, -math.inf, 1e30])
def test_masked_steps_reach_neither_values_nor_gradients(make, whole, padding):
    model = xn.Sequential([make(4, return_sequences=whole)], input_shape=(T, C))[0]
    expected = values_and_gradients(model, sequences(), LENGTHS)
    for keywords in ({"lengths": LENGTHS}, {"mask": INSIDE}):
        for one, other in zip(expected, values_and_gradients(model, sequences(padding), **keywords)):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 7])
def test_mask_values(make, value):
    one = xn.Sequential([make(4)], input_shape=(T, C))
    two = xn.Sequential([make(4, mask_value=value)], input_shape=(T, C))
    expected = values_and_gradients(one[0], sequences(value), LENGTHS)
    for a, b in zip(expected, values_and_gradients(two, sequences(value))):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_partly_missing_step_is_not_masked(kind):
    x = sequences()
    x[0, 1, 2] = np.nan
    model = xn.Sequential([kind(4, mask_value=math.nan)], input_shape=(T, C))
    y = model.predict(x)
    assert np.isnan(y[0]).any()
    assert np.isfinite(y[1:]).all()


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_lengths_on_a_gpu(kind, gpu):
    import cupy as cp

    model = xn.Sequential([kind(4, return_sequences=True)], input_shape=(T, C))
    expected = values_and_gradients(model[0], sequences(), LENGTHS)
    model.to("cuda")
    found = values_and_gradients(model[0], cp.asarray(sequences(math.nan)), cp.asarray(LENGTHS))
    for one, other in zip(expected, found):
        np.testing.assert_allclose(one, other.get(), rtol=1e-4, atol=1e-6)
    # A length outside 0..T is NaN in its own sequence: no error, which would wait for the device.
    y = model[0](cp.asarray(sequences()), cp.asarray([5, -1, 9, 3])).array.get()
    np.testing.assert_array_equal(np.isnan(y).all(axis=(1, 2)), [False, True, True, False])
    np.testing.assert_allclose(y[[0, 3]], expected[0][[0, 3]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([9, 1, 1, 1], ValueError, "lengths run from 1 to 9, expected 0..5"),
        ([5, -1, 1, 1], ValueError, "lengths run from -1 to 5"),
        ([2.5, 1.0, 1.0, 1.0], TypeError, "lengths has dtype float64, expected integers"),
        ([True, False, True, True], TypeError, "lengths has dtype bool"),
        ([math.nan] * 4, TypeError, "expected integers"),
        ([1, 1], ValueError, r"lengths has shape \(2,\)"),
    ],
)
def test_lengths_are_checked(make, lengths, error, message):
    model = xn.Sequential([make(4)], input_shape=(T, C))[0]
    for given in (lengths, np.array(lengths)):
        with pytest.raises(error, match=message):
            model(sequences(), given)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_lengths_of_any_integer_dtype(dtype):
    x = RNG.standard_normal((2, 300, C)).astype(np.float32)  # more steps than an int8 counts
    model = xn.Sequential([xn.GRU(4)], input_shape=(300, C))[0]
    got = model(x, np.array([100, 3]).astype(dtype)).array
    np.testing.assert_array_equal(got, model(x, [100, 3]).array)
    np.testing.assert_allclose(got[1], model(x[1:, :3]).array[0], rtol=1e-5)


# -- predictions of stateful layers --


@pytest.mark.parametrize("kind", KINDS)
def test_a_stateful_prediction_does_not_depend_on_its_batches(kind):
    x = RNG.standard_normal((7, 6, C)).astype(np.float32)
    model = xn.Sequential([kind(4, stateful=True), xn.Dense(2)], input_shape=(3, C))
    plain = xn.Sequential([kind(4), xn.Dense(2)], input_shape=(6, C))
    plain.load_state(model.state())
    expected = plain.predict(x)
    for size in (1, 2, 3, 7, 100):
        xn.reset_states(model)
        model.predict(x[:, :3], batch_size=size)
        assert all(part.shape == (7, 4) for part in model[0].carried)
        np.testing.assert_allclose(model.predict(x[:, 3:], batch_size=size % 5 + 1), expected, rtol=1e-5, atol=1e-6)


def test_a_stateful_layer_keeps_its_state_where_a_prediction_fails():
    x = RNG.standard_normal((4, 3, C)).astype(np.float32)
    model = xn.Sequential([xn.GRU(4, stateful=True)], input_shape=(3, C))
    model.predict(x)
    before = model[0].carried
    with pytest.raises(xn.ShapeError, match=r"carries the state of 4 sequences and got 3.*reset_states"):
        model.predict(x[:3], batch_size=2)
    with pytest.raises(xn.ShapeError):
        model.predict(x[:, :, :2], batch_size=2)
    assert model[0].carried is before


def test_a_stateful_layer_that_is_not_called():
    class Net(xn.Module):
        def __init__(self):
            self.used, self.unused = xn.Dense(2), xn.GRU(3, stateful=True)

        def forward(self, x):
            return self.used(x)

    net = Net()
    assert net.predict(np.ones((5, 3), np.float32), batch_size=2).shape == (5, 2)
    assert net.unused.carried is None


def test_an_evaluation_does_not_touch_the_state_of_a_run():
    x, y = RNG.standard_normal((12, 3, C)).astype(np.float32), RNG.integers(0, 2, 12)
    model = xn.Sequential([xn.GRU(4, stateful=True), xn.Dense(2)], input_shape=(3, C))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    first = trainer.evaluate((x[:4], y[:4]), batch_size=4)
    layer = model[0]
    assert layer.carried is None
    trainer.fit((x, y), epochs=1, batch_size=6, validation=(x[:4], y[:4]), verbose=False)
    state = xn.to_numpy(getattr(layer, "carried")[0]).copy()  # noqa: B009 - mypy takes it for None
    assert state.shape == (6, 4)
    assert trainer.evaluate((x[:4], y[:4]), batch_size=4) == trainer.evaluate((x[:4], y[:4]), batch_size=4) != first
    np.testing.assert_array_equal(getattr(layer, "carried")[0], state)  # noqa: B009


def test_a_layer_that_becomes_stateful_later():
    layer = xn.Sequential([xn.GRU(4)], input_shape=(3, C))[0]
    assert layer.capturable
    layer.stateful = True
    assert not layer.capturable
    backwards = xn.Sequential([xn.GRU(4, reverse=True)], input_shape=(3, C))[0]
    with pytest.raises(ValueError, match="reads forwards"):
        backwards.stateful = True
    assert not backwards.stateful
    backwards(np.zeros((1, 3, C), np.float32))


def test_a_bidirectional_layer_takes_what_was_set():
    one = xn.LSTM(4)
    one.return_sequences, one.mask_value = True, math.nan
    both = xn.Bidirectional(one)
    assert both.backwards.return_sequences
    model = xn.Sequential([both], input_shape=(T, C))
    assert np.isfinite(model.predict(sequences(math.nan))).all()
    both.forwards.return_sequences = False
    with pytest.raises(xn.ShapeError, match="same return_sequences"):
        model.predict(sequences())
