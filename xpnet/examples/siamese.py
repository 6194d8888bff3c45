"""Siamese pair: one network applied to two inputs, whose outputs are compared.

Two images go through the same layers; the contrastive loss pulls the codes of equal digits together and pushes those of
different digits apart. Sharing weights needs nothing special: the network is called twice, and the gradients of both calls add.
Source: R. Hadsell, S. Chopra, Y. LeCun, "Dimensionality reduction by learning an invariant mapping", 2006.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xpnet as xn
from xpnet.data import load
from xpnet.examples._report import Folder, Report, picture

MARGIN = 1.0


class Siamese(xn.Module):
    """Codes of pairs of images, from one network for both.

    Args:
        code: the size of a code; codes of size 2 can be drawn.
    """

    def __init__(self, code: int = 2, *, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.encoder = xn.Sequential([xn.Flatten(), xn.Dense(64, "relu"), xn.Dense(64, "relu"), xn.Dense(code)])

    def forward(self, pairs: Any) -> Any:
        """Encode pairs (N, 2, H, W, C) as (N, 2, code), with two calls of the network."""
        return xn.ops.stack([self.encoder(pairs[:, 0]), self.encoder(pairs[:, 1])], axis=1)


def make_pairs(x: Any, y: Any, n: int, seed: int) -> tuple[Any, Any]:
    """Return n pairs (n, 2, H, W, C), half of them of the same digit, and whether they are (1 or 0)."""
    rng = xn.random.generator(xn.random.key(seed, "pairs"))
    first = rng.integers(0, len(x), n)
    second = rng.integers(0, len(x), n)
    of_digit = [np.flatnonzero(y == k) for k in range(10)]
    for i in range(0, n, 2):
        second[i] = rng.choice(of_digit[y[first[i]]])
    return np.stack([x[first], x[second]], axis=1), (y[first] == y[second]).astype(np.float32)


def run(out: Folder = None, seed: int = 0, epochs: int = 20) -> Report:
    """Train on pairs of digits; print how well equal and different ones are separated; draw the codes."""
    report = Report("Siamese pair")
    data = load("digits")
    pairs, same = make_pairs(*data.train, 10_000, seed)
    model = Siamese(seed=seed)
    trainer = xn.Trainer(model, loss="contrastive", optimizer=xn.optim.Adam(0.002), seed=seed)
    trainer.fit((pairs, same), epochs=epochs, batch_size=64, verbose=False)

    names = sorted(model.parameters())
    report.same("weights are stored once", 6, len(names))
    held_out, truth = make_pairs(*data.test, 2_000, seed + 1)
    codes = model.predict(held_out)
    distance = np.sqrt(np.sum((codes[:, 0] - codes[:, 1]) ** 2, axis=1))
    report.found("mean distance, same digit", f"{float(distance[truth == 1].mean()):.3f}")
    report.found("mean distance, different digits", f"{float(distance[truth == 0].mean()):.3f}")
    right = 100 * float(np.mean((distance < MARGIN / 2) == (truth == 1)))
    report.at_least("held-out pairs classified right (%)", 90, right)

    def draw(figure: Any) -> None:
        from matplotlib.patheffects import withStroke

        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        halo = [withStroke(linewidth=3, foreground="white")]
        shown = model.encoder.predict(data.test[0])
        for k in range(10):
            chosen = shown[data.test[1] == k]
            left.plot(*chosen.T, "o", markersize=3, color=f"C{k}" if k < 6 else None, alpha=0.7)
            left.text(
                *np.median(chosen, axis=0), str(k), fontsize=13, fontweight="bold", ha="center", va="center", path_effects=halo
            )
        left.set(title="codes of the test images", xlabel="first number of the code", ylabel="second")
        edges = np.linspace(0, float(distance.max()), 60)
        right.hist(distance[truth == 1], edges, alpha=0.75, label="same digit")
        right.hist(distance[truth == 0], edges, alpha=0.75, label="different digits")
        right.axvline(MARGIN / 2, color="black", linewidth=1, linestyle="--")
        right.set(xlabel="distance of the pair", ylabel="pairs", title="held-out pairs")
        right.legend()

    picture(out, "siamese.png", draw, 9.0, 4.0)
    return report
