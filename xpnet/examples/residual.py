"""Residual connections: a deep plain network that does not train, and the same depth with x + f(x), which does.

Each block's output is its input plus that of its layers, so that gradients bypass every block and thirty blocks train as
easily as three. The initial weights are a little too small here (half of the variance 1/n), enough for the gradient to vanish
in thirty plain blocks. Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", 2015.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xpnet as xn
from xpnet.data import load
from xpnet.examples._report import Folder, Report, picture

SMALL = xn.initializers.FanIn(gain=0.5)


def network(depth: int, residual: bool, seed: int) -> xn.Sequential:
    """Return `depth` blocks of 32 tanh units for digits, with or without a shortcut around each."""
    body = [xn.Dense(32, "tanh", kernel_initializer=SMALL) for _ in range(depth)]
    blocks: list[Any] = [xn.Residual([layer]) for layer in body] if residual else list(body)
    return xn.Sequential([xn.Flatten(), xn.Dense(32), *blocks, xn.Dense(10)], input_shape=(8, 8, 1), seed=seed)


def learn(model: xn.Sequential, data: Any, epochs: int, seed: int) -> xn.History:
    """Train by gradient descent with momentum."""
    optimizer = xn.optim.SGD(0.01, momentum=0.9)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, metrics=["accuracy"], seed=seed)
    return trainer.fit(data.train, validation=data.test, epochs=epochs, batch_size=64, verbose=False)


def gradient_sizes(model: xn.Sequential, data: Any) -> list[float]:
    """Return the root mean square of dloss/doutput for each block, from the first to the last."""
    x, y = data.train[0][:256], data.train[1][:256]
    outputs = xn.inspect.layer_gradients(model, "softmax_cross_entropy", x, y).outputs
    return [float(np.sqrt(np.mean(np.square(xn.to_numpy(g))))) for g in outputs.values()][1:-1]


def run(out: Folder = None, seed: int = 0, depth: int = 30, epochs: int = 10) -> Report:
    """Train both; print the accuracies; draw the losses and how the gradient vanishes."""
    report = Report(f"Residual connections, {depth} blocks")
    data = load("digits")
    models = {"plain": network(depth, False, seed), "residual": network(depth, True, seed)}
    sizes = {name: gradient_sizes(model, data) for name, model in models.items()}
    histories = {name: learn(model, data, epochs, seed) for name, model in models.items()}
    for name in models:
        report.found(f"gradient, first block / last, {name}", f"{sizes[name][0] / sizes[name][-1]:.2g}")
    report.same("parameters, plain and residual", *[model.count_parameters() for model in models.values()])
    report.at_most("test accuracy (%), plain", 30, 100 * histories["plain"]["val_accuracy"][-1])
    report.at_least("test accuracy (%), residual", 90, 100 * histories["residual"]["val_accuracy"][-1])

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for name in models:
            left.semilogy(np.arange(1, len(sizes[name]) + 1), sizes[name], label=name)
            right.plot(np.arange(1, epochs + 1), histories[name]["loss"], label=name)
        left.set(xlabel="block", ylabel="size of the gradient", title="before training: the gradient at each block")
        right.set(xlabel="epoch", ylabel="training loss", title=f"training {depth} blocks", yscale="log")
        right.legend()

    picture(out, "residual.png", draw, 9.0, 3.4)
    return report
