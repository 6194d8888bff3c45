"""Outputs of other forms than one array."""

from __future__ import annotations

from typing import Any

import numpy as np

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
