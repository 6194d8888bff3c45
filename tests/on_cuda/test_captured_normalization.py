"""Batch normalisation and what stands behind it in recorded steps: the bits of a step launch by launch, in four kernels."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.networks import IMAGES, LABELS, bits

pytestmark = pytest.mark.cuda


def network(device: str = "cuda", dtype: str = "float32") -> xn.Sequential:
    def body() -> list[xn.Module]:
        first = [xn.Conv2D(8, 3, padding=1, use_bias=False), xn.BatchNorm(), xn.ReLU()]
        return [*first, xn.Conv2D(8, 3, padding=1, use_bias=False), xn.BatchNorm()]

    layers = [xn.Conv2D(3, 3, padding=1), xn.BatchNorm(), xn.ReLU()]
    layers += [xn.Residual(body(), xn.Sequential([xn.Conv2D(8, 1), xn.BatchNorm()])), xn.ReLU(), xn.Residual(body()), xn.ReLU()]
    return xn.Sequential([*layers, xn.Flatten(), xn.Dense(4)], input_shape=(8, 8, 3), device=device, dtype=dtype, seed=2)


def fitted(device: str = "cuda", dtype: str = "float32", **settings: Any) -> xn.Trainer:
    run = xn.Trainer(network(device, dtype), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.02, 0.9), **settings)
    run.fit((IMAGES, LABELS), epochs=2, batch_size=16, verbose=False)
    return run


@pytest.mark.parametrize("recompute", [False, True, ["3.body", "5"]])
@pytest.mark.parametrize("dtype", ["float32", "float16", pytest.param("bfloat16", marks=pytest.mark.bfloat16)])
def test_recorded_steps_have_the_bits_of_launches(schedule, recordings, dtype, recompute):
    expected = fitted(dtype=dtype, recompute=recompute, capture=False)
    assert recordings == [0]
    found = fitted(dtype=dtype, recompute=recompute)
    assert recordings[0] > 0
    assert bits(found.model) == bits(expected.model)
    assert found.history == expected.history
    if recompute:
        assert bits(found.model) == bits(fitted(dtype=dtype).model)


def test_training_is_that_of_the_cpu():
    found, expected = fitted(), fitted("cpu")
    wanted = expected.model.state()
    for name, array in found.model.state().items():
        np.testing.assert_allclose(xn.to_numpy(array), wanted[name], rtol=2e-3, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=1e-3)


@pytest.mark.usefixtures("software_gpu")
def test_a_layer_takes_four_nodes():
    """With the activation behind it, the running statistics, and the gradients of scale and offset in their place."""
    from tests.software_gpu.device import last_graph

    def nodes(count: int) -> list[str]:
        layers = [layer for _ in range(count) for layer in (xn.BatchNorm(), xn.ReLU())]
        model = xn.Sequential([xn.Dense(4), *layers], input_shape=(6,), device="cuda")
        run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
        x, y = IMAGES.reshape(40, -1)[:, :6], LABELS
        run.fit((xn.to_device(x, "cuda"), xn.to_device(y, "cuda")), epochs=2, batch_size=8, verbose=False)
        return [re.sub(r".* (\w+)<.*", r"\1", node) for node in last_graph()]

    few, many = nodes(1), nodes(4)
    assert len(many) - len(few) == 3 * 4
    assert {name: many.count(name) - few.count(name) for name in many if many.count(name) != few.count(name)} == {
        "batch_moments": 3, "batch_norm_apply": 3, "norm_gradient_sums": 3, "batch_norm_backward": 3,
    }  # fmt: skip
