"""Logic gates: OR and AND with one neuron, XOR with one hidden layer, and a three-input gate learnt by one neuron.

XOR is the classic problem that no single neuron can solve (Minsky and Papert, 1969); two hidden units suffice. The
three-input gate is that of M. Spencer-Harper, "How to build a simple neural network in 9 lines of Python code" (2015): one
sigmoid neuron without bias, whose output for the unseen [1, 0, 0] is printed as 0.99993704.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

import xpnet as xn
from xpnet.examples._report import Folder, Report, picture
from xpnet.inspect.graph import draw_network

BITS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float64)
GATES = {"OR": [0, 1, 1, 1], "AND": [0, 0, 0, 1], "XOR": [0, 1, 1, 0]}


def learn_gate(name: str, hidden: int, seed: int = 0, steps: int = 2000) -> xn.Sequential:
    """Train a network with `hidden` tanh units (0: none) and one sigmoid output on the four rows of a gate."""
    layers = [xn.Dense(hidden, "tanh"), xn.Dense(1, "sigmoid")] if hidden else [xn.Dense(1, "sigmoid")]
    model = xn.Sequential(layers, input_shape=(2,), dtype="float64", seed=seed)
    trainer = xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.Adam(0.05))
    target = np.array(GATES[name], dtype=np.float64)[:, None]
    for _ in range(steps):
        trainer.step(BITS, target)
    return model


def learn_xor(seed: int = 0, starts: int = 20) -> tuple[xn.Sequential, int]:
    """Train a net of two hidden units to compute XOR; return it and the number of restarts it took.

    From some initial weights gradient descent ends in a local minimum with an output of one half for two rows; training then
    restarts from others.
    """
    for start in range(starts):
        model = learn_gate("XOR", 2, seed + start)
        if np.all(np.abs(model.predict(BITS)[:, 0] - GATES["XOR"]) < 0.1):
            return model, start + 1
    raise RuntimeError(f"XOR was not learnt from any of {starts} starts")


def three_input_gate(steps: int = 10_000) -> xn.Sequential:
    """Train the nine-line network: weights 2u - 1, u from NumPy's legacy generator with seed 1; full batch, learning rate 1."""
    x = np.array([[0, 0, 1], [1, 1, 1], [1, 0, 1], [0, 1, 1]], dtype=np.float64)
    y = np.array([[0], [1], [1], [0]], dtype=np.float64)
    model = xn.Sequential([xn.Dense(1, "sigmoid", use_bias=False)], input_shape=(3,), dtype="float64")
    model.load_state({"0.kernel": 2 * np.random.RandomState(1).random_sample((3, 1)) - 1})
    cost = partial(xn.losses.half_squared_error, reduction="sum")
    trainer = xn.Trainer(model, loss=cost, optimizer=xn.optim.SGD(1.0))
    for _ in range(steps):
        trainer.step(x, y)
    return model


def run(out: Folder = None, seed: int = 0, steps: int = 10_000) -> Report:
    """Print the learnt truth tables and the three-input gate; draw the XOR network and its output."""
    report = Report("Gates")
    for name in ("OR", "AND"):
        outputs = learn_gate(name, 0, seed).predict(BITS)[:, 0]
        report.row(f"{name}, one neuron", " ".join(map(str, GATES[name])), outputs, within=0.1)
    model, starts = learn_xor(seed)
    report.row("XOR, two hidden units", "0 1 1 0", model.predict(BITS)[:, 0], within=0.1)
    report.found("starts needed", str(starts))
    alone = learn_gate("XOR", 0, seed).predict(BITS)[:, 0]
    report.row("XOR by one neuron: it cannot", "0.5 0.5 0.5 0.5", alone, within=0.1)

    report.section("Three inputs, one neuron, 10,000 steps")
    gate = three_input_gate(steps)
    report.row("output for [1, 0, 0]", "0.99993704", gate.predict(np.array([[1.0, 0.0, 0.0]])))
    neuron = xn.Sequential([xn.Dense(1, "sigmoid")], input_shape=(2,), dtype="float64")
    neuron.load_state({"0.kernel": np.array([[0.0], [1.0]]), "0.bias": np.array([4.0])})
    report.row("w = [0, 1], b = 4, x = [2, 3]", "0.999", neuron.predict(np.array([[2.0, 3.0]])))

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        draw_network(model, axes=left, input_names=["$x_1$", "$x_2$"], output_names=["XOR"])
        side = np.linspace(-0.5, 1.5, 201)
        grid = np.stack(np.meshgrid(side, side), axis=-1)
        surface = model.predict(grid.reshape(-1, 2)).reshape(201, 201)
        shades = right.contourf(side, side, surface, levels=np.linspace(0, 1, 11), cmap="Blues")
        right.contour(side, side, surface, levels=[0.5], colors="black", linewidths=1)
        for (x1, x2), output in zip(BITS, GATES["XOR"]):
            right.plot(x1, x2, "o", markersize=11, markerfacecolor="black" if output else "white", markeredgecolor="black")
        right.set(xlabel="$x_1$", ylabel="$x_2$", xticks=[0, 1], yticks=[0, 1], aspect="equal", title="its output")
        left.set_title("the network that learnt XOR")
        figure.colorbar(shades, ax=right, shrink=0.8)

    picture(out, "gates.png", draw, 9.0, 3.8)
    return report
