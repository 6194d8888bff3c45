"""Checks before a long run: the learning-rate finder, and whether the model can overfit one batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnet.backend import to_device, to_numpy
from xpnet.layers.modes import states_of_its_own
from xpnet.runtime.deprecation import renamed_attribute, warn_renamed
from xpnet.runtime.given import as_pair
from xpnet.runtime.settings import checked
from xpnet.training.data_adapter import as_batches, build
from xpnet.training.not_finite import NotFiniteError

if TYPE_CHECKING:
    from xpnet.data import Batches
    from xpnet.training.trainer import Trainer


@contextlib.contextmanager
def _restored(trainer: Trainer) -> Iterator[None]:
    """Restore the trainer's model, optimizer and counters at the end of the block."""
    model, optimizer = trainer.model, trainer.optimizer
    arrays = {name: to_numpy(array).copy() for name, array in model.state().items()}
    counters, state = model.rng_counters(), optimizer.state()
    rate, iteration, pending = optimizer.learning_rate, trainer.iteration, trainer.pending
    parameters = model.parameters()
    gradients = {name: to_numpy(p.grad).copy() for name, p in parameters.items() if p.grad is not None}
    model.zero_grad()
    trainer.pending = 0
    try:
        with states_of_its_own(model):
            yield
    finally:
        model.load_state(arrays)
        model.load_rng_counters(counters)
        model.zero_grad()
        optimizer.learning_rate, trainer.iteration, trainer.pending = rate, iteration, pending
        optimizer.load_state(state)  # with what the learning rate was multiplied by
        for name, gradient in gradients.items():
            parameters[name].set_gradient(gradient)


@dataclass(frozen=True)
class LearningRates:
    """The result of :func:`find_learning_rate`.

    Attributes:
        rates: the learning rates.
        losses: the loss at each: smoothed in a range test, else the mean over the last tenth of the steps, infinite where the
            loss diverged.
        suggestion: of a range test a tenth of the rate at the lowest loss (the steepest descent would depend more on the noise
            of the batches), else the rate at the lowest loss. If that is the first or the last one, look beyond it.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float
    best = renamed_attribute("suggestion")

    @property
    def scores(self) -> dict[float, float]:
        """The losses by learning rate: the old name of `rates` and `losses`."""
        warn_renamed("LearningRates.scores", "LearningRates.rates and .losses")
        return dict(zip(self.rates, self.losses))


def search_decades(
    trainer: Trainer,
    data: Any,
    *,
    rates: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    steps: int = 100,
    batch_size: int = 32,
) -> LearningRates:
    """Compare learning rates: the old name of `find_learning_rate` with `rates`."""
    warn_renamed("search_decades", "find_learning_rate(rates=...)")
    return find_learning_rate(trainer, data, rates=rates, steps=steps, batch_size=batch_size)


@checked
def find_learning_rate(
    trainer: Trainer,
    data: Any,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    batch_size: int = 32,
    rates: Sequence[float] | None = None,
) -> LearningRates:
    """Find a learning rate: by a range test, or by short runs at the given `rates`.

    The range test trains for some steps with a learning rate that grows exponentially and ends early where the loss has
    grown to four times its best. With `rates`, such as powers of ten, each one is given `steps` steps from the present
    weights on the same batches: slower, and a direct comparison. Model and optimizer are restored afterwards.

    Args:
        trainer: a Trainer.
        data: as for `fit`; repeated as often as needed.
        lowest, highest: the first and the last learning rate of the range test.
        steps: how many updates, of the range test or at each rate.
        batch_size: examples a batch.
        rates: learning rates to compare, instead of a range test.

    Raises:
        ValueError: rates that do not grow or are not above 0, fewer than 10 steps, or a loss that diverges at every rate.

    Source: Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3; with `rates`: Nielsen, "Neural
    networks and deep learning", chapter 3.
    """
    if rates is not None:
        rates = list(rates)
        if not rates or not all(rate > 0 for rate in rates) or steps < 10:
            raise ValueError(f"find_learning_rate: expected rates above 0 and steps >= 10, got {rates} and {steps}")
    elif not 0 < lowest < highest or steps < 10:
        raise ValueError(f"find_learning_rate: expected 0 < lowest < highest and steps >= 10, got {lowest}, {highest}, {steps}")
    batches = as_batches(data, trainer.model, batch_size, True, trainer.seed)
    build(trainer.model, batches)
    smooth: list[float] = []
    mean = 0.0

    def diverged(loss: float) -> bool:
        nonlocal mean
        mean = 0.9 * mean + 0.1 * loss
        value = mean / (1 - 0.9 ** (len(smooth) + 1))
        if smooth and value > 4 * min(smooth):
            return True
        smooth.append(value)
        return False

    if rates is None:
        tested = [lowest * (highest / lowest) ** (i / (steps - 1)) for i in range(steps)]
        _losses(trainer, batches, tested, diverged)
        if len(smooth) < 3:
            raise ValueError(f"find_learning_rate: the loss diverged from a rate of {lowest:g} on; begin lower")
        return LearningRates(tested[: len(smooth)], smooth, tested[smooth.index(min(smooth))] / 10)
    ends = []
    for rate in rates:
        losses = _losses(trainer, batches, [rate] * steps)
        tail = losses[-(steps // 10) :]
        ends.append(sum(tail) / len(tail) if len(losses) == steps else math.inf)
    if not math.isfinite(min(ends)):
        raise ValueError(f"find_learning_rate: the loss diverged at every rate from {min(rates):g} on; go lower")
    return LearningRates(list(rates), ends, rates[ends.index(min(ends))])


def _losses(
    trainer: Trainer, batches: Batches, rates: Sequence[float], stop: Callable[[float], bool] = lambda loss: False
) -> list[float]:
    """Return the loss of one step at each learning rate, up to the first that is not finite or for which `stop` is true."""
    found: list[float] = []
    source = (batch for epoch in range(len(rates)) for batch in batches.epoch(epoch))
    # Rates that are far too large are tried on purpose: no warnings of their overflows.
    with _restored(trainer), np.errstate(over="ignore", invalid="ignore"):
        for rate, (x, y) in zip(rates, map(as_pair, source)):
            trainer.optimizer.learning_rate = rate
            try:
                loss = float(trainer.step(x, y))
            except NotFiniteError:
                break
            if not math.isfinite(loss) or stop(loss):  # on a GPU the trainer does not check
                break
            found.append(loss)
    return found


@checked
def overfit_one_batch(trainer: Trainer, x: Any, y: Any, *, steps: int = 200) -> list[float]:
    """Train on one batch again and again: a sound model overfits it, so the losses must come near 0.

    Model and optimizer are restored afterwards.

    Returns:
        The loss before each step.

    Source: CS231n, "Neural networks part 3", sanity checks.
    """
    from xpnet.data.arrays import tree_map  # importing xpnet does not import the data

    batches = as_batches((x, y), trainer.model, 32, False, trainer.seed, "overfit_one_batch")
    build(trainer.model, batches)
    x, y = tree_map(lambda leaf: to_device(leaf, trainer.model.context.device), batches.given)
    with _restored(trainer):
        return [float(trainer.step(x, y)) for _ in range(steps)]
