"""Spiral: three arms that no line separates; a linear classifier gets half of the points right, a hidden layer nearly all.

100 points in each arm. Linear softmax: 200 steps, about 49 %. One hidden layer of 100 rectified linear units: 10,000 steps,
about 98 %. With small random weights all three classes are equally likely, so the first loss is ln 3. Source: Stanford CS231n,
"Putting it together: minimal neural network case study".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import xpnet as xn
from xpnet.examples._report import Folder, Report, picture
from xpnet.inspect.figures import COLOURS

WEIGHTS: dict[str, Any] = {"kernel_initializer": xn.initializers.Normal(0.01), "kernel_regularizer": xn.regularizers.L2(1e-3)}


def make_spiral(points: int = 100, seed: int = 0) -> tuple[Any, Any]:
    """Return x (3 * points, 2) and the index of its arm: the radius grows from 0 to 1 over 4 radians, with noise."""
    rng = xn.random.generator(xn.random.key(seed, "spiral"))
    radius = np.tile(np.linspace(0, 1, points), 3)
    label = np.repeat(np.arange(3), points)
    angle = np.concatenate([np.linspace(4 * k, 4 * k + 4, points) for k in range(3)]) + 0.2 * rng.standard_normal(3 * points)
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1), label


def linear(seed: int = 0) -> xn.Sequential:
    """Return softmax regression."""
    return xn.Sequential([xn.Dense(3, **WEIGHTS)], input_shape=(2,), dtype="float64", seed=seed)


def two_layers(hidden: int = 100, seed: int = 0) -> xn.Sequential:
    """Return a network with one hidden layer of rectified linear units."""
    layers = [xn.Dense(hidden, "relu", **WEIGHTS), xn.Dense(3, **WEIGHTS)]
    return xn.Sequential(layers, input_shape=(2,), dtype="float64", seed=seed)


def learn(model: xn.Sequential, x: Any, y: Any, steps: int) -> list[float]:
    """Train by full-batch gradient descent with learning rate 1; return the losses."""
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(1.0))
    return [float(trainer.step(x, y)) for _ in range(steps)]


def accuracy(model: xn.Sequential, x: Any, y: Any) -> float:
    """Return the accuracy in percent."""
    return 100 * float(xn.metrics.accuracy(model.predict(x, batch_size=10_000), y))


def draw_regions(axes: Any, model: xn.Sequential, x: Any, y: Any) -> None:
    """Draw the predicted class of every point of the plane in its colour, and the data over it."""
    from matplotlib.colors import ListedColormap

    side = np.linspace(-1.45, 1.45, 401)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    regions = model.predict(grid, batch_size=20_000).argmax(axis=1).reshape(401, 401)
    axes.imshow(regions, origin="lower", extent=(-1.45, 1.45) * 2, cmap=ListedColormap(COLOURS[:3]), alpha=0.3, vmin=0, vmax=2)
    axes.contour(side, side, regions, levels=[0.5, 1.5], colors="white", linewidths=1.2)
    for k in range(3):
        axes.plot(*x[y == k].T, "o", color=COLOURS[k], markersize=3.5, markeredgecolor="white", markeredgewidth=0.4)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")


def run(out: Folder = None, seed: int = 0, steps: int = 10_000) -> Report:
    """Print losses and accuracies; draw both decision boundaries."""
    report = Report("Spiral")
    x, y = make_spiral(seed=seed)
    line, net = linear(seed), two_layers(seed=seed)
    first = learn(line, x, y, 200)
    second = learn(net, x, y, steps)
    report.row("ln 3", "1.0986", math.log(3))
    report.row("first loss, linear", "1.0986", first[0], within=0.01)
    report.row("first loss, hidden layer", "1.0986", second[0], within=0.01)
    shares = accuracy(line, x, y), accuracy(net, x, y)
    report.row("accuracy (%), linear", "49", shares[0], within=7)
    report.row("accuracy (%), 100 hidden units", "98", shares[1], within=1.9)

    def draw(figure: Any) -> None:
        for axes, model, title, share in zip(figure.subplots(1, 2), (line, net), ("linear", "100 hidden units"), shares):
            draw_regions(axes, model, x, y)
            axes.set_title(f"{title}: {share:.0f} %")

    picture(out, "spiral.png", draw, 8.0, 4.0)
    return report
