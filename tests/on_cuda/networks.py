"""A small network with a layer of every usual kind, and data for it."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

import xpnet as xn

RANDOM = np.random.default_rng(11)
IMAGES = RANDOM.standard_normal((40, 8, 8, 3)).astype(np.float32)
BYTES = RANDOM.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
LABELS = RANDOM.integers(0, 4, 40)


def network(device: str = "cuda", dtype: str = "float32", seed: int = 3) -> xn.Sequential:
    layers = [
        xn.Conv2D(8, 3, padding="same", activation="relu"),
        xn.BatchNorm(),
        xn.MaxPool2D(2),
        xn.Flatten(),
        xn.Dropout(0.2),
        xn.Dense(16, "tanh"),
        xn.Dense(4),
    ]
    return xn.Sequential(layers, input_shape=(8, 8, 3), device=device, dtype=dtype, seed=seed)


def trainer(model: Any, **settings: Any) -> xn.Trainer:
    settings = {"loss": "softmax_cross_entropy", "optimizer": xn.optim.Adam(0.01), "metrics": ["accuracy"], **settings}
    return xn.Trainer(model, **settings)


def fitted(device: str = "cuda", data: Any = None, epochs: int = 3, **settings: Any) -> xn.Trainer:
    run = trainer(network(device), **settings)
    run.fit((IMAGES, LABELS) if data is None else data, epochs=epochs, batch_size=16, verbose=False)
    return run


def bits(model: Any) -> dict[str, bytes]:
    """Return every bit of a model's weights and buffers."""
    return {name: xn.to_numpy(array).tobytes() for name, array in model.state().items()}


def agree(found: Any, expected: Any, rtol: float = 1e-4) -> None:
    """Compare the weights and the history of two trainers, or two arrays, of which one was computed on a CPU."""
    if isinstance(found, xn.Trainer):
        for name, values in expected.history.items():
            np.testing.assert_allclose(found.history[name], values, rtol=rtol, atol=rtol, err_msg=name)
        wanted = expected.model.state()
        for name, array in found.model.state().items():
            np.testing.assert_allclose(xn.to_numpy(array), xn.to_numpy(wanted[name]), rtol=rtol, atol=rtol, err_msg=name)
        return
    np.testing.assert_allclose(xn.to_numpy(found), xn.to_numpy(expected), rtol=rtol, atol=rtol)


def bytes_in_use() -> int:
    """Return how many bytes of the current device are allocated and not free for reuse in CuPy's pool."""
    import cupy

    gc.collect()
    cupy.cuda.Device().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()
    free, total = cupy.cuda.runtime.memGetInfo()
    return int(total - free)
