"""Perceptrons: NAND, an adder built of NANDs, and why only the signs of weights and biases matter.

A perceptron is a dense layer of one unit with a step activation: 1 where w . x + b > 0, else 0. With weights -2, -2
and bias 3 it computes NAND, and from NANDs any circuit can be built. Source: M. Nielsen, "Neural Networks and Deep Learning"
(2015), chapter 1, with its exercises on sigmoid neurons that simulate perceptrons.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xpnet as xn
from xpnet.examples._report import Folder, Report, picture

BITS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float64)


def unit(weights: list[float], bias: float, activation: str = "step") -> xn.Sequential:
    """Return one neuron with these weights and this bias."""
    model = xn.Sequential([xn.Dense(1, activation)], input_shape=(len(weights),), dtype="float64")
    model.load_state({"0.kernel": np.array(weights)[:, None], "0.bias": np.array([bias])})
    return model


NAND = unit([-2, -2], 3)


def nand(a: Any, b: Any) -> Any:
    """Compute the NAND of two arrays of bits with the perceptron."""
    return NAND.predict(np.stack([a, b], axis=-1))[..., 0]


def add_bits(a: Any, b: Any) -> tuple[Any, Any]:
    """Return (carry, sum) of two arrays of bits, from five NANDs wired as in the text."""
    c = nand(a, b)
    return nand(c, c), nand(nand(a, c), nand(c, b))


def network(scale: float, activation: str, seed: int) -> xn.Sequential:
    """Return a 3-4-2 network of random weights and biases, all multiplied by `scale`."""
    normal = xn.initializers.Normal(scale)
    layers = [xn.Dense(n, activation, kernel_initializer=normal, bias_initializer=normal) for n in (4, 2)]
    return xn.Sequential(layers, input_shape=(3,), dtype="float64", seed=seed)


def run(out: Folder = None, seed: int = 0) -> Report:
    """Print the truth tables and the two exercises; draw how the sigmoid neuron approaches a step."""
    report = Report("Perceptrons")
    a, b = BITS.T
    report.row("NAND of 00, 01, 10, 11", "1 1 1 0", nand(a, b))
    report.row("w . x + b for 00, 01, 10, 11", "3 1 1 -1", BITS @ np.array([-2, -2]) + 3)
    carry, total = add_bits(a, b)
    report.row("sum of two bits", "0 1 1 0", total)
    report.row("carry", "0 0 0 1", carry)

    report.section("All weights and biases times c > 0: a perceptron network behaves the same")
    x = xn.random.generator(xn.random.key(seed, "inputs")).standard_normal((1000, 3))
    one = network(1.0, "step", seed).predict(x)
    for c in (0.1, 10.0, 1000.0):
        changed = np.mean(network(c, "step", seed).predict(x) != one)
        report.row(f"outputs that change, c = {c:g}", "0", changed)

    report.section("Sigmoid neurons with c -> infinity: the outputs of perceptrons")
    gaps = []
    for c in (1.0, 10.0, 100.0, 1e3, 1e6):
        smooth = network(c, "sigmoid", seed).predict(x)
        gaps.append(float(np.mean(np.abs(smooth - one) > 0.01)))
        report.found(f"outputs off by more than 0.01, c = {c:g}", f"{gaps[-1]:.4f}")
    report.row("and in the limit", "0", gaps[-1])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        z = np.linspace(-4, 4, 801)
        for c in (1.0, 3.0, 10.0):
            axes.plot(z, xn.ops.sigmoid(c * z), label=f"sigmoid, $c$ = {c:g}")
        axes.plot(z, xn.ops.step(z), "k--", linewidth=1, label="step")
        axes.set_xlabel("$w \\cdot x + b$ before it is multiplied by $c$")
        axes.set_ylabel("output")
        axes.legend(loc="lower right")
        axes.set_title("With large weights a sigmoid neuron is a perceptron")

    picture(out, "perceptrons.png", draw, 5.5, 3.2)
    return report
