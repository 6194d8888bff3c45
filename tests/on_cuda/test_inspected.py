"""The functions of xpnet.inspect take data from anywhere and bring them to the model's device."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet import inspect

pytestmark = pytest.mark.cuda

X = np.random.default_rng(0).standard_normal((24, 4, 4, 2)).astype(np.float32)
Y = np.arange(24) % 3
LOSS = "softmax_cross_entropy"

FUNCTIONS = {
    "activations": lambda model, x, y: inspect.activations(model, x),
    "activation_histograms": lambda model, x, y: inspect.activation_histograms(model, x=x),
    "dead_relus": lambda model, x, y: inspect.dead_relus(model, x, batch_size=10),
    "layer_gradients": lambda model, x, y: inspect.layer_gradients(model, LOSS, x, y),
    "gradient_histograms": lambda model, x, y: inspect.gradient_histograms(model, LOSS, x, y),
    "saliency": lambda model, x, y: inspect.saliency(model, x, y),
    "monte_carlo": lambda model, x, y: inspect.monte_carlo(model, x, 3, batch_size=10),
    "diagnose": lambda model, x, y: inspect.diagnose(model, x * 100, y),
    "profile": lambda model, x, y: [(t.path, t.saved) for t in inspect.profile(model, x, y, steps=1, warmup=0).layers],
}


def numbers(found):
    """Return everything in a result, with arrays as NumPy's."""
    if isinstance(found, dict):
        return {name: numbers(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [numbers(value) for value in found]
    if hasattr(found, "__dataclass_fields__"):
        return {name: numbers(getattr(found, name)) for name in found.__dataclass_fields__}
    return xn.to_numpy(found) if hasattr(found, "shape") else found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_data_of_the_host_are_moved(name):
    model = xn.Sequential(
        [xn.Conv2D(4, 3, activation="relu"), xn.Dropout(0.5), xn.Flatten(), xn.Dense(3)], input_shape=(4, 4, 2), device="cuda"
    )
    there = FUNCTIONS[name](model, xn.to_device(X, "cuda"), xn.to_device(Y, "cuda"))
    from_host = FUNCTIONS[name](model, X, Y)
    np.testing.assert_equal(numbers(from_host), numbers(there))
    assert name == "diagnose" or len(numbers(there))
