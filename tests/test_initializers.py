"""What initializers promise: variances, shapes, repeatability."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet as xn
from xpnet import initializers, random

KEY = random.key(0, "layer")


def make(name, shape, key=KEY):
    return initializers.get(name)(shape, key)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("normal", lambda n_in, n_out: 1e-4),
        ("uniform", lambda n_in, n_out: 0.1**2 / 12),
        ("fan_in", lambda n_in, n_out: 1 / n_in),
        ("glorot_uniform", lambda n_in, n_out: 2 / (n_in + n_out)),
        ("glorot_normal", lambda n_in, n_out: 2 / (n_in + n_out)),
        ("he_normal", lambda n_in, n_out: 2 / n_in),
        ("he_uniform", lambda n_in, n_out: 2 / n_in),
    ],
)
@pytest.mark.parametrize(
    ("shape", "n_in", "n_out"), [((300, 200), 300, 200), ((3, 3, 40, 80), 360, 720), ((5, 60, 90), 300, 450)]
)
def test_mean_and_variance(name, variance, shape, n_in, n_out):
    values = make(name, shape)
    n, wanted = values.size, variance(n_in, n_out)
    assert values.shape == shape
    assert abs(values.mean()) < 4 * np.sqrt(wanted / n)
    # The sample variance of n normal numbers has a relative standard deviation of sqrt(2 / n); of uniform ones less.
    assert abs(values.var() / wanted - 1) < 5 * np.sqrt(2 / n)
    flat = name.endswith("uniform")
    fourth = np.mean(values**4) / wanted**2  # 9/5 for uniform numbers, 3 for normal ones
    assert abs(fourth - (1.8 if flat else 3)) < 0.25
    if flat:
        assert np.abs(values).max() <= np.sqrt(3 * wanted) * (1 + 1e-12)


@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=4), gain=st.floats(0.1, 3))
@settings(max_examples=30, deadline=None)
def test_orthogonal(shape, gain):
    matrix = initializers.Orthogonal(gain)(tuple(shape), KEY).reshape(-1, shape[-1]) / gain
    rows, columns = matrix.shape
    product = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
    np.testing.assert_allclose(product, np.eye(min(rows, columns)), atol=1e-12)


@pytest.mark.parametrize(("shape", "inputs"), [((40, 30), 40), ((3, 3, 4, 10), 36), ((6, 5), 6)])
def test_sparse_connects_a_fixed_number_of_inputs(shape, inputs):
    values = make("sparse", shape).reshape(-1, shape[-1])
    assert (np.count_nonzero(values, axis=0) == min(15, inputs)).all()
    places = {tuple(np.flatnonzero(column)) for column in values.T}
    if inputs > 15:
        assert len(places) > 1  # other units see other inputs


def test_constants_and_biases():
    assert not make("zeros", (4,)).any()
    assert (make("ones", (4,)) == 1).all()
    assert (make(0.01, (4,)) == 0.01).all()
    model = xn.Sequential([xn.Dense(3, "relu", bias_initializer=0.01), xn.Dense(2)], input_shape=(5,))
    assert (model[0].bias.array == np.float32(0.01)).all()
    assert not model[1].bias.array.any()


def test_blocks_are_made_one_by_one():
    inner = initializers.Orthogonal()
    values = initializers.Blocks(inner, 3)((4, 12), KEY)
    for block in np.split(values, 3, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(4), atol=1e-12)
    assert not np.allclose(values[:, :4], values[:, 4:8])
    shifted = initializers.Shifted(initializers.Constant(0.5), 1, 3, 2.0)((5,), KEY)
    np.testing.assert_array_equal(shifted, [0.5, 2.5, 2.5, 0.5, 0.5])


@pytest.mark.parametrize("name", sorted(initializers.NAMES))
def test_values_are_a_function_of_the_key(name):
    first, second = make(name, (6, 7)), make(name, (6, 7))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.float64
    other = make(name, (6, 7), random.key(1, "layer"))
    assert np.array_equal(first, other) == (name in ("zeros", "ones"))


def test_default_kernels_follow_the_activation():
    model = xn.Sequential([xn.Dense(400, "relu"), xn.Dense(400, "tanh")], input_shape=(400,))
    np.testing.assert_allclose(model[0].kernel.array.var(), 2 / 400, rtol=0.03)
    np.testing.assert_allclose(model[1].kernel.array.var(), 2 / 800, rtol=0.03)


def test_mistakes():
    with pytest.raises(ValueError, match="unknown initializer 'he'"):
        initializers.get("he")
    with pytest.raises(ValueError, match="a name, a number or a callable"):
        initializers.get([1, 2])  # type: ignore[arg-type]
