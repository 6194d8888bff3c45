"""Digits: 8x8 images of handwritten digits and a dense network of one hidden layer.

1,438 training and 359 test images, included in the package.
Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xpnet as xn
from xpnet.data import load
from xpnet.examples._report import Folder, Report, picture


def network(seed: int = 0, device: str = "cpu") -> xn.Sequential:
    """Return a 64-256-10 network, with dropout because there are few examples."""
    layers = [xn.Flatten(), xn.Dense(256, "relu"), xn.Dropout(0.5), xn.Dense(10)]
    return xn.Sequential(layers, input_shape=(8, 8, 1), device=device, seed=seed)


def run(out: Folder = None, seed: int = 0, epochs: int = 60, device: str = "cpu") -> Report:
    """Train on a device, and predict the test images; draw the misclassified ones."""
    report = Report("Digits, 8x8")
    data = load("digits")
    model = network(seed, device)
    optimizer = xn.optim.Adam(0.002)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, metrics=["accuracy"], seed=seed)
    trainer.fit(data.train, epochs=epochs, batch_size=32, verbose=False)
    report.at_least("test accuracy (%)", 97, 100 * trainer.evaluate(data.test)["accuracy"])

    x, y = data.test
    probability = xn.ops.softmax(model.predict(x))
    predicted = probability.argmax(axis=1)
    wrong = np.flatnonzero(predicted != y)[:8]
    right = np.flatnonzero(predicted == y)[: 16 - len(wrong)]

    def draw(figure: Any) -> None:
        for axes, i in zip(figure.subplots(2, 8).ravel(), [*wrong, *right]):
            axes.imshow(x[i, :, :, 0], cmap="gray_r", vmin=0, vmax=1)
            axes.axis("off")
            colour = "black" if predicted[i] == y[i] else "#c02020"
            text = f"{predicted[i]} ({100 * probability[i, predicted[i]]:.0f} %)"
            axes.set_title(text, color=colour, fontsize=8, loc="center", fontweight="normal")
        figure.suptitle("prediction (with its probability); red: wrong", fontsize=9)

    picture(out, "digits.png", draw, 7.5, 2.6)
    return report
