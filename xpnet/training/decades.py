"""The learning rate by decades: short runs at 1e-5, 1e-4, ... from the same weights, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnet.training.search import _Undo

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer

DECADES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Decades:
    """What :func:`search_decades` measured.

    Attributes:
        losses: for every learning rate the loss before each step; shorter where it grew without bound.
        scores: for every learning rate the mean loss over the last tenth of the steps; infinite where it grew without bound.
        best: the learning rate with the lowest score. If it is the first or the last one, look beyond it.
    """

    losses: dict[float, list[float]]
    scores: dict[float, float]
    best: float

    def __str__(self) -> str:
        lines = [f"{rate:10.2g}  {score:10.5g}{'  <- best' * (rate == self.best)}" for rate, score in self.scores.items()]
        return "\n".join(["      rate        loss", *lines])


def search_decades(
    trainer: Trainer, data: Any, *, rates: Sequence[float] = DECADES, steps: int = 100, batch_size: int = 32
) -> Decades:
    """Train for some steps at each learning rate, each time from the present weights and on the same batches.

    Begin with powers of ten, then search between the best one's neighbours with `rates` of your own. Model and optimizer
    are put back afterwards.

    Args:
        trainer: a Trainer.
        data: as for `fit`; gone through again and again.
        rates: the learning rates, above 0.
        steps: how many updates at each.
        batch_size: examples a batch.

    Raises:
        ValueError: no rates, rates that are not above 0, fewer than 10 steps, or a loss that is not finite at any rate.

    Source: Nielsen, "Neural networks and deep learning", chapter 3; CS231n, "Neural networks part 3".
    """
    from xpnet.training.data_adapter import as_batches
    from xpnet.training.trainer import NotFiniteError

    if not rates or not all(rate > 0 for rate in rates) or steps < 10:
        raise ValueError(f"search_decades: expected rates above 0 and steps >= 10, got {list(rates)} and {steps}")
    batches = as_batches(data, trainer.model, batch_size, True, trainer.seed)
    losses: dict[float, list[float]] = {}
    scores: dict[float, float] = {}
    for rate in rates:
        found = losses[rate] = []
        # Rates that are far too large are among them on purpose: their overflows are no news.
        with _Undo(trainer), np.errstate(over="ignore", invalid="ignore"):
            trainer.optimizer.learning_rate = rate
            source = (batch for epoch in range(steps) for batch in batches.epoch(epoch))
            for _, (x, y) in zip(range(steps), source):
                try:
                    loss = float(trainer.step(x, y))
                except NotFiniteError:
                    break
                if not math.isfinite(loss):  # on a GPU the trainer does not look
                    break
                found.append(loss)
        tail = found[-max(steps // 10, 1) :]
        scores[rate] = sum(tail) / len(tail) if len(found) == steps else math.inf
    best = min(scores, key=scores.__getitem__)
    if not math.isfinite(scores[best]):
        raise ValueError(f"search_decades: the loss grew without bound at every rate from {min(rates):g} on; go lower")
    return Decades(losses, scores, best)
