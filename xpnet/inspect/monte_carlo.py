"""Monte Carlo dropout: mean and deviation of predictions under many dropout masks."""

from __future__ import annotations

from typing import NamedTuple

from xpnet import backend
from xpnet.autograd.tape import no_grad
from xpnet.autograd.tensor import bare
from xpnet.backend import Array
from xpnet.layers.dropout import Dropout
from xpnet.layers.execution import runs_on_its_device
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module


class Samples(NamedTuple):
    """Mean and standard deviation of the outputs over the samples: native arrays of the outputs' shape."""

    mean: Array
    deviation: Array


@runs_on_its_device
def monte_carlo(model: Module, x: Array, samples: int = 50, *, batch_size: int = 256, first: int = 0) -> Samples:
    """Run the model several times with dropout active and everything else in evaluation mode.

    The mean approximates the average over all thinned networks better than weight scaling does; the deviation measures the
    uncertainty. Masks are a function of the model's seed, so the same call gives the same result; the model's random
    counters are restored afterwards.

    Args:
        model: a Module with Dropout layers.
        x: (N, ...).
        samples: how many runs, at least 1.
        batch_size: examples at once.
        first: the number of the first mask; another one gives other masks.

    Returns:
        Samples(mean, deviation), each (N, ...), on the model's device.

    Raises:
        ValueError: the model has no Dropout layer, or `samples` is below 1.

    Source: Srivastava et al., "Dropout", 2014, section 7.5; Gal and Ghahramani, 2016.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, Dropout)}
    if not layers or samples < 1:
        raise ValueError(
            f"monte_carlo: the model has {len(layers)} Dropout layers and samples={samples}; both must be at least 1"
        )
    counters = model.rng_counters()
    means, deviations = [], []
    with no_grad(), eval_mode(model):
        try:
            for layer in layers.values():
                layer.training = True
            model.load_rng_counters({**counters, **dict.fromkeys(layers, first)})
            for start in range(0, max(len(x), 1), batch_size):
                batch = backend.to_device(x[start : start + batch_size], model.context.device)
                mean = bare(model(batch))
                squares = mean * 0
                for count in range(2, samples + 1):
                    # Welford's update avoids a difference of large numbers.
                    step = bare(model(batch)) - mean
                    mean = mean + step / count
                    squares = squares + step * step * ((count - 1) / count)
                means.append(mean)
                deviations.append((squares / samples) ** 0.5)
        finally:
            for layer in layers.values():
                layer.training = False
            model.load_rng_counters(counters)
    xp = backend.namespace(means[0])
    return Samples(xp.concat(means, axis=0), xp.concat(deviations, axis=0))
