"""Backpropagation by hand: a 2-2-2 net whose every number was worked out on paper.

Inputs .05 .10, targets .01 .99, sigmoid units, learning rate .5, one bias for each layer. Source: M. Mazur, "A step by step
backpropagation example" (2015).

Two errors after the first step are in print. .291027774 comes from changing all eight weights by gradients taken before the
step, as in gradient descent. .291027924 comes from changing w5..w8 first and propagating the error back through the new ones,
a mistake that is easily made and hard to notice; both are computed here. So are the results of 10,000 steps: the printed error
is that of the former, the printed outputs are those of the latter. The biases are constant in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xpnet as xn
from xpnet.examples._report import Folder, Report, picture
from xpnet.inspect.graph import draw_network

X, TARGET = np.array([[0.05, 0.10]]), np.array([[0.01, 0.99]])


def network() -> xn.Sequential:
    """Return the net with its initial weights: column j of a kernel holds the weights into unit j."""
    model = xn.Sequential([xn.Dense(2, "sigmoid"), xn.Dense(2, "sigmoid")], input_shape=(2,), dtype="float64")
    model.load_state(
        {
            "0.kernel": np.array([[0.15, 0.25], [0.20, 0.30]]),  # w1 w3; w2 w4
            "0.bias": np.array([0.35, 0.35]),
            "1.kernel": np.array([[0.40, 0.50], [0.45, 0.55]]),  # w5 w7; w6 w8
            "1.bias": np.array([0.60, 0.60]),
        }
    )
    for name, parameter in model.parameters().items():
        parameter.requires_grad = name.endswith("kernel")  # the text keeps the biases constant
    return model


def error(output: Any, target: Any) -> Any:
    """Return 1/2 (target - output)^2, summed over the outputs."""
    return xn.losses.half_squared_error(output, target, reduction="sum")


def gradients(model: xn.Sequential) -> dict[str, Any]:
    """Return dE/dw for both kernels."""
    model.zero_grad()
    error(model(X), TARGET).backward()
    return {name: np.array(p.grad) for name, p in model.parameters().items() if p.requires_grad}


def step(model: xn.Sequential, names: tuple[str, ...] = ("0.kernel", "1.kernel")) -> None:
    """Do one step of gradient descent with learning rate .5 on some of the kernels."""
    found = gradients(model)
    for name in names:
        model.parameters()[name].array -= 0.5 * found[name]


def step_through_new_weights(model: xn.Sequential) -> None:
    """Make the mistake: change w5..w8 first, and propagate the error back to w1..w4 through the new ones."""
    hidden, last = model.layers
    h, o = hidden(X).array, model.predict(X)
    step(model, ("1.kernel",))
    delta_o = (o - TARGET) * o * (1 - o)  # dE/dnet_o
    delta_h = delta_o @ last.kernel.array.T * h * (1 - h)
    hidden.kernel.array -= 0.5 * X.T @ delta_h


def error_of(model: xn.Sequential) -> float:
    """Return the error with the present weights."""
    return float(error(model.predict(X), TARGET))


def run(out: Folder = None) -> Report:
    """Print every number of the text; draw the net after its first step and the error over 10,000 of them."""
    report = Report("The 2-2-2 net, worked by hand")
    model = network()
    hidden, last = model.layers
    h = hidden(X)
    o = last(h)
    report.row("net_h1", ".3775", (X @ hidden.kernel.array + hidden.bias.array)[0, 0])
    report.row("out_h1, out_h2", ".593269992 .596884378", h.array)
    report.row("out_o1, out_o2", ".75136507 .772928465", o.array)
    halves = 0.5 * (o.array - TARGET) ** 2
    report.row("E_o1, E_o2", ".274811083 .023560026", halves)
    report.row("E", ".298371109", halves.sum())

    report.section("The gradient")
    found = gradients(model)
    report.row("dE/dw5", ".082167041", found["1.kernel"][0, 0])
    report.row("dE/dw1", ".000438568", found["0.kernel"][0, 0])

    report.section("One step")
    step(model)
    report.row("w5, w6", ".35891648 .408666186", last.kernel.array[:, 0])
    report.row("w7, w8", ".511301270 .561370121", last.kernel.array[:, 1])
    report.row("w1, w2", ".149780716 .19956143", hidden.kernel.array[:, 0])
    report.row("w3, w4", ".24975114 .29950229", hidden.kernel.array[:, 1])
    report.row("E after the step", ".291027774", error_of(model))
    mistaken = network()
    step_through_new_weights(mistaken)
    report.row("E if w5..w8 are changed first", ".291027924", error_of(mistaken))

    report.section("10,000 steps, with the optimizer and the training loop")
    model = network()
    trainer = xn.Trainer(model, loss=error, optimizer=xn.optim.SGD(0.5))
    errors = [float(trainer.step(X, TARGET)) for _ in range(10_000)]
    report.row("E", "3.51019e-5", error_of(model))
    for _ in range(9_999):
        step_through_new_weights(mistaken)
    report.found("E if w5..w8 are changed first", f"{error_of(mistaken):.5e}")
    report.row("out_o1, out_o2 of that net", ".015912196 .984065734", mistaken.predict(X))

    def draw(figure: Any) -> None:
        first, second = figure.subplots(1, 2, width_ratios=(1.3, 1))
        inputs, outputs = ["$i_1$", "$i_2$"], ["$o_1$", "$o_2$"]
        draw_network(network(), axes=first, digits=2, input_names=inputs, output_names=outputs)
        first.set_title("the weights before the first step")
        second.loglog(np.arange(1, len(errors) + 1), errors)
        second.set(xlabel="step", ylabel="error $E$", title="gradient descent, learning rate 0.5")

    picture(out, "by_hand.png", draw, 9.0, 3.6)
    return report
