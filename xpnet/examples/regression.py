"""Regression: a test score from hours of study and sleep, and a crop's yield from fertiliser, sun and rain.

The score is the small problem of S. Welch, "Neural networks demystified" (2014): three students, two inputs, 2-3-1 sigmoid
units, hours and scores divided by their largest values (he trains with BFGS; Adam does here). With so few examples the net
overfits; a penalty on the weights keeps the learnt function smooth. The crop data follow a rule, so that the true function is
known everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xpnet as xn
from xpnet.data.preprocessing import Standardize
from xpnet.examples._report import Folder, Report, picture

HOURS = np.array([[3, 5], [5, 1], [10, 2]], dtype=np.float64)  # studied, slept
SCORE = np.array([[75], [82], [93]], dtype=np.float64)


def score_network(seed: int, decay: float = 0.0) -> xn.Sequential:
    """Return a 2-3-1 network of sigmoid units."""
    penalty = xn.regularizers.L2(decay) if decay else None
    layers = [xn.Dense(n, "sigmoid", kernel_regularizer=penalty) for n in (3, 1)]
    return xn.Sequential(layers, input_shape=(2,), dtype="float64", seed=seed)


def learn_scores(model: xn.Sequential, hours: Any, score: Any, steps: int) -> None:
    """Train on all examples at once, with hours / 10 and score / 100."""
    trainer = xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.Adam(0.03))
    for _ in range(steps):
        trainer.step(hours / 10, score / 100)


def crop_yield(fertiliser: Any, sun: Any, rain: Any) -> Any:
    """Compute the rule, in tonnes per hectare.

    Fertiliser has diminishing returns, medium sun and rain are best, and without rain fertiliser has no effect.
    """
    water = np.exp(-(((rain - 600) / 250) ** 2))
    light = np.exp(-(((sun - 7) / 3) ** 2))
    return 2 + 6 * (1 - np.exp(-fertiliser / 80)) * water + 2 * light * water


def make_crops(n: int, seed: int) -> tuple[Any, Any]:
    """Return x (n, 3): kg per hectare, hours per day, mm per year; y (n, 1): the yield with noise of 0.1 tonnes."""
    rng = xn.random.generator(xn.random.key(seed, "crops"))
    x = rng.uniform([0, 3, 100], [250, 11, 1100], (n, 3))
    return x, (crop_yield(*x.T) + 0.1 * rng.standard_normal(n))[:, None]


def learn_crops(seed: int, epochs: int) -> tuple[xn.Sequential, Standardize, float]:
    """Train 3-32-32-1 with tanh units on 2,000 fields; return the model, its scaling, and its error against the rule."""
    x, y = make_crops(2000, seed)
    scale = Standardize()
    scale.fit(x)
    model = xn.Sequential([xn.Dense(32, "tanh"), xn.Dense(32, "tanh"), xn.Dense(1)], input_shape=(3,), seed=seed)
    trainer = xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.Adam(0.003), seed=seed)
    trainer.fit((scale(x).astype(np.float32), y.astype(np.float32)), epochs=epochs, batch_size=50, verbose=False)
    xv, _ = make_crops(2000, seed + 1)
    wrong = model.predict(scale(xv).astype(np.float32))[:, 0] - crop_yield(*xv.T)
    return model, scale, float(np.sqrt(np.mean(wrong**2)))


def run(out: Folder = None, seed: int = 0, steps: int = 3000, epochs: int = 60) -> Report:
    """Learn both; print the scores beside the true ones and the crop's error; draw what was learnt."""
    report = Report("Regression")
    free, held = score_network(seed), score_network(seed, decay=1e-4)
    learn_scores(free, HOURS, SCORE, steps)
    learn_scores(held, HOURS, SCORE, steps)
    report.row("scores of the three students", "75 82 93", 100 * free.predict(HOURS / 10), within=1)
    report.found("8 h of study, 3 h of sleep", f"{100 * free.predict(np.array([[0.8, 0.3]]))[0, 0]:.1f}")
    report.found("the same with L2", f"{100 * held.predict(np.array([[0.8, 0.3]]))[0, 0]:.1f}")
    model, scale, error = learn_crops(seed, epochs)
    report.at_most("crop: root mean squared error (t/ha)", 0.15, error)

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        study, sleep = np.linspace(0, 11, 101), np.linspace(0, 10, 101)
        grid = np.stack(np.meshgrid(study, sleep), axis=-1).reshape(-1, 2)
        surface = 100 * held.predict(grid / 10).reshape(101, 101)
        shades = left.contourf(study, sleep, surface, levels=12, cmap="viridis")
        left.plot(*HOURS.T, "wo", markeredgecolor="black")
        for (x, y), score in zip(HOURS, SCORE[:, 0]):
            left.annotate(f"{score:.0f}", (x, y), (5, 5), textcoords="offset points", color="white", fontweight="bold")
        left.set(xlabel="hours studied", ylabel="hours slept", title="test score (three students, L2)")
        figure.colorbar(shades, ax=left)
        fertiliser = np.linspace(0, 250, 101)
        for number, rain in enumerate((200, 400, 600)):
            x = np.stack([fertiliser, np.full(101, 7.0), np.full(101, float(rain))], axis=1)
            learnt = model.predict(scale(x).astype(np.float32))[:, 0]
            right.plot(fertiliser, learnt, color=f"C{number}", label=f"{rain} mm of rain")
            right.plot(fertiliser, crop_yield(*x.T), "--", color=f"C{number}", linewidth=1)
        right.set(xlabel="fertiliser (kg/ha)", ylabel="yield (t/ha)", title="learnt (solid) and the rule (dashed)")
        right.legend()

    picture(out, "regression.png", draw, 9.5, 3.8)
    return report
