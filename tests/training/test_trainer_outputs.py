"""Inputs and outputs of other forms than one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn


class Named(xn.Module):
    """A model whose output is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = xn.Dense(3)

    def forward(self, x: Any) -> Any:
        return {"logits": self.body(x), "pair": (x, [x])}


def named_loss(prediction: Any, target: Any) -> Any:
    return xn.losses.softmax_cross_entropy(prediction["logits"], target)


def named_accuracy(prediction: Any, target: Any) -> Any:
    return xn.metrics.accuracy(prediction["logits"], target)


def test_metrics_get_the_native_arrays_of_a_dict_of_outputs():
    x, y = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32), np.arange(12) % 3
    trainer = xn.Trainer(Named(), loss=named_loss, optimizer=xn.optim.SGD(0.1), metrics=[named_accuracy])
    history = trainer.fit((x, y), validation=(x, y), epochs=2, verbose=False)
    assert history["val_named_accuracy"][-1] == trainer.evaluate((x, y))["named_accuracy"]
    right = xn.to_numpy(trainer.model.predict(x)["logits"]).argmax(axis=1) == y
    assert trainer.evaluate((x, y))["named_accuracy"] == right.mean()


class OfTwo(xn.Module):
    """Takes a dict of two inputs, or two inputs."""

    def __init__(self, *, device="cpu"):
        super().__init__(device=device)
        self.a, self.b = xn.Dense(3), xn.Dense(3)
        self.seen: list[str] = []

    def forward(self, first, second=None):
        a, b = (first["a"], first["b"]) if second is None else (first, second)
        self.seen.append(f"{a.dtype} {b.dtype}")
        return self.a(a) + self.b(b)


@pytest.mark.parametrize("convert", [np.asarray, xn.Tensor])
@pytest.mark.parametrize("batch_size", [5, 256])
def test_predict_takes_a_dict_as_fit_does(convert, batch_size):
    rng = np.random.default_rng(0)
    given = {"a": rng.standard_normal((12, 4)), "b": rng.integers(0, 9, (12, 2)).astype(np.uint8)}
    model = OfTwo()
    expected = model.predict((given["a"], given["b"]))
    found = model.predict({name: convert(value) for name, value in given.items()}, batch_size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(xn.to_numpy(found), expected, rtol=1e-6)  # other batches, other sums
    assert set(model.seen) == {"float32 uint8"}
    xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.0)).fit((given, np.arange(12) % 3), verbose=False)
    assert set(model.seen) == {"float32 uint8"}


def test_predict_of_an_empty_dict():
    with pytest.raises(TypeError, match="expected at least one array, got an empty dict"):
        OfTwo().predict({})


def test_data_from_a_function_that_takes_the_epoch():
    x, y, epochs = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32), []

    def data(epoch):
        epochs.append(epoch)
        yield x, y

    def wrong(a):
        yield x, y

    run = xn.Trainer(xn.Sequential([xn.Dense(2)]), loss="mean_squared_error", optimizer=xn.optim.SGD(0.1))
    run.fit(data, epochs=3, verbose=False)
    assert epochs == [0, 1, 2]
    with pytest.raises(TypeError, match=r"the data function wrong\(a\) is called without arguments, or with epoch="):
        run.fit(wrong, verbose=False)
    with pytest.raises(TypeError, match="the data function <lambda> returned 3, expected an iterable"):
        run.fit(lambda: 3, verbose=False)
