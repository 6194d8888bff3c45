"""Gradient check: backward against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xpnet.autograd.tensor import Tensor, bare
from xpnet.backend import namespace, to_numpy


class GradientError(AssertionError):
    """A gradient differs from its difference quotient."""


def check_gradients(
    function: Callable[..., Any],
    inputs: Any,
    *,
    step: float = 1e-5,
    tolerance: float = 1e-5,
    samples: int | None = None,
    seed: int = 0,
) -> float:
    """Check the gradients of `function` against central differences (f(x + h) - f(x - h)) / 2h in float64.

    A result with several elements is weighted by fixed random numbers and summed, so that every output counts.

    Args:
        function: takes Tensors, returns a Tensor (or a tuple of Tensors).
        inputs: a sequence of arrays, passed to `function` as separate arguments; a dict of arrays, passed as one dict of
            Tensors, as in xpnet.value_and_grad; or one array. They are converted to float64 and not changed.
        step: h. The truncation error is of the order h**2, the rounding error 1e-16/h.
        tolerance: the largest allowed |analytic - numeric| / max(1, |analytic| + |numeric|).
        samples: check this many elements of each input, chosen at random; None checks all.
        seed: of the weights and the choice.

    Returns:
        The largest relative error.

    Raises:
        GradientError: an error above `tolerance`; the message names the worst element with both values.

    Source: CS231n, "Neural networks part 3", gradient checks.
    """
    names = list(inputs) if isinstance(inputs, Mapping) else None
    arrays: Sequence[Any] = (
        [*inputs.values()] if names is not None else inputs if isinstance(inputs, (list, tuple)) else [inputs]
    )
    like = [bare(a) for a in arrays]
    base = [np.array(to_numpy(a), dtype=np.float64) for a in like]
    generator = np.random.default_rng(seed)
    weights: list[Any] = []

    def lifted(values: Sequence[Any], grad: bool) -> list[Tensor]:
        return [
            Tensor(namespace(o).asarray(v, dtype=namespace(o).float64) if hasattr(o, "dtype") else v, requires_grad=grad)
            for v, o in zip(values, like)
        ]

    def total(tensors: list[Tensor]) -> Tensor:
        result = function(*tensors) if names is None else function(dict(zip(names, tensors)))
        outputs = result if isinstance(result, tuple) else (result,)
        if not weights:
            weights.extend(generator.standard_normal(o.shape) for o in outputs)
        terms = [(o * namespace(o.array).asarray(w)).sum() for o, w in zip(outputs, weights) if isinstance(o, Tensor)]
        whole: Tensor = sum(terms[1:], start=terms[0])
        return whole

    tensors = lifted(base, True)
    total(tensors).backward()
    worst = (0.0, "")
    for number, (values, tensor) in enumerate(zip(base, tensors)):
        analytic = np.zeros_like(values) if tensor.grad is None else to_numpy(tensor.grad)
        places = np.arange(values.size)
        if samples is not None and samples < values.size:
            places = np.sort(generator.permutation(values.size)[:samples])
        for place in places:
            index = np.unravel_index(place, values.shape)
            ends = []
            for sign in (1, -1):
                moved = [v.copy() if i == number else v for i, v in enumerate(base)]
                moved[number][index] += sign * step
                ends.append(float(total(lifted(moved, False)).array))
            numeric = (ends[0] - ends[1]) / (2 * step)
            exact = float(analytic[index])
            error = abs(exact - numeric) / max(1.0, abs(exact) + abs(numeric))
            if not math.isfinite(error):
                error = math.inf
            if error > worst[0]:
                where = tuple(int(i) for i in index)
                which = number if names is None else repr(names[number])
                values_found = f"backward gives {exact:.9g}, the difference quotient {numeric:.9g}"
                worst = (error, f"input {which}, element {where}: {values_found}")
    if worst[0] > tolerance:
        raise GradientError(f"relative error {worst[0]:.3g} is above {tolerance:g} at {worst[1]}")
    return worst[0]
