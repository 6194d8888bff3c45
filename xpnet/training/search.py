"""Checks before a long run: which learning rate, and whether the model can learn one batch by heart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xpnet.backend import to_numpy

if TYPE_CHECKING:
    from xpnet.training.trainer import Trainer


class _Undo:
    """Puts a trainer's model, optimizer and counters back as they were."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        trainer = self.trainer
        self.model = {name: to_numpy(array).copy() for name, array in trainer.model.state().items()}
        self.counters = trainer.model.counters()
        self.optimizer = trainer.optimizer.state()
        self.rate = trainer.optimizer.learning_rate
        self.iteration = trainer.iteration

    def __exit__(self, *exception: object) -> None:
        trainer = self.trainer
        trainer.model.load_state(self.model)
        trainer.model.load_counters(self.counters)
        trainer.model.zero_grad()
        trainer.optimizer.load_state(self.optimizer)
        trainer.optimizer.learning_rate = self.rate
        trainer.iteration = self.iteration


@dataclass(frozen=True)
class LearningRates:
    """What :func:`find_learning_rate` measured.

    Attributes:
        rates: the learning rates, growing.
        losses: the loss at each, smoothed.
        suggestion: a tenth of the rate at the lowest loss. (The steepest fall would depend more on the noise of the batches.)
    """

    rates: list[float]
    losses: list[float]
    suggestion: float


def find_learning_rate(
    trainer: Trainer, data: Any, *, lowest: float = 1e-6, highest: float = 10.0, steps: int = 100, batch_size: int = 32
) -> LearningRates:
    """Train for some steps with a learning rate that grows exponentially, and see where the loss is lowest.

    It ends early where the loss has grown to four times its best. Model and optimizer are put back afterwards.

    Args:
        trainer: a Trainer.
        data: as for `fit`; gone through again and again.
        lowest, highest: the first and the last learning rate.
        steps: how many.
        batch_size: examples a batch.

    Raises:
        ValueError: rates that do not grow, or fewer than 10 steps.

    Source: Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3.
    """
    from xpnet.training.data_adapter import as_batches
    from xpnet.training.trainer import NotFiniteError

    if not 0 < lowest < highest or steps < 10:
        raise ValueError(f"find_learning_rate: expected 0 < lowest < highest and steps >= 10, got {lowest}, {highest}, {steps}")
    batches = as_batches(data, trainer.model, batch_size, True, trainer.seed)
    rates: list[float] = []
    smooth: list[float] = []
    mean = 0.0
    with _Undo(trainer):
        source = (batch for epoch in range(steps) for batch in batches.epoch(epoch))
        for i, (x, y) in zip(range(steps), source):
            rate = lowest * (highest / lowest) ** (i / (steps - 1))
            trainer.optimizer.learning_rate = rate
            try:
                loss = float(trainer.step(x, y))
            except NotFiniteError:
                break
            mean = 0.9 * mean + 0.1 * loss
            value = mean / (1 - 0.9 ** (i + 1))
            if not math.isfinite(value) or (smooth and value > 4 * min(smooth)):
                break
            rates.append(rate)
            smooth.append(value)
    if len(rates) < 3:
        raise ValueError(f"find_learning_rate: the loss grew without bound from a rate of {lowest:g} on; begin lower")
    return LearningRates(rates, smooth, rates[smooth.index(min(smooth))] / 10)


def overfit_one_batch(trainer: Trainer, x: Any, y: Any, *, steps: int = 200) -> list[float]:
    """Train on one batch again and again: a sound model learns it by heart, so the losses must come near 0.

    Model and optimizer are put back afterwards.

    Returns:
        The loss before each step.

    Source: CS231n, "Neural networks part 3", sanity checks.
    """
    with _Undo(trainer):
        return [float(trainer.step(x, y)) for _ in range(steps)]
