"""Iris: three species from four lengths, with a 4-3-3 net of sigmoid units.

Every length is scaled to 0..1 on the training flowers; the three outputs are trained towards one-hot targets by full-batch
gradient descent. Source: D. Whitenack, "Building a neural net from scratch in Go"
(2017); the data are those of R. Fisher, 1936.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xpnet as xn
from xpnet.data import load, one_hot
from xpnet.data.preprocessing import MinMax
from xpnet.examples._report import Folder, Report, picture
from xpnet.inspect.figures import COLOURS
from xpnet.inspect.graph import draw_network


def network(seed: int = 0) -> xn.Sequential:
    """Return a 4-3-3 network of sigmoid units."""
    return xn.Sequential([xn.Dense(3, "sigmoid"), xn.Dense(3, "sigmoid")], input_shape=(4,), seed=seed)


def learn(model: xn.Sequential, x: Any, y: Any, epochs: int = 5000, rate: float = 5.0) -> list[float]:
    """Train by full-batch gradient descent on the mean squared error; return the losses."""
    trainer = xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.SGD(rate))
    target = one_hot(y, 3)
    return [float(trainer.step(x, target)) for _ in range(epochs)]


def run(out: Folder = None, seed: int = 0, epochs: int = 5000) -> Report:
    """Train, and print the accuracy on held-out flowers; draw the net and its mistakes."""
    report = Report("Iris")
    data = load("iris")
    scale = MinMax().fit(data.train[0])
    x, y = scale(data.train[0]), data.train[1]
    xv, yv = scale(data.test[0]), data.test[1]
    model = network(seed)
    losses = learn(model, x, y, epochs)
    predicted = model.predict(xv).argmax(axis=1)
    report.at_least("held-out accuracy (%)", 95, 100 * float(np.mean(predicted == yv)))
    report.found("training accuracy (%)", f"{100 * float(xn.metrics.accuracy(model.predict(x), y)):.2f}")
    report.found("loss, first and last", f"{losses[0]:.4f} {losses[-1]:.4f}")

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
        lengths = ["sepal length", "sepal width", "petal length", "petal width"]
        draw_network(model, axes=left, input_names=lengths, output_names=list(data.class_names))
        left.set_xlim(-1.9)
        for k, name in enumerate(data.class_names):
            for part, marker in (((x, y), "."), ((xv, yv), "o")):
                chosen = part[0][part[1] == k]
                right.plot(chosen[:, 2], chosen[:, 3], marker, color=COLOURS[k], label=name if marker == "o" else None)
        wrong = xv[predicted != yv]
        if len(wrong):
            right.plot(wrong[:, 2], wrong[:, 3], "ks", markersize=12, markerfacecolor="none", label="mistaken")
        right.set(xlabel="petal length, scaled", ylabel="petal width, scaled", title="dots: training; discs: held out")
        right.legend()

    picture(out, "iris.png", draw, 11.0, 4.2)
    return report
