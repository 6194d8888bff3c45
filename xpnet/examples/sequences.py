"""Sequences: the adding problem, which a plain recurrent network cannot learn and an LSTM can, and why: the gradient vanishes.

Every step of a sequence holds a number in 0..1 and a mark; two steps are marked, one in each half, and the target is the sum of
their numbers. Always predicting 1 has a mean squared error of 1/6. A better prediction must remember a number for tens of
steps, and to learn that, the gradient must not vanish over as many. Source: S. Hochreiter, J. Schmidhuber, "Long short-term
memory", 1997.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xpnet as xn
from xpnet.examples._report import Folder, Report, picture


def make_sums(n: int, steps: int, seed: int) -> tuple[Any, Any]:
    """Return x (n, steps, 2): numbers and marks; y (n, 1): the sums of the marked numbers."""
    rng = xn.random.generator(xn.random.key(seed, "adding"))
    number, mark = rng.uniform(0, 1, (n, steps)), np.zeros((n, steps))
    for half in ((0, steps // 2), (steps // 2, steps)):
        mark[np.arange(n), rng.integers(*half, n)] = 1
    return np.stack([number, mark], axis=-1).astype(np.float32), np.sum(number * mark, 1, keepdims=True).astype(np.float32)


def network(kind: str, steps: int, seed: int, units: int = 32) -> xn.Sequential:
    """Return a plain recurrent layer or an LSTM, and one linear output.

    The plain one starts from Glorot's weights, as in the texts on the vanishing gradient; orthogonal ones, the layer's default,
    delay it.
    """
    layer = xn.LSTM(units) if kind == "LSTM" else xn.RNN(units, recurrent_initializer="glorot_uniform")
    return xn.Sequential([layer, xn.Dense(1)], input_shape=(steps, 2), seed=seed)


def learn(model: xn.Sequential, steps: int, updates: int, seed: int) -> list[float]:
    """Train with Adam on new sequences, 64 at a time; return the loss of every update."""
    trainer = xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.Adam(0.01))
    x, y = make_sums(64 * updates, steps, seed)
    return [float(trainer.step(x[i : i + 64], y[i : i + 64])) for i in range(0, len(x), 64)]


def sensitivity(model: xn.Sequential, steps: int, seed: int) -> Any:
    """Return the sensitivity to each step: the mean of |d output / d number_t| over 256 sequences, (steps,)."""
    x = xn.Tensor(make_sums(256, steps, seed + 1)[0], requires_grad=True)
    model(x).sum().backward()
    model.zero_grad()
    return np.mean(np.abs(xn.to_numpy(x.grad)[:, :, 0]), axis=0)


def run(out: Folder = None, seed: int = 0, steps: int = 40, updates: int = 800) -> Report:
    """Train both, print their errors; draw the errors and the gradients."""
    report = Report(f"Sequences: the adding problem over {steps} steps")
    xv, yv = make_sums(1000, steps, seed + 2)
    losses, before, after, wrong = {}, {}, {}, {}
    for kind in ("RNN", "LSTM"):
        model = network(kind, steps, seed)
        before[kind] = sensitivity(model, steps, seed)
        losses[kind] = learn(model, steps, updates, seed)
        after[kind] = sensitivity(model, steps, seed)
        wrong[kind] = float(np.mean((model.predict(xv) - yv) ** 2))
    report.row("error of always predicting 1 (1/6)", "0.167", float(np.mean((1 - yv) ** 2)), within=0.015)
    report.at_least("error of the plain RNN: it fails", 0.1, wrong["RNN"])
    report.at_most("error of the LSTM: it learns", 0.01, wrong["LSTM"])
    for kind in before:
        report.found(f"gradient, first step / last, {kind}", f"{before[kind][0] / before[kind][-1]:.1e} before training")

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for colour, kind in (("C1", "RNN"), ("C0", "LSTM")):
            smooth = np.convolve(losses[kind], np.ones(20) / 20, "valid")
            left.semilogy(np.arange(len(smooth)) + 20, smooth, color=colour, label=kind)
            right.semilogy(np.arange(1, steps + 1), before[kind], "--", color=colour, label=f"{kind}, before training")
            right.semilogy(np.arange(1, steps + 1), after[kind], color=colour, label=f"{kind}, after")
        left.axhline(1 / 6, color="black", linewidth=1, linestyle=":")
        left.text(updates, 1 / 6 * 1.08, "always predicting 1", ha="right", va="bottom", fontsize=8)
        left.set(xlabel="updates of 64 sequences", ylabel="mean squared error", title=f"the adding problem, {steps} steps")
        left.legend()
        right.set(xlabel="step $t$ of the sequence", ylabel="mean of |d output / d number$_t$|")
        right.set_title("how the gradient vanishes")
        right.legend(loc="lower right")

    picture(out, "sequences.png", draw, 9.5, 3.8)
    return report
