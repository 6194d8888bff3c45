"""A model that nobody refers to any more is freed at once, without the garbage collector.

Nothing holds itself through Parameters.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.layer_cases import LAYERS
from xpnet.autograd.tensor import Tensor


@pytest.fixture(autouse=True)
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def parts(model: Any) -> list[Any]:
    """Weak references to a model, its layers, Parameters and flat storage."""
    found = [*model.modules(), *model.parameters().values()]
    if model.parameters():
        found.append(model.flat_parameters)
        found.append(model.flat_parameters.values)
    return [weakref.ref(part) for part in found]


def alive(references: list[Any]) -> list[str]:
    return [repr(type(part())) for part in references if part() is not None]


def predict(model: Any, x: Any) -> None:
    for _ in range(3):
        model.predict(x)


def train(model: Any, x: Any) -> None:
    model.train()
    for _ in range(3):
        y = model(x)
        while isinstance(y, (tuple, list)):
            y = y[0]
        if isinstance(y, Tensor) and y.requires_grad:
            y.sum().backward()
    if model.parameters():
        xn.optim.Adam(0.1).step(model)


def look(model: Any, x: Any) -> None:
    model.summary(show=False)
    copy.deepcopy(model)
    model.to("cpu").eval()
    model.load_state(model.state())
    with xn.no_grad():
        model(x)


@pytest.mark.parametrize("use", [predict, train, look])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.id)
def test_every_layer(case, use):
    model = case.model("float32")
    use(model, case.batch(dtype="float32"))
    references = parts(model)
    del model
    assert alive(references) == []


def data(n: int = 48) -> tuple[Any, Any]:
    x = np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64)


def fitted(*layers: Any, callbacks: Any = (), **settings: Any) -> list[Any]:
    model = xn.Sequential([*layers], input_shape=(6,))
    trainer = xn.Trainer(
        model,
        loss="softmax_cross_entropy",
        optimizer=xn.optim.Adam(0.01),
        metrics=["accuracy"],
        callbacks=callbacks,
        **settings,
    )
    trainer.fit(data(), validation=data(), epochs=3, batch_size=8, verbose=False)
    model.predict(data()[0])
    return parts(model)


def after_an_exception() -> list[Any]:
    def crash(trainer):
        raise RuntimeError("crash")

    callbacks = [xn.training.LambdaCallback(step_end=crash)]
    model = xn.Sequential([xn.Dense(2)], input_shape=(6,))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), callbacks=callbacks)
    with pytest.raises(RuntimeError, match="crash"):
        trainer.fit(data(), verbose=False)
    assert trainer.error is None
    return parts(model)


WAYS: dict[str, Callable[[], list[Any]]] = {
    "planned steps": lambda: fitted(xn.Dense(8, "relu"), xn.Dense(2)),
    "layer by layer": lambda: fitted(xn.Dense(8, "tanh"), xn.BatchNorm(), xn.Dropout(0.5), xn.Dense(2)),
    "penalties": lambda: fitted(xn.Dense(2, kernel_regularizer=xn.regularizers.L2(0.1))),
    "accumulated": lambda: fitted(xn.Dense(2), accumulate=4),
    "recomputed": lambda: fitted(xn.Dense(8, "relu"), xn.Dense(8, "relu"), xn.Dense(8), xn.Dense(2), recompute=True),
    "callbacks": lambda: fitted(
        xn.Dense(2),
        callbacks=[
            xn.training.EarlyStopping(patience=0), xn.training.ReduceOnPlateau(), xn.training.ClipGradients(norm=1.0),
            xn.training.ExponentialMovingAverage(),
        ],
    ),
    "after an exception": after_an_exception,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_trained_model(way):
    assert alive(WAYS[way]()) == []


def test_two_hundred_models_need_the_memory_of_one():
    import tracemalloc

    def one(seed: int) -> None:
        model = xn.Sequential([xn.Dense(256, "relu"), xn.Dense(2)], input_shape=(256,), seed=seed)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01))
        x = np.ones((24, 256), np.float32)
        trainer.fit((x, np.zeros(24, np.int64)), batch_size=8, verbose=False)
        model.predict(x)

    one(0)
    tracemalloc.start()
    one(0)
    single = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    for seed in range(200):
        one(seed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * single
