import numpy as np
import pytest

import xpnet as xn
from xpnet.inspect import monte_carlo


def network(rate=0.5, inverted=True):
    layers = [xn.Dense(64, "tanh"), xn.BatchNorm(), xn.Dropout(rate, inverted=inverted), xn.Dense(2)]
    return xn.Sequential(layers, input_shape=(3,), dtype="float64", seed=4)


X = np.random.default_rng(0).standard_normal((5, 3))


@pytest.mark.parametrize("inverted", [True, False])
def test_the_mean_over_masks_of_a_linear_layer_is_the_scaled_output(inverted):
    model = network(inverted=inverted)
    found = monte_carlo(model, X, 4000)
    hidden = model[1].eval()(model[0](X)).array
    weights = model[3].kernel.array
    # Each of the hidden units is there with probability 1/2, worth 2 where the dropout is inverted.
    scale = 1.0 if inverted else 0.5
    expected = scale * hidden @ weights + model[3].bias.array
    deviation = scale * np.sqrt((hidden**2) @ (weights**2))
    np.testing.assert_allclose(xn.to_numpy(found.deviation), deviation, rtol=0.06)
    np.testing.assert_allclose(xn.to_numpy(found.mean), expected, atol=4 * deviation.max() / np.sqrt(4000))
    np.testing.assert_allclose(model.eval()(X).array, expected, rtol=1e-12)


def test_it_changes_nothing_and_repeats_itself():
    model = network()
    model(X)
    counter, mean = model[2].counter, model[1].running_mean.copy()
    model[0].eval()
    found = monte_carlo(model, X, 10)
    assert model[2].counter == counter
    assert [layer.training for layer in model] == [False, True, True, True]
    np.testing.assert_array_equal(model[1].running_mean, mean)
    again = monte_carlo(model, X, 10)
    np.testing.assert_array_equal(found.mean, again.mean)
    assert not np.array_equal(xn.to_numpy(found.mean), xn.to_numpy(monte_carlo(model, X, 10, first=10).mean))
    model.eval()
    monte_carlo(model, X, 2)
    assert not any(layer.training for layer in model)


def test_one_sample_and_batches():
    model = network()
    assert not xn.to_numpy(monte_carlo(model, X, 1).deviation).any()
    found = monte_carlo(model, X, 20, batch_size=2)
    assert found.mean.shape == found.deviation.shape == (5, 2)
    np.testing.assert_array_equal(found.mean[:2], monte_carlo(model, X[:2], 20).mean)
    assert monte_carlo(model, X[:0], 3).mean.shape == (0, 2)


def test_mistakes():
    with pytest.raises(ValueError, match="0 Dropout layers"):
        monte_carlo(xn.Sequential([xn.Dense(2)], input_shape=(3,)), X)
    with pytest.raises(ValueError, match="samples=0"):
        monte_carlo(network(), X, 0)
